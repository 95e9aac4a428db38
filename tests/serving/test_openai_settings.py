"""The settings of realtime sessions: what clients may write, and what is answered."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import load_live
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving.openai_settings import Settings, older_shape_of, shape_of, updated
from xlsr_transducer.serving.openai_shapes import BadRequest


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, "--decoding-method", "modified_beam_search")


@pytest.mark.parametrize("shape", [shape_of, older_shape_of])
def test_what_is_answered_may_be_sent_back(model: LiveModel, shape: Any) -> None:
    for settings in (
        Settings(),
        Settings("g711_alaw", 8000, False, ("a",), True, "m", "de", "hello"),
        Settings("pcm16", 24000, True, (), False, "m"),
    ):
        answer = json.loads(json.dumps(shape(settings, "sess_1", model.rules)))
        assert updated(Settings(keywords=("o",), model="other"), answer, model) == settings


def test_an_update_changes_what_it_names_alone(model: LiveModel) -> None:
    before = Settings("pcm16", 16000, True, ("a",), True, "m", "de", "p")
    for session, changes in (
        ({}, {}),
        ({"audio": None, "include": None}, {}),
        ({"audio": {"input": {"transcription": {"language": "en"}}}}, {"language": "en"}),
        ({"audio": {"input": {"turn_detection": None}}}, {"detects_turns": False}),
        ({"input_audio_transcription": {"keywords": []}}, {"keywords": ()}),
        ({"input_audio_format": "g711_ulaw"}, {"coding": "g711_ulaw", "rate": 8000}),
        ({"audio": {"input": {"format": {"type": "audio/pcm"}}}}, {"rate": 24000}),
        ({"include": []}, {"wants_log_probs": False}),
    ):
        assert updated(before, session, model) == Settings(**(vars(before) | changes))


def test_whatever_comes_is_taken_or_refused_with_a_reason(model: LiveModel) -> None:
    """5,000 random updates: names that mean something, with values of all kinds."""
    draw = random.Random(0)
    names = """type audio input format rate transcription turn_detection include model keywords
        language prompt input_audio_format input_audio_transcription noise_reduction""".split()
    values = [None, True, 0, -1, 8000, 16000, 1e400, 10**40, "", "transcription", "audio/pcm"]
    values += ["pcm16", "audio/pcmu", "server_vad", "a", "a :1e9", ":", "\ud800", "\0", "x" * 999]

    def value(depth: int) -> Any:
        kind = draw.random()
        if depth and kind < 0.5:
            return {draw.choice(names): value(depth - 1) for _ in range(draw.randint(0, 4))}
        if depth and kind < 0.7:
            return [value(depth - 1) for _ in range(draw.randint(0, 3))]
        return draw.choice(values)

    settings, refused, changes = Settings(), 0, 0
    for _ in range(5000):
        fields = {draw.choice(names): value(2) for _ in range(draw.randint(1, 2))}
        session = draw.choice([value(3), fields, {"audio": {"input": fields}}])
        try:
            new = updated(settings, session, model)
        except BadRequest as e:
            assert e.detail
            refused += 1
        else:
            changes += new != settings
            settings = new
            json.dumps(shape_of(settings, "sess_1", model.rules))
            model.hotwords(settings.keywords)
            settings.audio()
    assert refused > 100 and changes > 10


@pytest.mark.parametrize("keywords", [["\ud800"], ["Z"], ["a"] * 101, ["a" * 101], "a", [1]])
def test_keywords_that_cannot_be_hotwords_are_refused(model: LiveModel, keywords: Any) -> None:
    session = {"audio": {"input": {"transcription": {"keywords": keywords}}}}
    with pytest.raises(BadRequest) as refused:
        updated(Settings(), session, model)
    assert refused.value.param == "session.audio.input.transcription.keywords"
