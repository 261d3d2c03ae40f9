/** What a reader should know before trusting what is shown. */

/**
 * @param {import("./view.js").Side[]} sides
 * @param {string | undefined} served  the version of the served pair
 * @returns {string[]}
 */
export function notesOn(sides, served) {
  const notes = [];
  const results = sides.flatMap((side) => side.result ?? []);
  const other = sides.find(
    (side) => side.version !== undefined && served !== undefined && side.version !== served,
  );
  if (other) {
    notes.push(
      `Response ${other.name} was scored by pair version ${other.version}; this service serves ${served}. Numbers of two pairs are not to be compared.`,
    );
  }
  const [result] = results;
  if (!result) return notes;
  if (!result.tokens)
    notes.push(
      `These results have no token texts${result.response_token_ids ? ": the token ids are shown" : " and no token ids"}. Score with --include tokens to see words.`,
    );
  if (!result.sft_logprobs || !result.reference_logprobs)
    notes.push("These results have no log-probabilities. Score with --include logprobs to see them.");
  if (!result.returns) notes.push("These results have no returns. Score with --include returns to see them.");
  else if (Math.abs(result.returns[0] - result.sum) > 1e-3 * Math.max(1, Math.abs(result.sum)))
    notes.push("The returns of these results are not of γ = 1.");
  return notes;
}
