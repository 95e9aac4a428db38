"""What OpenAI's two protocols share: the shapes of errors and words, and text that only grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import WORD_START, text_of
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.spans import TimedText, word_shapes
from xlsr_transducer.serving.refusals import Refused
from xlsr_transducer.serving.session import hotwords_of


class BadRequest(Refused):
    """A request or an event that is wrong; ``param`` says what of it."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value"):
        super().__init__(400, message, code)
        self.param = param


def require_keywords(model: LiveModel, keywords: Sequence[str], param: str) -> None:
    """Raises BadRequest if ``keywords`` cannot be the hotwords of a session."""
    if not all(map(is_unicode, keywords)):
        raise BadRequest("a keyword has half a character", param)
    try:
        hotwords_of(model, keywords)
    except UserError as e:
        raise BadRequest(str(e), param) from e


def is_unicode(text: str) -> bool:
    """Returns whether ``text`` has an encoding: JSON can spell halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class GrowingText:
    """The text of segments one after the other. What it has given is never taken back.

    Two segments are joined as their tokens are: one may end within a word.
    """

    def __init__(self) -> None:
        self.text = ""
        self._of_segment = 0  # characters given of the segment that has not ended
        self._before: list[str] = []  # tokens of the one before it

    def add(self, segment: TimedText) -> str:
        """Takes in the present state of the segment that has not ended, or its end.

        Returns:
          what it adds to the text.
        """
        joined = text_of([*self._before, *segment.tokens[: segment.num_stable]])
        new = joined[len(text_of(self._before)) + self._of_segment :]
        self.text += new
        self._of_segment += len(new)
        if segment.is_final:
            # Without text the one before still counts, for the space between words.
            self._before = segment.tokens if segment.text else [*self._before, *segment.tokens]
            self._of_segment = 0
        return new


def words_of(segments: Sequence[TimedText], offset: float = 0.0) -> list[dict[str, Any]]:
    """Returns words with their times in seconds, ``offset`` later than in ``segments``."""
    return [shape for s in segments for shape in word_shapes(s.words, offset)]


def log_probs_of(segments: Sequence[TimedText], offset: float = 0.0) -> list[dict[str, Any]]:
    """Returns tokens with their log-probs. ``timestamp`` is an addition to OpenAI's shape."""
    found = []
    for segment in segments:
        for token, log_prob, at in zip(segment.tokens, segment.log_probs, segment.timestamps):
            text = token.replace(WORD_START, " ")
            found.append(
                {
                    "token": text,
                    "bytes": list(text.encode()),
                    "logprob": log_prob,
                    "timestamp": round(offset + at, 3),
                }
            )
    return found
