"""The labels of a classifier, in the place of a BPE model: ``DATA/lang_label/labels.txt``.

A text is one label, as it stands in the list. Index, batches, training and checkpoints treat it as
a text of one token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Union

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir

LANG_DIR, LABELS_FILE = "lang_label", "labels.txt"  # one label a line, in the order of their ids
MAKE = "./prepare.sh --unit label"


class Labels:
    """Labels by number, with the calls of ``Tokenizer``.

    Raises UserError unless there are two or more different ones.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.tokens: list[str] = list(labels)
        self.vocab_size = len(self.tokens)
        self.word_starts = [True] * self.vocab_size
        self._ids = {label: i for i, label in enumerate(self.tokens)}
        if not all(isinstance(label, str) and label.strip() for label in self.tokens):
            raise UserError("a label is empty")
        if len(self._ids) < len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if self._ids[t] != i)
            raise UserError(f"the label {twice!r} occurs twice")
        if len(self.tokens) < 2:
            found = f"there is one alone, {self.tokens[0]!r}" if self.tokens else "there is none"
            raise UserError(f"a classifier needs two labels or more: {found}")

    @classmethod
    def load(cls, lang_dir: Union[str, Path]) -> Labels:
        """Reads ``lang_dir``/labels.txt."""
        path = Path(lang_dir) / LABELS_FILE
        if not path.is_file():
            raise UserError(f"{path} is missing: stage 2 of {MAKE} makes it")
        try:
            return cls(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        except (UserError, UnicodeDecodeError) as e:
            raise UserError(f"{path}: {e}; make it again with stage 2 of {MAKE}") from e

    @classmethod
    def from_bytes(cls, content: bytes) -> Labels:
        """From what ``to_bytes`` gave, as a checkpoint carries it."""
        try:
            return cls(json.loads(content.decode()))
        except (ValueError, TypeError) as e:  # a UserError too
            raise UserError(f"these are no labels ({e})") from e

    def to_bytes(self) -> bytes:
        """Returns the labels as a JSON list, which begins as no sentencepiece model does."""
        return json.dumps(self.tokens).encode()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the number of each label in a list of its own, which is empty if the label is
        unknown."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts")
        return [[self._ids[text]] if text in self._ids else [] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the label of a list of one number."""
        return " ".join(self.tokens[int(i)] for i in ids)

    def write(self, path: Path) -> None:
        """Writes labels.txt."""
        write_text(path, "".join(f"{label}\n" for label in self.tokens))

    def write_tokens(self, path: Union[str, Path]) -> None:
        """Writes the labels as a tokens.txt, `label id` a line."""
        lines = [f"{label} {i}\n" for i, label in enumerate(self.tokens)]
        Path(path).write_text("".join(lines), encoding="utf-8")


Units = Union[Tokenizer, Labels]  # what the texts of a model are made of


def load_units(lang_dir: Path) -> Units:
    """Reads the labels or the BPE model of a folder, whichever it holds."""
    is_of_labels = (lang_dir / LABELS_FILE).is_file() or lang_dir.name == LANG_DIR
    return Labels.load(lang_dir) if is_of_labels else Tokenizer.load(lang_dir)


def units_from_bytes(content: bytes) -> Units:
    """From the ``to_bytes`` of either, as a checkpoint carries them."""
    return Labels.from_bytes(content) if content.startswith(b"[") else Tokenizer(content)


def units_for(heads: Sequence[str], data_dir: Path, lang_dir: Path | None) -> tuple[Path, Units]:
    """Returns the folder of the units for a model's heads, and the units.

    Args:
      lang_dir: None: the only one of ``data_dir``.

    Raises:
      UserError: there is none, or the heads need units of the other kind.
    """
    is_classifier = "classifier" in heads
    has_labels_alone = [p.name for p in data_dir.glob("lang_*")] == [LANG_DIR]
    if lang_dir is None and (is_classifier or has_labels_alone):
        lang_dir = data_dir / LANG_DIR
    lang_dir = lang_dir or find_lang_dir(data_dir)
    units = load_units(lang_dir)
    if is_classifier != isinstance(units, Labels):
        raise UserError(
            f"--heads classifier needs labels, and {lang_dir} is of texts: run {MAKE}"
            if is_classifier
            else f"{lang_dir} holds labels, and --heads {','.join(heads)} needs texts: train with "
            "--heads classifier, or prepare lists of texts"
        )
    return lang_dir, units


def words_of(units: Units, text: str) -> list[str]:
    """Returns what errors are counted in: the words of a text; a label is one, even with spaces
    inside."""
    return [text] if isinstance(units, Labels) else text.split()
