"""Files read without lhotse give what lhotse gives; tokens give the text of the BPE model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.audio_file import read_audio_file
from xlsr_transducer.data.tokenizer import Tokenizer, text_of


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_files_of_any_rate_sound_as_in_training(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    samples = np.random.default_rng(rate).normal(0, 0.1, (rate + 77, 2))
    soundfile.write(path, samples, rate)
    found, expected = read_audio_file(path), read_audio(path)
    assert found.dtype == np.float32 and found.shape == expected.shape
    if rate == 16000 or importlib.util.find_spec("torchaudio") is None:
        assert np.array_equal(found, expected)
    else:  # lhotse then resamples with torchaudio's filter
        assert np.abs(found - expected).mean() < 0.02


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
