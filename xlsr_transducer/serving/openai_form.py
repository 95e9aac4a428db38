"""What a caller of OpenAI's transcription of files asks for: the fields of its form."""

from __future__ import annotations

import contextlib
import dataclasses

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving.openai_shapes import BadRequest, require_keywords

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
STREAMED_FORMATS = ("json", "text")
GRANULARITIES = ("word", "segment")
MOST_FIELDS, LONGEST_FIELD = 300, 1 << 16  # bytes; these lie in memory


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a caller asks for."""

    response_format: str  # one of FORMATS
    granularities: tuple[str, ...]  # of times, some of GRANULARITIES
    is_streamed: bool
    wants_log_probs: bool
    keywords: tuple[str, ...]
    language: str

    @staticmethod
    def from_form(form: FormData, model: LiveModel) -> Wanted:
        """Reads the fields.

        Raises:
          BadRequest: one of them is wrong, or there is no file.
        """
        if not isinstance(form.get("file"), UploadFile):
            raise BadRequest("file: an audio file is needed", "file", "missing")
        response_format = _text(form, "response_format") or "json"
        is_streamed = _is_true(form, "stream")
        allowed = STREAMED_FORMATS if is_streamed else FORMATS
        if response_format not in allowed:
            streamed = " with stream" if is_streamed else ""
            raise BadRequest(
                f"response_format{streamed}: must be one of {', '.join(allowed)}",
                "response_format",
            )
        granularities = _texts(form, "timestamp_granularities")
        if not set(granularities) <= set(GRANULARITIES):
            raise BadRequest(
                f"timestamp_granularities: must be of {', '.join(GRANULARITIES)}",
                "timestamp_granularities",
            )
        keywords = _texts(form, "keywords")
        require_keywords(model, keywords, "keywords")
        return Wanted(
            response_format,
            granularities or ("segment",),
            is_streamed,
            "logprobs" in _texts(form, "include"),
            keywords,
            _text(form, "language"),
        )


async def read_form(request: Request, stack: contextlib.AsyncExitStack) -> FormData:
    """Returns a form, whose file lies on disk if it is large, and is deleted by ``stack``.

    Raises:
      BadRequest: it is no form.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise BadRequest("the request must be multipart/form-data", code="invalid_form")
    limits = {"max_files": 1, "max_fields": MOST_FIELDS, "max_part_size": LONGEST_FIELD}
    return await stack.enter_async_context(request.form(**limits))


def _texts(form: FormData, name: str) -> tuple[str, ...]:
    """Returns the values of a list, each a field of its own: ``name`` or ``name[]``."""
    values = [*form.getlist(name), *form.getlist(f"{name}[]")]
    if not all(isinstance(value, str) for value in values):
        raise BadRequest(f"{name}: must be text, not a file", name)
    return tuple(values)


def _text(form: FormData, name: str) -> str:
    """Returns a field; the last if there are several, and "" if there is none."""
    return (_texts(form, name) or ("",))[-1]


def _is_true(form: FormData, name: str) -> bool:
    value = _text(form, name).lower() or "false"
    if value not in ("true", "false"):
        raise BadRequest(f"{name}: must be true or false", name)
    return value == "true"
