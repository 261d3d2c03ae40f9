/** A file, line by line: its controls, its keys, and one line at a time. */

import { byId } from "./dom.js";
import { LineError, Lines } from "./file.js";
import { toRow } from "./rows.js";

export class Pager {
  /**
   * @param {{row: (row: ReturnType<typeof toRow>) => void, broken: (error: Error) => void, closed: () => void}} on
   */
  constructor(on) {
    this.on = on;
    /** @type {Lines | null} */ this.lines = null;
    this.at = 0;
    this.indexing = new AbortController();
    byId("first").addEventListener("click", () => this.go(0));
    byId("previous").addEventListener("click", () => this.go(this.at - 1));
    byId("next").addEventListener("click", () => this.go(this.at + 1));
    byId("last").addEventListener("click", () => this.go(Infinity));
    byId("at").addEventListener("change", () =>
      this.go(Number(/** @type {HTMLInputElement} */ (byId("at")).value) - 1),
    );
    byId("close-file").addEventListener("click", () => this.close());
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {File} file */
  async open(file) {
    this.indexing.abort();
    this.indexing = new AbortController();
    const { signal } = this.indexing;
    const lines = new Lines(file);
    this.lines = lines;
    byId("file").hidden = false;
    byId("file-name").textContent = file.name;
    byId("line").textContent = "";
    let shown = false;
    const progress = () => {
      if (signal.aborted) return;
      this.#controls();
      if (shown || lines.count === 0) return;
      shown = true;
      this.go(0);
    };
    try {
      await lines.index(progress, signal);
    } catch {
      this.on.broken(new LineError("The file cannot be read."));
    }
    if (!signal.aborted && lines.done && lines.count === 0)
      this.on.broken(new LineError("The file has no line."));
  }

  /** Leave the file. */
  close() {
    this.indexing.abort();
    this.lines = null;
    byId("file").hidden = true;
    this.on.closed();
  }

  /** @param {number} to  clipped to the lines that there are */
  async go(to) {
    const { lines } = this;
    if (lines === null || lines.count === 0) return;
    this.at = Math.max(
      0,
      Math.min(
        lines.count - 1,
        Number.isFinite(to) ? Math.trunc(to) : to === Infinity ? lines.count - 1 : this.at,
      ),
    );
    this.#controls();
    const place = this.at;
    const current = () => this.lines === lines && this.at === place;
    byId("line").textContent = `Line ${lines.numbers[place]}`;
    try {
      const { value, number } = await lines.read(place);
      if (!current()) return;
      byId("line").textContent =
        typeof value.id === "string" ? `Line ${number} · id ${value.id}` : `Line ${number}`;
      this.on.row(toRow(value, number));
    } catch (error) {
      if (!(error instanceof LineError)) throw error;
      if (current()) this.on.broken(error);
    }
  }

  #controls() {
    const count = this.lines?.count ?? 0;
    const input = /** @type {HTMLInputElement} */ (byId("at"));
    input.value = String(this.at + 1);
    input.max = String(count);
    byId("of").textContent = `of ${count}${this.lines?.done ? "" : "…"}`;
    for (const [id, off] of /** @type {[string, boolean][]} */ ([
      ["first", this.at === 0],
      ["previous", this.at === 0],
      ["next", this.at >= count - 1],
      ["last", this.at >= count - 1],
    ])) {
      byId(id).setAttribute("aria-disabled", String(off)); // stays in the tab order, so that focus is not lost
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const typing = event.target instanceof HTMLElement && event.target.matches("textarea, input, select");
    if (this.lines === null || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { PageUp: -1, "[": -1, PageDown: 1, "]": 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.go(this.at + step);
  }
}
