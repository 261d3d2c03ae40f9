/** The form: a draft is what it holds, to the character, whatever a text area makes of it. */

import { byId } from "./dom.js";
import { messageList } from "./prompt.js";

/** @typedef {import("./items.js").Draft} Draft */

const FIELDS = { prompt: "prompt", a: "response-a", b: "response-b" };

export class Form {
  /** @param {() => void} submit */
  constructor(submit) {
    /** @type {Draft} */
    this.draft = { form: "chat", prompt: "", messages: null, responses: [""], appendEos: true };
    const form = byId("ask");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
    });
    area("prompt").addEventListener("input", () => (this.draft.prompt = area("prompt").value));
    area("a").addEventListener("input", () => (this.draft.responses[0] = area("a").value));
    area("b").addEventListener("input", () => (this.draft.responses[1] = area("b").value));
    byId("append-eos").addEventListener("change", () => (this.draft.appendEos = box("append-eos").checked));
    byId("forms").addEventListener("change", (event) =>
      this.#change({ form: /** @type {any} */ (event.target).value }),
    );
    byId("drop-conversation").addEventListener("click", () => {
      this.#change({ messages: null });
      area("prompt").focus();
    });
    byId("compare").addEventListener("click", () => {
      this.#change({ responses: [this.draft.responses[0], this.draft.responses[0]] });
      area("b").focus();
    });
    byId("drop-b").addEventListener("click", () => {
      this.#change({ responses: [this.draft.responses[0]] });
      byId("compare").focus();
    });
  }

  /** @param {boolean} has  whether the served pair has a chat template */
  allowChat(has) {
    const chat = /** @type {HTMLInputElement} */ (document.querySelector('#forms [value="chat"]'));
    chat.disabled = !has;
    chat.parentElement?.setAttribute(
      "title",
      has ? "The SFT model's chat template, then the response" : "This pair's tokenizer has no chat template",
    );
    if (!has && this.draft.prompt === "" && this.draft.messages === null) this.#change({ form: "text" });
  }

  /** @param {Draft} draft */
  fill(draft) {
    this.draft = draft;
    const { form, prompt, messages, responses, appendEos } = draft;
    const whole = form === "chat" && messages !== null;
    area("prompt").value = prompt;
    area("prompt").hidden = whole;
    byId("conversation").hidden = !whole;
    byId("conversation")
      .querySelector("ol")
      ?.replaceChildren(...messageList(whole ? messages : []));
    area("a").value = responses[0];
    area("b").value = responses[1] ?? "";
    byId("field-b").hidden = responses.length < 2;
    byId("compare").hidden = responses.length > 1;
    box("append-eos").checked = appendEos;
    for (const radio of document.querySelectorAll("#forms input")) {
      /** @type {HTMLInputElement} */ (radio).checked =
        /** @type {HTMLInputElement} */ (radio).value === form;
    }
  }

  /** @param {Partial<Draft>} change */
  #change(change) {
    this.fill({ ...this.draft, ...change });
  }
}

/** @param {keyof FIELDS} name */
function area(name) {
  return /** @type {HTMLTextAreaElement} */ (byId(FIELDS[name]));
}

/** @param {string} id */
function box(id) {
  return /** @type {HTMLInputElement} */ (byId(id));
}
