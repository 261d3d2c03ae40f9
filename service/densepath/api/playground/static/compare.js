/** Two responses: the token ids that they share at the beginning and at the end, and what differs. */

/**
 * @typedef {{prefix: number, suffix: number, changedA: number, changedB: number}} Alignment  counts of tokens
 */

/**
 * @param {number[]} idsA
 * @param {number[]} idsB
 * @returns {Alignment}
 */
export function align(idsA, idsB) {
  const shorter = Math.min(idsA.length, idsB.length);
  let prefix = 0;
  while (prefix < shorter && idsA[prefix] === idsB[prefix]) prefix += 1;
  let suffix = 0;
  while (suffix < shorter - prefix && idsA.at(-1 - suffix) === idsB.at(-1 - suffix)) suffix += 1;
  return { prefix, suffix, changedA: idsA.length - prefix - suffix, changedB: idsB.length - prefix - suffix };
}

/**
 * The same token in the other response, or null for one that changed.
 * @param {Alignment} alignment
 * @param {string} name  "A" or "B": whose token it is
 * @param {number} index
 * @returns {number | null}
 */
export function counterpart({ prefix, changedA, changedB }, name, index) {
  const [own, other] = name === "A" ? [changedA, changedB] : [changedB, changedA];
  if (index < prefix) return index;
  return index < prefix + own ? null : index - own + other;
}

/**
 * B − A for each shared token, with null for each column of what changed.
 * @param {Alignment} alignment
 * @param {number[]} valuesA
 * @param {number[]} valuesB
 * @returns {(number | null)[]}
 */
export function differences({ prefix, suffix, changedA, changedB }, valuesA, valuesB) {
  const beginning = Array.from({ length: prefix }, (_, i) => valuesB[i] - valuesA[i]);
  const end = Array.from(
    { length: suffix },
    (_, i) => valuesB[valuesB.length - suffix + i] - valuesA[valuesA.length - suffix + i],
  );
  return [...beginning, ...Array(Math.max(changedA, changedB)).fill(null), ...end];
}

/**
 * The difference of two sums, split by where it comes from.
 * @param {Alignment} alignment
 * @param {number[]} valuesA
 * @param {number[]} valuesB
 * @returns {{beginning: number, changed: number, end: number}}
 */
export function split({ prefix, suffix }, valuesA, valuesB) {
  const parts = [valuesA, valuesB].map((values) => {
    const cut = values.length - suffix;
    return [values.slice(0, prefix), values.slice(prefix, cut), values.slice(cut)].map(total);
  });
  const [beginning, changed, end] = parts[1].map((value, i) => value - parts[0][i]);
  return { beginning, changed, end };
}

/** @param {number[]} values */
export function total(values) {
  return values.reduce((sum, value) => sum + value, 0);
}
