"""Batches of equal duration: first fit, the longest utterance first, and their even order.

As group weights compare the summed losses of batches of different groups, these should hold about
as much audio as one another (M. Bartelds et al., "CTC-DRO", ICLR 2026, "length-matched" batches).
Letters: N utterances, B batches, K chunks.
"""

from __future__ import annotations

import numpy as np

BATCHES = 32  # in a chunk, about; so much is packed together
LEAST = 512  # utterances in a chunk, where there are as many
OPEN = 64  # batches of a chunk that may still grow
BLUR = 0.1  # of a length, at most, so that an epoch has other batches than the one before


def capacity(seconds: np.ndarray, max_duration: float) -> float:
    """Returns how many seconds of audio a batch gets, without padding.

    Less than ``max_duration`` by the longest utterance: so a short one fits into every gap that is
    left, and the padded batch stays within the bound. But half of it at least; a batch of few
    long utterances has then less.
    """
    return max(max_duration - float(seconds.max(initial=0.0)), max_duration / 2)


def packed(
    cells: np.ndarray,
    seconds: np.ndarray,
    tokens: np.ndarray,
    random: np.ndarray,
    max_duration: float,
    most_size: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the utterances of each cell into batches: the longest first, each into the first batch
    in which it fits, as far as the batch's audio keeps to ``capacity``, and its padded audio and
    size to the bounds.

    A large cell is packed in chunks of about ``BATCHES`` batches, side by side. Lengths are
    blurred before they are sorted.

    Args:
      cells: (N,) int32, sorted; in random order within a cell. seconds, tokens: (N,).
      random: (N,) uint64, the blur. most_size: seconds x tokens of a padded batch.

    Returns:
      the order that puts the utterances of a batch side by side (N,), and where batches end (B,).
    """
    most_audio = capacity(seconds, max_duration)
    first = _chunks(cells, seconds, most_audio)
    size = np.diff(np.append(first, len(seconds)))
    order = _longest_first(size, seconds * (1 + BLUR / 2.0**64 * random))
    largest = np.argsort(-size, kind="stable")  # first: so chunks that go on are the first ones
    bounds = (most_audio, max_duration, most_size)
    batch = _first_fit(first[largest], size[largest], seconds[order], tokens[order], bounds)
    side_by_side = np.argsort(batch, kind="stable")
    ends = np.flatnonzero(np.diff(batch[side_by_side], append=-1)) + 1
    return order[side_by_side], ends


def interleaved(cells: np.ndarray, windows: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Returns the order (B,) that spreads the batches of each cell evenly over their window.

    Args:
      cells: (B,) int32, sorted; windows: (B,), of each cell the same. random: (B,) uint64, which
        shuffles the batches of a cell, and moves all of them.
    """
    shuffled = np.lexsort((random, cells))
    begin = np.flatnonzero(np.diff(cells, prepend=-1))
    count = np.diff(np.append(begin, len(cells)))
    rank = np.arange(len(cells)) - np.repeat(begin, count)
    start = np.repeat(random[begin] / 2.0**64, count)
    return shuffled[np.lexsort(((rank + start) / np.repeat(count, count), windows))]


def _chunks(cells: np.ndarray, seconds: np.ndarray, most_audio: float) -> np.ndarray:
    """Returns where chunks begin (K,): equal parts of a cell."""
    begin = np.flatnonzero(np.diff(cells, prepend=-1))
    size = np.diff(np.append(begin, len(cells)))
    audio = np.add.reduceat(seconds, begin) if len(begin) else np.zeros(0)
    wanted = np.ceil(audio / (BATCHES * most_audio)).astype(np.int64)
    parts = np.clip(wanted, 1, -(-size // LEAST))
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    return np.repeat(begin, parts) + part * np.repeat(size, parts) // np.repeat(parts, parts)


def _longest_first(size: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the order (N,) that sorts each chunk by length (N,), in seconds below 2^20."""
    keys = np.uint64(1 << 40) - (lengths * 2.0**20).astype(np.uint64)  # one sort of whole numbers
    keys += np.repeat(np.arange(len(size), dtype=np.uint64) << np.uint64(41), size)
    return np.argsort(keys, kind="stable")


def _most_each(total: float, count: np.ndarray) -> np.ndarray:
    """Returns the largest number (K,) of which ``count`` are no more than ``total``."""
    quotient = total / count
    return np.where(count * quotient > total, np.nextafter(quotient, 0), quotient)


def _first_fit(
    first: np.ndarray,
    size: np.ndarray,
    seconds: np.ndarray,
    tokens: np.ndarray,
    bounds: tuple[float, float, float],
) -> np.ndarray:
    """Returns a number for the batch of each utterance (N,): of all chunks side by side.

    Of more than ``OPEN`` batches of a chunk, the one with the least room is closed.

    Args:
      first, size: (K,) of chunks, the largest first; within a chunk the order is kept.
      bounds: most audio of a batch, padded audio, padded audio x tokens.
    """
    most_audio, most_padded, most_size = bounds
    shape = (len(first), OPEN)
    room = np.full(shape, np.inf)  # seconds that the next utterance may have
    count, audio, longest, most = (np.zeros(shape) for _ in range(4))
    number = np.zeros(shape, dtype=np.int64)
    batch, begun = np.zeros(len(seconds), dtype=np.int64), first.copy()
    used = 1  # of the columns: those that are open, and one more
    for place in range(int(size.max(initial=0))):
        live = int(np.searchsorted(-size, -place))  # the chunks longer than that
        chunk, here = np.arange(live), first[:live] + place
        s, t = seconds[here], tokens[here]
        fits = s[:, None] <= room[:live, :used]
        if np.isfinite(most_size):
            length = np.maximum(longest[:live, :used], s[:, None])
            padded = (count[:live, :used] + 1) * length
            fits &= padded * np.maximum(most[:live, :used], t[:, None]) <= most_size
            fits |= count[:live, :used] == 0
        column = fits.argmax(1)
        full = np.flatnonzero(~fits[chunk, column])
        column[full] = room[full].argmin(1)
        at = (chunk, column)
        is_new = (count[at] == 0) | ~fits[at]
        number[at] = np.where(is_new, begun[:live], number[at])
        begun[:live] += is_new
        count[at] = np.where(is_new, 0, count[at]) + 1
        audio[at] = np.where(is_new, 0, audio[at]) + s
        longest[at] = np.where(is_new, s, np.maximum(longest[at], s))
        most[at] = np.where(is_new, t, np.maximum(most[at], t))
        by_padding = _most_each(most_padded, count[at] + 1)
        room[at] = np.where(
            longest[at] <= by_padding, np.minimum(most_audio - audio[at], by_padding), -1.0
        )
        batch[here] = number[at]
        used = min(max(used, int(column.max()) + 2), OPEN)
    return batch
