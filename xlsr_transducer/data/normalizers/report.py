"""What a normaliser did with a text: each change, and whether it was sure of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Change:
    """A piece of a text and what it became."""

    kind: str  # such as "ordinal"
    before: str
    after: str
    is_sure: bool  # False: other readings are as correct, and this is the likeliest


class Report:
    """The changes of one text, in the order in which they were made."""

    def __init__(self, language: str = "") -> None:
        """``language``: of the text, as its list or --lang has it."""
        self.language = language
        self.changes: list[Change] = []
        self.of_characters: set[str] = set()  # unicode, case, punctuation, variant

    @property
    def kinds(self) -> list[str]:
        """Returns the kinds of all changes, those of words first."""
        return [
            *dict.fromkeys(change.kind for change in self.changes),
            *sorted(self.of_characters),
        ]

    def changed(self, kind: str, before: str, after: str) -> None:
        """Notes a change that has one correct reading."""
        self.changes.append(Change(kind, before, after, True))

    def undecided(self, kind: str, before: str, after: str) -> None:
        """Notes a change to the likeliest of several readings, for a person to look at."""
        self.changes.append(Change(kind, before, after, False))
