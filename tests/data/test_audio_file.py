"""Files read without lhotse give what lhotse gives; tokens give the text of the BPE model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from lhotse import MonoCut

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import cut_of_file, read_audio
from xlsr_transducer.data.audio_file import Resampler, read_audio_file, resample
from xlsr_transducer.data.tokenizer import Tokenizer, text_of


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_files_of_any_rate_are_read_as_in_training(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    samples = np.random.default_rng(rate).normal(0, 0.1, (rate + 77, 2))
    soundfile.write(path, samples, rate)
    found, expected = read_audio_file(path), read_audio(path)
    assert found.dtype == np.float32 and np.array_equal(found, expected)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_resampling_is_that_of_an_ideal_low_pass_filter(rate: int) -> None:
    """scipy's, by the Fourier transform of a signal that is periodic and has no sharp ends."""
    count = rate * 2
    noise = np.random.default_rng(rate).normal(0, 0.1, count)
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(count, 1 / rate) > 0.4 * min(rate, 16000)] = 0
    wave = np.fft.irfft(spectrum, count).astype(np.float32)
    expected = scipy.signal.resample(wave, 32000)
    found = resample(wave, rate)
    middle = slice(2000, -2000)
    assert found.shape == (32000,)
    assert np.abs(found - expected)[middle].max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 48000])
def test_pieces_of_a_stream_are_resampled_as_the_whole_is(rate: int) -> None:
    wave = np.random.default_rng(rate).normal(0, 0.1, rate + 77).astype(np.float32)
    for sizes in ([1] * 500, [0, 160, 1, 4001], [37] * 90):
        resampler, pieces = Resampler(rate), np.split(wave, np.cumsum(sizes))
        found = [resampler(piece) for piece in pieces] + [resampler(wave[:0], is_last=True)]
        assert np.array_equal(np.concatenate(found), resample(wave, rate))


def test_a_manifest_that_resamples_gives_the_same_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 9999), 44100)
    cut = cut_of_file(tmp_path / "a.wav")
    stored = MonoCut.from_dict(cut.resample(16000).to_dict())
    assert stored.recording.transforms
    assert np.array_equal(read_audio(stored), read_audio_file(tmp_path / "a.wav"))


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.1, np.nan], dtype=np.float32), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="nan.wav: holds samples that are not numbers"):
        read_audio_file(path)


def test_tokens_alone_give_the_text_of_the_bpe_model(corpus: Path) -> None:
    tokenizer = Tokenizer.load(corpus / "lang_bpe_60")
    generator = np.random.default_rng(1)
    for length in (0, 1, 2, 5, 30, 30, 30):
        ids = generator.integers(0, tokenizer.vocab_size, length).tolist()
        assert text_of(tokenizer.tokens[i] for i in ids) == tokenizer.decode(ids)
