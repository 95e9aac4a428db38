"""Figures of a corpus by split: a table to read and histograms to look at."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from xlsr_transducer.core.geometry import encoder_frames
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.data.tokenizer import Tokenizer

_NONE = "-"


class SplitStatistics:
    """Durations, texts and speakers of one split, and of each language in it.

    Memory: 48 bytes for each utterance.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.languages: dict[str, SplitStatistics] = {}
        self.durations = array("d")  # seconds
        self.words = array("q")  # per utterance
        self.tokens = array("q")  # per utterance; empty without a tokenizer
        self.characters = 0  # spaces not counted
        self.speakers: set[str] = set()
        self.crowded: list[str] = []  # ids of utterances with more tokens than encoder frames

    def add(self, cut: dict, tokenizer: Tokenizer | None) -> int | None:
        """Counts a cut, given as its dictionary; returns how many tokens it has, if that is
        known."""
        [supervision] = cut["supervisions"]
        ids = tokenizer.encode([supervision["text"]])[0] if tokenizer else None
        language = supervision.get("language") or _NONE
        self._add(cut, supervision, ids)
        self.languages.setdefault(language, SplitStatistics(language))._add(cut, supervision, ids)
        return None if ids is None else len(ids)

    def _add(self, cut: dict, supervision: dict, ids: list[int] | None) -> None:
        words = supervision["text"].split()
        self.durations.append(cut["duration"])
        self.words.append(len(words))
        self.characters += sum(map(len, words))
        if supervision.get("speaker"):
            self.speakers.add(supervision["speaker"])
        if ids is not None:
            self.tokens.append(len(ids))
            if len(ids) > encoder_frames(cut["duration"]):
                self.crowded.append(cut["id"])

    @property
    def seconds(self) -> float:
        """Length of all audio."""
        return float(sum(self.durations))

    def per_second(self, counts: array) -> np.ndarray:
        """``counts`` of each utterance divided by its duration."""
        return np.asarray(counts, dtype=float) / np.asarray(self.durations)


def tables(splits: Sequence[SplitStatistics]) -> str:
    """Returns a table of the splits, and one of each split that has several languages."""
    parts = [table(splits)]
    for split in splits:
        if len(split.languages) > 1:
            parts.append(f"{split.name} by language\n{table(list(split.languages.values()))}")
    return "\n".join(parts)


def table(splits: Sequence[SplitStatistics]) -> str:
    """Returns one column for each split or language."""
    rows: list[tuple[str, Callable[[SplitStatistics], str]]] = [
        ("utterances", lambda s: str(len(s.durations))),
        ("hours", lambda s: f"{s.seconds / 3600:.2f}"),
        ("speakers", lambda s: str(len(s.speakers))),
        ("seconds, shortest", lambda s: _number(s.durations, np.min)),
        ("seconds, mean", lambda s: _number(s.durations, np.mean)),
        ("seconds, median", lambda s: _number(s.durations, np.median)),
        ("seconds, 95 %", lambda s: _number(s.durations, lambda d: np.percentile(d, 95))),
        ("seconds, longest", lambda s: _number(s.durations, np.max)),
        ("words", lambda s: str(sum(s.words))),
        ("characters", lambda s: str(s.characters)),
        ("tokens", lambda s: str(sum(s.tokens)) if s.tokens else _NONE),
        ("tokens per second", lambda s: f"{sum(s.tokens) / s.seconds:.2f}" if s.tokens else _NONE),
    ]
    cells = [["", *(s.name for s in splits)]]
    cells += [[label, *(value(s) for s in splits)] for label, value in rows]
    return text_table(cells, is_right=True, is_ruled=False) + "\n"


def _number(values: array, function: Callable) -> str:
    return f"{function(np.asarray(values)):.2f}" if values else _NONE


def plot_histograms(
    splits: Sequence[SplitStatistics], path: Path, audio: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Draws durations, words and tokens per second, and measures of the audio, each split as a
    share of its utterances.

    Args:
      audio: label of a measure -> values of each split whose audio was read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        ("seconds per utterance", [np.asarray(s.durations) for s in splits]),
        ("words per second", [s.per_second(s.words) for s in splits]),
    ]
    if any(len(s.tokens) for s in splits):
        panels.append(("tokens per second", [s.per_second(s.tokens) for s in splits]))
    panels += [(label, [values[s.name] for s in splits]) for label, values in audio.items()]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 3.6 * rows), layout="constrained")
    for axes in figure.subplots(rows, 3, squeeze=False).flat[len(panels) :]:
        axes.remove()
    for axes, (label, values) in zip(figure.axes, panels, strict=True):
        present = np.concatenate(values)
        bins = np.histogram_bin_edges(present, bins=40) if len(present) else 40
        for split, one in zip(splits, values, strict=True):
            if len(one):
                weights = np.full(len(one), 100 / len(one))
                axes.hist(one, bins, weights=weights, histtype="step", label=split.name)
        axes.set_xlabel(label)
        axes.set_ylabel("% of utterances")
    if any(len(s.durations) for s in splits):
        figure.axes[0].legend()
    FigureCanvasAgg(figure).print_png(path)
