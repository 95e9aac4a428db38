// The segments of a transcript.

/** @typedef {import("./subtitles.js").Segment} Segment */

export class Transcript extends EventTarget {
  /** @type {Segment[]} */
  finals = [];
  /** @type {Segment | null} the segment that may still change */
  live = null;

  /**
   * Takes a result of the server.
   *
   * @param {object} message in sherpa's protocol.
   * @param {number} offset seconds of the transcript's clock at which the session began.
   */
  update({ word_details, is_final }, offset) {
    const words = word_details.map((word) => ({
      ...word,
      start: word.start + offset,
      end: word.end + offset,
    }));
    this.live = words.length ? { words } : null;
    if (is_final) {
      this.freeze();
    } else {
      this.changed();
    }
  }

  /** Makes the live segment final: nothing more will come for it. */
  freeze() {
    if (this.live) {
      this.finals.push(this.live);
      this.live = null;
    }
    this.changed();
  }

  clear() {
    this.finals = [];
    this.live = null;
    this.changed();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** @returns {Segment[]} the finals, and the live one. */
  get segments() {
    return this.live ? [...this.finals, this.live] : this.finals;
  }

  get isEmpty() {
    return !this.segments.length;
  }
}
