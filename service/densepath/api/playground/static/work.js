/** One piece of work at a time: it can be cancelled, waits where the API says so, and its errors are shown. */

import { ApiError, score } from "./api.js";
import { byId, make } from "./dom.js";

/** @type {AbortController | null} */
let running = null;

/** @param {string} words  for the eye and, politely, for a screen reader */
export function say(words) {
  byId("status").textContent = words;
}

/**
 * Show an error where nobody misses it, or with null take it away.
 * @param {Error | null} error
 */
export function showProblem(error) {
  byId("problem").replaceChildren(...(error === null ? [] : errorLines(error)));
}

/**
 * An error as the API says it: its message, then code, status, place and request id.
 * @param {Partial<ApiError> & {message: string}} error
 * @returns {HTMLElement[]}
 */
export function errorLines(error) {
  const facts = [
    error.code && make("code", {}, error.code),
    error.status && `status ${error.status}`,
    error.param && make("span", {}, "at ", make("code", {}, error.param)),
    error.requestId && make("span", {}, "request ", make("code", {}, error.requestId)),
  ].flatMap((fact) => fact || []);
  const again = error.status === 401 ? [make("p", {}, "Reload the page to give a key.")] : [];
  return [
    make("p", {}, error.message),
    ...(facts.length
      ? [make("p", { class: "facts" }, ...facts.flatMap((fact, i) => (i ? [" · ", fact] : [fact])))]
      : []),
    ...again,
  ];
}

/** Whether the last work ended in an error. */
export function failed() {
  return byId("problem").hasChildNodes();
}

/** Stop what is running, if anything is. */
export function cancel() {
  running?.abort();
  running = null;
  busy(false);
}

/**
 * Score items; what ran before is cancelled.
 * @param {import("./items.js").Item[]} items
 * @returns {Promise<Awaited<ReturnType<typeof score>> | null>}  null where there is no answer: that is shown already
 */
export async function scored(items) {
  cancel();
  const mine = new AbortController();
  running = mine;
  showProblem(null);
  busy(true);
  try {
    return await persistently(items, mine.signal);
  } catch (error) {
    if (running !== mine) return null; // cancelled, or newer work has taken over
    say("");
    showProblem(/** @type {Error} */ (error));
    return null;
  } finally {
    if (running === mine) {
      running = null;
      busy(false);
    }
  }
}

/**
 * @param {import("./items.js").Item[]} items
 * @param {AbortSignal} signal
 */
async function persistently(items, signal) {
  for (;;) {
    say("Scoring…");
    try {
      const answer = await score(items, signal);
      showProblem(null);
      return answer;
    } catch (error) {
      if (!(error instanceof ApiError) || error.retryAfter === null) throw error;
      showProblem(error);
      say(`Trying again in ${error.retryAfter} s.`);
      await pause(error.retryAfter, signal);
    }
  }
}

/**
 * @param {number} seconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    });
  });
}

/** @param {boolean} on */
function busy(on) {
  byId("score").textContent = on ? "Scoring…" : "Score";
  byId("score").classList.toggle("working", on);
  byId("results").setAttribute("aria-busy", String(on));
  const button = byId("cancel");
  if (!on && button === document.activeElement) byId("score").focus();
  button.hidden = !on;
}
