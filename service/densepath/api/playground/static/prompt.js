/** What came before the response, where no field of the form holds it. */

import { make } from "./dom.js";
import { counted } from "./format.js";
import { formOf } from "./items.js";

/**
 * A conversation, one list entry a message.
 * @param {any[]} messages
 * @returns {HTMLElement[]}
 */
export function messageList(messages) {
  return messages.map((message) => {
    const { role, content, ...rest } = message ?? {};
    const more = Object.keys(rest).length ? JSON.stringify(rest) : "";
    const text =
      typeof content === "string"
        ? content
        : content === undefined || content === null
          ? ""
          : JSON.stringify(content);
    return make(
      "li",
      {},
      make("span", { class: "role" }, String(role ?? "no role")),
      make("span", { class: "content", dir: "auto" }, [text, more].filter(Boolean).join("\n")),
    );
  });
}

/**
 * The prompt of an item.
 * @param {HTMLElement} element
 * @param {import("./items.js").Item | null} item
 */
export function showPrompt(element, item) {
  const form = item === null ? null : formOf(item);
  const title = make("h2", {}, "Prompt");
  if (item === null || form === null) {
    element.replaceChildren(
      title,
      make("p", { class: "quiet" }, "This line holds no prompt, only what was scored."),
    );
  } else if (form === "chat") {
    element.replaceChildren(title, make("ol", { class: "messages" }, ...messageList(item.messages)));
  } else if (form === "text") {
    element.replaceChildren(title, make("p", { class: "content", dir: "auto" }, item.prompt));
  } else {
    const ids = form === "tokens" ? item.prompt_token_ids : item.token_ids;
    const words = `${counted(ids.length, "token id")}${form === "spans" ? ", of which the mask scores some" : ""}`;
    element.replaceChildren(
      title,
      make("details", {}, make("summary", {}, words), make("p", { class: "content" }, ids.join(" "))),
    );
  }
}
