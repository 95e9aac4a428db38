// The microphone, in pieces of float32 samples.
//
// Its samples go to the server at the rate at which the browser has them, and the server resamples
// them as it resamples files. The browser's own processing of voices is switched off: models are
// trained on sound without it.

const CONSTRAINTS = {
  audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
};

const ANSWERS_IN = 2000; // ms

/** Why there is no microphone; the message is for the user. */
export class MicrophoneProblem extends Error {}

export class Microphone {
  /**
   * Asks for the microphone and starts it. Call it from a click: browsers want that.
   *
   * @param {(samples: Float32Array) => void} onSamples called with each piece.
   * @param {() => void} onEnd called when the microphone is unplugged or taken away.
   * @throws {MicrophoneProblem}
   */
  static async open(onSamples, onEnd) {
    if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
      throw new MicrophoneProblem(whyNotHere());
    }
    const context = new AudioContext();
    try {
      await context.audioWorklet.addModule("worklet.js").catch(() => {
        throw new MicrophoneProblem("The server does not answer.");
      });
      const stream = await navigator.mediaDevices.getUserMedia(CONSTRAINTS);
      await context.resume();
      return new Microphone(context, stream, onSamples, onEnd);
    } catch (error) {
      await context.close();
      throw error instanceof MicrophoneProblem ? error : new MicrophoneProblem(whyRefused(error));
    }
  }

  constructor(context, stream, onSamples, onEnd) {
    this.rate = context.sampleRate; // Hz
    this.context = context;
    this.track = stream.getAudioTracks()[0];
    this.track.onended = onEnd;
    this.node = new AudioWorkletNode(context, "collector", { numberOfOutputs: 0 });
    this.emptied = new Promise((resolve) => {
      this.node.port.onmessage = ({ data }) => (data ? onSamples(data) : resolve());
    });
    context.createMediaStreamSource(stream).connect(this.node);
    // A phone whose screen goes dark would stop listening. Not all browsers can prevent it.
    this.awake = navigator.wakeLock?.request("screen").catch(() => null);
  }

  /** Stops it; the last piece has been given to onSamples when this returns. */
  async stop() {
    this.track.onended = null;
    this.node.port.postMessage("stop");
    // The system may have halted the audio thread: then no answer comes.
    await Promise.race([this.emptied, new Promise((resolve) => setTimeout(resolve, ANSWERS_IN))]);
    this.track.stop();
    await (await this.awake)?.release();
    await this.context.close();
  }
}

function whyNotHere() {
  if (!window.isSecureContext) {
    return (
      `No microphone: browsers allow it only on https pages and on localhost, and this page is ` +
      `${location.origin}. Start the server with --certificate, or open an audio file instead.`
    );
  }
  return "No microphone: this browser cannot record on web pages. Open an audio file instead.";
}

function whyRefused(error) {
  switch (error.name) {
    case "NotAllowedError":
      return (
        "No microphone: this page has no permission to use it. Allow it in the browser's " +
        "settings of this site (beside the address), then press Speak again."
      );
    case "NotFoundError":
      return "No microphone: this computer has none, or it is switched off.";
    case "NotReadableError":
      return "No microphone: another program uses it, or the system has locked it.";
    default:
      return `No microphone: ${error.message || error.name}`;
  }
}
