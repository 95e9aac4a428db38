"""Recognises what a corpus is by its files, and opens it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.importers.entry import Corpus
from local.importers.text_list import TextList
from local.lists import ListFile
from xlsr_transducer.core.errors import UserError


def open_corpora(
    splits: dict[str, Sequence[ListFile]], audio_root: Path | None
) -> dict[str, list[Corpus]]:
    """Opens the corpora of all splits; files and folders are looked at, audio is not.

    Raises:
      UserError: one does not exist, cannot be recognised, or is given twice.
    """
    given: set[tuple[str, ...]] = set()
    found: dict[str, list[Corpus]] = {}
    for split, lists in splits.items():
        role = split if split in ("train", "val") else "test"
        found[split] = [open_corpus(one, role, audio_root) for one in lists]
        for corpus in found[split]:
            if corpus.identity in given:
                raise UserError(f"the list {corpus.path} is given twice")
            given.add(corpus.identity)
    return found


def open_corpus(one: ListFile, role: str, audio_root: Path | None) -> Corpus:
    """Opens one corpus.

    Args:
      role: train, val or test, for corpora that hold them all.
      audio_root: where relative paths begin; None: as the form of the corpus has it.

    Raises:
      UserError: it does not exist, or cannot be recognised.
    """
    one.require()
    path = one.path
    if not path.is_file():
        raise UserError(f"the list {path} is no file")
    return TextList(path, audio_root or path.resolve().parent)
