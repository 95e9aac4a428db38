"""How late words come: when a word is there, after its end in the forced alignment.

A word is there when the chunk that holds its last token has arrived; computing takes no time.
What remains is what the model and its chunks make: the wait for the end of a chunk, and tokens
that the model emits later than the alignment has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import kaldialign
import numpy as np

from xlsr_transducer.core.geometry import (
    FRAME_SHIFT,
    OVERLAP,
    SAMPLING_RATE,
)
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.scoring import GAP
from xlsr_transducer.recognition.spans import timed_text
from xlsr_transducer.search import Hypothesis

LOOK_BEYOND = OVERLAP / SAMPLING_RATE  # seconds: the last frame of a chunk sees that much more
Word = Sequence  # text, start, end in seconds, confidence


def algorithmic_latency(chunk: ChunkSettings) -> float:
    """Returns the longest wait of a frame for its chunk in seconds; infinite in full context.

    A frame waits for the end of its chunk: half of this on average.
    """
    if chunk.is_full_context:
        return math.inf
    return chunk.chunk_size * FRAME_SHIFT + LOOK_BEYOND


def arrival(frame: int, chunk: ChunkSettings, seconds: float) -> float:
    """Returns when the chunk of an XLSR frame has arrived, in seconds from the start.

    Args:
      seconds: of the utterance, whose end ends its last chunk.
    """
    if chunk.is_full_context:
        return seconds
    number = frame // chunk.chunk_size
    return min((number + 1) * chunk.chunk_size * FRAME_SHIFT + LOOK_BEYOND, seconds)


def word_delays(
    hypothesis: Hypothesis,
    tokens: Sequence[str],
    reference: Sequence[Word],
    chunk: ChunkSettings,
    seconds: float,
    frame: float,
) -> np.ndarray:
    """Returns the delay in seconds of each word that was recognised correctly.

    Args:
      tokens: the model's, by id.
      reference: (text, start, end) of each word of the reference, by forced alignment.
      seconds: of the utterance.
      frame: seconds of a frame of the encoder's output.
    """
    found = timed_text(hypothesis, tokens, frame).words
    pairs = kaldialign.align([w[0] for w in reference], [w.text for w in found], GAP)
    delays, i, j = [], 0, 0
    for ref, hyp in pairs:
        if ref == hyp:
            last = math.ceil(found[j].end / FRAME_SHIFT - 1e-6) - 1  # the end of its last token
            delays.append(arrival(last, chunk, seconds) - reference[i][2])
        i += ref != GAP
        j += hyp != GAP
    return np.array(delays)


def quantiles(delays: np.ndarray) -> dict[str, float | None]:
    """Returns mean, p50, p90 and p99 in seconds; None for each where there is no word."""
    if not len(delays):
        return dict.fromkeys(("mean", "p50", "p90", "p99"))
    shares = np.percentile(delays, (50, 90, 99)).tolist()
    return {"mean": float(delays.mean()), **dict(zip(("p50", "p90", "p99"), shares))}
