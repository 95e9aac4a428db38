"""Which columns of a table are the audio, the text, the speaker: guessed, told, or given."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from xlsr_transducer.core.errors import UserError

# Names in use on the hub. For audio, columns of its own type come first.
_NAMES = {
    "audio": ("audio", "audio_path", "audio_filepath", "file", "path"),
    "text": (
        "text", "sentence", "transcription", "transcript", "transcripts", "normalized_text",
        "raw_text", "raw_transcription",
    ),
    "speaker": ("speaker_id", "speaker", "client_id", "spk_id", "speaker_name"),
    "language": ("language", "locale", "lang"),
    "id": ("id", "utt_id", "utterance_id", "segment_id", "audio_id"),
}  # fmt: skip
_NEEDED = ("audio", "text")
_MUST_BE_CLEAR = ("audio", "text", "speaker")


def columns_option(text: str) -> dict[str, str]:
    """Reads ``--columns``: ROLE=NAME,ROLE=NAME."""
    found = {}
    for part in text.split(","):
        role, sign, name = part.partition("=")
        if role not in _NAMES or not name:
            roles = ", ".join(_NAMES)
            raise argparse.ArgumentTypeError(f"{text}: must be ROLE=NAME,..., of {roles}")
        found[role] = name
    return found


@dataclasses.dataclass(frozen=True)
class Roles:
    """The columns of a data set by what they hold; '' for what it lacks."""

    audio: str
    text: str
    speaker: str = ""
    language: str = ""
    id: str = ""

    @classmethod
    def of(cls, features: Mapping[str, Any], given: Mapping[str, str], where: str) -> Roles:
        """Returns the roles of the columns.

        Args:
          features: types by name; those of audio are called Audio.
          given: names by role, which need no guess.

        Raises:
          UserError: a column that is needed is not there, or there are several that it could be.
        """
        chosen = {}
        for role, names in _NAMES.items():
            if role in given:
                if given[role] not in features:
                    columns = ", ".join(features)
                    raise UserError(f"{where}: no column {given[role]}; there are {columns}")
                chosen[role] = given[role]
                continue
            fitting = [name for name in names if name in features]
            if role == "audio":
                of_type = [n for n, kind in features.items() if type(kind).__name__ == "Audio"]
                fitting = of_type or fitting
            if role == "id":  # numbers are often those of sentences or speakers
                fitting = [n for n in fitting if getattr(features[n], "dtype", "") == "string"]
            if not fitting and role in _NEEDED or len(fitting) > 1 and role in _MUST_BE_CLEAR:
                state = f"may be {' or '.join(fitting)}" if fitting else "has no usual name"
                raise UserError(
                    f"{where}: the column of the {role} {state}: give --columns {role}=NAME, one "
                    f"of {', '.join(features)}"
                )
            chosen[role] = fitting[0] if fitting else ""
        return cls(**chosen)

    def texts(self) -> dict[str, str]:
        """Returns the columns that hold text, by role."""
        roles = {"text": self.text, "speaker": self.speaker}
        roles.update(language=self.language, id=self.id)
        return {role: name for role, name in roles.items() if name}

    def others(self, features: Mapping[str, Any]) -> list[str]:
        """Returns the columns without a role."""
        return [name for name in features if name not in dataclasses.astuple(self)]

    def describe(self) -> str:
        """Returns the roles in words."""
        roles = dataclasses.asdict(self).items()
        return "columns: " + ", ".join(f"{role} in {name}" for role, name in roles if name)
