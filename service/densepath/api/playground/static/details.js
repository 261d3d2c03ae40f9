/** The token that is looked at, in numbers. It stays in place, so that nothing moves under the pointer. */

import { make, withSubscript } from "./dom.js";
import { plain, signed, visible } from "./format.js";
import { VALUES } from "./scale.js";

/**
 * @param {HTMLElement} element
 * @param {import("./tokens.js").Tokens} tokens
 * @param {number} index
 * @param {{value: string, difference: number | null} | null} other  B − A of the shown value; null without a second response
 */
export function showDetails(element, tokens, index, other) {
  const { result, texts, side } = tokens;
  const number = (/** @type {import("./scale.js").Value} */ { field, diverging }) => {
    const value = result[field]?.[index];
    return value === undefined ? "not given" : diverging ? signed(value, 4) : plain(value, 4);
  };
  const cells = [
    cell(["id"], String(result.response_token_ids?.[index] ?? "not given"), "id"),
    ...["sft", "reference", "reward", "return"].map((name) =>
      cell(withSubscript(VALUES[name].name), number(VALUES[name]), name),
    ),
    ...(other === null
      ? []
      : [
          cell(
            ["B − A, ", ...withSubscript(VALUES[other.value].name)],
            other.difference === null ? "changed" : signed(other.difference, 4),
            "across",
          ),
        ]),
  ];
  const edit = make("button", { type: "button", class: "small", id: "edit" }, "Edit this token");
  edit.addEventListener("click", () => tokens.edit(index));
  element.replaceChildren(
    make(
      "p",
      { class: "which" },
      make("span", { class: "badge" }, side.name),
      make("code", {}, visible(texts[index])),
      make("span", { class: "quiet" }, `token ${index + 1} of ${texts.length}`),
    ),
    make("dl", {}, ...cells),
    edit,
  );
}

/**
 * @param {(Node | string)[]} term
 * @param {string} value
 * @param {string} name
 */
function cell(term, value, name) {
  return make("div", { class: name }, make("dt", {}, ...term), make("dd", {}, value));
}
