"""Audio of the utterances that a report shows, small enough to lie within its page."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

import numpy as np
import soundfile

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.evaluation.records import Record
from xlsr_transducer.evaluation.section import Utterance
from xlsr_transducer.recognition.audio_sets import AudioSet

MAX_SECONDS = 30.0  # of one snippet; the rest is cut off
MAX_BYTES = 8_000_000  # of all snippets of a list
# Every browser plays MP3; a libsndfile that cannot write it has WAV, eight times as large.
FORMAT, MEDIA_TYPE = (
    ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "audio/wav")
)


def snippet(samples: np.ndarray) -> bytes:
    """Returns (n,) samples at 16 kHz as a file of ``FORMAT``, its first 30 seconds."""
    samples = np.clip(samples[: int(MAX_SECONDS * SAMPLING_RATE)], -1.0, 1.0)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLING_RATE, format=FORMAT)
    return file.getvalue()


def snippets(audio: AudioSet, ids: Collection[str]) -> tuple[dict[str, bytes], list[str]]:
    """Returns the audio of some utterances of a set by id; notes on what is missing."""
    found, notes, total = {}, [], 0
    for cut in audio.cuts:
        if cut.id not in ids:
            continue
        try:
            made = snippet(read_audio(cut))
        except UserError as e:
            notes.append(f"No audio of {cut.id}: {e}.")
            continue
        if total + len(made) > MAX_BYTES:
            notes.append(f"Only {len(found)} of {len(ids)} utterances can be heard: the page "
                         f"holds {MAX_BYTES // 1_000_000} MB of audio at most.")  # fmt: skip
            break
        total += len(made)
        found[cut.id] = made
    return found, notes


def shown(records: Sequence[Record], audio: AudioSet | None) -> tuple[list[Utterance], list[str]]:
    """Returns utterances for the report, with their audio if the set is given; notes."""
    heard, notes = snippets(audio, {r.id for r in records}) if audio else ({}, [])
    utterances = [
        Utterance(r.id, r.aligned, r.about, heard.get(r.id, b""), MEDIA_TYPE) for r in records
    ]
    return utterances, notes
