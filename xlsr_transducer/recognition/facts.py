"""What a manifest tells of an utterance besides its text: it goes into the result files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lhotse import MonoCut

from xlsr_transducer.data.audio import AUDIO_DURATION, audio_duration
from xlsr_transducer.data.cuts import COLUMNS

PLAIN = (str, int, float, bool)  # custom fields of other kinds, such as arrays, are left out


def facts_of(cut: MonoCut) -> dict[str, Any]:
    """Returns plain values: seconds, speaker and language ('' if unknown), columns of the corpus
    as text, custom fields, place of the audio.

    Custom fields are those of the supervision, and of the cut where the supervision lacks them.
    ``audio`` is a path and ``start`` the second in it where the utterance begins; audio that is no
    file has no path.
    """
    supervision = cut.supervisions[0]
    fields = {**(cut.custom or {}), **(supervision.custom or {})}
    fields.pop(AUDIO_DURATION, None)
    sources = cut.recording.sources if cut.recording else []
    is_file = bool(sources) and sources[0].type == "file"
    return {
        "seconds": round(audio_duration(cut), 3),
        "speaker": supervision.speaker or "",
        "language": supervision.language or "",
        "columns": dict(fields.get(COLUMNS) or {}),
        "custom": plain_fields(fields),
        "audio": str(sources[0].source) if is_file else "",
        "start": round(cut.start, 3),
    }


def plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that a table can show."""
    return {str(name): value for name, value in fields.items() if isinstance(value, PLAIN)}
