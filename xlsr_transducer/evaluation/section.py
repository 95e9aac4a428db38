"""What an analysis hands to the report: a section of plain values, which the page renders.

An analysis is a function from plain inputs to a ``Section``. Bad data is no error there: what
could not be computed, and why, is a note that the report shows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from xlsr_transducer.recognition.scoring import GAP

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Cell = Union[str, int, float, None]
NOTHING = "–"  # in place of a value that there is not


@dataclasses.dataclass(frozen=True)
class Column:
    """The heading of a column: of numbers where it has digits, otherwise of text."""

    title: str
    unit: str = ""
    digits: Optional[int] = None  # after the point; None: text
    explanation: str = ""  # shown on hovering

    def show(self, value: Cell) -> str:
        """Returns a cell's text; a dash for None, and for what is not a finite number."""
        if value is None or value == "":
            return NOTHING
        if isinstance(value, str) or self.digits is None:
            return str(value)
        if not math.isfinite(value):
            return NOTHING
        return f"{value:,.{self.digits}f}" if abs(value) >= 10_000 else f"{value:.{self.digits}f}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under columns.

    ``marked`` rows are set off, as the best ones are. Rows beyond ``shown`` are folded.
    """

    heading: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    marked: Sequence[int] = ()
    shown: int = 60

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.heading}: {len(self.columns)} columns, but a row {wrong[0]}")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture: ``NAME.svg`` and ``NAME.png`` in the report's folder."""

    name: str
    drawing: Drawing
    caption: str
    alt: str  # what it shows, for those who do not see it

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", self.name):
            raise ValueError(f"{self.name!r}: a figure's name has a-z, 0-9 and - only")


@dataclasses.dataclass(frozen=True)
class AlignedWord:
    """A pair of an alignment, as kaldialign gives it; ``GAP`` stands for a missing word."""

    ref: str
    hyp: str

    @property
    def kind(self) -> str:
        """``correct``, ``substituted``, ``inserted`` or ``deleted``."""
        if self.ref == self.hyp:
            return "correct"
        if self.ref == GAP:
            return "inserted"
        return "deleted" if self.hyp == GAP else "substituted"


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance to show: its words as aligned, and its audio if it is to be heard."""

    id: str
    words: Sequence[AlignedWord]
    about: str = ""  # such as "mari, 3.2 s, 2 errors in 7 words"
    audio: bytes = b""  # a whole file
    media_type: str = "audio/wav"


@dataclasses.dataclass(frozen=True)
class Utterances:
    """Utterances under one heading, folded."""

    heading: str
    utterances: Sequence[Utterance]


@dataclasses.dataclass(frozen=True)
class Fact:
    """A value to show large, with its name and what explains it."""

    name: str
    value: str
    detail: str = ""


@dataclasses.dataclass
class Section:
    """A part of the report."""

    name: str  # in report.json, and of the anchor: a-z, 0-9 and -
    title: str
    finding: str = ""  # one sentence: what the section says
    paragraphs: list[str] = dataclasses.field(default_factory=list)
    facts: list[Fact] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    figures: list[Figure] = dataclasses.field(default_factory=list)
    utterances: list[Utterances] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # what could not be computed, why
    data: dict[str, Any] = dataclasses.field(default_factory=dict)  # plain values: report.json
