/** What tells response B from response A. */

import { counted, signed } from "./format.js";
import { differences, split } from "./compare.js";
import { make, withSubscript } from "./dom.js";
import { VALUES, scaleOf } from "./scale.js";
import { makeStrip } from "./strip.js";

/**
 * @param {HTMLElement} element
 * @param {Object<string, any>} a  the result of A
 * @param {Object<string, any>} b
 * @param {import("./compare.js").Alignment | null} alignment  null where ids are missing
 * @param {string} name  of VALUES
 * @param {boolean} dark
 * @param {{hover: (index: number | null) => void, pick: (index: number) => void}} on  of tokens of B
 */
export function showDifference(element, a, b, alignment, name, dark, on) {
  const mean = b.sum / b.rewards.length - a.sum / a.rewards.length;
  const entries = [
    ["Sum of rewards", b.sum - a.sum, "sum"],
    ["Mean reward", mean, "mean"],
  ];
  const sums = [
    make("h2", { id: "difference-title" }, "Difference, B − A"),
    make(
      "dl",
      { class: "figures" },
      ...entries.map(([term, value, kind]) =>
        make(
          "div",
          { class: String(kind) },
          make("dt", {}, String(term)),
          make("dd", {}, signed(Number(value))),
        ),
      ),
    ),
  ];
  if (alignment !== null) sums.push(inWords(alignment, a, b));
  const { field, name: label } = VALUES[name];
  const whole = alignment !== null && a[field] !== undefined && b[field] !== undefined;
  const strip = whole ? [make("div", {}, ...stripOf(alignment, a[field], b[field], label, dark, on))] : [];
  element.replaceChildren(make("div", {}, ...sums), ...strip);
}

/**
 * @param {import("./compare.js").Alignment} alignment
 * @param {Object<string, any>} a
 * @param {Object<string, any>} b
 */
function inWords(alignment, a, b) {
  const { prefix, suffix, changedA, changedB } = alignment;
  if (!changedA && !changedB) return make("p", { class: "where" }, "Both have the same token ids.");
  const { beginning, changed, end } = split(alignment, a.rewards, b.rewards);
  const parts = [
    ...(prefix
      ? [`${signed(beginning)} in the ${counted(prefix, "token")} that they share at the beginning`]
      : []),
    `${signed(changed)} in what changed (${counted(changedA, "token")} of A, ${changedB} of B)`,
    ...(suffix ? [`${signed(end)} in the ${counted(suffix, "token")} that they share at the end`] : []),
  ];
  return make("p", { class: "where" }, `Of the sum's difference, ${parts.join(", ")}.`);
}

/**
 * @param {import("./compare.js").Alignment} alignment
 * @param {number[]} valuesA
 * @param {number[]} valuesB
 * @param {string} label
 * @param {boolean} dark
 * @param {{hover: (index: number | null) => void, pick: (index: number) => void}} on
 */
function stripOf(alignment, valuesA, valuesB, label, dark, on) {
  const columns = differences(alignment, valuesA, valuesB);
  const shared = columns.filter((value) => value !== null);
  const scale = scaleOf(shared, true, dark);
  const reach = Math.max(scale.end, ...shared.map(Math.abs));
  const { prefix, changedA, changedB } = alignment;
  const wide = Math.max(changedA, changedB);
  const inB = (/** @type {number} */ column) =>
    column < prefix
      ? column
      : column < prefix + wide
        ? Math.max(0, Math.min(column, prefix + changedB - 1))
        : column - wide + changedB;
  const strip = makeStrip({
    hover: (column) => on.hover(column === null ? null : inB(column)),
    pick: (column) => on.pick(inB(column)),
  });
  strip.draw(
    columns,
    scale,
    reach,
    `Difference of each shared token; ${counted(wide, "column")} for what changed`,
  );
  return [
    make(
      "p",
      { class: "quiet strip-title" },
      "Token by token, ",
      ...withSubscript(label),
      "; grey: changed, so there is nothing to subtract",
    ),
    strip.element,
  ];
}
