// Brings audio to the server and its results into the transcript.

import { readAudioFile } from "./audio_file.js";
import { Delay } from "./delay.js";
import { Microphone } from "./microphone.js";
import { askServer, Session } from "./session.js";

const BAD_DATA = 1007; // websocket close code: the same audio would be refused again
const FRAME = 0.04; // seconds, an encoder frame: a token is dated by the beginning of its own
const FILE_PIECE = 1 << 14; // samples per message
const WHILE_LOST = "The text so far is kept; what is said now is lost. Trying again…";
const LONGEST_PAUSE = 8000; // ms between attempts to connect

/**
 * States: idle, starting, listening, reading (a file), lost (connecting anew), finishing.
 *
 * The clock of the transcript is the audio: it counts the seconds that were recorded since the
 * transcript was empty, those without a connection too.
 */
export class Recogniser {
  /**
   * @param {Transcript} transcript
   * @param {(state: string, problem: string, done: string) => void} onState
   * @param {(samples: Float32Array) => void} onSamples for the level meter.
   * @param {(seconds: number) => void} onDelay
   */
  constructor(transcript, onState, onSamples, onDelay) {
    Object.assign(this, { transcript, onState, onSamples, onDelay });
    this.seconds = 0; // the clock
    this.state = "idle";
  }

  /** Recognises the microphone until stop(). */
  async listen(settings) {
    this.begin(settings);
    try {
      this.microphone = await Microphone.open(
        (samples) => this.take(samples),
        () => this.stop("The microphone was switched off."),
      );
    } catch (problem) {
      this.end(problem.message);
      return;
    }
    this.delay = new Delay();
    const problem = this.isStopping ? "" : await this.keepConnected();
    await this.stopMicrophone();
    this.end(problem || this.reason);
  }

  /** Recognises a file as fast as the server can. */
  async read(file, settings) {
    this.begin(settings);
    let audio;
    try {
      audio = await readAudioFile(file);
    } catch (problem) {
      this.end(problem.message);
      return;
    }
    const start = performance.now();
    const session = this.connect(audio.rate);
    this.enter("reading");
    const { samples } = audio;
    let at = 0;
    for (; at < samples.length && !this.isStopping && (await session.hasRoom()); at += FILE_PIECE) {
      this.take(samples.subarray(at, at + FILE_PIECE));
    }
    session.finish();
    this.isStopping = true;
    const problem = await this.whyEnded(session, await session.ended);
    const elapsed = ((performance.now() - start) / 1000).toFixed(1);
    const length = (Math.min(at, samples.length) / audio.rate).toFixed(1);
    this.end(problem, `${length} s of audio in ${elapsed} s`);
  }

  /**
   * Ends the audio and waits for the last words; called again, it does not wait.
   *
   * @param {string} reason what to tell the user, if it was not the user who stopped.
   */
  async stop(reason = "") {
    if (this.isStopping) {
      this.isAbandoned = true;
      this.session?.close();
      return;
    }
    this.isStopping = true;
    this.reason = reason;
    this.wake();
    if (this.state !== "starting") {
      this.enter("finishing");
    }
    await this.stopMicrophone();
    this.session?.finish();
  }

  begin(settings) {
    this.settings = settings;
    this.isStopping = this.isAbandoned = false;
    this.reason = "";
    this.stopped = new Promise((resolve) => {
      this.wake = resolve;
    });
    if (this.transcript.isEmpty) {
      this.seconds = 0;
    }
    this.delay = null; // of a file it would say nothing
    this.enter("starting");
  }

  /** Takes the next samples of the audio. */
  take(samples) {
    this.seconds += samples.length / this.rate;
    this.delay?.sent(this.seconds);
    this.session?.send(samples);
    this.onSamples(samples);
  }

  connect(rate) {
    const offset = this.seconds;
    this.rate = rate;
    this.session = new Session(rate, this.settings, (message) => {
      this.transcript.update(message, offset);
      const ends = message.timestamps.map((time) => offset + time + FRAME);
      const delay = this.delay?.mean(ends);
      if (delay !== undefined) {
        this.onDelay(delay);
      }
    });
    return this.session;
  }

  /** Connects, and again when the server goes away; returns why it gave up, "" if it was told to. */
  async keepConnected() {
    let attempts = 0;
    let wasOpen = false;
    this.enter("listening");
    for (;;) {
      const session = this.connect(this.microphone.rate);
      session.socket.addEventListener("open", () => this.state === "lost" && this.enter("listening"));
      const ended = await session.ended;
      const problem = await this.whyEnded(session, ended);
      wasOpen ||= session.wasOpen;
      if (this.isStopping || !wasOpen || ended.code === BAD_DATA) {
        return problem;
      }
      this.enter("lost", `${problem} ${WHILE_LOST}`);
      attempts = session.hasResults ? 0 : attempts + 1;
      await this.pause(Math.min(1000 * 2 ** attempts, LONGEST_PAUSE));
      if (this.isStopping) {
        return "";
      }
    }
  }

  /** Waits for ``ms``, or until stop(). */
  async pause(ms) {
    await Promise.race([this.stopped, new Promise((resolve) => setTimeout(resolve, ms))]);
  }

  /** Returns what to tell the user about the end of a session; "" if it ended as it should. */
  async whyEnded(session, { reason }) {
    this.transcript.freeze();
    if (this.isAbandoned || (session.isComplete && this.isStopping)) {
      return "";
    }
    if (session.isComplete || reason) {
      return `The server has ended the session${reason && ": "}${reason}.`;
    }
    if (session.wasOpen) {
      return "The connection to the server is lost.";
    }
    // A browser does not tell why a connection was refused: ask.
    try {
      const { refusal } = await askServer(this.settings);
      return refusal ? `The server refuses: ${refusal}.` : "The server took no connection.";
    } catch {
      return "The server does not answer.";
    }
  }

  async stopMicrophone() {
    const { microphone } = this;
    this.microphone = null;
    await microphone?.stop();
  }

  end(problem, done = "") {
    this.session = null;
    this.enter("idle", problem, done);
  }

  enter(state, problem = "", done = "") {
    this.state = state;
    this.onState(state, problem, done);
  }
}
