"""The demo's experiments with live audio: their calls and sounds are what the tables say."""

from __future__ import annotations

import types

import numpy as np
import pytest

from local.demo import live, long_audio, silence
from local.demo.live import Utterance
from local.demo.long_audio import make_call, pairs_of
from xlsr_transducer.search import Hypothesis

LENGTHS = (8000, 12000, 20000)
UTTERANCES = [Utterance(np.full(n, 0.5, np.float32), [f"word{n}"]) for n in LENGTHS]


def test_a_call_has_every_utterance_in_turn_with_pauses_and_gets_quieter_half_way():
    call = make_call(UTTERANCES, seed=3, seconds=60, lead=2.0)
    assert [sorted(call.numbers[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert len(call.samples) > 60 * 16000 > len(call.samples) - (LENGTHS[-1] + 3 * 16000)
    is_speech = np.abs(call.samples) > 0.02
    edges = np.flatnonzero(np.diff(is_speech.astype(int), prepend=0, append=0)).reshape(-1, 2)
    assert (edges[:, 1] - edges[:, 0]).tolist() == [LENGTHS[n] for n in call.numbers]
    level = call.samples[edges[:, 0]]
    assert level[: call.half] == pytest.approx(0.5) and level[call.half :] == pytest.approx(0.05)
    assert edges[call.half - 1, 0] < 30 * 16000 <= edges[call.half, 0]
    pauses = (edges[1:, 0] - edges[:-1, 1]) / 16000
    assert pauses.min() >= 0.299 and pauses.max() <= 3 and np.ptp(pauses) > 1
    assert edges[0, 0] == 2 * 16000
    middles = (edges[1:, 0] + edges[:-1, 1]) / 2 / 16000
    assert call.bounds[1:-1] == pytest.approx(middles, abs=1e-3)
    again, other = (make_call(UTTERANCES, seed, 60, 2.0) for seed in (3, 4))
    assert np.array_equal(again.samples, call.samples) and other.numbers != call.numbers


def test_a_word_belongs_to_the_utterance_in_whose_time_it_came():
    call = make_call(UTTERANCES, seed=3, seconds=6, lead=0.0)
    spelling = types.SimpleNamespace(words=lambda tokens: [f"w{token}" for token in tokens])
    inner = call.bounds[1:-1]
    frames = [0, *(f for b in inner for f in (int(b / 0.04), int(b / 0.04) + 1)), 10**6]
    found = Hypothesis(tokens=list(range(len(frames))), frames=frames)
    pairs = pairs_of(call, found, UTTERANCES, spelling)
    assert [ref for ref, _ in pairs] == [UTTERANCES[n].words for n in call.numbers]
    assert [hyp for _, hyp in pairs] == [[f"w{2 * i}", f"w{2 * i + 1}"] for i in range(len(pairs))]


def test_sounds_without_speech_have_the_levels_that_are_asked_for():
    found = silence.sounds(1)
    assert list(found) == ["digital silence", "white noise", "rumble", "hum"]
    assert not found["digital silence"][0].any()
    for kind in ("white noise", "rumble", "hum"):
        level = [10 * np.log10(np.square(x.astype(float)).mean()) for x in found[kind]]
        assert level == pytest.approx(silence.LEVELS, abs=0.01)


@pytest.mark.long
def test_the_experiments_run_and_say_what_they_measured(
    corpus, streaming_exp, monkeypatch, capsys
):
    monkeypatch.setattr(silence, "SECONDS", 2)
    monkeypatch.setattr(silence, "LEVELS", (-30,))
    monkeypatch.setattr(live, "STREAMS", 3)
    model = [f"--exp-dir={streaming_exp}", f"--data-dir={corpus}", "--split=test_seen"]
    long_audio.main([*model, "--minutes=0.2", "--calls=1", "--lead=1"])
    printed = capsys.readouterr().out
    assert printed.startswith("1 calls of 0.2 minutes; alone: ")
    assert [line.count("/") for line in printed.splitlines()[3:]] == [4] * 8
    assert "call, --reset-encoder, 1 s of silence first" in printed
    silence.main([*model, "--penalties=0,-1"])
    *_, without, with_penalty = capsys.readouterr().out.splitlines()
    assert without.startswith("0 ") and with_penalty.startswith("-1 ")
