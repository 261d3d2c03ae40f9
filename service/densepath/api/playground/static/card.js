/** One response: its figures, its tokens and its strip; or the error in their place. */

import { make } from "./dom.js";
import { plain, signed } from "./format.js";
import { VALUES } from "./scale.js";
import { makeStrip } from "./strip.js";
import { Tokens } from "./tokens.js";
import { errorLines } from "./work.js";

export class Card {
  /**
   * @param {import("./view.js").Side} side
   * @param {Set<number>} eosIds
   * @param {import("./tokens.js").Handlers} on
   */
  constructor(side, eosIds, on) {
    this.side = side;
    this.element = make("article", { class: "card response", "aria-labelledby": `title-${side.name}` });
    this.element.append(
      make(
        "h2",
        { id: `title-${side.name}` },
        make("span", { class: "badge", "aria-hidden": "true" }, side.name),
        `Response ${side.name}`,
      ),
    );
    if (side.error !== null || side.result === null) {
      this.element.append(
        make(
          "div",
          { class: "failed" },
          make("p", {}, "Not scored"),
          ...(side.error ? errorLines(side.error) : []),
        ),
      );
      return;
    }
    this.tokens = new Tokens(side, eosIds, on);
    this.strip = makeStrip({ hover: on.hover, pick: (i) => this.tokens?.focus(i) });
    this.element.append(figures(side.result), this.tokens.element, this.strip.element);
  }

  /**
   * @param {string} name  of VALUES
   * @param {import("./scale.js").Scale} scale
   * @param {number} reach
   * @param {boolean} numbers
   */
  paint(name, scale, reach, numbers) {
    if (!this.tokens || !this.strip) return;
    this.tokens.paint(name, scale, numbers);
    const values = this.side.result?.[VALUES[name].field];
    this.strip.element.hidden = values === undefined;
    if (values !== undefined) this.strip.draw(values, scale, reach, inWords(values, VALUES[name]));
  }

  /**
   * @param {number | null} active
   * @param {number | null} selected
   * @param {boolean} counterpart
   */
  point(active, selected, counterpart) {
    this.tokens?.point(active, selected, counterpart);
    this.strip?.point(active);
  }
}

/** @param {Object<string, any>} result */
function figures(result) {
  const count = result.rewards.length;
  const mean = result.sum / count;
  const entries = [
    ["Sum of rewards", signed(result.sum), "sum"],
    ["Mean reward", signed(mean), "mean"],
    ["Tokens", String(count), "count"],
    ["Ended", result.ended === undefined ? "not known" : result.ended ? "yes" : "no", "ended"],
  ];
  return make(
    "dl",
    { class: "figures" },
    ...entries.map(([term, value, name]) =>
      make("div", { class: name }, make("dt", {}, term), make("dd", {}, value)),
    ),
  );
}

/**
 * @param {number[]} values
 * @param {import("./scale.js").Value} value
 */
function inWords(values, { words, diverging }) {
  const number = diverging ? signed : plain;
  const places = values.map((_, i) => i).sort((a, b) => values[a] - values[b]);
  const [lowest, highest] = [places[0], places[places.length - 1]];
  return `The ${words} of each token: lowest ${number(values[lowest])} at token ${lowest + 1}, highest ${number(values[highest])} at token ${highest + 1}`;
}
