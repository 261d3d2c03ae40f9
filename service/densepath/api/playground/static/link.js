/** A link that holds what is on the page, after the #, which no browser sends to a server. */

import { VALUES } from "./scale.js";

/**
 * @typedef {{draft: import("./items.js").Draft | null, item: object | null, value: string,
 *   selected: {name: string, index: number} | null}} State  `item`: one of token ids, which no form holds
 */

/**
 * @param {State} state
 * @returns {string}  without its #
 */
export function toLink({ draft, item, value, selected }) {
  const fields = new URLSearchParams();
  if (draft !== null) {
    fields.set("form", draft.form);
    if (draft.messages !== null) fields.set("messages", JSON.stringify(draft.messages));
    else fields.set("prompt", draft.prompt);
    draft.responses.forEach((response, i) => fields.set("ab"[i], response));
    fields.set("eos", draft.appendEos ? "1" : "0");
  }
  if (item !== null) fields.set("item", JSON.stringify(item));
  fields.set("value", value);
  if (selected !== null) fields.set("token", `${selected.name}${selected.index + 1}`);
  return fields.toString();
}

/**
 * @param {string} hash  with or without its #
 * @returns {State | null}  null where it holds none. Throws an Error with a sentence where it cannot be read.
 */
export function fromLink(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  if (!fields.has("a") && !fields.has("item")) return null;
  const form = fields.get("form") === "text" ? "text" : "chat";
  const messages = form === "chat" && fields.has("messages") ? read(fields, "messages") : null;
  if (messages !== null && !Array.isArray(messages))
    throw new Error("This link cannot be read: its messages are no list.");
  const value = fields.get("value") ?? "reward";
  const [, name, place] = /^([AB])([1-9]\d{0,8})$/.exec(fields.get("token") ?? "") ?? [];
  return {
    draft: fields.has("item")
      ? null
      : {
          form,
          prompt: fields.get("prompt") ?? "",
          messages,
          responses: ["a", "b"].filter((key) => fields.has(key)).map((key) => fields.get(key) ?? ""),
          appendEos: fields.get("eos") !== "0",
        },
    item: fields.has("item") ? read(fields, "item") : null,
    value: Object.hasOwn(VALUES, value) ? value : "reward",
    selected: name === undefined ? null : { name, index: Number(place) - 1 },
  };
}

/**
 * @param {URLSearchParams} fields
 * @param {string} key
 */
function read(fields, key) {
  try {
    const value = JSON.parse(fields.get(key) ?? "");
    if (typeof value === "object" && value !== null) return value;
  } catch {
    // said below
  }
  throw new Error(`This link cannot be read: its ${key} is no JSON. It may have been cut.`);
}
