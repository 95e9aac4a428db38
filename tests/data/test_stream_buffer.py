"""AudioBuffer: pieces of any size come out as overlap, full chunks and one short chunk."""

from __future__ import annotations

import pytest
import torch

from xlsr_transducer.data.audio_file import resample
from xlsr_transducer.data.stream_buffer import AudioBuffer

CHUNK = 4 * 320


def drain(buffer: AudioBuffer) -> list:
    """All that is there now, the overlap as a one-element list first."""
    found = []
    overlap = buffer.pop_overlap()
    if overlap is not None:
        found.append([overlap])
    while buffer.has_chunk():
        found.append(buffer.pop_chunk())
    assert buffer.pop_chunk() is None
    return found


@pytest.mark.parametrize("sizes", [[3700], [1] * 3700, [79, 1, 0, 2919, 701], [80, 1280, 2340]])
def test_pieces_come_out_in_order_whatever_their_size(sizes):
    wave = torch.arange(3700.0)
    buffer, found = AudioBuffer(CHUNK), []
    for piece in wave.split(sizes):
        buffer.add(piece)
        found += drain(buffer)
    assert not buffer.is_exhausted
    buffer.finish()
    (overlap,), (first, n1), (second, n2), (last, n3) = found + drain(buffer)
    assert [len(overlap), n1, n2, n3] == [80, CHUNK, CHUNK, 3700 - 80 - 2 * CHUNK]
    assert torch.equal(torch.cat([overlap, first, second, last[:n3]]), wave)
    assert buffer.is_exhausted


@pytest.mark.parametrize("length, valid", [(80, None), (399, None), (400, 320), (1000, 920)])
def test_the_last_chunk_is_short_and_has_at_least_one_frame(length, valid):
    buffer = AudioBuffer(CHUNK)
    buffer.add(torch.ones(length))
    assert len(buffer.pop_overlap()) == 80 and buffer.pop_chunk() is None
    buffer.finish()
    chunk = buffer.pop_chunk()
    assert (chunk is None) if valid is None else (chunk[1] == valid == int(chunk[0].sum()))
    assert chunk is None or len(chunk[0]) == CHUNK
    assert buffer.is_exhausted


@pytest.mark.parametrize("length", [0, 1, 79])
def test_a_stream_without_a_head_ends_empty(length):
    buffer = AudioBuffer(CHUNK)
    buffer.add(torch.ones(length))
    buffer.finish()
    assert buffer.is_exhausted and drain(buffer) == []


def test_memory_that_the_caller_uses_again_does_no_harm():
    buffer, memory = AudioBuffer(CHUNK), torch.ones(100)
    buffer.add(memory)
    memory.zero_()
    assert bool((buffer.pop_overlap() == 1).all())


def test_misuse_is_an_error():
    with pytest.raises(ValueError, match="multiple of 320"):
        AudioBuffer(500)
    buffer = AudioBuffer(CHUNK)
    with pytest.raises(ValueError, match=r"must be \(n,\)"):
        buffer.add(torch.ones(1, 5))
    buffer.finish()
    with pytest.raises(ValueError, match="finished"):
        buffer.add(torch.ones(5))


@pytest.mark.parametrize("rate", [8000, 44100])
def test_audio_of_another_rate_is_resampled_as_the_whole_file_is(rate: int) -> None:
    wave = 0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(rate))
    buffer, found = AudioBuffer(CHUNK, rate=rate), []
    for piece in wave.split(701):
        buffer.add(piece)
        found += drain(buffer)
    buffer.finish()
    (overlap,), *chunks = found + drain(buffer)
    expected = torch.from_numpy(resample(wave.numpy(), rate))
    assert buffer.num_samples == len(expected) == 16000
    samples = torch.cat([overlap, *(chunk[:valid] for chunk, valid in chunks)])
    assert torch.equal(samples, expected[: len(samples)]) and len(samples) > 16000 - 320
