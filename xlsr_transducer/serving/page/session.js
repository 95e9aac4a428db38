// One connection to the server: sherpa's protocol at the page's own address.

// The server's names of websocket subprotocols. A browser cannot set a websocket's headers, and an
// address is written into logs: so the key travels as a subprotocol.
const PROTOCOL = "sherpa";
const KEY_PROTOCOL = "openai-insecure-api-key.";

const MOST_UNSENT = 1 << 20; // bytes that may wait in the browser

/** @typedef {{hotwords: string[], key: string}} Settings */

/**
 * Asks the server what it offers, and why it would refuse a session with these settings.
 *
 * @param {Settings} settings
 * @returns {Promise<{model: string, no_hotwords: string, needs_key: boolean, refusal: string}>}
 * @throws {TypeError} it does not answer.
 */
export async function askServer({ hotwords, key }) {
  const query = new URLSearchParams({ hotwords: hotwords.join("/") });
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(`config?${query}`, { headers, cache: "no-store" });
  if (!answer.ok) {
    throw new TypeError(`the server answers ${answer.status}`);
  }
  return answer.json();
}

/** A stream: audio out, results in. */
export class Session {
  /**
   * @param {number} rate of the audio, in Hz.
   * @param {Settings} settings
   * @param {(message: object) => void} onResult
   */
  constructor(rate, { hotwords, key }, onResult) {
    const address = new URL("./", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    address.search = new URLSearchParams({ rate, hotwords: hotwords.join("/") });
    this.socket = new WebSocket(address, key ? [PROTOCOL, KEY_PROTOCOL + key] : []);
    this.unsent = []; // until it is open
    this.wasOpen = this.hasResults = this.isFinished = this.isComplete = false;
    this.socket.onopen = () => this.opened();
    this.socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      this.hasResults = true;
      this.isComplete ||= message.final;
      onResult(message);
    };
    /** Resolves when it is over, with the server's close code and reason. */
    this.ended = new Promise((resolve) => {
      this.socket.onclose = ({ code, reason }) => resolve({ code, reason });
    });
  }

  opened() {
    this.wasOpen = true;
    this.unsent.splice(0).forEach((data) => this.socket.send(data));
  }

  /**
   * Sends float32 samples: little-endian, as machines with browsers are. They wait while the
   * connection is made; what comes after the end goes nowhere.
   */
  send(samples) {
    if (!this.isFinished) {
      this.push(samples);
    }
  }

  /** Ends the audio; results follow until the session has ended. */
  finish() {
    if (!this.isFinished) {
      this.isFinished = true;
      this.push("Done");
    }
  }

  push(data) {
    if (this.socket.readyState === WebSocket.CONNECTING) {
      this.unsent.push(data);
    } else if (this.isOpen) {
      this.socket.send(data);
    }
  }

  get isOpen() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  /** Waits while the server is slower than the audio. Returns whether there is a connection. */
  async hasRoom() {
    const connecting = () => this.socket.readyState === WebSocket.CONNECTING;
    while (connecting() || (this.isOpen && this.socket.bufferedAmount > MOST_UNSENT)) {
      await new Promise((resolve) => setTimeout(resolve, 20)); // browsers have no event for it
    }
    return this.isOpen;
  }

  close() {
    this.socket.close();
  }
}
