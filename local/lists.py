"""The lists that a corpus is made from: how they are given, read, and form splits."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from xlsr_transducer.core.errors import UserError

_LANGUAGE = r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*"


@dataclasses.dataclass(frozen=True)
class ListFile:
    """A list or another corpus, and the language of its texts; '' if it was given without one."""

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

    @property
    def is_on_hub(self) -> bool:
        """Returns whether it is a name on Hugging Face's hub, hf:NAME[:CONFIG][:SPLIT]."""
        return str(self.path).startswith("hf:")

    def require(self) -> None:
        """Raises UserError if there is no such file or folder."""
        if not (self.path.is_file() or self.path.is_dir()):
            state = "is no file or folder" if self.path.exists() else "does not exist"
            given = f"; a file of that whole name is given as ./{self.language}={self.path}"
            raise UserError(f"the list {self.path} {state}" + given * bool(self.language))


class Place(NamedTuple):
    """Where an utterance stands: split, line, and list where the split has several."""

    split: str
    line: int
    list: str = ""

    def __str__(self) -> str:
        return f"line {self.line} of the {self.split} list" + f" {self.list}" * bool(self.list)


def name_splits(
    train: Sequence[ListFile], val: Sequence[ListFile], test: Sequence[ListFile]
) -> dict[str, list[ListFile]]:
    """Returns split names and their lists.

    Several test lists are named after their files; lists of several languages whose files have
    the same name form one split.

    Raises:
      UserError: lists that do not go together.
    """
    if bool(train) != bool(val) or not (train or test):
        raise UserError("--train-list and --val-list come together, or --test-list alone")
    splits = {"train": [*train], "val": [*val]} if train else {}
    for one in test:
        stem = one.path.name if one.is_on_hub else one.path.stem
        stem = re.sub(r"[^\w-]+", "_", stem)
        name = stem if len(test) > 1 else "test"
        present = splits.setdefault(name, [])
        languages = [other.language for other in present]
        is_another = one.language and all(languages) and one.language not in languages
        if name in ("train", "val") or present and not is_another:
            raise UserError(f"two lists would be called {name!r}: rename the test list {one.path}")
        present.append(one)
    return splits
