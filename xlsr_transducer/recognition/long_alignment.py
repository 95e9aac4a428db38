"""Aligns a long recording with a transcript that may have gaps, and text that nobody spoke.

A model recognises the recording; units of the transcript (sentences, say) are placed on the
recognised words. One that differs from them is aligned by force in a window between its
neighbours, and so are they: how much more probable the model finds its own words tells whether
the text is wrong, or the model.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import kaldialign
import torch
from torch.nn.utils.rnn import pad_sequence

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import Tokenizer, text_of
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.alignment import NEVER, align, align_ctc
from xlsr_transducer.recognition.long_encoding import Encoded
from xlsr_transducer.recognition.placing import Stretch, place
from xlsr_transducer.recognition.spans import Span, token_spans, word_spans
from xlsr_transducer.search import Hypothesis, SearchOptions, make_search

BATCH_FRAMES = 6000  # of units that are aligned together, padded
# Seconds beyond its recognised words in which a unit may be, if the word there is another or not.
REACH = (2.0, 0.2)


class RecognisedWord(NamedTuple):
    """A word that the model emits by itself, with its time in the recording."""

    span: Span
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """A stretch of the transcript that was spoken as a whole, or not."""

    words: tuple[str, ...]  # as the model spells them
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class AlignedUnit:
    """Where a unit was spoken, and how well it fits."""

    stretch: Stretch  # the recognised words that it was placed on
    words: list[Span]  # its own, with times in the recording; none where there is no path
    errors: int  # words in which it differs from what was recognised
    odds: float  # log-prob of what was recognised less that of the unit, per error; >= 0

    @property
    def error_rate(self) -> float:
        """Errors per word of the unit."""
        return self.errors / max(len(self.words), 1)


class _Job(NamedTuple):
    """Tokens that are aligned with the frames from ``low`` up to ``high``."""

    low: int
    high: int
    tokens: tuple[int, ...]


class Aligner:
    """A model's CTC head or transducer, for long recordings."""

    def __init__(self, model: SpeechModel, tokenizer: Tokenizer, method: str):
        """``method``: `ctc` or `transducer`, a head that the model has."""
        self.model, self.tokenizer, self.method = model, tokenizer, method
        self._frame = model.encoder.frame_seconds
        self._device = model.encoder.like.device
        self._languages = set(tokenizer.languages.values())

    def unit(self, words: Sequence[str]) -> Unit:
        """Returns words as the model's tokens.

        Raises:
          UserError: there is no word, or one that the tokens cannot spell.
        """
        if not words:
            raise UserError("no words")
        [tokens] = self.tokenizer.encode([" ".join(words)])
        if self.tokenizer.unk_id in tokens:
            wrong = next(
                w for w in words if self.tokenizer.unk_id in self.tokenizer.encode([w])[0]
            )
            raise UserError(f"{wrong!r} has characters that the model's tokens lack")
        if sum(self.tokenizer.word_starts[t] for t in tokens) != len(words):
            raise UserError("the model's tokens have other words")
        return Unit(tuple(words), tuple(tokens))

    def recognise(self, encoded: Encoded) -> list[RecognisedWord]:
        """Returns the words that greedy search finds in a recording, in each window by itself."""
        name = "ctc_greedy_search" if self.method == "ctc" else "greedy_search"
        search = make_search(SearchOptions(decoding_method=name), self.model)
        start, words = 0, []
        for count in encoded.windows:
            frames = encoded.frames(start, start + count)
            lens = torch.tensor([count], device=self._device)
            state = search.init_state(1, self._device)
            [found] = search.results(search.advance(frames[None].to(self._device), lens, state))
            words += self._words(found, start)
            start += count
        return words

    def _words(self, found: Hypothesis, start: int) -> list[RecognisedWord]:
        """Returns the words of a window that begins at frame ``start``."""
        names = self.tokenizer.tokens
        kept = [i for i, token in enumerate(found.tokens) if token not in self._languages]
        lists = ([v[i] for i in kept] for v in (found.tokens, found.frames, found.log_probs))
        tokens, frames, log_probs = lists
        frames = [start + at for at in frames]
        starts = [self.tokenizer.word_starts[t] or t == self.tokenizer.unk_id for t in tokens]
        begins = [i for i, start in enumerate(starts) if start or i == 0] if tokens else []
        spans = token_spans(Hypothesis(tokens, frames, 0.0, log_probs), names, self._frame)
        texts = [text_of(names[t] for t in tokens[i:j]) for i, j in _pairs(begins, len(tokens))]
        words = word_spans(spans, starts, texts)
        parts = [tuple(tokens[i:j]) for i, j in _pairs(begins, len(tokens))]
        return [RecognisedWord(*pair) for pair in zip(words, parts) if pair[0].text]

    def align(
        self, encoded: Encoded, units: Sequence[Unit], recognised: Sequence[RecognisedWord]
    ) -> list[AlignedUnit | None]:
        """Finds where each unit was spoken; None for one that was not, as far as can be seen."""
        theirs = [_key(word.span.text) for word in recognised]
        written = [[_key(word) for word in unit.words] for unit in units]
        stretches = place(written, theirs)
        found: list[AlignedUnit | None] = [None] * len(units)
        jobs: dict[tuple[int, str], _Job] = {}
        errors: dict[int, int] = {}
        for k, stretch in enumerate(stretches):
            if stretch is None:
                continue
            words = recognised[slice(*stretch)]
            if written[k] == theirs[slice(*stretch)]:
                spans = [replace(w.span, text=t) for w, t in zip(words, units[k].words)]
                found[k] = AlignedUnit(stretch, spans, 0, 0.0)
                continue
            errors[k] = kaldialign.edit_distance(written[k], theirs[slice(*stretch)])["total"]
            reach = [
                REACH[written[k][edge] == theirs[at]]
                for edge, at in ((0, stretch.first), (-1, stretch.end - 1))
            ]
            low, high = self._window(stretch, reach, recognised, encoded.num_frames)
            own = tuple(token for word in words for token in word.tokens)
            jobs[k, "text"] = _Job(low, high, units[k].tokens)
            jobs[k, "own"] = _Job(low, high, own)
        paths = dict(self._paths(encoded, jobs))
        for k, count in errors.items():
            path = paths[k, "text"]
            odds = max(paths[k, "own"].score - path.score, 0.0) / count
            words = self._spans(path, jobs[k, "text"].low, units[k])
            found[k] = AlignedUnit(stretches[k], words, count, odds)
        return found

    def _window(
        self,
        stretch: Stretch,
        reach: Sequence[float],
        recognised: Sequence[RecognisedWord],
        num_frames: int,
    ) -> tuple[int, int]:
        """Returns the frames from ``reach`` seconds before a stretch to those after it, but
        none of the words beside it."""
        low = recognised[stretch.first].span.start - reach[0]
        high = recognised[stretch.end - 1].span.end + reach[1]
        if stretch.first:
            low = max(low, recognised[stretch.first - 1].span.end)
        if stretch.end < len(recognised):
            high = min(high, recognised[stretch.end].span.start)
        # Words may share a frame.
        low, high = math.floor(low / self._frame + 1e-3), math.ceil(high / self._frame - 1e-3)
        return max(low, 0), min(high, num_frames)

    def _spans(self, path: Hypothesis, low: int, unit: Unit) -> list[Span]:
        if path.score == NEVER:
            return []
        moved = replace(path, frames=[low + frame for frame in path.frames])
        spans = token_spans(moved, self.tokenizer.tokens, self._frame)
        return word_spans(spans, [self.tokenizer.word_starts[t] for t in path.tokens], unit.words)

    def _paths(
        self, encoded: Encoded, jobs: Mapping[Any, _Job]
    ) -> Iterator[tuple[Any, Hypothesis]]:
        """Yields the best path of each job, those of similar length being aligned together."""
        waiting = sorted(jobs, key=lambda name: jobs[name].high - jobs[name].low)
        while waiting:
            size = max(BATCH_FRAMES // max(jobs[waiting[-1]].high - jobs[waiting[-1]].low, 1), 1)
            names, waiting = waiting[-size:], waiting[:-size]
            batch = [jobs[name] for name in names]
            frames = [encoded.frames(job.low, job.high) for job in batch]
            tokens = [torch.tensor(job.tokens) for job in batch]
            given = [pad_sequence(x, batch_first=True).to(self._device) for x in (frames, tokens)]
            lens = [torch.tensor([len(x) for x in xs]).to(self._device) for xs in (frames, tokens)]
            aligned = align_ctc if self.method == "ctc" else align
            yield from zip(names, aligned(self.model, given[0], lens[0], given[1], lens[1]))


def _pairs(begins: Sequence[int], end: int) -> Iterator[tuple[int, int]]:
    return zip(begins, [*begins[1:], end])


def _key(word: str) -> str:
    """Returns what of a word is compared: letters and digits, in one case."""
    kept = (c for c in word.casefold() if unicodedata.category(c)[0] in "LMN")
    return "".join(kept) or word
