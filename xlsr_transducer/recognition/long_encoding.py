"""The encoder's output for recordings of hours: in windows of constant memory, kept on disk.

A window ends where it is quietest, in the second half of the longest that it may be. It is encoded
by itself, normalised by itself and begins and ends in a pause, as utterances in training do; so
every model works, in full context too. Some windows at a time become a part on disk; a killed run
resumes after its last part.

Letters: T frames of the encoder's output, E its width.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xlsr_transducer.core.files import replacing, write_text
from xlsr_transducer.core.geometry import HOP, OVERLAP
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import XLSREncoder

PART = 600.0  # seconds, and a window more at most
WINDOWS_AT_ONCE = {"cpu": 1, "cuda": 8}

KINDS = ("frames", "levels", "windows")  # files of a part
ABOUT, ENDED = "about.json", "ended.json"
QUIETEST = -100.0  # dB; digital silence
_QUIET_FOR = 15  # XLSR frames (0.3 s) whose mean level decides where a window ends
_PRE_EMPHASIS = 0.97  # hum and rumble are no speech


def windows(pieces: Iterable[np.ndarray], longest: int, hop: int) -> Iterator[np.ndarray]:
    """Cuts audio into windows, whose frames follow each other.

    Args:
      pieces: (n,) samples each.
      longest: frames of a window.
      hop: samples from one frame of the encoder's output to the next.

    Yields:
      (n,) samples; the last ones of a window are also the first of the next, as a frame needs
      them.
    """
    waiting = np.zeros(0, np.float32)
    for piece in pieces:
        waiting = np.concatenate([waiting, piece])
        while len(waiting) >= longest * hop + OVERLAP:
            count = _quietest(waiting, longest, hop)
            yield waiting[: count * hop + OVERLAP]
            waiting = waiting[count * hop :]
    if len(waiting) > OVERLAP:
        yield waiting


def _quietest(samples: np.ndarray, longest: int, hop: int) -> int:
    """Returns how many frames of a window there are up to its quietest place."""
    per_frame, least = hop // HOP, (longest + 1) // 2
    levels = sound_levels(samples, HOP, longest * per_frame)
    half = _QUIET_FOR // 2
    means = np.convolve(np.pad(levels, half, mode="edge"), np.ones(_QUIET_FOR), mode="valid")
    return least + int(means[least * per_frame :: per_frame].argmin())


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What was stored of a recording."""

    folder: Path
    parts: tuple[tuple[int, ...], ...]  # frames of each window of each part
    frame_seconds: float
    per_frame: int  # levels of a frame

    @property
    def num_frames(self) -> int:
        """T of the whole recording."""
        return sum(map(sum, self.parts))

    @property
    def windows(self) -> list[int]:
        """Frames of each window."""
        return [count for part in self.parts for count in part]

    @property
    def seconds(self) -> float:
        """How long the recording lasts, as far as it has frames."""
        return self.num_frames * self.frame_seconds

    def frames(self, start: int, end: int) -> Tensor:
        """Returns frames from ``start`` up to ``end`` (T, E) as float32."""
        return torch.from_numpy(self._read("frames", start, end).astype(np.float32))

    def levels(self, start: int, end: int) -> np.ndarray:
        """Returns the sound levels of frames in dB, ``per_frame`` for each, float32."""
        return self._read("levels", start, end).astype(np.float32).reshape(-1)

    def _read(self, kind: str, start: int, end: int) -> np.ndarray:
        found, first = [], 0
        for number, count in enumerate(map(sum, self.parts)):
            low, high = max(start - first, 0), min(end - first, count)
            if low < high:
                found.append(_mapped(_part(self.folder, number)[kind])[low:high])
            first += count
        return np.concatenate(found) if found else np.zeros((0, 1), np.float16)


@lru_cache(maxsize=4)
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _part(folder: Path, number: int) -> dict[str, Path]:
    return {kind: folder / f"{kind}-{number:05d}.npy" for kind in KINDS}


@torch.no_grad()
def encode_recording(
    encoder: XLSREncoder,
    chunk: ChunkSettings,
    pieces: Iterable[np.ndarray],
    longest: float,
    folder: Path,
    about: dict[str, str],
    progress: Callable[[float], None],
) -> Encoded:
    """Encodes a recording into ``folder``, or resumes after what is there already.

    Args:
      pieces: (n,) samples each, at 16 kHz, from the start; not touched if all is there.
      longest: seconds of a window.
      about: what the result depends on. Parts of something else are removed.
      progress: called with seconds of audio, once they are encoded.
    """
    _begin(folder, about)
    frame = encoder.frame_seconds
    parts = _parts(folder)
    if not (folder / ENDED).is_file():
        hop = encoder.subsampling_factor * HOP
        todo = iter(windows(pieces, max(round(longest / frame), 2), hop))
        for _ in itertools.chain.from_iterable(parts):
            next(todo)
        while batch := _first(todo, round(PART / frame) * hop):
            parts.append(_store(encoder, chunk, batch, _part(folder, len(parts)), progress))
        write_text(folder / ENDED, json.dumps({"seconds": sum(map(sum, parts)) * frame}) + "\n")
    _mapped.cache_clear()
    return Encoded(folder, tuple(parts), frame, encoder.subsampling_factor)


def stored_seconds(folder: Path, about: dict[str, str], frame: float) -> float:
    """Returns how much of a recording ``encode_recording`` finds in ``folder``.

    Args:
      frame: seconds of a frame.
    """
    path = folder / ABOUT
    if not (path.is_file() and path.read_text(encoding="utf-8") == _text(about)):
        return 0.0
    return sum(map(sum, _parts(folder))) * frame


def _text(about: dict[str, str]) -> str:
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def _begin(folder: Path, about: dict[str, str]) -> None:
    """Makes the folder; one of another recording, model or view is emptied."""
    path = folder / ABOUT
    if not (path.is_file() and path.read_text(encoding="utf-8") == _text(about)):
        shutil.rmtree(folder, ignore_errors=True)
        write_text(path, _text(about))


def _parts(folder: Path) -> list[tuple[int, ...]]:
    """Returns the frames of the windows of each part that is there."""
    found: list[tuple[int, ...]] = []
    while all(path.is_file() for path in _part(folder, len(found)).values()):
        found.append(tuple(np.load(_part(folder, len(found))["windows"]).tolist()))
    return found


def _first(todo: Iterator[np.ndarray], least: int) -> list[np.ndarray]:
    """Returns the next windows, which together have so many samples or are the last."""
    found, count = [], 0
    for window in todo:
        found.append(window)
        count += len(window)
        if count >= least:
            break
    return found


def _store(
    encoder: XLSREncoder,
    chunk: ChunkSettings,
    batch: Sequence[np.ndarray],
    paths: dict[str, Path],
    progress: Callable[[float], None],
) -> tuple[int, ...]:
    """Encodes the windows of a part and writes it; returns their numbers of frames."""
    size = WINDOWS_AT_ONCE.get(encoder.like.device.type, 1)
    frames, levels, most = [], [], torch.finfo(torch.float16).max
    for i in range(0, len(batch), size):
        for samples, out in zip(batch[i : i + size], _encode(encoder, chunk, batch[i : i + size])):
            frames.append(out.clamp(-most, most).half().cpu().numpy())
            level = sound_levels(samples, HOP, len(out) * encoder.subsampling_factor)
            levels.append(level.reshape(len(out), encoder.subsampling_factor).astype(np.float16))
            progress(len(out) * encoder.frame_seconds)
    counts = tuple(map(len, frames))
    content = (np.concatenate(frames), np.concatenate(levels), np.array(counts, dtype=np.int64))
    with replacing(*paths.values()) as temporary:
        for path, array in zip(temporary, content):
            with open(path, "wb") as file:
                np.save(file, array)
    return counts


def _encode(
    encoder: XLSREncoder, chunk: ChunkSettings, batch: Sequence[np.ndarray]
) -> Iterator[Tensor]:
    """Yields the frames (T, E) of each window."""
    waves = [torch.from_numpy(samples) for samples in batch]
    x = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(encoder.like.device)
    lens = torch.tensor([len(wave) for wave in waves], device=x.device)
    out, out_lens = encoder.encode(x, lens, *chunk)
    for row, count in zip(out.float(), out_lens.tolist()):
        yield row[:count]


def sound_levels(samples: np.ndarray, hop: int, count: int) -> np.ndarray:
    """Returns the level of each ``hop`` samples in dB of full scale, (count,) float32."""
    wave = samples[: count * hop]
    wave = wave - _PRE_EMPHASIS * np.concatenate([wave[:1], wave[:-1]])
    wave = np.pad(wave, (0, count * hop - len(wave))).reshape(count, hop)
    power = np.square(wave.astype(np.float64)).mean(1)
    return np.maximum(10 * np.log10(power + 1e-12), QUIETEST).astype(np.float32)
