// How late words are: from when their last sound was sent to when they are shown.

const REMEMBERED = 120000; // ms

export class Delay {
  constructor() {
    this.log = []; // of pieces sent: the audio's clock at their end, and when that was
    this.newest = 0;
  }

  /** Notes that audio up to ``seconds`` of its clock has been sent. */
  sent(seconds, now = performance.now()) {
    this.log.push({ seconds, now });
    while (this.log[0].now < now - REMEMBERED) {
      this.log.shift();
    }
  }

  /**
   * @param {number} end of the newest word, in seconds of the audio's clock.
   * @returns {number | undefined} its delay in seconds; undefined if the word is not new.
   */
  of(end, now = performance.now()) {
    if (end <= this.newest) {
      return undefined;
    }
    this.newest = end;
    const piece = this.log.find(({ seconds }) => seconds >= end);
    return piece && (now - piece.now) / 1000;
  }
}
