"""The lists that a corpus is made from: how they are given, read, and form splits."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from xlsr_transducer.core.errors import UserError

_LANGUAGE = r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*"


@dataclasses.dataclass(frozen=True)
class ListFile:
    """A list, and the language of its texts; '' where only --lang tells it."""

    path: Path
    language: str = ""

    @classmethod
    def parse(cls, text: str) -> ListFile:
        """Reads ``LANG=FILE`` or ``FILE``, whose name holds `=` only after a slash."""
        language, sign, path = text.partition("=")
        if not (sign and re.fullmatch(_LANGUAGE, language)):
            return cls(Path(text))
        if not path:
            raise argparse.ArgumentTypeError(f"{text!r}: a file must follow LANG=")
        return cls(Path(path), language)

    def require(self) -> None:
        """Raises UserError if there is no such file."""
        if not self.path.is_file():
            state = "is no file" if self.path.exists() else "does not exist"
            given = f"; a file of that whole name is given as ./{self.language}={self.path}"
            raise UserError(f"the list {self.path} {state}" + given * bool(self.language))


class Place(NamedTuple):
    """Where an utterance stands: split, line, and list where the split has several."""

    split: str
    line: int
    list: str = ""

    def __str__(self) -> str:
        return f"line {self.line} of the {self.split} list" + f" {self.list}" * bool(self.list)


def read_list(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, as bytes without the line end; blank ones and comments left out."""
    with open(path, "rb") as f:
        for number, line in enumerate(f, start=1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{path} is UTF-16: convert it to UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip() and not line.lstrip().startswith(b"#"):
                yield number, line.rstrip(b"\r\n")


def name_splits(
    train: Sequence[ListFile], val: Sequence[ListFile], test: Sequence[ListFile], language: str
) -> dict[str, list[ListFile]]:
    """Returns split names and their lists, each with a language.

    Several test lists are named after their files; lists of several languages whose files have
    the same name form one split.

    Args:
      language: of lists that are given without one.

    Raises:
      UserError: lists that do not exist, or do not go together.
    """
    if bool(train) != bool(val) or not (train or test):
        raise UserError("--train-list and --val-list come together, or --test-list alone")
    splits = {"train": [*train], "val": [*val]} if train else {}
    for one in test:
        stem = re.sub(r"[^\w-]+", "_", one.path.stem)
        name = stem if len(test) > 1 else "test"
        present = splits.setdefault(name, [])
        languages = [other.language for other in present]
        is_another = one.language and all(languages) and one.language not in languages
        if name in ("train", "val") or present and not is_another:
            raise UserError(f"two lists would be called {name!r}: rename the test list {one.path}")
        present.append(one)
    given: set[Path] = set()
    for one in (one for lists in splits.values() for one in lists):
        one.require()
        if one.path.resolve() in given:
            raise UserError(f"the list {one.path} is given twice")
        given.add(one.path.resolve())
    return {
        name: [dataclasses.replace(one, language=one.language or language) for one in lists]
        for name, lists in splits.items()
    }
