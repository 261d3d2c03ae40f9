/** The values of a token, and one colour scale for all that is shown. */

/**
 * @typedef {{field: string, name: string, words: string, diverging: boolean}} Value
 *   `field` of the API's result; `name` where log p_sft is set with a subscript
 */

/** @type {Object<string, Value>} */
export const VALUES = {
  reward: { field: "rewards", name: "reward", words: "reward", diverging: true },
  return: { field: "returns", name: "return", words: "return", diverging: true },
  sft: { field: "sft_logprobs", name: "log p_sft", words: "log p SFT", diverging: false },
  reference: {
    field: "reference_logprobs",
    name: "log p_reference",
    words: "log p reference",
    diverging: false,
  },
};

/** Blue above 0 and orange below, as `densepath score --show` has them; purple for log-probabilities. */
export const HUES = {
  light: { paper: [255, 255, 255], positive: [33, 102, 172], negative: [230, 97, 1], low: [94, 60, 153] },
  dark: { paper: [27, 33, 41], positive: [110, 176, 240], negative: [245, 146, 66], low: [178, 156, 240] },
};

const LEAST_END = 0.1; // nats: below this, differences are the engine's own noise
const SHARE_WITHIN = 0.98; // of the values are inside the scale's ends, so that one outlier does not pale the rest

/** @typedef {{end: number, cut: boolean, diverging: boolean, dark: boolean}} Scale */

/**
 * The scale of some values: from −end to end, or for log-probabilities from −end to 0.
 * @param {number[]} values
 * @param {boolean} diverging
 * @param {boolean} dark
 * @returns {Scale}
 */
export function scaleOf(values, diverging, dark) {
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  const inside = sizes[Math.ceil(SHARE_WITHIN * sizes.length) - 1] ?? 0;
  const end = roundUp(Math.max(inside, LEAST_END));
  return { end, cut: (sizes.at(-1) ?? 0) > end, diverging, dark };
}

/** @param {number} value  > 0; the next of 1, 2, 5, 10, … times a power of ten */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5, 10].find((each) => value <= each * power * (1 + 1e-9)) ?? 10;
  return Number((step * power).toPrecision(1));
}

/**
 * The colour of a value: the hue's share grows with its size.
 * @param {Scale} scale
 * @param {number} value
 * @returns {number[]}  red, green, blue, 0 to 255
 */
export function colour(scale, value) {
  const hues = scale.dark ? HUES.dark : HUES.light;
  const hue = !scale.diverging ? hues.low : value > 0 ? hues.positive : hues.negative;
  const share = Math.min(Math.abs(value) / scale.end, 1);
  return hues.paper.map((channel, i) => Math.round(channel + (hue[i] - channel) * share));
}

/** @param {number[]} rgb */
export function css(rgb) {
  return `rgb(${rgb.join(", ")})`;
}

/**
 * Black or white, whichever reads better on a colour: at least 4.58 : 1 on any.
 * @param {number[]} rgb
 * @returns {string}
 */
export function inkOn(rgb) {
  const [r, g, b] = rgb.map((c) =>
    c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4,
  );
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 ? "#fff" : "#000";
}
