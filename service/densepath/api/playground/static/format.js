/** Numbers and token texts as a reader sees them. */

/**
 * A number with its sign: +0.670, −0.799.
 * @param {number} value
 * @param {number} [digits]
 * @returns {string}
 */
export function signed(value, digits = 3) {
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
}

/**
 * A log-probability: −0.013, 0.000.
 * @param {number} value
 * @param {number} [digits]
 * @returns {string}
 */
export function plain(value, digits = 3) {
  return (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
}

/**
 * A count with its noun.
 * @param {number} count
 * @param {string} noun
 * @returns {string}
 */
export function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

const SIGNS = new Map([
  [" ", "·"],
  ["\n", "↵"],
  ["\t", "⇥"],
  ["\r", "␍"],
  ["\u00a0", "⍽"],
]);
const UNSEEN = /^[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+$/u;

/**
 * A token's text with signs for what has no shape of its own.
 * @param {string} text
 * @returns {string}
 */
export function visible(text) {
  if (text === "") return "∅";
  if (UNSEEN.test(text)) return Array.from(text, codePoint).join("");
  return Array.from(
    text,
    (c) => SIGNS.get(c) ?? (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : c),
  ).join("");
}

/** @param {string} character */
function codePoint(character) {
  return `U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;
}
