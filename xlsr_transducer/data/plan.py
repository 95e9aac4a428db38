"""The plan of an epoch: which utterances form which batch, from an index, by numpy alone.

A plan depends on the index, the options, the seed and the epoch, and on nothing else. So every
process makes the same one, and batch k is looked up. Random numbers are hashes of seed, epoch and
row, so that they do not depend on numpy's version. Letters: N utterances, B batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from xlsr_transducer.core.geometry import (
    FRAME_SHIFT,
    SAMPLING_RATE,
    SUBSAMPLING,
    encoder_frames,
)
from xlsr_transducer.data.packing import interleaved, packed

CHUNK = 2048  # utterances of a bucket that are put into batches one by one
WINDOW = 20_000  # utterances of a corpus in shards that are shuffled together
ROUNDING = 2 / SAMPLING_RATE  # seconds by which a change of speed may round a duration
LONGEST_PAUSE = 3.0  # seconds before and after an utterance, together


@dataclasses.dataclass(frozen=True)
class Utterances:
    """The utterances of a corpus as a plan sees them: arrays (N,), by row."""

    seconds: np.ndarray  # float64, of audio
    frames: np.ndarray  # int32, of the encoder
    tokens: np.ndarray  # int32
    needed: np.ndarray  # int32, frames that the losses need
    usable: np.ndarray  # bool
    groups: np.ndarray  # int32, language or corpus
    shards: np.ndarray  # int32, the tar file that holds it; the same everywhere if there are none

    @classmethod
    def plain(cls, seconds: np.ndarray) -> Utterances:
        """Utterances of which only the duration counts."""
        zeros = np.zeros(len(seconds), dtype=np.int32)
        return cls(seconds, zeros, zeros, zeros, zeros == 0, zeros, zeros)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Everything beside index, seed and epoch that decides which batches an epoch has."""

    max_duration: float  # seconds of a padded batch
    max_frames_tokens: float = (
        0.0  # encoder frames x tokens of a padded batch, in millions; 0: any
    )
    num_buckets: int = 30
    min_utterance: float = 0.0  # seconds
    max_utterance: float = float("inf")
    group_batches: bool = False
    matched: bool = False  # batches of one group, of equal duration, and evenly interleaved
    speeds: tuple[float, ...] = (1.0,)  # of which each utterance draws one
    pause_prob: float = 0.0  # share of utterances that get a pause
    subsampling: int = SUBSAMPLING  # XLSR frames per encoder frame

    @property
    def most_size(self) -> float:
        """The bound on seconds x tokens of a padded batch; infinite without one."""
        return self.max_frames_tokens * 1e6 * FRAME_SHIFT * self.subsampling or np.inf

    def fits(self, seconds: np.ndarray) -> np.ndarray:
        """Returns whether utterances of these lengths may be trained on."""
        return (seconds >= self.min_utterance) & (seconds <= self.max_utterance)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of an epoch, in their order."""

    rows: np.ndarray  # (N,) int32: those of batch k are rows[ends[k - 1] : ends[k]]
    speeds: np.ndarray  # (N,) float64
    pauses: np.ndarray  # (N,) float64, seconds
    ends: np.ndarray  # (B,) int64
    seconds: np.ndarray  # (B,) float64, of audio and pauses without padding
    tokens: np.ndarray  # (B,) int64
    longest: np.ndarray  # (B,) float64, seconds
    most_tokens: np.ndarray  # (B,) int64

    def __len__(self) -> int:
        return len(self.ends)

    def num_rows(self, batches: int) -> int:
        """Returns how many utterances the first ``batches`` have."""
        return int(self.ends[batches - 1]) if batches else 0

    def batch(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns rows, speeds and pauses of batch ``k``."""
        part = slice(self.num_rows(k), int(self.ends[k]))
        return tuple(np.asarray(x[part]) for x in (self.rows, self.speeds, self.pauses))

    @property
    def sizes(self) -> np.ndarray:
        """(B,) utterances."""
        return np.diff(self.ends, prepend=0)

    def largest(self) -> list[int]:
        """Returns the batches that need the most memory: by frames x tokens, by padded seconds, by
        pairs of frames that attend to each other."""
        padded = self.sizes * self.longest
        measures = (padded * self.most_tokens, padded, padded * self.longest)
        found = [int(measure.argmax()) for measure in measures if len(self) and measure.max() > 0]
        return list(dict.fromkeys(found))

    def save(self, folder: Path) -> None:
        """Writes one array per file into a folder that exists."""
        for field in dataclasses.fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Maps what ``save`` wrote into memory, which processes of a machine share."""
        return cls(
            *(load_array(folder / f"{field.name}.npy") for field in dataclasses.fields(cls))
        )


def load_array(path: Path) -> np.ndarray:
    """Maps an array into memory; an empty one, which cannot be mapped, is read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return np.load(path, allow_pickle=False)


def make_plan(
    utterances: Utterances,
    options: PlanOptions,
    seed: int,
    epoch: int,
    without: np.ndarray | None = None,
) -> Plan:
    """Plans an epoch: every utterance that fits once, in shuffled batches of similar duration.

    Args:
      without: rows that were trained on before.
    """
    u = utterances
    fits = u.usable & options.fits(u.seconds) & (u.needed <= u.frames)
    if without is not None:
        fits[without] = False
    rows = np.flatnonzero(fits).astype(np.int32)
    del fits
    speeds = _draw_speeds(u, rows, options, seed, epoch)
    seconds = u.seconds[rows] / speeds
    pauses = _draw_pauses(rows, seconds, options, seed, epoch)
    seconds += pauses
    cells, per_window = _cells(u, rows, seconds, options)
    cells += per_window * _windows(u.shards[rows], seed, epoch)
    order = _sorted_then_shuffled(cells, _hash(f"order {seed} {epoch}", rows))
    rows, speeds, pauses = rows[order], speeds[order], pauses[order]
    seconds, cells = seconds[order], cells[order]
    del order
    if options.matched:
        random = _hash(f"lengths {seed} {epoch}", rows)
        bounds = (options.max_duration, options.most_size)
        order, ends = packed(cells, seconds, u.tokens[rows], random, *bounds)
        rows, speeds, pauses, seconds = (x[order] for x in (rows, speeds, pauses, seconds))
    else:
        ends = _fill(cells, seconds, u.tokens[rows], options)
    cells = cells[ends - 1]  # of the batches
    random = _hash(f"batches {seed} {epoch}", np.arange(len(ends)))
    if options.matched:
        shuffled = interleaved(cells, cells // per_window, random)
    else:
        shuffled = _sorted_then_shuffled(cells // per_window, random)
    return _assembled(u, rows, (speeds, pauses), seconds, ends, shuffled)


def fixed_plan(utterances: Utterances, options: PlanOptions) -> Plan:
    """Plans one pass over all usable utterances, with as little padding as there can be.

    The order is the same every time. The batches are mixed, so that the first ones are typical.
    """
    rows = np.flatnonzero(utterances.usable).astype(np.int32)
    rows = rows[np.argsort(utterances.seconds[rows], kind="stable")]
    seconds, as_it_is = utterances.seconds[rows], (np.ones(len(rows)), np.zeros(len(rows)))
    ends = _fill(np.zeros(len(rows), dtype=np.int32), seconds, utterances.tokens[rows], options)
    shuffled = np.argsort(_hash("fixed", np.arange(len(ends))), kind="stable")
    return _assembled(utterances, rows, as_it_is, seconds, ends, shuffled)


def _hash(purpose: str, numbers: np.ndarray) -> np.ndarray:
    """Returns a random uint64 for each number: splitmix64 (G. Steele et al., OOPSLA 2014)."""
    key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    x = numbers.astype(np.uint64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def _draw_speeds(
    u: Utterances, rows: np.ndarray, options: PlanOptions, seed: int, epoch: int
) -> np.ndarray:
    """Returns the speed of each row; 1 where another would make the utterance unfit."""
    speeds = np.ones(len(rows))
    if options.speeds == (1.0,):
        return speeds
    choice = _hash(f"speed {seed} {epoch}", rows) % np.uint64(len(options.speeds))
    for i, speed in enumerate(options.speeds):
        mine = np.flatnonzero(choice == i)
        seconds = u.seconds[rows[mine]] / speed
        enough = u.needed[rows[mine]] <= encoder_frames(seconds - ROUNDING, options.subsampling)
        speeds[mine[enough & options.fits(seconds)]] = speed
    return speeds


def _draw_pauses(
    rows: np.ndarray, seconds: np.ndarray, options: PlanOptions, seed: int, epoch: int
) -> np.ndarray:
    """Returns the seconds of pause of each row; 0 where one would make the utterance unfit."""
    pauses = np.zeros(len(rows))
    if options.pause_prob == 0:
        return pauses
    drawn = _hash(f"pause {seed} {epoch}", rows) / 2.0**64
    mine = np.flatnonzero(drawn < options.pause_prob)
    length = LONGEST_PAUSE * drawn[mine] / options.pause_prob
    pauses[mine] = np.where(options.fits(seconds[mine] + length), length, 0)
    return pauses


def _cells(
    u: Utterances, rows: np.ndarray, seconds: np.ndarray, options: PlanOptions
) -> tuple[np.ndarray, int]:
    """Returns a number for each utterance, int32, which those have alike that may share a batch:
    of its bucket, and its group where that counts; and how many such numbers there are.

    Buckets hold as much audio each; there is one where batches are matched.
    """
    num_buckets = 1 if options.matched else max(min(options.num_buckets, len(rows)), 1)
    ordered = np.sort(seconds)
    total = np.cumsum(ordered)
    shares = np.arange(1, num_buckets) / num_buckets * total[-1:].sum()
    edges = ordered[np.searchsorted(total, shares)]
    del ordered, total
    cells = np.searchsorted(edges, seconds, side="right").astype(np.int32)
    if not (options.group_batches or options.matched):
        return cells, num_buckets
    groups = u.groups[rows]
    cells += num_buckets * groups
    return cells, num_buckets * (int(groups.max(initial=0)) + 1)


def _windows(shards: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the window of each utterance, int32: shards in shuffled order, some in each.

    One window is read after the other, so that few shards are in use at a time.
    """
    if not len(shards) or shards.min() == shards.max():
        return np.zeros(len(shards), dtype=np.int32)
    counts = np.bincount(shards)
    order = np.argsort(_hash(f"shards {seed} {epoch}", np.arange(len(counts))), kind="stable")
    window = np.empty(len(counts), dtype=np.int32)
    window[order] = (np.cumsum(counts[order]) - counts[order]) // WINDOW
    return window[shards]


def _sorted_then_shuffled(cells: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Returns the order that sorts by cell, and within a cell by a random uint64, whose array it
    uses up."""
    bits = int(cells.max(initial=0)).bit_length()
    random >>= np.uint64(bits)
    if bits:
        random |= cells.astype(np.uint64) << np.uint64(64 - bits)
    return np.argsort(random, kind="stable")


def _fill(
    cells: np.ndarray, seconds: np.ndarray, tokens: np.ndarray, options: PlanOptions
) -> np.ndarray:
    """Returns where batches end: each takes utterances of one cell as long as the bounds hold.

    It goes through all chunks of all cells side by side, one utterance of each at a time.
    """
    size = np.diff(np.flatnonzero(np.diff(cells, prepend=-1, append=-1)))
    begin = np.cumsum(size) - size
    pieces = -(-size // CHUNK)
    first = np.repeat(begin - CHUNK * (np.cumsum(pieces) - pieces), pieces)
    first += CHUNK * np.arange(len(first))
    length = np.minimum(np.repeat(begin + size, pieces) - first, CHUNK)
    by_length = np.argsort(-length, kind="stable")
    first, length = first[by_length], length[by_length]

    is_start = np.zeros(len(seconds), dtype=bool)
    count, longest, most = np.zeros((3, len(first)))
    for place in range(int(length.max(initial=0))):
        live = slice(int(np.searchsorted(-length, -place)))  # the chunks longer than that
        here = first[live] + place
        size_now = count[live] + 1
        longest_now = np.maximum(longest[live], seconds[here])
        most_now = np.maximum(most[live], tokens[here])
        padded = size_now * longest_now
        is_new = (padded > options.max_duration) | (padded * most_now > options.most_size)
        is_new |= place == 0
        is_start[here] = is_new
        count[live] = np.where(is_new, 1, size_now)
        longest[live] = np.where(is_new, seconds[here], longest_now)
        most[live] = np.where(is_new, tokens[here], most_now)
    return np.append(np.flatnonzero(is_start)[1:], len(seconds))[: len(seconds)]


def _assembled(
    u: Utterances,
    rows: np.ndarray,
    changes: tuple[np.ndarray, np.ndarray],
    seconds: np.ndarray,
    ends: np.ndarray,
    shuffled: np.ndarray,
) -> Plan:
    """Puts batches, which end at ``ends`` of ``rows``, into their order; ``changes``: speeds and
    pauses."""
    first = np.append(0, ends)[:-1]
    tokens = u.tokens[rows].astype(np.int64)
    sums = (
        _reduced(np.add, seconds, first),
        _reduced(np.add, tokens, first),
        _reduced(np.maximum, seconds, first),
        _reduced(np.maximum, tokens, first),
    )
    first, sizes = first[shuffled], (ends - first)[shuffled]
    new_ends = np.cumsum(sizes)
    take = np.repeat((first - (new_ends - sizes)).astype(np.int32), sizes)
    take += np.arange(len(rows), dtype=np.int32)
    drawn = (values[take] for values in (rows, *changes))
    return Plan(*drawn, new_ends, *(values[shuffled] for values in sums))


def _reduced(function: np.ufunc, values: np.ndarray, first: np.ndarray) -> np.ndarray:
    return function.reduceat(values, first) if len(values) else values
