// How late text is: from when its sound was sent to when it is shown.
//
// All tokens count. The newest of a result alone would look faster than the text is: it came last
// in its chunk, and waited least for the chunk to fill.

const MEAN_OF = 20; // tokens
const REMEMBERED = 120000; // ms

export class Delay {
  constructor() {
    this.log = []; // of pieces sent: the audio's clock at their end, and when that was
    this.newest = 0; // end of the last token that was counted
    this.delays = []; // of the last tokens, in seconds
  }

  /** Notes that audio up to ``seconds`` of its clock has been sent. */
  sent(seconds, now = performance.now()) {
    this.log.push({ seconds, now });
    while (this.log[0].now < now - REMEMBERED) {
      this.log.shift();
    }
  }

  /**
   * Takes the tokens of a result; those counted before do not count again.
   *
   * @param {number[]} ends of its tokens, in seconds of the audio's clock.
   * @returns {number | undefined} the mean delay of the last tokens, in seconds.
   */
  mean(ends, now = performance.now()) {
    for (const end of ends.filter((end) => end > this.newest)) {
      const piece = this.log.find(({ seconds }) => seconds >= end);
      this.newest = end;
      this.delays.push((now - (piece?.now ?? now)) / 1000);
    }
    this.delays = this.delays.slice(-MEAN_OF);
    const sum = this.delays.reduce((a, b) => a + b, 0);
    return this.delays.length ? sum / this.delays.length : undefined;
  }
}
