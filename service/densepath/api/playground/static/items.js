/** Items of the API, and the draft of the form that becomes some. */

/**
 * @typedef {Object<string, any>} Item  an item in any of the API's four forms
 * @typedef {{form: "chat" | "text", prompt: string, messages: object[] | null, responses: string[], appendEos: boolean}} Draft
 *   what the form holds; `messages` is a conversation of more than one message, kept whole
 */

const FIELDS = {
  chat: ["messages", "response", "append_eos"],
  text: ["prompt", "response", "append_eos"],
  spans: ["token_ids", "response_mask"],
  tokens: ["prompt_token_ids", "response_token_ids"],
};

/**
 * @param {Item} item
 * @returns {"chat" | "text" | "spans" | "tokens" | null}
 */
export function formOf(item) {
  if (Array.isArray(item.messages)) return "chat";
  if (typeof item.prompt === "string") return "text";
  if (Array.isArray(item.token_ids)) return "spans";
  return Array.isArray(item.prompt_token_ids) ? "tokens" : null;
}

/**
 * The item inside an object that holds more, or null where there is none.
 * @param {Item} value
 * @returns {Item | null}
 */
export function itemIn(value) {
  const form = formOf(value);
  if (form === null) return null;
  return Object.fromEntries(FIELDS[form].filter((name) => name in value).map((name) => [name, value[name]]));
}

/**
 * The response of an item in words, or null where it has token ids only.
 * @param {Item | null} item
 * @returns {string | null}
 */
export function responseOf(item) {
  return item !== null && typeof item.response === "string" && ["chat", "text"].includes(formOf(item) ?? "")
    ? item.response
    : null;
}

/**
 * The same prompt with another response.
 * @param {Item} item
 * @param {string} response
 * @returns {Item}
 */
export function withResponse(item, response) {
  return { ...itemIn(item), response };
}

/**
 * A text with the characters from `start` to `end` replaced; the API's offsets count Unicode characters.
 * @param {string} text
 * @param {[number, number]} offsets
 * @param {string} by
 * @returns {string}
 */
export function replaced(text, [start, end], by) {
  const characters = Array.from(text);
  return characters.slice(0, start).join("") + by + characters.slice(end).join("");
}

/**
 * @param {string} text
 * @param {[number, number]} offsets
 * @returns {string}
 */
export function part(text, [start, end]) {
  return Array.from(text).slice(start, end).join("");
}

/**
 * One item a response.
 * @param {Draft} draft
 * @returns {Item[]}
 */
export function toItems(draft) {
  const messages = draft.messages ?? [{ role: "user", content: draft.prompt }];
  const prompt = draft.form === "chat" ? { messages } : { prompt: draft.prompt };
  return draft.responses.map((response) => ({ ...prompt, response, append_eos: draft.appendEos }));
}

/**
 * The draft of a chat or text item, with any further responses.
 * @param {Item} item
 * @param {...string} more
 * @returns {Draft}
 */
export function toDraft(item, ...more) {
  const chat = formOf(item) === "chat";
  const single = chat && isPrompt(item.messages);
  return {
    form: chat ? "chat" : "text",
    prompt: chat ? (single ? item.messages[0].content : "") : item.prompt,
    messages: chat && !single ? item.messages : null,
    responses: [item.response, ...more],
    appendEos: item.append_eos === true,
  };
}

/** @param {any[]} messages  whether they are one plain message of the user */
function isPrompt(messages) {
  const [message] = messages;
  return (
    messages.length === 1 &&
    message?.role === "user" &&
    typeof message.content === "string" &&
    Object.keys(message).length === 2
  );
}
