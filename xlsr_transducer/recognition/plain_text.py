"""Texts without case and punctuation, as scores compare them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def basic(text: str) -> str:
    """Returns the text as Whisper's normaliser for all languages but English has it.

    Combining marks are removed where they have no composed form, which takes the vowels off
    scripts such as Devanagari; compare such languages without it.
    """
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower())
    text = re.sub(r"\(([^)]+?)\)", "", text)
    composed = unicodedata.normalize("NFKC", text)
    kept = (" " if unicodedata.category(c)[0] in "MSP" else c for c in composed)
    return " ".join("".join(kept).lower().split())


def is_cased_or_punctuated(texts: Iterable[str]) -> bool:
    """Returns whether texts hold capitals or punctuation beyond ' and - in words, and ⁇, which
    is recognised in place of an unknown letter.

    Their plain WER counts spelling as errors, so that a second one, normalised by ``basic``, is
    worth having.
    """
    return any(
        c.isupper() or (unicodedata.category(c)[0] == "P" and c not in "'-⁇")
        for text in texts
        for c in text
    )
