/** A bar a token: up for a positive value, down for a negative one. */

import { make } from "./dom.js";
import { signed } from "./format.js";
import { colour, css } from "./scale.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;
const WIDEST_BAR = 50; // pixels
const APART_UP_TO = 150; // bars; more of them touch each other

/**
 * @typedef {Object} Strip
 * @property {HTMLElement} element
 * @property {(columns: (number | null)[], scale: import("./scale.js").Scale, reach: number, words: string) => void} draw
 *   null is a column without a value; `reach` is the value of a bar of full height
 * @property {(index: number | null) => void} point  mark a column
 */

/**
 * @param {{hover: (index: number | null) => void, pick: (index: number) => void}} on
 * @returns {Strip}
 */
export function makeStrip(on) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("preserveAspectRatio", "none");
  const top = make("span", { "aria-hidden": "true" });
  const bottom = make("span", { "aria-hidden": "true" });
  const element = make("div", { class: "strip" }, svg, make("div", { class: "reach" }, top, bottom));
  let count = 0;

  const columnAt = (/** @type {MouseEvent} */ event) => {
    const { left, width } = svg.getBoundingClientRect();
    return Math.max(0, Math.min(count - 1, Math.floor(((event.clientX - left) / width) * count)));
  };
  svg.addEventListener("pointermove", (event) => on.hover(columnAt(event)));
  svg.addEventListener("pointerleave", () => on.hover(null));
  svg.addEventListener("click", (event) => on.pick(columnAt(event)));

  return {
    element,
    draw(columns, scale, reach, words) {
      count = columns.length;
      const zero = scale.diverging ? HEIGHT / 2 : 0;
      const most = scale.diverging ? HEIGHT / 2 : HEIGHT;
      svg.setAttribute("viewBox", `0 0 ${count} ${HEIGHT}`);
      svg.style.maxWidth = `${count * WIDEST_BAR}px`;
      svg.setAttribute("aria-label", words);
      top.textContent = scale.diverging ? signed(reach, 1) : "0";
      bottom.textContent = signed(-reach, 1);
      const width = count <= APART_UP_TO ? 0.86 : 1;
      const bars = columns.map((value, i) => {
        if (value === null) return rect({ class: "changed", x: i, y: 0, width: 1, height: HEIGHT });
        const height = Math.max((Math.abs(value) / reach) * most, 1);
        const bar = rect({
          class: count <= APART_UP_TO ? "value apart" : "value",
          x: i + (1 - width) / 2,
          y: value > 0 ? zero - height : zero,
          width,
          height,
        });
        bar.style.fill = css(colour(scale, value));
        return bar;
      });
      const cursor = rect({ class: "cursor", x: 0, y: 0, width: 1, height: HEIGHT, visibility: "hidden" });
      svg.replaceChildren(
        cursor,
        ...bars,
        rect({ class: "zero", x: 0, y: zero ? zero - 0.5 : 0, width: count, height: 1 }),
      );
    },
    point(index) {
      const cursor = svg.firstElementChild;
      cursor?.setAttribute("visibility", index === null ? "hidden" : "visible");
      cursor?.setAttribute("x", String(index ?? 0));
    },
  };
}

/** @param {Object<string, string | number>} attributes */
function rect(attributes) {
  const element = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}
