"""Tokens of the model, BPE pieces or letters: text to token ids and back, by sentencepiece.

Ids 0, 1 and 2 are `<blk>`, `<sos/eos>` and `<unk>`; tokens.txt has one `token id` a line. Tokens
of languages follow, such as `<et>`, if there are any: control symbols, which no text spells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from xlsr_transducer.core.errors import UserError

BLANK, SOS_EOS, UNK = "<blk>", "<sos/eos>", "<unk>"
WORD_START = "\u2581"  # sentencepiece writes a word's leading space as this
UNK_TEXT = " \u2047 "  # and an unknown token in texts as this
_LANGUAGE = re.compile(r"<([A-Za-z][A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*)>")


class Tokenizer:
    """A sentencepiece model with blank, sos/eos and unk as ids 0, 1, 2.

    Raises UserError if the model has other symbols there.
    """

    blank_id = 0
    sos_id = 1
    unk_id = 2

    def __init__(self, model_bytes: bytes) -> None:
        self._bytes = bytes(model_bytes)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self._bytes)
        except (RuntimeError, TypeError, ValueError) as e:
            raise UserError("this is not a sentencepiece model") from e
        self.vocab_size: int = self._model.get_piece_size()
        self.tokens: list[str] = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
        if self.tokens[:3] != [BLANK, SOS_EOS, UNK]:
            raise UserError(
                f"the BPE model begins with {self.tokens[:3]}, not {[BLANK, SOS_EOS, UNK]}"
            )
        # Whether a token begins a word: what word boundaries and biasing need.
        self.word_starts: list[bool] = [token.startswith(WORD_START) for token in self.tokens]
        self.languages: dict[str, int] = {}  # code -> id of its token
        for i in range(3, self.vocab_size):
            if not (self._model.is_control(i) and is_language_token(self.tokens[i])):
                break
            self.languages[self.tokens[i][1:-1]] = i

    @classmethod
    def load(cls, lang_dir: str | Path) -> Tokenizer:
        """Reads ``lang_dir``/bpe.model, and checks that tokens.txt beside it agrees."""
        lang_dir = Path(lang_dir)
        path = lang_dir / "bpe.model"
        if not path.is_file():
            raise UserError(f"{path} is missing: stage 2 of ./prepare.sh makes it")
        try:
            tokenizer = cls(path.read_bytes())
        except UserError as e:
            raise UserError(f"{path}: {e}; make it again with stage 2 of ./prepare.sh") from e
        tokens = lang_dir / "tokens.txt"
        if tokens.is_file() and read_tokens(tokens) != tokenizer.tokens:
            raise UserError(f"{tokens} does not belong to {path}: run stage 2 of ./prepare.sh")
        return tokenizer

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> Tokenizer:
        """From the bytes of a bpe.model, as a checkpoint carries them."""
        return cls(model_bytes)

    def to_bytes(self) -> bytes:
        """Returns the bytes of bpe.model."""
        return self._bytes

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text; a character the model does not know gives
        ``unk_id``."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts")
        # Of a list, sentencepiece makes threads in each call, which take far longer than a text.
        return [self._model.encode(text, out_type=int) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids. Blank, sos/eos and languages are left out, unk becomes
        U+2047."""
        return " ".join(self._model.decode([int(i) for i in ids]).split())

    def language_of(self, ids: Iterable[int]) -> str:
        """Returns the first language among token ids, '' without any."""
        codes = {i: code for code, i in self.languages.items()}
        return next((codes[i] for i in ids if i in codes), "")

    def write_tokens(self, path: str | Path) -> None:
        """Writes tokens.txt."""
        lines = [f"{token} {i}\n" for i, token in enumerate(self.tokens)]
        Path(path).write_text("".join(lines), encoding="utf-8")


class LanguageFirst(Tokenizer):
    """The tokens of a model that learns to emit the language's token before the text."""


def language_first(tokenizer: Tokenizer) -> Tokenizer:
    """Returns tokens that have languages as a ``LanguageFirst``, and others as they are."""
    has_languages = isinstance(tokenizer, Tokenizer) and tokenizer.languages
    return LanguageFirst(tokenizer.to_bytes()) if has_languages else tokenizer


def targets(
    tokenizer: Tokenizer, texts: Sequence[str], languages: Sequence[str]
) -> list[list[int]]:
    """Returns the token ids that a model learns to emit for each text.

    Args:
      languages: of each text; one without a token, or '', leaves the text as it is.
    """
    ids = tokenizer.encode(texts)
    if not isinstance(tokenizer, LanguageFirst):
        return ids
    first = [
        [tokenizer.languages[code]] if code in tokenizer.languages else [] for code in languages
    ]
    return [before + one for before, one in zip(first, ids)]


def require_language(tokenizer: Tokenizer, language: str, where: str) -> None:
    """Raises UserError, which says ``where``, if a model learns languages but not this one."""
    if isinstance(tokenizer, LanguageFirst) and language not in tokenizer.languages:
        known = ", ".join(tokenizer.languages)
        unknown = f"the language {language!r} has no token" if language else "has no language"
        raise UserError(
            f"{where}: {unknown}; those of the model are {known}: give its list as LANG=FILE to "
            "./prepare.sh, or make tokens with this language and train with them"
        )


def language_token(language: str) -> str:
    """Returns the token of a language, `<et>`. Raises UserError if its code cannot be one."""
    token = f"<{language}>"
    if not is_language_token(token):
        raise UserError(
            f"the language {language!r} can have no token: a code of two or more letters and "
            "digits is needed, such as et, est or zh-TW"
        )
    return token


def is_language_token(token: str) -> bool:
    """Returns whether a token, by its spelling, stands for a language."""
    return bool(_LANGUAGE.fullmatch(token)) and token not in (BLANK, UNK)


def hash_of_tokens(tokens: Sequence[str]) -> str:
    """Returns the SHA-256 of the tokens in their order."""
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()


def text_of(tokens: Iterable[str]) -> str:
    """``Tokenizer.decode`` without a BPE model, from the tokens themselves."""
    kept = [t for t in tokens if t not in (BLANK, SOS_EOS) and not is_language_token(t)]
    pieces = [UNK_TEXT if t == UNK else t for t in kept]
    return " ".join("".join(pieces).replace(WORD_START, " ").split())


def read_tokens(path: str | Path) -> list[str]:
    """Returns the tokens of a tokens.txt in the order of their ids. Raises UserError if it is
    broken."""
    tokens = []
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not a tokens.txt, or damaged ({e})") from e
    for number, line in enumerate(lines, start=1):
        token, _, index = line.rpartition(" ")
        if not token or index != str(number - 1):
            raise UserError(f"{path} line {number}: expected `token {number - 1}`, got {line!r}")
        tokens.append(token)
    return tokens


def find_lang_dir(data_dir: Path) -> Path:
    """Returns the only ``lang_bpe_N`` or ``lang_char`` of a corpus.

    Raises:
      UserError: there is none, or several, which it names.
    """
    kinds = ("lang_bpe_*", "lang_char")
    found = sorted(p.parent for kind in kinds for p in data_dir.glob(f"{kind}/bpe.model"))
    if not found:
        raise UserError(
            f"{data_dir}: no lang_bpe_N or lang_char here; run stage 2 of ./prepare.sh"
        )
    if len(found) > 1:
        names = ", ".join(str(p) for p in found)
        raise UserError(f"several sets of tokens, choose one with --lang-dir: {names}")
    return found[0]
