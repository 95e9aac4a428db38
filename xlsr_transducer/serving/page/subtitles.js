// A transcript as the text of a file.

// What fits a screen and can be read: two lines of 42 characters, for at most 7 seconds.
const MOST_CHARACTERS = 84;
const MOST_SECONDS = 7;

/**
 * @typedef {{word: string, start: number, end: number, confidence: number}} Word times in seconds
 * @typedef {{words: Word[]}} Segment
 */

/** One line per segment. */
export function txt(segments) {
  return segments.map((segment) => `${textOf(segment.words)}\n`).join("");
}

/** SubRip. */
export function srt(segments) {
  return cues(segments)
    .map((cue, i) => `${i + 1}\n${timing(cue, ",")}\n${textOf(cue)}\n`)
    .join("\n");
}

/** WebVTT. */
export function vtt(segments) {
  const escape = (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return ["WEBVTT\n"]
    .concat(cues(segments).map((cue) => `${timing(cue, ".")}\n${escape(textOf(cue))}\n`))
    .join("\n");
}

export const FORMATS = { txt, srt, vtt };

function textOf(words) {
  return words.map(({ word }) => word).join(" ");
}

/** Cuts segments into cues, at words. */
function cues(segments) {
  return segments.flatMap(({ words }) => {
    const found = [];
    for (const word of words) {
      const cue = found.at(-1);
      const fits =
        cue &&
        textOf([...cue, word]).length <= MOST_CHARACTERS &&
        word.end - cue[0].start <= MOST_SECONDS;
      if (fits) {
        cue.push(word);
      } else {
        found.push([word]);
      }
    }
    return found;
  });
}

function timing(cue, point) {
  return `${clock(cue[0].start, point)} --> ${clock(cue.at(-1).end, point)}`;
}

/** 3661.5 as 01:01:01,500. */
function clock(seconds, point) {
  const ms = Math.round(seconds * 1000);
  const parts = [ms / 3600000, (ms / 60000) % 60, (ms / 1000) % 60];
  const hms = parts.map((part) => String(Math.floor(part)).padStart(2, "0")).join(":");
  return hms + point + String(ms % 1000).padStart(3, "0");
}
