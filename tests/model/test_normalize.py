"""Waveform normalisation against loops over frames in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.stream_driver import padded, speech
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.normalize import (
    PRIOR_SAMPLES,
    PRIOR_VARIANCE,
    check_mode,
    cumulative_step,
    normalize_cumulative,
    normalize_utterance,
)

HOP, OVERLAP = 320, 80


def cumulative_reference(wave: list[float]) -> list[float]:
    """Frame by frame: all samples so far, and the prior, give mean and variance.

    The prior is a second of samples of mean 0 and a fixed variance.
    """
    out, frames = [], max((len(wave) - OVERLAP) // HOP, 0)
    for t in range(frames):
        seen = wave[: OVERLAP + (t + 1) * HOP]
        count = len(seen) + PRIOR_SAMPLES
        mean = math.fsum(seen) / count
        square = math.fsum([s * s for s in seen] + [PRIOR_SAMPLES * PRIOR_VARIANCE]) / count
        deviation = math.sqrt(square - mean * mean + 1e-7)
        start = 0 if t == 0 else OVERLAP + t * HOP
        out += [(s - mean) / deviation for s in seen[start:]]
    return out


@pytest.mark.parametrize("num_samples", [400, 720, 5001])
def test_whole_rows_equal_the_loop_over_frames(num_samples):
    wave = speech(num_samples, 1)
    found = normalize_cumulative(wave[None], HOP, OVERLAP)[0]
    expected = torch.tensor(cumulative_reference(wave.tolist()), dtype=torch.float64)
    assert len(found) == len(expected)
    assert float((found - expected).abs().max()) < 1e-12


def test_steps_of_any_size_equal_the_whole():
    wave = speech(OVERLAP + 30 * HOP, 2)
    expected = normalize_cumulative(wave[None], HOP, OVERLAP)[0]
    tail, body = wave[None, :OVERLAP], wave[None, OVERLAP:]
    stats = torch.zeros(1, 2, dtype=torch.float64)
    done, found = 0, []
    for frames in (1, 2, 1, 10, 16):
        x = body[:, done * HOP : (done + frames) * HOP]
        tail, x, sums = cumulative_step(x, tail, stats, torch.tensor([done]), HOP)
        found += [tail[0]] if done == 0 else []
        found.append(x[0])
        stats, tail, done = sums[:, -1], x[:, -OVERLAP:], done + frames
    assert torch.equal(torch.cat(found), expected)


def test_padding_and_neighbours_change_nothing():
    waves = [speech(n, n) for n in (9001, 4000, 399, 12)]
    x, _ = padded(waves, filler=float("nan"))
    batch = normalize_cumulative(x, HOP, OVERLAP)
    for row, wave in zip(batch, waves):
        alone = normalize_cumulative(wave[None], HOP, OVERLAP)[0]
        frames = max((len(wave) - OVERLAP) // HOP, 0)
        assert torch.equal(row[: OVERLAP + frames * HOP], alone) or frames == 0


def test_later_audio_changes_no_earlier_sample():
    wave = speech(9000, 3)
    shorter = normalize_cumulative(wave[None, :5000], HOP, OVERLAP)
    whole = normalize_cumulative(wave[None], HOP, OVERLAP)
    assert torch.equal(whole[:, : shorter.shape[1]], shorter)


def test_a_quiet_start_is_not_blown_up_and_speech_comes_to_unit_variance():
    quiet = 1e-4 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    assert float(normalize_cumulative(quiet, HOP, OVERLAP).abs().max()) < 0.1
    loud = 0.2 * torch.randn(1, 160000, generator=torch.Generator().manual_seed(0))
    end = normalize_cumulative(loud, HOP, OVERLAP)[:, -16000:]
    assert float(end.std()) == pytest.approx(1, 0.05)
    assert not bool(normalize_cumulative(torch.zeros(1, 4000), HOP, OVERLAP).any())


def test_ten_minutes_with_an_offset_do_not_drift():
    """Sums in float32 would be off by 1e-3 by then."""
    seconds = 600
    wave = (speech(seconds * 16000, 4) + 0.3).float()
    found = normalize_cumulative(wave[None], HOP, OVERLAP)[0, -HOP:].double()
    frames = (len(wave) - OVERLAP) // HOP
    seen = wave.double()[: OVERLAP + frames * HOP]
    count = len(seen) + PRIOR_SAMPLES
    mean = seen.sum() / count
    variance = (seen.square().sum() + PRIOR_SAMPLES * PRIOR_VARIANCE) / count - mean**2
    expected = (seen[-HOP:] - mean) / (variance + 1e-7).sqrt()
    assert float((found - expected).abs().max()) < 1e-5


def test_utterance_normalisation_is_that_of_hugging_face():
    from transformers import Wav2Vec2FeatureExtractor

    waves = [speech(n, n, torch.float32) for n in (9001, 4000, 12)]
    x, lens = padded(waves, filler=float("nan"))
    found = normalize_utterance(x, lens)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    for row, wave, n in zip(found, waves, lens):
        expected = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values
        assert float((row[:n] - expected[0]).abs().max()) < 1e-5
        assert not bool(row[n:].any())


def test_modes_that_are_not_or_cannot_stream_are_refused():
    with pytest.raises(UserError, match="--normalize global: must be one of cumulative"):
        check_mode("global")
    with pytest.raises(UserError, match="utterance needs .* use --normalize cumulative"):
        check_mode("utterance", streaming=True)
    assert [check_mode(m, streaming=True) for m in ("cumulative", "none")]
