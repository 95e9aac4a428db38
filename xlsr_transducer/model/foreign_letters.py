"""The tokens of Hugging Face's CTC models, ``Wav2Vec2CTCTokenizer``, as a ``Tokenizer``.

Their order is changed: the padding token, which is the blank, comes first, and the word delimiter
is sentencepiece's boundary. Texts are those of transformers, which prints every token but the
blank by its name, ``<s>`` and ``<unk>`` too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.letter_model import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    letter_model,
)
from xlsr_transducer.data.tokenizer import BLANK, SOS_EOS, UNK, WORD_START, Tokenizer
from xlsr_transducer.model.xlsr_checkpoint import read_json, unknown_language

# transformers' defaults; a folder need not repeat them.
DEFAULTS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "word_delimiter_token": "|",
    "replace_word_delimiter_char": " ",
    "do_lower_case": False,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
}
SPECIAL = ("pad_token", "unk_token", "bos_token", "eos_token")
KNOWN_CLASSES = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer", "Wav2Vec2CTCTokenizerFast")


@dataclasses.dataclass(frozen=True)
class Letters:
    """The tokens of a folder."""

    folder: Path
    names: dict[int, str]  # by the row of the network's output
    settings: dict[str, Any]  # see DEFAULTS
    languages: tuple[str, ...]  # that have tokens of their own; empty: one set for all

    def tokenizer(self, num_rows: int) -> tuple[Tokenizer, list[int | None]]:
        """Returns a tokenizer, and for each of its tokens the row of the network's output, None
        for a token that the network has not.

        Args:
          num_rows: of the network's output; tokens beyond belong to texts alone.

        Raises:
          UserError: there is no blank, or two tokens that would be one.
        """
        pad, unk, delimiter = (
            self.settings[name] for name in ("pad_token", "unk_token", "word_delimiter_token")
        )
        row_of = {name: row for row, name in self.names.items() if row < num_rows}
        if pad not in row_of:
            raise UserError(
                f"{self.folder}: the padding token {pad!r}, the blank, is none of the "
                f"{num_rows} outputs of the network"
            )
        pieces = [(BLANK, CONTROL), (SOS_EOS, CONTROL), (UNK, UNKNOWN)]
        rows = [row_of[pad], None, row_of.get(unk)]
        special = {self.settings[name] for name in SPECIAL}
        for row in range(num_rows):
            if row in (row_of[pad], row_of.get(unk)):
                continue
            name = self.names.get(row, f"<{row}>")
            is_found = len(name) > 1 and name not in special and row in self.names
            piece = WORD_START if name == delimiter else self._cased(name)
            pieces.append((piece, USER_DEFINED if is_found else NORMAL))
            rows.append(row)
        self._require_different([piece for piece, _ in pieces])
        return Tokenizer(letter_model(pieces, self._cased(unk or UNK))), rows

    def _cased(self, name: str) -> str:
        return name.lower() if self.settings["do_lower_case"] else name

    def _require_different(self, pieces: list[str]) -> None:
        twice = sorted({piece for piece in pieces if pieces.count(piece) > 1})
        if twice or "" in pieces:
            raise UserError(
                f"{self.folder}: two of its tokens are {twice[0]!r}"
                if twice
                else f"{self.folder}: one of its tokens is empty"
            )


def letters_of(folder: Path, language: str | None) -> Letters:
    """Reads vocab.json and what belongs to it.

    Args:
      language: whose tokens; None: of the one that the folder names, if it has several.

    Raises:
      UserError: a file is missing or damaged, of another kind, or has no such language.
    """
    path = folder / "vocab.json"
    if not path.is_file():
        raise UserError(f"{folder}: no vocab.json, which names the letters")
    settings = _settings(folder)
    vocabulary, languages = read_json(path), ()
    if vocabulary and all(isinstance(value, dict) for value in vocabulary.values()):
        languages = tuple(sorted(vocabulary))
        chosen = language or settings.get("target_lang")
        if chosen not in vocabulary:
            if chosen:
                raise unknown_language(folder, chosen, list(languages))
            raise UserError(f"{folder}: has tokens of {len(languages)} languages; give --language")
        vocabulary = vocabulary[chosen]
    elif language:
        raise UserError(f"--language {language}: {folder} has one vocab.json for all languages")
    names = {**_added(folder, settings), **_by_row(vocabulary, path)}
    return Letters(folder, names, settings, languages)


def _settings(folder: Path) -> dict[str, Any]:
    """Returns what tokenizer_config.json and special_tokens_map.json say, or the defaults."""
    found = dict(DEFAULTS)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found.update(read_json(folder / name))
    for name in SPECIAL:  # a name, or an object with it
        value = found[name]
        found[name] = value.get("content") if isinstance(value, dict) else value
    if found["tokenizer_class"] not in KNOWN_CLASSES:
        raise UserError(
            f"{folder}: its tokenizer is a {found['tokenizer_class']}; only "
            f"{KNOWN_CLASSES[0]} is read"
        )
    if found["replace_word_delimiter_char"] != " ":
        raise UserError(
            f"{folder}: replace_word_delimiter_char is "
            f"{found['replace_word_delimiter_char']!r}; only a space between words is supported"
        )
    return found


def _by_row(vocabulary: dict[str, Any], path: Path) -> dict[int, str]:
    for name, row in vocabulary.items():
        if not isinstance(row, int) or isinstance(row, bool) or row < 0:
            raise UserError(f"{path}: {name!r} has the number {row!r}")
    return {row: name for name, row in vocabulary.items()}


def _added(folder: Path, settings: dict[str, Any]) -> dict[int, str]:
    """Returns the tokens that were added to a vocabulary later."""
    path, found = folder / "added_tokens.json", {}
    if path.is_file():
        found.update(_by_row(read_json(path), path))
    for row, token in (settings.get("added_tokens_decoder") or {}).items():
        if str(row).isdigit() and isinstance(token, dict) and "content" in token:
            found[int(row)] = token["content"]
    return found
