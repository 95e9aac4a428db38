"""Delays of words, against times worked out by hand."""

from __future__ import annotations

import math

import pytest

from xlsr_transducer.evaluation.delays import (
    algorithmic_latency,
    arrival,
    quantiles,
    word_delays,
)
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.search import Hypothesis

TOKENS = ["<blk>", "<sos/eos>", "<unk>", "▁tere", "▁hom", "mik", "▁ja"]
CHUNK = ChunkSettings(16, 2, 4)  # 320 ms: 8 encoder frames


def test_a_chunk_is_there_when_its_last_frame_sees_all_its_samples() -> None:
    assert algorithmic_latency(CHUNK) == pytest.approx(0.325)
    assert math.isinf(algorithmic_latency(ChunkSettings()))
    for frame, expected in ((0, 0.325), (15, 0.325), (16, 0.645), (32, 0.965)):
        assert arrival(frame, CHUNK, 9.0) == pytest.approx(expected)
    # The end of the audio ends the last chunk, and everything in full context.
    assert arrival(32, CHUNK, 0.8) == 0.8
    assert arrival(0, ChunkSettings(), 2.5) == 2.5


def test_a_word_is_late_by_the_wait_for_its_last_tokens_chunk() -> None:
    reference = [("tere", 0.0, 0.2), ("hommik", 0.24, 0.32), ("ja", 0.4, 0.44)]
    found = Hypothesis([3, 4, 5, 6], [2, 7, 8, 20], log_probs=[-0.1] * 4)
    delays = word_delays(found, TOKENS, reference, CHUNK, 3.0, 0.04)
    assert delays.tolist() == pytest.approx([0.325 - 0.2, 0.645 - 0.32, 0.965 - 0.44])


def test_tokens_that_share_a_frame_come_in_the_chunk_of_that_frame() -> None:
    found = Hypothesis([4, 5], [7, 7], log_probs=[-0.1] * 2)
    assert word_delays(found, TOKENS, [("hommik", 0.2, 0.3)], CHUNK, 3.0, 0.04) == pytest.approx(
        [0.025]
    )


def test_only_words_that_were_recognised_correctly_count() -> None:
    reference = [("ja", 0.0, 0.1), ("tere", 0.2, 0.3)]
    found = Hypothesis([3, 6], [4, 10], log_probs=[-0.1] * 2)  # tere, ja: one of them is right
    assert len(word_delays(found, TOKENS, reference, CHUNK, 3.0, 0.04)) == 1
    assert len(word_delays(Hypothesis(), TOKENS, reference, CHUNK, 3.0, 0.04)) == 0
    assert len(word_delays(found, TOKENS, [], CHUNK, 3.0, 0.04)) == 0


def test_words_that_are_too_many_or_wrong_move_no_other_words_reference() -> None:
    reference = [("hommik", 0.0, 0.3), ("ja", 0.5, 0.6), ("ja", 0.8, 0.9)]
    # tere is inserted, hommik and the second ja are right, tere stands for the first ja
    found = Hypothesis([3, 4, 5, 3, 6], [1, 4, 6, 12, 22], log_probs=[-0.1] * 5)
    delays = word_delays(found, TOKENS, reference, CHUNK, 3.0, 0.04)
    assert delays.tolist() == pytest.approx([0.325 - 0.3, 0.965 - 0.9])
    # ja is deleted
    found = Hypothesis([4, 5], [4, 6], log_probs=[-0.1] * 2)
    reference = [("ja", 0.0, 0.1), ("hommik", 0.1, 0.3)]
    assert word_delays(found, TOKENS, reference, CHUNK, 3.0, 0.04) == pytest.approx([0.325 - 0.3])


def test_without_words_there_are_no_quantiles() -> None:
    nothing = word_delays(Hypothesis(), TOKENS, [], CHUNK, 1.0, 0.04)
    assert set(quantiles(nothing).values()) == {None}
