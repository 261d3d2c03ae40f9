/** A response's tokens: coloured, one of them in the tab order, each editable in place. */

import { make } from "./dom.js";
import { plain, signed, visible } from "./format.js";
import { part, responseOf } from "./items.js";
import { VALUES, colour, css, inkOn } from "./scale.js";

const SPELLED_SPECIAL = /^<\|[^|]*\|>$/;

/**
 * @typedef {import("./view.js").Side} Side
 * @typedef {{hover: (index: number | null) => void, select: (index: number) => void,
 *   edit: (index: number, text: string) => void, refuse: (why: string) => void}} Handlers
 */

export class Tokens {
  /**
   * @param {Side} side
   * @param {Set<number>} eosIds
   * @param {Handlers} on
   */
  constructor(side, eosIds, on) {
    this.side = side;
    this.on = on;
    this.result = /** @type {Object<string, any>} */ (side.result);
    this.texts = textsOf(this.result);
    this.changed = { from: 0, to: 0 };
    this.element = make("div", {
      class: "tokens",
      role: "group",
      "aria-label": `Tokens of response ${side.name}`,
      dir: "auto",
    });
    this.spans = this.texts.map((text, i) => {
      const special = eosIds.has(this.result.response_token_ids?.[i]) || SPELLED_SPECIAL.test(text);
      const shown = make("span", { class: "text" }, visible(text));
      return make(
        "span",
        { class: special ? "token special" : "token", role: "button", tabindex: i ? -1 : 0, "data-index": i },
        shown,
        make("small"),
      );
    });
    this.spans.forEach((span, i) =>
      this.element.append(span, ...(this.texts[i].includes("\n") ? [make("br")] : [])),
    );
    this.#listen();
  }

  /**
   * Colour every token by a value.
   * @param {string} name  of VALUES
   * @param {import("./scale.js").Scale} scale
   * @param {boolean} numbers  whether each token has its number below it
   */
  paint(name, scale, numbers) {
    const { field, diverging } = VALUES[name];
    this.element.classList.toggle("numbers", numbers);
    this.spans.forEach((span, i) => {
      const value = this.result[field]?.[i];
      const back = value === undefined ? null : colour(scale, value);
      span.style.backgroundColor = back ? css(back) : "";
      span.style.color = back ? inkOn(back) : "";
      /** @type {HTMLElement} */ (span.lastElementChild).textContent =
        !numbers || value === undefined ? "" : diverging ? signed(value, 2) : plain(value, 2);
      span.setAttribute("aria-label", this.describe(i));
    });
  }

  /**
   * Mark the tokens that another response does not share.
   * @param {number} from
   * @param {number} to
   */
  mark(from, to) {
    this.changed = { from, to };
    this.spans.forEach((span, i) => span.classList.toggle("changed", i >= from && i < to));
  }

  /** @param {number} i */
  isChanged(i) {
    return i >= this.changed.from && i < this.changed.to;
  }

  /** @param {number} i */
  describe(i) {
    const id = this.result.response_token_ids?.[i];
    const numbers = Object.values(VALUES).flatMap(({ field, words, diverging }) => {
      const value = this.result[field]?.[i];
      return value === undefined ? [] : [`${words} ${diverging ? signed(value) : plain(value)}`];
    });
    const head = `Token ${i + 1} of ${this.texts.length}: ${visible(this.texts[i])}`;
    return [
      head,
      ...(id === undefined ? [] : [`id ${id}`]),
      ...numbers,
      ...(this.isChanged(i) ? ["changed"] : []),
    ].join(", ");
  }

  /**
   * Show which token is looked at, and which one is its counterpart.
   * @param {number | null} active
   * @param {number | null} selected
   * @param {boolean} counterpart
   */
  point(active, selected, counterpart) {
    this.element.querySelector(".active")?.classList.remove("active", "counterpart");
    if (active !== null) this.spans[active].classList.add("active", ...(counterpart ? ["counterpart"] : []));
    this.element.querySelector("[aria-current]")?.removeAttribute("aria-current");
    if (selected !== null) {
      this.element.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
      this.spans[selected].setAttribute("tabindex", "0");
      this.spans[selected].setAttribute("aria-current", "true");
    }
  }

  /** @param {number} i */
  focus(i) {
    this.spans[i].focus();
  }

  /**
   * Why a token cannot be edited, or null.
   * @param {number} i
   * @returns {string | null}
   */
  fixed(i) {
    if (responseOf(this.side.item) === null)
      return "This response has token ids and no text, so its tokens cannot be edited here.";
    const offsets = this.result.offsets?.[i];
    if (offsets === undefined)
      return "This line does not say which characters a token covers, so it cannot be edited here.";
    return offsets[0] === offsets[1]
      ? "This token stands for no text of the response, so there is nothing to edit."
      : null;
  }

  /** @param {number} i */
  edit(i) {
    const why = this.fixed(i);
    if (why !== null) return this.on.refuse(why);
    const span = this.spans[i];
    const before = part(responseOf(this.side.item) ?? "", this.result.offsets[i]);
    const field = /** @type {HTMLTextAreaElement} */ (
      make("textarea", {
        class: "editor",
        rows: 1,
        cols: Math.max(before.length, 3),
        spellcheck: "false",
        "aria-label": `New text of token ${i + 1}. Enter scores it, Escape leaves it.`,
      })
    );
    field.value = before;
    const unchanged = field.value; // a text area turns \r\n into \n
    let left = false;
    const leave = (/** @type {boolean} */ commit) => {
      if (left) return;
      left = true;
      const text = field.value;
      const within = field === document.activeElement;
      field.remove();
      span.hidden = false;
      if (within) span.focus();
      if (commit && text !== unchanged) this.on.edit(i, text);
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey && !event.isComposing)) {
        event.preventDefault();
        leave(event.key === "Enter");
      }
    });
    field.addEventListener("input", () =>
      field.setAttribute("cols", String(Math.max(field.value.length, 3))),
    );
    field.addEventListener("blur", () => leave(false));
    span.hidden = true;
    span.before(field);
    field.focus();
    field.select();
  }

  #listen() {
    const { element, on } = this;
    element.addEventListener("pointerover", (event) => on.hover(indexOf(event)));
    element.addEventListener("pointerleave", () => on.hover(null));
    element.addEventListener("focusin", (event) => {
      const i = indexOf(event);
      if (i !== null) on.select(i);
    });
    element.addEventListener("dblclick", (event) => {
      const i = indexOf(event);
      if (i !== null) this.edit(i);
    });
    element.addEventListener("keydown", (event) => {
      const i = indexOf(event);
      if (i === null || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Enter" || event.key === "F2") this.edit(i);
      else if (!this.#move(i, event.key)) return;
      event.preventDefault();
    });
  }

  /**
   * @param {number} i
   * @param {string} key
   * @returns {boolean}
   */
  #move(i, key) {
    const last = this.spans.length - 1;
    const right = getComputedStyle(this.element).direction === "rtl" ? -1 : 1;
    const steps = {
      ArrowRight: right,
      ArrowLeft: -right,
      ArrowDown: 1,
      ArrowUp: -1,
      Home: -i,
      End: last - i,
    };
    if (!(key in steps)) return false;
    this.focus(Math.max(0, Math.min(last, i + steps[/** @type {keyof steps} */ (key)])));
    return true;
  }
}

/**
 * What is written on the tokens: their texts, or else ids, or else places.
 * @param {Object<string, any>} result
 * @returns {string[]}
 */
function textsOf(result) {
  return (
    result.tokens ??
    result.response_token_ids?.map(String) ??
    result.rewards.map((/** @type {number} */ _, /** @type {number} */ i) => `#${i + 1}`)
  );
}

/** @param {Event} event  the index of the token that it is about */
function indexOf(event) {
  const span = event.target instanceof Element ? event.target.closest(".token") : null;
  return span instanceof HTMLElement ? Number(span.dataset.index) : null;
}
