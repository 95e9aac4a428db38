"""A sentencepiece model of given letters, for tokens that no training of sentencepiece chose.

Written by hand in protobuf's wire format, after sentencepiece_model.proto: only the fields that
such a model needs, so that the tokens of another program's recogniser serve everything that takes
a ``Tokenizer``.
"""

from __future__ import annotations

from collections.abc import Iterable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces
CHAR = 4  # the kind of model


def letter_model(pieces: Iterable[tuple[str, int]], unk_surface: str) -> bytes:
    """Returns the bytes of a sentencepiece model of the kind CHAR.

    A text's words are parted by the boundary, with none before the first. No text spells a
    normal piece of several characters; a user-defined one is found in texts, the longest first.

    Args:
      pieces: each with its kind, in the order of their ids; exactly one is UNKNOWN.
      unk_surface: the text that it becomes.
    """
    pieces = list(pieces)
    [unk_id] = [i for i, (_, kind) in enumerate(pieces) if kind == UNKNOWN]
    content = b"".join(_message(1, _text(1, piece) + _number(3, kind)) for piece, kind in pieces)
    trainer = _number(3, CHAR) + _number(4, len(pieces)) + _number(40, unk_id)
    trainer += b"".join(_number(field, -1) for field in (41, 42, 43))  # no bos, eos, pad
    trainer += _text(44, unk_surface)
    normalizer = _text(1, "identity") + _number(3, 0)  # no boundary before the first word
    return content + _message(2, trainer) + _message(3, normalizer)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the highest bit."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
