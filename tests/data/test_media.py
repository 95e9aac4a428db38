"""Audio read in pieces is the audio of the whole file, in bounded memory, from files alone."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.mp3_files import write_mp3
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data import media, mp3
from xlsr_transducer.data.audio_file import AudioProblem, read_audio_file
from xlsr_transducer.data.media import open_media

av = pytest.importorskip("av")

SECONDS = 12


class Pipe(io.RawIOBase):
    """Bytes that come in small parts and never again."""

    def __init__(self, content: bytes):
        self.content, self.position = content, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        part = self.content[self.position : self.position + min(len(buffer), 1000)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)


def pieces(source) -> list[np.ndarray]:
    with open_media(source) as found:
        return list(found.pieces)


def joined(source) -> np.ndarray:
    return np.concatenate(pieces(source))


def noise(rate: int, channels: int = 2, seconds: float = SECONDS) -> np.ndarray:
    generator = np.random.default_rng(rate)
    return generator.normal(0, 0.1, (int(seconds * rate) + 77, channels)).clip(-1, 1)


def tone(rate: int, seconds: float = SECONDS) -> np.ndarray:
    """(n, 2) of a swept tone, which codecs keep."""
    time = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * (200 + 40 * time) * time)[:, None].repeat(2, 1)


def encode(path: Path, codec: str, samples: np.ndarray, rate: int = 48000) -> Path:
    """Writes (n, 2) samples by PyAV, in the container that the name tells."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        planes = np.ascontiguousarray(samples.T, dtype=np.float32)
        for start in range(0, len(samples), 960):
            part = np.ascontiguousarray(planes[:, start : start + 960])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


FILES = [(f"{rate}.wav", rate, {}) for rate in (8000, 16000, 44100, 48000)]
FILES += [("a.wav", 22050, {"subtype": kind}) for kind in ("PCM_24", "FLOAT", "PCM_U8", "ULAW")]
FILES += [("a.flac", 44100, {}), ("a.flac", 16000, {"subtype": "PCM_24"}), ("a.ogg", 32000, {})]
FILES += [("a.mp3", 44100, {}), ("a.opus", 48000, {"format": "OGG", "subtype": "OPUS"})]


@pytest.mark.parametrize("name, rate, kind", FILES, ids=lambda x: str(x))
def test_pieces_of_a_file_are_its_samples(tmp_path: Path, name: str, rate: int, kind) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(rate), rate, **kind)
    expected = read_audio_file(path)
    found = pieces(path)
    assert len(found) > 2 and np.array_equal(np.concatenate(found), expected)
    assert np.array_equal(joined(io.BytesIO(path.read_bytes())), expected)
    with open_media(path) as opened:
        assert abs(opened.seconds - len(expected) / 16000) < 1e-3


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_a_length_is_read_in_pieces_too(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.mp3"
    write_mp3(path, noise(44100, 1)[:, 0], 44100, mode)
    with path.open("rb") as file:
        assert mp3.without_length(file) is not None
    assert np.array_equal(joined(path), read_audio_file(path))
    assert np.array_equal(joined(io.BytesIO(path.read_bytes())), read_audio_file(path))


def test_junk_that_looks_like_frames_is_not_searched_forever(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.mp3"
    write_mp3(path, noise(44100, 1)[:, 0], 44100, "CONSTANT")
    content = path.read_bytes()
    path.write_bytes(content + b"\xff" * 900 + content[210:])  # without its tag
    both = len(joined(path))
    monkeypatch.setattr(mp3, "_MOST_TRIES", 100)
    assert abs(len(joined(path)) - both / 2) < 2000


EXACT = [f for f in FILES if f[0].endswith(("wav", "flac"))]


@pytest.mark.parametrize("name, rate, kind", EXACT, ids=lambda x: str(x))
def test_a_pipe_without_loss_gives_the_samples_of_the_file(
    tmp_path: Path, name: str, rate: int, kind
) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(rate), rate, **kind)
    assert np.array_equal(joined(Pipe(path.read_bytes())), read_audio_file(path))


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_a_pipe_of_compressed_audio_gives_nearly_the_samples_of_the_file(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    soundfile.write(path, tone(44100), 44100)
    found, expected = joined(Pipe(path.read_bytes())), read_audio_file(path)
    assert 0 <= len(found) - len(expected) < 1152  # mp3 fills its last frame
    assert np.abs(found[: len(expected)] - expected)[:-100].max() < 1e-4


def test_a_wav_that_was_written_into_a_pipe_has_no_length(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(16000), 16000)
    expected, content = read_audio_file(path), bytearray(path.read_bytes())
    for place in (4, content.index(b"data") + 4):
        content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert np.array_equal(joined(Pipe(bytes(content))), expected)
    assert np.array_equal(joined(path), expected)


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(16000, 1, 30), 16000)
    pipe = Pipe(path.read_bytes())
    with open_media(pipe) as found:
        piece = next(piece for piece in found.pieces if len(piece))
        assert len(piece) < 16000 and pipe.position < len(pipe.content) / 4


def test_a_pipe_may_have_a_name(tmp_path: Path) -> None:
    path, fifo = tmp_path / "a.flac", tmp_path / "fifo"
    soundfile.write(path, noise(16000, 1), 16000)
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
    writer.start()
    assert np.array_equal(joined(fifo), read_audio_file(path))
    writer.join()


@pytest.mark.parametrize(
    "name, codec",
    [
        ("a.m4a", "aac"),
        ("a.mp4", "aac"),
        ("a.webm", "libopus"),
        ("a.mka", "flac"),
        ("a.ts", "mp2"),
    ],
)
def test_what_libsndfile_does_not_read_is_read(tmp_path: Path, name: str, codec: str) -> None:
    samples = tone(48000)
    path = encode(tmp_path / name, codec, samples)
    with pytest.raises(UserError):
        read_audio_file(path)
    found, expected = joined(path), samples[::3, 0]
    assert abs(len(found) - len(expected)) < 1600
    offsets = range(0, 1700)  # codecs begin with some silence
    part = expected[8000:24000]
    errors = [np.abs(found[8000 + k : 24000 + k] - part).mean() for k in offsets]
    assert min(errors) < 0.02


def test_a_truncated_mp4_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    fragmented = encode(tmp_path / "b.mp4", "aac", tone(48000))
    with (
        av.open(str(fragmented)) as old,
        av.open(str(path), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    assert len(joined(path)) > 11 * 16000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioProblem, match="truncated"):
        joined(path)


@pytest.mark.parametrize("name", ["a.flac", "a.mp3"])
def test_the_pieces_of_a_truncated_file_end_with_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(44100), 44100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError):
        read_audio_file(path)
    with open_media(path) as found, pytest.raises(AudioProblem):
        assert len(next(found.pieces))
        list(found.pieces)


def test_a_wav_that_ends_early_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(44100), 44100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])
    assert np.array_equal(joined(path), read_audio_file(path))
    assert np.array_equal(joined(Pipe(path.read_bytes())), read_audio_file(path))


@pytest.mark.parametrize("make", [io.BytesIO, Pipe])
@pytest.mark.parametrize(
    "content",
    [b"", b"no audio " * 9000, bytes(70000), b"#EXTM3U\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n"],
    ids=["nothing", "text", "zeros", "playlist"],
)
def test_what_is_no_audio_is_an_error(make, content: bytes) -> None:
    with pytest.raises(AudioProblem, match="unreadable"):
        joined(make(content))


@pytest.mark.parametrize("make", [io.BytesIO, Pipe])
@pytest.mark.parametrize(
    "samples, reason", [(np.zeros(0), "holds no audio"), (np.full(99, np.nan), "not numbers")]
)
def test_no_samples_and_no_numbers_are_errors(make, samples: np.ndarray, reason: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioProblem, match=reason):
        joined(make(file.getvalue()))


def test_missing_files_and_folders_are_errors(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.wav", "no such audio file"), (tmp_path, "a folder")):
        with pytest.raises(AudioProblem, match=reason):
            joined(path)


def test_titles_of_any_coding_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(44100, 1), 44100)
    title = b"\x03\xe4\xf6"  # called UTF-8, and is Latin-1
    frame = b"TIT2" + len(title).to_bytes(4, "big") + bytes(2) + title
    tag = b"ID3\x04\x00\x00" + len(frame).to_bytes(4, "big") + frame
    assert len(joined(Pipe(tag + path.read_bytes()))) >= 16000


DAMAGED = [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "mp3"), ("a.ogg", "libopus")]
DAMAGED += [("a.m4a", "aac"), ("a.webm", "libopus"), ("a.caf", "alac"), ("a.avi", "mp3")]


@pytest.mark.parametrize("name, codec", DAMAGED)
def test_damaged_files_are_read_or_are_named_errors(tmp_path: Path, name: str, codec: str) -> None:
    content = encode(tmp_path / name, codec, tone(48000, 0.5)).read_bytes()
    draw, problems = random.Random(name), 0
    for _ in range(50):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 3, 20])):
            place = draw.randrange(draw.choice([64, 600, len(content)])) % len(content)
            damaged[place] = draw.choice([0, 255, draw.randrange(256)])
        for make in (io.BytesIO, Pipe):
            try:
                assert sum(map(len, pieces(make(bytes(damaged))))) < 16000 * 60
            except AudioProblem:
                problems += 1
    assert 0 < problems < 100


@pytest.mark.parametrize("codec, channels", [("pcm_s16le", 16), ("libopus", 8), ("libopus", 16)])
def test_many_channels_are_read_or_refused(tmp_path: Path, codec: str, channels: int) -> None:
    path = tmp_path / "a.mov" if codec == "pcm_s16le" else tmp_path / "a.mka"
    layout = {8: "7.1", 16: "hexadecagonal"}[channels]
    options = {} if codec == "pcm_s16le" else {"mapping_family": "255"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout=layout, options=options)
        samples = np.zeros((1, 48000 * channels), np.int16)
        samples[0, ::channels] = (tone(48000, 1)[:, 0] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = 48000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    if codec == "libopus" and channels > 8:
        with pytest.raises(AudioProblem, match="16 channels; of its kind at most 8"):
            joined(path)
    else:
        assert np.abs(joined(path)).max() > 0.25


def test_pyav_may_stumble_over_other_streams_after_the_last_packet() -> None:
    class Container:
        def demux(self, stream: str) -> Iterator[str]:
            yield stream
            raise IndexError  # it does so for some damaged files, by what lies in its memory

    assert list(media._packets(Container(), "packet")) == ["packet"]


def test_an_error_of_the_reader_is_not_called_one_of_the_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(16000), 16000)
    with pytest.raises(ValueError, match="mine"), open_media(tmp_path / "a.wav"):
        raise ValueError("mine")


@pytest.mark.parametrize("let_in", [False, True])
def test_no_file_makes_others_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, let_in: bool
) -> None:
    """Not as a kind of file that is left out, nor if it were not."""
    encode(tmp_path / "secret.ts", "mp2", tone(48000, 1))
    monkeypatch.chdir(tmp_path)
    playlist = b"ffconcat version 1.0\nfile secret.ts\n"
    with av.open(io.BytesIO(playlist)) as undefended:
        assert next(undefended.decode(audio=0)).samples
    if let_in:
        monkeypatch.setattr(media, "_CONTAINERS", [*media._CONTAINERS, "concat"])
    (tmp_path / "playlist").write_bytes(playlist)
    for source in (tmp_path / "playlist", io.BytesIO(playlist), Pipe(playlist)):
        with pytest.raises(AudioProblem, match="unreadable"):
            joined(source)


def test_a_small_file_of_long_audio_comes_in_small_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(8000 * 600, np.int16), 8000)
    assert path.stat().st_size < 200_000
    for source in (path, Pipe(path.read_bytes())):
        assert max(map(len, pieces(source))) < 1 << 18
    soundfile.write(path.with_suffix(".wav"), np.zeros((70000, 100), np.int16), 16000)
    assert max(map(len, pieces(path.with_suffix(".wav")))) < 1 << 18


def test_a_rate_that_would_make_hours_of_a_small_file_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 1)
    for source in (tmp_path / "a.wav", Pipe((tmp_path / "a.wav").read_bytes())):
        with pytest.raises(AudioProblem, match="rate 1: must be from"):
            joined(source)
