"""Tokens and words with their times and confidences, as results show them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xlsr_transducer.data.tokenizer import UNK, WORD_START, text_of
from xlsr_transducer.search.hypothesis import Hypothesis


@dataclass(frozen=True)
class Span:
    """A word or token with its time in seconds and its confidence, the mean probability."""

    text: str
    start: float
    end: float
    confidence: float


def word_shapes(words: Sequence[Span], offset: float = 0.0) -> list[dict[str, Any]]:
    """Returns words as JSON shows them everywhere, with times ``offset`` seconds later."""
    return [
        {
            "word": word.text,
            "start": round(offset + word.start, 3),
            "end": round(offset + word.end, 3),
            "confidence": round(word.confidence, 4),
        }
        for word in words
    ]


def token_spans(hypothesis: Hypothesis, tokens: Sequence[str], frame: float) -> list[Span]:
    """Returns the time of each token: its frame of ``frame`` seconds, shared equally in a frame.

    So spans follow each other, do not overlap, and none is empty.
    """
    spans = []
    shared, seen = Counter(hypothesis.frames), Counter()
    for token, at, log_prob in zip(hypothesis.tokens, hypothesis.frames, hypothesis.log_probs):
        start, end = ((at + (seen[at] + j) / shared[at]) * frame for j in (0, 1))
        seen[at] += 1
        spans.append(Span(tokens[token], start, end, math.exp(log_prob)))
    return spans


def word_spans(spans: list[Span], starts: list[bool], words: list[str]) -> list[Span]:
    """Joins token spans into words.

    A word lasts from the first frame of its first token to the end of its last token's frame:
    the model knows when a token is there, not how long it lasts.

    Args:
      starts: whether each token begins a word.
      words: their spelling.

    Raises:
      ValueError: there are not as many words as beginnings.
    """
    begins = [i for i, start in enumerate(starts) if start or i == 0]
    if len(begins) != len(words):
        raise ValueError(f"{len(words)} words, but {len(begins)} in the tokens")
    found = []
    for word, i, j in zip(words, begins, [*begins[1:], len(spans)]):
        confidence = sum(s.confidence for s in spans[i:j]) / (j - i)
        found.append(Span(word, spans[i].start, spans[j - 1].end, confidence))
    return found


@dataclass(frozen=True)
class TimedText:
    """A segment of a stream: its text, tokens and words; times in seconds of the audio."""

    segment: int  # from 0, of those that have a token
    text: str
    tokens: list[str]
    timestamps: list[float]  # of the frame in which each token came
    log_probs: list[float]  # of each token
    words: list[Span]
    is_final: bool  # it has ended; otherwise it may still change
    num_stable: int = 0  # of its tokens, those at its beginning that can no longer change

    @property
    def start(self) -> float:
        """When its first token came; 0 without a token."""
        return self.timestamps[0] if self.timestamps else 0.0

    @property
    def end(self) -> float:
        """The end of its last token's frame; 0 without a token."""
        return self.words[-1].end if self.words else 0.0


def timed_text(
    hypothesis: Hypothesis,
    tokens: Sequence[str],
    frame: float,
    segment: int = 0,
    is_final: bool = True,
) -> TimedText:
    """Returns a segment's hypothesis with its text and times.

    Args:
      tokens: the model's, by id.
      frame: seconds of a frame of the encoder's output.
    """
    names = [tokens[i] for i in hypothesis.tokens]
    starts = [name.startswith(WORD_START) or name == UNK for name in names]
    begins = [i for i, start in enumerate(starts) if start or i == 0]
    pieces = [text_of(names[i:j]) for i, j in zip(begins, [*begins[1:], len(names)])]
    spans = token_spans(hypothesis, tokens, frame)
    words = [span for span in word_spans(spans, starts, pieces) if span.text]
    return TimedText(
        segment=segment,
        text=" ".join(span.text for span in words),
        tokens=names,
        timestamps=[round(at * frame, 2) for at in hypothesis.frames],
        log_probs=hypothesis.log_probs,
        words=words,
        is_final=is_final,
        num_stable=len(names) if is_final else hypothesis.num_stable,
    )
