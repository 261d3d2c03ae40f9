/** The colour scale, with its ends in nats. */

import { make } from "./dom.js";
import { colour, css } from "./scale.js";

const STEPS = 16;
const MEANING = {
  reward: ["likelier to the reference", "likelier to the SFT"],
  return: ["less to come", "more to come"],
  sft: ["unlikely", "likely"],
  reference: ["unlikely", "likely"],
};

/**
 * @param {HTMLElement} element
 * @param {string} name  of VALUES
 * @param {import("./scale.js").Scale} scale
 */
export function showLegend(element, name, scale) {
  const { end, cut, diverging } = scale;
  const stops = Array.from({ length: STEPS + 1 }, (_, i) => -end + (i / STEPS) * (diverging ? 2 : 1) * end);
  const ramp = make("div", { class: "ramp", "aria-hidden": "true" });
  ramp.style.backgroundImage = `linear-gradient(to right, ${stops.map((value) => css(colour(scale, value))).join(", ")})`;
  const low = `${cut ? "≤ " : ""}−${end}`;
  const high = diverging ? `${cut ? "≥ " : ""}+${end}` : "0";
  const [left, right] = MEANING[/** @type {keyof MEANING} */ (name)];
  element.replaceChildren(
    make(
      "div",
      { class: "ends" },
      make("span", {}, low),
      ...(diverging ? [make("span", {}, "0")] : []),
      make("span", {}, `${high} nats`),
    ),
    ramp,
    make("div", { class: "ends quiet" }, make("span", {}, left), make("span", {}, right)),
  );
}
