// Shows a transcript: one paragraph per segment, one element per word.
//
// Words come from a model, so that they are set as text and never as HTML. Elements are kept while
// their segment grows: a word that is pointed at stays so when the segment becomes final.

const ANNOUNCED = 3; // final segments kept for screen readers

export class TranscriptView {
  /**
   * @param {HTMLElement} list for the segments.
   * @param {HTMLElement} announcer a polite live region, which is given final segments only.
   */
  constructor(transcript, list, announcer) {
    Object.assign(this, { transcript, list, announcer });
    this.numAnnounced = 0;
    transcript.addEventListener("change", () => this.show());
    list.addEventListener("keydown", (event) => this.move(event));
    list.addEventListener("focusin", ({ target }) => this.setTabStop(target));
  }

  show() {
    const { segments, finals } = this.transcript;
    const atEnd = isAtEnd();
    while (this.list.children.length > segments.length) {
      this.list.lastChild.remove();
    }
    const changed = Math.max(this.list.children.length - 1, 0); // all before are final
    for (let i = changed; i < segments.length; i++) {
      const item = this.list.children[i] ?? this.list.appendChild(newSegment());
      item.classList.toggle("live", i >= finals.length);
      fill(item, segments[i]);
    }
    this.announce(finals);
    if (!this.list.querySelector('[tabindex="0"]')) {
      this.list.querySelector(".word")?.setAttribute("tabindex", "0");
    }
    if (atEnd) {
      window.scrollTo({ top: document.body.scrollHeight });
    }
  }

  announce(finals) {
    for (const { words } of finals.slice(this.numAnnounced)) {
      const line = document.createElement("p");
      line.dir = "auto";
      line.textContent = words.map(({ word }) => word).join(" ");
      this.announcer.append(line);
    }
    this.numAnnounced = finals.length;
    while (this.announcer.children.length > Math.min(ANNOUNCED, finals.length)) {
      this.announcer.firstChild.remove();
    }
  }

  /** The list is one stop of the Tab key; arrows move within it. */
  move(event) {
    const words = [...this.list.querySelectorAll(".word")];
    const at = words.indexOf(event.target);
    const isRightToLeft = getComputedStyle(event.target.parentElement).direction === "rtl";
    const forward = isRightToLeft ? -1 : 1;
    const places = {
      ArrowRight: at + forward,
      ArrowLeft: at - forward,
      Home: 0,
      End: words.length - 1,
    };
    if (at >= 0 && event.key in places) {
      event.preventDefault();
      words[places[event.key]]?.focus();
    }
  }

  setTabStop(word) {
    this.list.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    word.setAttribute("tabindex", "0");
  }
}

function newSegment() {
  const item = document.createElement("li");
  const line = document.createElement("p");
  line.dir = "auto";
  item.append(document.createElement("time"), line);
  return item;
}

function fill(item, { words }) {
  const [time, line] = item.children;
  time.textContent = clock(words[0].start);
  while (line.children.length > words.length) {
    line.lastChild.remove();
    line.lastChild.remove(); // the space before it
  }
  words.forEach((word, i) => {
    const shown = line.children[i] ?? addWord(line);
    shown.textContent = word.word;
    shown.dataset.details =
      `${word.start.toFixed(2)}–${word.end.toFixed(2)} s, ` +
      `confidence ${Math.round(word.confidence * 100)} %`;
  });
}

function addWord(line) {
  const word = document.createElement("span");
  word.className = "word";
  word.tabIndex = -1;
  line.append(...(line.children.length ? [" ", word] : [word]));
  return word;
}

/** 65.2 as 1:05. */
function clock(seconds) {
  const [h, m, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  const two = (number) => String(number).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

function isAtEnd() {
  return window.innerHeight + window.scrollY > document.body.scrollHeight - 40;
}
