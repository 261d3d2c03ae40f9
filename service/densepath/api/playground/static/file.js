/** The lines of a file of any size: found once in the background, read only when one is looked at. */

const CHUNK = 4 << 20; // bytes

/** A line that cannot be shown; the message says which and why. */
export class LineError extends Error {}

export class Lines {
  /** @param {File} file */
  constructor(file) {
    this.file = file;
    this.done = false;
    /** @type {number[]} */ this.begins = [];
    /** @type {number[]} */ this.ends = [];
    /** @type {number[]} */ this.numbers = []; // of the file: blank lines count there, and nowhere else
  }

  /** How many lines that are not blank are found so far. */
  get count() {
    return this.begins.length;
  }

  /**
   * Find every line.
   * @param {() => void} progress  called after each chunk
   * @param {AbortSignal} signal
   */
  async index(progress, signal) {
    let begin = 0;
    let number = 1;
    let written = false; // whether the line holds anything but white space
    const end = (/** @type {number} */ at) => {
      if (written) {
        this.begins.push(begin);
        this.ends.push(at);
        this.numbers.push(number);
      }
      [begin, number, written] = [at + 1, number + 1, false];
    };
    for (let at = 0; at < this.file.size && !signal.aborted; at += CHUNK) {
      const bytes = new Uint8Array(await this.file.slice(at, at + CHUNK).arrayBuffer());
      for (let from = 0; from < bytes.length;) {
        const found = bytes.indexOf(10, from);
        const to = found < 0 ? bytes.length : found;
        written ||= bytes.subarray(from, to).some((byte) => byte !== 32 && byte !== 9 && byte !== 13);
        if (found >= 0) end(at + found);
        from = to + 1;
      }
      progress();
    }
    end(this.file.size);
    this.done = true;
    progress();
  }

  /**
   * The JSON object in a line. Throws LineError.
   * @param {number} index
   * @returns {Promise<{value: Object<string, any>, number: number}>}
   */
  async read(index) {
    const number = this.numbers[index];
    let text;
    try {
      text = await this.file.slice(this.begins[index], this.ends[index]).text();
    } catch {
      throw new LineError("The file cannot be read any more: it may have changed. Open it again.");
    }
    let value;
    try {
      value = JSON.parse(text);
    } catch {
      throw new LineError(`Line ${number} is not JSON.`);
    }
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new LineError(`Line ${number} is not a JSON object.`);
    }
    return { value, number };
  }
}
