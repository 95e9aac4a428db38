// Runs in the browser's audio thread: collects the microphone's samples into pieces.

const PIECE = 2048; // samples, 43 ms at 48 kHz: small beside a chunk, and few messages

class Collector extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(PIECE);
    this.filled = 0;
    this.stopped = false;
    this.port.onmessage = () => this.stop();
  }

  process([input]) {
    if (this.stopped) {
      return false;
    }
    const samples = input[0]; // channel 0; none before the microphone has started
    for (let taken = 0; samples && taken < samples.length; ) {
      const count = Math.min(samples.length - taken, PIECE - this.filled);
      this.piece.set(samples.subarray(taken, taken + count), this.filled);
      this.filled += count;
      taken += count;
      if (this.filled === PIECE) {
        this.post();
      }
    }
    return true;
  }

  post() {
    const samples = this.piece.slice(0, this.filled);
    this.filled = 0;
    this.port.postMessage(samples, [samples.buffer]);
  }

  /** Sends what is left, then null. */
  stop() {
    this.stopped = true;
    this.post();
    this.port.postMessage(null);
  }
}

registerProcessor("collector", Collector);
