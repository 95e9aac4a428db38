"""Tokens of the model, BPE pieces or letters: text to token ids and back, by sentencepiece.

Ids 0, 1 and 2 are `<blk>`, `<sos/eos>` and `<unk>`; tokens.txt has one `token id` a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from xlsr_transducer.core.errors import UserError

BLANK, SOS_EOS, UNK = "<blk>", "<sos/eos>", "<unk>"
WORD_START = "\u2581"  # sentencepiece writes a word's leading space as this
UNK_TEXT = " \u2047 "  # and an unknown token in texts as this


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
        """Returns the text of token ids. Blank and sos/eos are left out, unk becomes U+2047."""
        return " ".join(self._model.decode([int(i) for i in ids]).split())

    def write_tokens(self, path: str | Path) -> None:
        """Writes tokens.txt."""
        lines = [f"{token} {i}\n" for i, token in enumerate(self.tokens)]
        Path(path).write_text("".join(lines), encoding="utf-8")


def hash_of_tokens(tokens: Sequence[str]) -> str:
    """Returns the SHA-256 of the tokens in their order."""
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()


def text_of(tokens: Iterable[str]) -> str:
    """``Tokenizer.decode`` without a BPE model, from the tokens themselves."""
    kept = [t for t in tokens if t not in (BLANK, SOS_EOS)]
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
