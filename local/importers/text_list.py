"""The recipe's own lists: `path|text|speaker` and `path|start|end|text|speaker`."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from local.importers.entry import Corpus, Entry, missing_parts, plain_columns
from xlsr_transducer.core.errors import UserError

_LOOKED_AT = 100  # lines, to see whether they hold times
_TIME = re.compile(r"\d+(\.\d+)?")
_FIELDS = (("path", "text", "speaker"), ("path", "start", "end", "text", "speaker"))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, as bytes without the line end; blank ones and comments left out."""
    for number, line in all_lines(path):
        if line.strip() and not line.lstrip().startswith(b"#"):
            yield number, line


def all_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, as bytes without the line end and without a byte order mark.

    Raises:
      UserError: the file is UTF-16.
    """
    with open(path, "rb") as f:
        for number, line in enumerate(f, start=1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{path} is UTF-16: convert it to UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line.rstrip(b"\r\n")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which fields a line has: those of the recipe, then columns of the user's own."""

    has_times: bool = False
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Layout | None:
        """Returns the layout that a header or else the first lines show; None: no line has fields.

        A header is a first line such as `#path|text|speaker|dialect`.

        Raises:
          UserError: a header that begins with `#path|` and names other fields.
        """
        first = next(all_lines(path), (1, b""))[1]
        if first.startswith(b"#path|"):
            names = [name.strip() for name in first[1:].decode("utf-8", "replace").split("|")]
            return cls._of_header(path, names)
        lines = [line for _, line in itertools.islice(read_lines(path), _LOOKED_AT)]
        if lines and not any(line.count(b"|") >= 2 for line in lines):
            return None
        return cls(2 * sum(map(_has_times, lines)) > len(lines))

    @classmethod
    def _of_header(cls, path: Path, names: list[str]) -> Layout:
        for fields in _FIELDS:
            columns = names[len(fields) :]
            if tuple(names[: len(fields)]) == fields:
                if not all(columns) or len({*names}) < len(names):
                    raise UserError(f"{path}, line 1: a column has no name, or that of another")
                return cls("start" in fields, tuple(columns))
        wanted = " or ".join(f"#{'|'.join(fields)}|..." for fields in _FIELDS)
        raise UserError(f"{path}, line 1: the header must begin with {wanted}")

    @property
    def expected(self) -> str:
        """The fields as a header would name them."""
        return "|".join((*_FIELDS[self.has_times], *self.columns))


def _has_times(line: bytes) -> bool:
    parts = line.decode("utf-8", "replace").split("|")
    return len(parts) >= 5 and all(_TIME.fullmatch(p.strip()) for p in parts[1:3])


class TextList(Corpus):
    """A list of the recipe. The text may hold `|`, as it lies between fields that do not."""

    form = "a list"

    def entries(self) -> Iterator[Entry]:
        layout = Layout.of(self.path) or Layout()
        for number, line in read_lines(self.path):
            yield self._parse(number, line, layout)

    def _parse(self, number: int, line: bytes, layout: Layout) -> Entry:
        try:
            content = line.decode("utf-8")
        except UnicodeDecodeError:
            return Entry(number, line.decode("utf-8", "replace"), problem="not UTF-8")
        before, after = 1 + 2 * layout.has_times, 1 + len(layout.columns)
        if content.count("|") < before + after:
            problem = f"too few fields: {layout.expected} expected"
            return Entry(number, content, problem=problem)
        *head, rest = content.split("|", before)
        text, *tail = rest.rsplit("|", after)
        path, *times = (field.strip() for field in head)
        text, (speaker, *values) = text.strip(), (field.strip() for field in tail)
        problem = missing_parts(path, text)
        if not all(map(_TIME.fullmatch, times)):
            problem, times = f"times that are no seconds: {times[0]} and {times[1]}", []
        start, end = map(float, times) if times else (0.0, None)
        columns = plain_columns(dict(zip(layout.columns, values)))
        return Entry(
            number, content, path, self.locate(path), text, speaker, start=start, end=end,
            columns=columns, problem=problem,
        )  # fmt: skip
