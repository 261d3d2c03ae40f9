/**
 * The playground. What a person gives becomes items, the service scores them, and the page shows what it
 * answers: it tokenises nothing and computes no reward.
 *
 *   form, pager, link      what to score or to show: typed, a line of a file, what a link holds
 *   items, file, rows      an item in any form; the lines of a file; a line as an item or a result
 *   work, api              one request at a time, its errors and its waiting
 *   view                   the scores: card (tokens, strip), difference (compare), details, legend, notes
 *   scale, format, dom     colours, numbers, elements
 */

import { examples, servedPair } from "./api.js";
import { byId, make } from "./dom.js";
import { signed } from "./format.js";
import { Form } from "./form.js";
import { itemIn, replaced, responseOf, toDraft, toItems, withResponse } from "./items.js";
import { fromLink, toLink } from "./link.js";
import { Pager } from "./pager.js";
import { View } from "./view.js";
import { cancel, failed, say, scored, showProblem } from "./work.js";

const LONGEST_LINK = 60_000; // characters: beyond that some programs cut it

/** @type {{version: string, model: string, eos_token_ids: number[], [name: string]: any} | null} */
let pair = null;
const form = new Form(scoreForm);
const view = new View({ edit: editToken, refuse: say });
const pager = new Pager({ row: showRow, broken: showBroken, closed: leaveFile });

/** Score what the form holds. */
async function scoreForm() {
  if (!(await look(toItems(form.draft), { prompt: false })) && failed()) clear();
}

/**
 * Score items and show them, in order as A and B. Where there is no answer, that is shown already.
 * @param {import("./items.js").Item[]} items
 * @param {{prompt: boolean, first?: import("./view.js").Side}} options  `first`: an A that has its scores already
 * @returns {Promise<boolean>}
 */
async function look(items, { prompt, first }) {
  const answer = await scored(items);
  if (answer === null) return false;
  if (answer.model_version !== pair?.version) await loadPair(); // another pair is served by now
  const known = first ? [first] : [];
  const sides = answer.items.map((result, i) => side("AB"[known.length + i], items[i], result, answer));
  present([...known, ...sides], prompt);
  return true;
}

/**
 * @param {string} name
 * @param {import("./items.js").Item | null} item
 * @param {Object<string, any>} result
 * @param {{model_version?: string, requestId?: string | null}} answer
 * @returns {import("./view.js").Side}
 */
function side(name, item, result, { model_version: version, requestId }) {
  const error = result.status === "error" ? { ...result.error, requestId } : null;
  return { name, item, error, result: error === null ? withSum(result) : null, version };
}

/** @param {Object<string, any>} result  a line of a file may leave its sum out */
function withSum(result) {
  return typeof result.sum === "number"
    ? result
    : {
        ...result,
        sum: result.rewards.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0),
      };
}

/**
 * @param {import("./view.js").Side[]} sides
 * @param {boolean} prompt
 */
function present(sides, prompt) {
  view.show(sides, { prompt, served: pair?.version });
  say(
    sides
      .map(({ name, result }) =>
        result ? `Response ${name}: sum ${signed(result.sum)}.` : `Response ${name} is not scored.`,
      )
      .join(" "),
  );
}

/**
 * The edited response becomes B, beside an unchanged A.
 * @param {import("./view.js").Side} edited
 * @param {number} index
 * @param {string} text
 */
async function editToken(edited, index, text) {
  const { item, result } = edited;
  const response = replaced(responseOf(item) ?? "", result?.offsets[index], text);
  const first = view.sides[0];
  const changed = withResponse(/** @type {import("./items.js").Item} */ (item), response);
  if (pager.lines === null)
    form.fill(toDraft(/** @type {import("./items.js").Item} */ (first.item), response));
  if (await look([changed], { prompt: pager.lines !== null, first })) view.goToChange();
}

/** @param {{item: import("./items.js").Item | null, result: Object<string, any> | null}} row  a line of the file */
async function showRow({ item, result }) {
  cancel();
  byId("ask").hidden = true;
  showProblem(null);
  if (result !== null) present([side("A", item, result, result)], true);
  else if (item !== null && !(await look([item], { prompt: true })) && pager.lines !== null) clear();
}

/** @param {Error} error  why a line cannot be shown */
function showBroken(error) {
  cancel();
  byId("ask").hidden = true;
  clear();
  say("");
  showProblem(error);
}

/** Take the scores away: they are of something else. */
function clear() {
  view.show([], { prompt: false, served: undefined });
}

/** Back to the form, with what was looked at where it has words. */
function leaveFile() {
  byId("ask").hidden = false;
  showProblem(null);
  const [a, b] = view.sides;
  if (a && responseOf(a.item) !== null)
    form.fill(
      toDraft(/** @type {import("./items.js").Item} */ (a.item), ...(b ? [responseOf(b.item) ?? ""] : [])),
    );
  byId("prompt-shown").hidden = true;
  byId("prompt").focus();
}

/** The state of the page as a link, in the address bar and on the clipboard. */
async function copyLink() {
  const typed = pager.lines === null && view.sides[0]?.item === undefined;
  const item = view.sides[0]?.item ?? null;
  if (!typed && item === null) return say("This line holds no item, so no link can hold it.");
  const words = typed || responseOf(item) !== null;
  const shown = pager.lines === null ? form.draft : null;
  const b = view.sides[1] ? [responseOf(view.sides[1].item) ?? ""] : [];
  const draft = words ? (shown ?? toDraft(/** @type {import("./items.js").Item} */ (item), ...b)) : null;
  const hash = toLink({
    draft,
    item: words ? null : itemIn(item ?? {}),
    value: view.value,
    selected: view.selected,
  });
  if (hash.length > LONGEST_LINK) return say("This is too long for a link.");
  history.replaceState(null, "", `#${hash}`);
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say("The link is in the address bar."); // a page that came over plain HTTP has no clipboard
  }
}

/** Show what the address holds after its #; false where it holds nothing. */
async function openLink() {
  let state;
  try {
    state = fromLink(location.hash);
  } catch (error) {
    showProblem(/** @type {Error} */ (error));
    return true;
  }
  if (state === null) return false;
  if (pager.lines !== null) pager.close();
  choose(state.value);
  if (state.draft !== null) form.fill(state.draft);
  const items = state.draft !== null ? toItems(state.draft) : [/** @type {object} */ (state.item)];
  const done = await look(items, { prompt: state.item !== null });
  if (done && state.selected !== null) view.select(state.selected.name, state.selected.index);
  return true;
}

/** @param {string} value  of VALUES */
function choose(value) {
  view.value = value;
  for (const radio of document.querySelectorAll("#values input")) {
    /** @type {HTMLInputElement} */ (radio).checked = /** @type {HTMLInputElement} */ (radio).value === value;
  }
}

/** @param {{messages: object[], response: string, wrong: string}} example  the right answer beside the wrong one */
function showExample({ messages, response, wrong }) {
  form.fill(toDraft({ messages, response, append_eos: true }, wrong));
  return scoreForm();
}

async function loadPair() {
  pair = await servedPair();
  view.eosIds = new Set(pair?.eos_token_ids);
  form.allowChat(pair?.chat_template_fingerprint !== null);
  byId("pair").replaceChildren(
    make("span", {}, "Pair ", make("strong", {}, pair?.model ?? ""), " "),
    make("code", { title: "version" }, pair?.version ?? ""),
    make("span", {}, ` · ${pair?.sources.sft} − ${pair?.sources.reference} · `),
    make("span", { id: "verified" }, pair ? verification(pair.verified) : ""),
  );
}

/** Whether the engine was held against transformers, in words. @param {any} verified  of GET /v1/pair */
function verification({ verified, reason, against, reward }) {
  if (!verified) return `not verified: ${reason}`;
  return `verified against ${against}, rewards within ${reward.largest.toExponential(1)} nats`;
}

async function loadExamples() {
  const offered = await examples();
  const select = /** @type {HTMLSelectElement} */ (byId("example"));
  byId("pick").hidden = offered.length === 0;
  select.append(
    ...offered.map((/** @type {any} */ { messages }, /** @type {number} */ i) =>
      make("option", { value: i }, messages.at(-1).content),
    ),
  );
  select.addEventListener("change", () => select.value !== "" && showExample(offered[Number(select.value)]));
  return offered;
}

function listen() {
  byId("values").addEventListener("change", (event) => {
    view.value = /** @type {HTMLInputElement} */ (event.target).value;
    view.paint();
  });
  byId("cancel").addEventListener("click", () => {
    cancel();
    say("Cancelled.");
    showProblem(null);
  });
  byId("copy-link").addEventListener("click", copyLink);
  const input = /** @type {HTMLInputElement} */ (byId("file-input"));
  byId("open-file").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files?.[0]) pager.open(input.files[0]);
    input.value = ""; // the same file may be opened again
  });
  window.addEventListener("hashchange", openLink);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener(
    "dragleave",
    (event) => event.relatedTarget === null && document.body.classList.remove("dropping"),
  );
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer?.files[0]) pager.open(event.dataTransfer.files[0]);
  });
}

async function start() {
  listen();
  const [, offered] = await Promise.all([loadPair(), loadExamples()]);
  if (!(await openLink()) && offered.length > 0) {
    /** @type {HTMLSelectElement} */ (byId("example")).value = "0";
    await showExample(offered[0]);
  }
}

start().catch((error) => {
  byId("pair").textContent = "";
  showProblem(error);
});
