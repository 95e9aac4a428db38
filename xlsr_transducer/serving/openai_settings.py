"""The settings of a realtime session, in the two shapes that OpenAI's clients write them.

``session.update`` carries {"type": "transcription", "audio": {"input": ...}}; the older
``transcription_session.update`` carries {"input_audio_format": ...}. Both are read by either
event. Only what an update names changes. What is answered is what holds:

* any ``model`` will do, there is one; ``language``, ``prompt`` and ``noise_reduction`` change
  nothing;
* ``keywords`` of ``transcription`` are the session's hotwords: ``phrase``, or ``phrase :score``;
* turns end where the server's endpoint rules say so, for all sessions alike;
* ``audio/pcm`` may have any rate that audio has, not only 24000 Hz.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from xlsr_transducer.recognition.endpoint import EndpointRules
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving.openai_shapes import BadRequest, require_keywords
from xlsr_transducer.serving.wire import CODINGS, BadAudio, WireAudio

# Codings of WireAudio by OpenAI's names, older and newer.
FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
PCM_RATE, G711_RATE = 24000, 8000  # Hz
TURN_DETECTIONS = ("server_vad", "semantic_vad")
LOG_PROBS = "item.input_audio_transcription.logprobs"

Shape = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a session's audio is coded, and what it is sent."""

    coding: str = "pcm16"  # one of ``wire.CODINGS``
    rate: int = PCM_RATE  # Hz
    detects_turns: bool = True  # items end at endpoints; otherwise where the client commits
    keywords: tuple[str, ...] = ()
    wants_log_probs: bool = False
    model: str | None = None  # these three are repeated to the client, and change nothing
    language: str | None = None
    prompt: str | None = None

    def audio(self) -> WireAudio:
        """Returns the decoder of a stream."""
        return WireAudio(self.coding, self.rate)

    @property
    def bytes_per_second(self) -> int:
        return CODINGS[self.coding][0] * self.rate


def updated(settings: Settings, session: Any, model: LiveModel) -> Settings:
    """Returns ``settings`` with what a client wants changed.

    Args:
      session: from the client, in either shape.

    Raises:
      BadRequest: it cannot be done.
    """
    session = _mapping(session, "session")
    if session.get("type", "transcription") != "transcription":
        raise BadRequest(
            'this server transcribes: session.type must be "transcription"', "session.type"
        )
    audio = _mapping(session.get("audio"), "session.audio")
    audio_input = _mapping(audio.get("input"), "session.audio.input")
    changes: Shape = {}
    place = "session.audio.input"
    for new, old in (
        ("format", "input_audio_format"),
        ("transcription", "input_audio_transcription"),
        ("turn_detection", "turn_detection"),
    ):
        for fields, name, param in (
            (session, old, f"session.{old}"),
            (audio_input, new, f"{place}.{new}"),
        ):
            if name in fields:
                changes |= _READERS[new](fields[name], param, model)
    if session.get("include") is not None:
        wanted = _strings(session["include"], "session.include")
        changes["wants_log_probs"] = LOG_PROBS in wanted
    return dataclasses.replace(settings, **changes)


def _format(value: Any, param: str, model: LiveModel) -> Shape:
    """Reads "pcm16", or {"type": "audio/pcm", "rate": 24000}."""
    if value is None:
        return {"coding": "pcm16", "rate": PCM_RATE}
    if isinstance(value, str):
        name, rate = value, None
        names = {coding: coding for coding in FORMATS.values()}
    else:
        value = _mapping(value, param)
        name, rate, names = value.get("type", "audio/pcm"), value.get("rate"), FORMATS
    coding = names.get(name) if isinstance(name, str) else None
    if coding is None:
        raise BadRequest(f"{param}: must be one of {', '.join(names)}", param)
    usual = PCM_RATE if coding == "pcm16" else G711_RATE
    rate = usual if rate is None else rate
    if isinstance(rate, bool) or not isinstance(rate, int):
        raise BadRequest(f"{param}.rate: must be a number of Hz", f"{param}.rate")
    if coding != "pcm16" and rate != usual:
        raise BadRequest(f"{param}.rate: {name} has {usual} Hz", f"{param}.rate")
    try:
        WireAudio(coding, rate)
    except BadAudio as e:
        raise BadRequest(f"{param}.rate: {e}", f"{param}.rate") from e
    return {"coding": coding, "rate": rate}


def _transcription(value: Any, param: str, model: LiveModel) -> Shape:
    if isinstance(value, list) and len(value) == 1:  # OpenAI's older guide has it in a list
        value = value[0]
    value = _mapping(value, param)
    changes: Shape = {}
    for name in ("model", "language", "prompt"):
        if name in value:
            if value[name] is not None and not isinstance(value[name], str):
                raise BadRequest(f"{param}.{name}: must be text", f"{param}.{name}")
            changes[name] = value[name]
    if "keywords" in value:
        where = f"{param}.keywords"
        keywords = tuple(_strings(value["keywords"] or [], where))
        require_keywords(model, keywords, where)
        changes["keywords"] = keywords
    return changes


def _turn_detection(value: Any, param: str, model: LiveModel) -> Shape:
    if value is None:
        return {"detects_turns": False}
    if _mapping(value, param).get("type", TURN_DETECTIONS[0]) not in TURN_DETECTIONS:
        raise BadRequest(f"{param}.type: must be {' or '.join(TURN_DETECTIONS)}", f"{param}.type")
    if model.rules is None:
        raise BadRequest(
            f"{param}: the server runs without endpoint detection; commit the audio instead", param
        )
    return {"detects_turns": True}


_READERS = {
    "format": _format,
    "transcription": _transcription,
    "turn_detection": _turn_detection,
}


def _mapping(value: Any, param: str) -> Shape:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{param}: must be an object", param)
    return value


def _strings(value: Any, param: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"{param}: must be a list of texts", param)
    return value


def shape_of(settings: Settings, session_id: str, rules: EndpointRules | None) -> Shape:
    """Returns the settings that hold, as ``session.created`` and ``session.updated`` have
    them."""
    kinds = {coding: kind for kind, coding in FORMATS.items()}
    audio_format: Shape = {"type": kinds[settings.coding]}
    if settings.coding == "pcm16":
        audio_format["rate"] = settings.rate
    return {
        "id": session_id,
        "object": "realtime.transcription_session",
        "type": "transcription",
        "audio": {
            "input": {
                "format": audio_format,
                "transcription": _transcription_shape(settings),
                "noise_reduction": None,
                "turn_detection": _turn_shape(settings, rules),
            }
        },
        "include": [LOG_PROBS] if settings.wants_log_probs else [],
    }


def older_shape_of(settings: Settings, session_id: str, rules: EndpointRules | None) -> Shape:
    """Returns the settings that hold, as ``transcription_session.updated`` has them."""
    return {
        "id": session_id,
        "object": "realtime.transcription_session",
        "input_audio_format": settings.coding,
        "input_audio_transcription": _transcription_shape(settings),
        "input_audio_noise_reduction": None,
        "turn_detection": _turn_shape(settings, rules),
        "include": [LOG_PROBS] if settings.wants_log_probs else [],
    }


def _transcription_shape(settings: Settings) -> Shape:
    return {
        "model": settings.model,
        "language": settings.language,
        "prompt": settings.prompt,
        "keywords": list(settings.keywords),
    }


def _turn_shape(settings: Settings, rules: EndpointRules | None) -> Shape | None:
    if not settings.detects_turns or rules is None:
        return None
    silence = round(rules.silence_after_tokens * rules.frame * 1000)
    return {"type": "server_vad", "silence_duration_ms": silence}
