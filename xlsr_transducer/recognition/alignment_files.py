"""Alignments as files: CTM of words, and a TextGrid of words and tokens per utterance."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from xlsr_transducer.core.files import write_text
from xlsr_transducer.recognition.spans import Span


@dataclasses.dataclass(frozen=True)
class Aligned:
    """One utterance: words and tokens with their times, and how long it lasts in seconds."""

    id: str
    words: list[Span]
    tokens: list[Span]
    seconds: float


def ctm(alignments: Sequence[Aligned]) -> str:
    """NIST's CTM: id, channel, start, duration, word, confidence."""
    lines = []
    for a in alignments:
        for w in a.words:
            duration = f"{w.end - w.start:.3f}"
            line = f"{_escaped(a.id, ' ')} 1 {w.start:.3f} {duration} {w.text} {w.confidence:.3f}"
            lines.append(line + "\n")
    return "".join(lines)


def text_grid(tiers: Mapping[str, Sequence[Span]], seconds: float) -> str:
    """Praat's TextGrid of tiers by name; silence is an empty interval.

    Args:
      seconds: how long the audio lasts.
    """
    xmax = f"xmax = {seconds:.6f}"
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", xmax]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, spans) in enumerate(tiers.items(), 1):
        intervals = _without_gaps(spans, seconds)
        lines += [f"    item [{number}]:", '        class = "IntervalTier"']
        lines += [f'        name = "{name}"', "        xmin = 0", f"        {xmax}"]
        lines += [f"        intervals: size = {len(intervals)}"]
        for i, (text, start, end) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{i}]:", f"            xmin = {start:.6f}"]
            lines += [f"            xmax = {end:.6f}", f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


def _without_gaps(spans: Sequence[Span], seconds: float) -> list[tuple[str, float, float]]:
    """Returns the spans, and empty ones between them, from 0 to ``seconds``."""
    intervals, now = [], 0.0
    for span in [*spans, Span("", seconds, seconds, 0.0)]:
        if span.start - now > 1e-6:
            intervals.append(("", now, span.start))
        if span.text:
            intervals.append((span.text, span.start, span.end))
        now = span.end
    return intervals


def write_alignments(folder: Path, name: str, alignments: Sequence[Aligned]) -> None:
    """Writes ``NAME.ctm`` and ``NAME/ID.TextGrid`` into ``folder``."""
    for a in alignments:
        grid = text_grid({"words": a.words, "tokens": a.tokens}, a.seconds)
        write_text(folder / name / f"{_escaped(a.id, ' /:')}.TextGrid", grid)
    write_text(folder / f"{name}.ctm", ctm(alignments))


def _escaped(name: str, characters: str) -> str:
    """``name`` with white space and the given characters as in a URL."""
    return re.sub(rf"[\s%{re.escape(characters)}]", lambda m: quote(m[0], safe=""), name)
