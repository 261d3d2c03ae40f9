/** The scores: cards on one scale, their difference, and the token that is looked at in all of them. */

import { Card } from "./card.js";
import { align, counterpart } from "./compare.js";
import { showDetails } from "./details.js";
import { showDifference } from "./difference.js";
import { byId, make } from "./dom.js";
import { showLegend } from "./legend.js";
import { notesOn } from "./notes.js";
import { showPrompt } from "./prompt.js";
import { VALUES, scaleOf } from "./scale.js";

const NUMBERS_UP_TO = 48; // tokens of a response; more of them are read by colour

/**
 * @typedef {Object} Side  one response and what is known of it
 * @property {string} name  "A" or "B"
 * @property {import("./items.js").Item | null} item
 * @property {Object<string, any> | null} result  as the API answers it; null where there is an error
 * @property {(Partial<import("./api.js").ApiError> & {message: string}) | null} error
 * @property {string | undefined} version  of the pair that scored it
 */

export class View {
  /** @param {{edit: (side: Side, index: number, text: string) => void, refuse: (why: string) => void}} on */
  constructor(on) {
    this.on = on;
    this.eosIds = /** @type {Set<number>} */ (new Set());
    this.value = "reward";
    /** @type {Side[]} */ this.sides = [];
    /** @type {Card[]} */ this.cards = [];
    /** @type {import("./compare.js").Alignment | null} */ this.alignment = null;
    /** @type {{name: string, index: number} | null} */ this.selected = null;
    /** @type {{name: string, index: number} | null} */ this.hovered = null;
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.paint());
  }

  /**
   * Show other scores.
   * @param {Side[]} sides
   * @param {{prompt: boolean, served: string | undefined}} options  whether their prompt is shown; the served pair's version
   */
  show(sides, { prompt, served }) {
    this.sides = sides;
    this.selected = this.hovered = null;
    this.cards = sides.map((side) => new Card(side, this.eosIds, this.#handlers(side)));
    byId("cards").replaceChildren(...this.cards.map((card) => card.element));
    byId("prompt-shown").hidden = !prompt;
    if (prompt) showPrompt(byId("prompt-shown"), sides[0].item);
    byId("notes").replaceChildren(...notesOn(sides, served).map((note) => make("li", {}, note)));
    byId("results").hidden = sides.length === 0;
    byId("empty").hidden = sides.length > 0;
    this.#align();
    this.paint();
    const first = this.cards.find((card) => card.tokens);
    byId("details").hidden = !first;
    if (this.alignment?.changedB) this.select("B", this.alignment.prefix);
    else if (first) this.select(first.side.name, 0);
  }

  /** Colour everything by the chosen value. */
  paint() {
    const { diverging, field } = VALUES[this.value];
    const results = this.sides.flatMap((side) => side.result ?? []);
    const values = results.flatMap((result) => result[field] ?? []);
    const scale = scaleOf(values, diverging, this.dark.matches);
    const reach = values.reduce((most, value) => Math.max(most, Math.abs(value)), scale.end);
    const numbers = results.every((result) => result.rewards.length <= NUMBERS_UP_TO);
    for (const card of this.cards) card.paint(this.value, scale, reach, numbers);
    showLegend(byId("legend"), this.value, scale);
    for (const id of ["tools", "keys"]) byId(id).hidden = results.length === 0;
    byId("difference").hidden = results.length < 2;
    if (results.length === 2) {
      const on = { hover: this.#hover("B"), pick: (/** @type {number} */ i) => this.select("B", i, true) };
      showDifference(
        byId("difference"),
        results[0],
        results[1],
        this.alignment,
        this.value,
        this.dark.matches,
        on,
      );
    }
    this.#point();
  }

  /**
   * Look at a token; past the last one it is the last one.
   * @param {string} name
   * @param {number} index
   * @param {boolean} [focus]
   */
  select(name, index, focus = false) {
    const tokens = this.#card(name)?.tokens;
    if (!tokens) return;
    const place = Math.min(index, tokens.spans.length - 1);
    this.selected = { name, index: place };
    this.#point();
    if (focus) tokens.focus(place);
  }

  /** Go to the first token of B that A does not have. */
  goToChange() {
    this.select("B", this.alignment?.prefix ?? 0, true);
  }

  /** @param {string} name */
  #card(name) {
    return this.cards.find((card) => card.side.name === name);
  }

  #align() {
    const [a, b] = this.sides.map((side) => side.result?.response_token_ids);
    this.alignment = a && b ? align(a, b) : null;
    if (this.alignment === null) return;
    const { prefix, changedA, changedB } = this.alignment;
    this.#card("A")?.tokens?.mark(prefix, prefix + changedA);
    this.#card("B")?.tokens?.mark(prefix, prefix + changedB);
  }

  /**
   * @param {Side} side
   * @returns {import("./tokens.js").Handlers}
   */
  #handlers(side) {
    return {
      hover: this.#hover(side.name),
      select: (index) => this.select(side.name, index),
      edit: (index, text) => this.on.edit(side, index, text),
      refuse: this.on.refuse,
    };
  }

  /** @param {string} name */
  #hover(name) {
    return (/** @type {number | null} */ index) => {
      if (index === (this.hovered?.index ?? null) && (index === null || this.hovered?.name === name)) return;
      this.hovered = index === null ? null : { name, index };
      this.#point();
    };
  }

  /** Mark the token that is looked at, with its counterpart, and show its numbers. */
  #point() {
    const looked = this.hovered ?? this.selected;
    const tokens = looked && this.#card(looked.name)?.tokens;
    if (!looked || !tokens) return;
    const other = this.cards.find((card) => card.tokens && card.side.name !== looked.name);
    const across = other && this.alignment ? counterpart(this.alignment, looked.name, looked.index) : null;
    for (const card of this.cards) {
      const own = card.side.name === looked.name;
      const selected = this.selected?.name === card.side.name ? this.selected.index : null;
      card.point(own ? looked.index : across, selected, !own);
    }
    showDetails(
      byId("details"),
      tokens,
      looked.index,
      this.alignment && other ? this.#difference(looked, across) : null,
    );
  }

  /**
   * @param {{name: string, index: number}} looked
   * @param {number | null} across
   */
  #difference(looked, across) {
    const [a, b] = this.sides.map((side) => side.result?.[VALUES[this.value].field]);
    const [inA, inB] = looked.name === "A" ? [looked.index, across] : [across, looked.index];
    const difference = inA === null || inB === null || !a || !b ? null : b[inB] - a[inA];
    return { value: this.value, difference };
  }
}
