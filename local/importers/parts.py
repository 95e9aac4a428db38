"""Which part of its recording an utterance is: channel, first sample and end."""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple, Union

from local.importers.entry import Entry

TOLERANCE = 0.02  # seconds that a segment may reach beyond its recording; they are clipped
EACH = "each"

Wanted = Union[int, str, None]  # a channel, EACH, or what the corpus tells (else channel 0)


class Part(NamedTuple):
    """Samples of one channel of a recording, at its own rate."""

    start: int
    end: int
    channel: int


class Unusable(ValueError):
    """Why an utterance cannot be used; the text is the reason given to the user."""


class Unwanted(ValueError):
    """Why an utterance is left out, though nothing is wrong with it."""


def channel_option(text: str) -> Wanted:
    """Reads ``--channel``: a number from 0 up, or `each`."""
    if text != EACH and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text}: must be a channel, from 0 up, or {EACH}")
    return text if text == EACH else int(text)


def parts_of(entry: Entry, wanted: Wanted) -> tuple[list[Part], bool]:
    """Returns the parts of the recording that become utterances, one for each channel.

    Returns:
      The parts; whether times beyond the recording were clipped.

    Raises:
      Unusable: there is no such channel or no such time in the recording.
      Unwanted: the utterance is of another channel.
    """
    channels = [entry.channel_in_file.get(c, c) for c in _channels_of(entry, wanted)]
    missing = [c for c in channels if c >= entry.info.num_channels]
    if missing:
        count = entry.info.num_channels
        raise Unusable(f"no such channel: {missing[0]}, the file has {count}, from 0 on")
    start, end, is_clipped = _samples_of(entry)
    return [Part(start, end, channel) for channel in channels], is_clipped


def _channels_of(entry: Entry, wanted: Wanted) -> list[int]:
    told = entry.channels
    if wanted is None:
        return [told[0] if told else 0]
    if wanted == EACH:
        return list(told or range(entry.info.num_channels))
    if told and wanted not in told:
        raise Unwanted(f"not of channel {wanted}")
    # Of a recording with one channel there is nothing to choose.
    return [wanted if told or entry.info.num_channels > 1 else 0]


def _samples_of(entry: Entry) -> tuple[int, int, bool]:
    """Returns first sample, end, and whether times were clipped to the recording."""
    rate, total = entry.info.sampling_rate, entry.info.num_samples
    begin, stop = entry.start, entry.end
    if stop is None and begin == 0:
        stop = _whole(entry)
        if stop is None:
            return 0, total, False
    if not (math.isfinite(begin) and (stop is None or math.isfinite(stop))):
        raise Unusable(f"times that are no seconds: {begin} and {stop}")
    start, end = _round(begin * rate), total if stop is None else _round(stop * rate)
    slack = math.ceil(TOLERANCE * rate)
    if start < -slack or end > total + slack:
        raise Unusable(
            f"segment beyond the recording: from {begin:.3f} to {end / rate:.3f} s of "
            f"{total / rate:.3f} s"
        )
    first, last = max(start, 0), min(end, total)
    if last <= first:
        raise Unusable(f"zero duration: from {begin:.3f} to {end / rate:.3f} s")
    return first, last, (first, last) != (start, end)


def _round(samples: float) -> int:
    return math.floor(samples + 0.5)  # halves go up, as in lhotse


def _whole(entry: Entry) -> float | None:
    """Returns the end of an utterance whose corpus tells a duration; None: that of the file."""
    told, length = entry.duration, entry.info.num_samples / entry.info.sampling_rate
    return None if told is None or abs(told - length) <= TOLERANCE else told
