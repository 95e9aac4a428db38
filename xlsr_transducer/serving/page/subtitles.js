// A transcript as the text of a file. Subtitles are those of the recogniser's other commands
// (recognition/subtitles.py), to the byte.

const LINE = 42; // characters
const LINES = 2;
const LONGEST = 7; // seconds of a cue
const SHORTEST = 1000; // ms, if the next cue does not come before
const PAUSE = 1; // seconds without a word that end a cue

/**
 * @typedef {{word: string, start: number, end: number, confidence: number}} Word times in seconds
 * @typedef {{words: Word[]}} Segment
 */

/** One line per segment. */
export function txt(segments) {
  return segments.map(({ words }) => `${textsOf(words).join(" ")}\n`).join("");
}

/** SubRip. */
export function srt(segments) {
  const shown = cues(segments).map(
    ({ start, end, lines }, i) =>
      `${i + 1}\n${clock(start, ",")} --> ${clock(end, ",")}\n${lines.join("\n")}\n\n`,
  );
  return shown.join("");
}

/** WebVTT. */
export function vtt(segments) {
  const shown = cues(segments).map(
    ({ start, end, lines }) =>
      `${clock(start, ".")} --> ${clock(end, ".")}\n${lines.map(escaped).join("\n")}\n\n`,
  );
  return `WEBVTT\n\n${shown.join("")}`;
}

export const FORMATS = { txt, srt, vtt };

/** Returns cues that follow each other, none before its first word; times in ms. */
function cues(segments) {
  const groups = segments.flatMap(({ words }) => grouped(words));
  const starts = [];
  for (const [first] of groups) {
    starts.push(Math.max(milliseconds(first.start), starts.length ? starts.at(-1) + 1 : 0));
  }
  return groups.map((words, i) => {
    const end = Math.max(milliseconds(words.at(-1).end), starts[i] + SHORTEST);
    return {
      start: starts[i],
      end: Math.min(end, starts[i + 1] ?? Infinity),
      lines: balanced(textsOf(words)),
    };
  });
}

/** Splits a segment's words into those of each cue. */
function grouped(words) {
  const groups = [];
  for (const word of words) {
    const group = groups.at(-1);
    if (group && fits(group, word)) {
      group.push(word);
    } else {
      groups.push([word]);
    }
  }
  return groups;
}

function fits(group, word) {
  return (
    word.end - group[0].start <= LONGEST &&
    word.start - group.at(-1).end <= PAUSE &&
    filled(textsOf([...group, word])).length <= LINES
  );
}

/** Returns lines that are as full as they may be; a longer word has a line of its own. */
function filled(texts) {
  const lines = [];
  for (const text of texts) {
    if (lines.length && length(lines.at(-1)) + 1 + length(text) <= LINE) {
      lines.push(`${lines.pop()} ${text}`);
    } else {
      lines.push(text);
    }
  }
  return lines;
}

/** Returns one line, or two of lengths as equal as may be. */
function balanced(texts) {
  const lines = filled(texts);
  if (lines.length !== 2) {
    return lines;
  }
  const pairs = texts
    .slice(1)
    .map((_, i) => [texts.slice(0, i + 1).join(" "), texts.slice(i + 1).join(" ")]);
  const longer = (pair) => Math.max(...pair.map(length));
  return pairs.reduce((best, pair) => (longer(pair) < longer(best) ? pair : best));
}

function textsOf(words) {
  return words.map(({ word }) => word);
}

/** Characters, of which some take two places in a string of JavaScript. */
function length(text) {
  return [...text].length;
}

function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function milliseconds(seconds) {
  return Math.round(seconds * 1000);
}

/** 3661500 as 01:01:01,500. */
function clock(ms, point) {
  const parts = [ms / 3600000, (ms / 60000) % 60, (ms / 1000) % 60].map(Math.floor);
  const [h, m, s] = parts.map((part) => String(part).padStart(2, "0"));
  return `${h}:${m}:${s}${point}${String(ms % 1000).padStart(3, "0")}`;
}
