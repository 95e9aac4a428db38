"""What is known of each setting of an experiment: error rates, latency, cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from xlsr_transducer.evaluation.delays import algorithmic_latency, quantiles, word_delays
from xlsr_transducer.evaluation.experiment import EvaluatedSet, Experiment
from xlsr_transducer.evaluation.steps import StepCost
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.scoring import Score, Transcript, score

ALL = "all sets"  # in place of a set's name: all of them as one

Normalize = Callable[[str], str]


def transcripts(
    results: Results, experiment: Experiment, normalize: Normalize
) -> list[Transcript]:
    """Returns references and recognised words as they are scored."""
    found = results.transcripts(experiment.loaded.tokenizer)
    words = [[normalize(" ".join(side)).split() for side in (t.ref, t.hyp)] for t in found]
    return [Transcript(t.id, *sides) for t, sides in zip(found, words)]


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting of one experiment."""

    experiment: str
    chunk: ChunkSettings
    scores: dict[str, Score]  # by set
    total: Score  # of all sets as one
    delays: np.ndarray  # seconds, of the words that were recognised correctly
    cost: StepCost | None  # None in full context
    num_streamed: int  # utterances that were streamed too
    num_differing: int  # of them, with other tokens or times

    @property
    def latency(self) -> float:
        """Algorithmic latency in seconds; infinite in full context."""
        return algorithmic_latency(self.chunk)

    @property
    def name(self) -> str:
        """For people, such as ``640 ms, left 2, sinks 4``."""
        return setting_name(self.chunk)

    def flat(self) -> dict[str, object]:
        """Returns plain values for report.json; those of report.csv in the same order."""
        wer, cer, delays = self.total.wer, self.total.cer, quantiles(self.delays)
        cost = self.cost
        return {
            "experiment": self.experiment,
            "chunk_size": self.chunk.chunk_size,
            "left_context_chunks": self.chunk.left_context_chunks,
            "attention_sink_size": self.chunk.attention_sink_size,
            "wer": wer.percent,
            "wer_low": wer.low,
            "wer_high": wer.high,
            "insertions": wer.insertions,
            "deletions": wer.deletions,
            "substitutions": wer.substitutions,
            "words": wer.num_ref,
            "cer": cer.percent,
            "cer_low": cer.low,
            "cer_high": cer.high,
            **{f"wer_{name}": one.wer.percent for name, one in self.scores.items()},
            "latency_s": None if math.isinf(self.latency) else self.latency,
            **{f"word_delay_{name}_s": value for name, value in delays.items()},
            "timed_words": len(self.delays),
            "step_s": cost and cost.seconds,
            "step_share": cost and cost.share,
            "state_bytes": cost and cost.state_bytes,
            "streamed": self.num_streamed,
            "differing": self.num_differing,
        }


def setting_name(chunk: ChunkSettings) -> str:
    """Returns the name of a setting for people."""
    if chunk.is_full_context:
        return "whole utterance"
    left = "all" if chunk.left_context_chunks < 0 else chunk.left_context_chunks
    return f"{chunk.chunk_size * 20} ms, left {left}, sinks {chunk.attention_sink_size}"


def rows_of(experiment: Experiment, normalize: Normalize) -> list[Row]:
    """Returns a row for each setting.

    Args:
      normalize: makes of a text the one that is scored.
    """
    return [_row(experiment, chunk, normalize) for chunk in experiment.settings]


def _row(experiment: Experiment, chunk: ChunkSettings, normalize: Normalize) -> Row:
    scores, everything, num_unread = {}, [], 0
    for one in experiment.sets:
        found = transcripts(one.results(chunk), experiment, normalize)
        scores[one.name] = score(one.name, chunk.describe(), found, len(one.unread))
        everything += found
        num_unread += len(one.unread)
    total = score(ALL, chunk.describe(), everything, num_unread)
    delays = [_delays(one, experiment, chunk) for one in experiment.sets]
    return Row(
        experiment.name,
        chunk,
        scores,
        total,
        np.concatenate(delays) if delays else np.zeros(0),
        experiment.costs.get(chunk),
        sum(len(one.streamed.get(chunk, {})) for one in experiment.sets),
        sum(len(one.differing(chunk)) for one in experiment.sets),
    )


def _delays(one: EvaluatedSet, experiment: Experiment, chunk: ChunkSettings) -> np.ndarray:
    tokens = experiment.loaded.tokenizer.tokens
    found = [
        word_delays(hypothesis, tokens, one.words[name], chunk, one.seconds[name], one.frame)
        for name, hypothesis in one.simulated[chunk].items()
        if name in one.words
    ]
    return np.concatenate([np.zeros(0), *found])


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows that no other beats: none has less latency and at most their WER, or the
    same latency and a lower WER. In order of latency; of equal ones the cheapest.
    """

    def order(row: Row) -> tuple[float, float, float]:
        return row.latency, row.total.wer.percent, row.cost.seconds if row.cost else 0.0

    front: list[Row] = []
    for row in sorted(rows, key=order):
        if not front or row.total.wer.percent < front[-1].total.wer.percent:
            front.append(row)
    return front


def best_within(rows: Sequence[Row], budget: float) -> Row | None:
    """Returns the row of the lowest WER with a latency of at most ``budget`` seconds."""
    allowed = [row for row in rows if row.latency <= budget]
    front = pareto(allowed)
    return front[-1] if front else None
