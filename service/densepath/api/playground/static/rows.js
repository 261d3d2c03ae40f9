/** A line of a file as something to show: a result with its own numbers, or an item that the service scores. */

import { LineError } from "./file.js";
import { itemIn } from "./items.js";

const ARRAYS = ["rewards", "sft_logprobs", "reference_logprobs", "returns"];

/**
 * @param {Object<string, any>} value
 * @param {number} number  the line's
 * @returns {{item: import("./items.js").Item | null, result: Object<string, any> | null}}
 *   `result` is null for an item that is not scored yet. Throws LineError.
 */
export function toRow(value, number) {
  if (!("rewards" in value) && value.status !== "error" && value.status !== "ok")
    return { item: value, result: null };
  const item = itemIn(value);
  if (value.status === "error") {
    if (typeof value.error?.message !== "string")
      throw new LineError(`Line ${number} is an error without a message.`);
    return { item, result: value };
  }
  const length = value.rewards?.length;
  for (const name of ARRAYS) {
    if (name !== "rewards" && (value[name] ?? null) === null) continue;
    if (!Array.isArray(value[name]) || value[name].length !== length || !value[name].every(Number.isFinite)) {
      throw new LineError(
        `Line ${number} is no result: ${name} must be a list of numbers, one for each token.`,
      );
    }
  }
  if (length === 0) throw new LineError(`Line ${number} is no result: rewards is empty.`);
  return {
    item,
    result: { ...value, response_token_ids: value.response_token_ids ?? scoredIds(item, length) },
  };
}

/**
 * The ids that an item of ids has scored.
 * @param {import("./items.js").Item | null} item
 * @param {number} length
 * @returns {number[] | undefined}
 */
function scoredIds(item, length) {
  const ids =
    item?.response_token_ids ??
    item?.token_ids?.filter(
      (/** @type {number} */ _, /** @type {number} */ i) => item.response_mask?.[i] === 1,
    );
  return ids?.length === length ? ids : undefined;
}
