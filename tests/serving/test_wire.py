"""Audio on the wire: codings against libsndfile's, and cuts that change nothing."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import soundfile

from xlsr_transducer.data.audio_file import resample
from xlsr_transducer.serving.wire import CODINGS, BadAudio, WireAudio

SUBTYPES = {"float32": "FLOAT", "pcm16": "PCM_16", "g711_ulaw": "ULAW", "g711_alaw": "ALAW"}


def some_bytes(coding: str, count: int = 5001) -> bytes:
    draw = np.random.default_rng(0)
    if coding == "float32":
        return draw.uniform(-1, 1, count).astype("<f4").tobytes()
    return draw.bytes(count * CODINGS[coding][0])


def by_libsndfile(data: bytes, coding: str) -> np.ndarray:
    settings = {"samplerate": 8000, "channels": 1, "subtype": SUBTYPES[coding]}
    return soundfile.read(
        io.BytesIO(data), dtype="float32", format="RAW", endian="LITTLE", **settings
    )[0]


@pytest.mark.parametrize("coding", SUBTYPES)
def test_samples_are_those_that_libsndfile_decodes(coding: str) -> None:
    every = bytes(range(256)) * 4
    data = every if coding.startswith("g711") else some_bytes(coding)
    audio = WireAudio(coding, 16000)
    found = np.concatenate([audio.decode(data), audio.finish()])
    assert np.array_equal(found, by_libsndfile(data, coding))


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
@pytest.mark.parametrize("coding", SUBTYPES)
def test_messages_may_be_cut_anywhere(coding: str, rate: int) -> None:
    data, draw = some_bytes(coding), random.Random(rate)
    audio, found, at = WireAudio(coding, rate), [], 0
    while at < len(data):
        size = int(3000 ** draw.random()) - draw.randint(0, 1)
        found.append(audio.decode(data[at : at + size]))
        at += size
    found.append(audio.finish())
    assert np.array_equal(np.concatenate(found), resample(by_libsndfile(data, coding), rate))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -17.0, 32767.0])
def test_what_is_no_sample_is_refused(value: float) -> None:
    data = np.array([0.0, value, 0.0], "<f4").tobytes()
    with pytest.raises(BadAudio, match="samples must be"):
        WireAudio("float32", 16000).decode(data)


@pytest.mark.parametrize("rate", [0, -8000, 3999, 192001, 10**9])
def test_a_rate_that_no_audio_has_is_refused(rate: int) -> None:
    with pytest.raises(BadAudio, match="must be from 4000 to 192000 Hz"):
        WireAudio("pcm16", rate)


def test_an_end_within_a_sample_is_refused() -> None:
    audio = WireAudio("pcm16", 16000)
    audio.decode(b"abc")
    with pytest.raises(BadAudio, match="ends within a sample of 2 bytes"):
        audio.finish()
