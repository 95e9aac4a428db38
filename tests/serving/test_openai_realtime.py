"""OpenAI's realtime protocol, by its own client: exact text and times, in deltas that stay."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("openai")
from openai import AsyncOpenAI
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.live_client import PATIENCE, connect
from tests.support.live_server import (
    ENDPOINT,
    expected,
    from_wire,
    load_live,
    serving,
    to_wire,
    waves,
)
from xlsr_transducer.data.tokenizer import text_of
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.spans import TimedText
from xlsr_transducer.serving.openai_settings import FORMATS

TRANSCRIPTION = "conversation.item.input_audio_transcription"
# So unsure that the best text is often another one after the next chunk.
BEAM = ("--decoding-method", "modified_beam_search", "--temperature", "2")
AUDIO = [("pcm16", 24000), ("g711_ulaw", 8000), ("pcm16", 16000), ("g711_alaw", 8000)]
TURNS = {"type": "server_vad"}
CONNECTION = {"model": "any-name", "websocket_connection_options": PATIENCE}


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT)


@pytest.fixture(scope="module")
def beam(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT, *BEAM)


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[tuple[bytes, str, int]]:
    """Bytes, coding and rate of eight pieces, two in each of ``AUDIO``."""
    found = []
    network = load_model(CheckpointOptions(checkpoint=checkpoint)).model
    for seed, (coding, rate) in enumerate(AUDIO):
        received = partial(through_wire, coding=coding, rate=rate)
        found += [(to_wire(w, coding), coding, rate) for w in waves(network, 2, seed, received)]
    return found


def through_wire(wave: torch.Tensor, coding: str, rate: int) -> torch.Tensor:
    return from_wire(to_wire(wave, coding), coding, rate)


def client(address: str, key: str = "unused") -> AsyncOpenAI:
    addresses = {"base_url": f"http://{address}/v1", "websocket_base_url": f"ws://{address}/v1"}
    return AsyncOpenAI(api_key=key, max_retries=0, timeout=120, **addresses)


def settings(
    coding: str = "pcm16", rate: int = 16000, turns: dict | None = TURNS, **transcription: Any
) -> dict[str, Any]:
    [kind] = [kind for kind, name in FORMATS.items() if name == coding]
    audio_format = {"type": kind, **({"rate": rate} if coding == "pcm16" else {})}
    audio_input = {
        "format": audio_format,
        "turn_detection": turns,
        "transcription": {"model": "any-name", **transcription},
    }
    include = ["item.input_audio_transcription.logprobs"]
    return {"type": "transcription", "audio": {"input": audio_input}, "include": include}


async def append(connection: Any, data: bytes, draw: random.Random) -> None:
    """Sends bytes in events of random sizes."""
    while data:
        size = int(100000 ** draw.random())
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[:size]).decode())
        data = data[size:]


async def until(connection: Any, is_last: Callable[[Any], bool]) -> list[Any]:
    """Returns events up to the one that ``is_last``."""
    events = [await connection.recv()]
    while not is_last(events[-1]):
        events.append(await connection.recv())
    return events


async def until_completed(connection: Any) -> list[Any]:
    """Returns events up to the text of the item that the client's commit ends.

    Items that end by themselves are told to have stopped.
    """
    stopped, committed, events = set(), None, []
    while True:
        event = await connection.recv()
        events.append(event)
        if event.type == "input_audio_buffer.speech_stopped":
            stopped.add(event.item_id)
        if event.type == "input_audio_buffer.committed" and event.item_id not in stopped:
            committed = event.item_id
        if event.type == f"{TRANSCRIPTION}.completed" and event.item_id == committed:
            return events


async def transcribe(
    ai: AsyncOpenAI, data: bytes, session: dict[str, Any], seed: int
) -> list[Any]:
    """Sends bytes in random pieces, and a commit; returns the events that came back."""
    draw = random.Random(seed)
    await asyncio.sleep(draw.random() * 0.3)
    async with ai.realtime.connect(**CONNECTION) as connection:
        await connection.session.update(session=session)
        reading = asyncio.create_task(until_completed(connection))
        await append(connection, data, draw)
        await connection.input_audio_buffer.commit()
        return await reading


def completed(events: list[Any]) -> list[Any]:
    return [event for event in events if event.type == f"{TRANSCRIPTION}.completed"]


def found(events: list[Any]) -> list[tuple[str, float]]:
    """Returns tokens and times of all items; checks that an item's deltas are its text."""
    for item in completed(events):
        deltas = [
            e.delta
            for e in events
            if e.type == f"{TRANSCRIPTION}.delta" and e.item_id == item.item_id
        ]
        assert "".join(deltas) == item.transcript and all(deltas)
    return [(t.token, t.timestamp) for item in completed(events) for t in item.logprobs]


def wanted(segments: list[TimedText]) -> list[tuple[str, float]]:
    tokens = [(t, at) for s in segments for t, at in zip(s.tokens, s.timestamps)]
    return [(token.replace("\u2581", " "), at) for token, at in tokens]


def joined(segments: list[TimedText]) -> str:
    return text_of(token for segment in segments for token in segment.tokens)


def check_texts(events: list[Any], segments: list[TimedText], turns: dict | None) -> None:
    """Checks the texts of the items of a stream that the client committed."""
    texts = [item.transcript for item in completed(events)]
    # The commit may have come before the last endpoint; without turns it ends the one item.
    ended = len(texts) - 1 if turns else 0
    assert texts == [*(s.text for s in segments[:ended]), joined(segments[ended:])]


@pytest.mark.parametrize("num_sessions", [1, 8, pytest.param(32, marks=pytest.mark.long)])
def test_sessions_give_the_tokens_and_times_of_each_stream_alone(
    model: LiveModel, audio: list, num_sessions: int
) -> None:
    chosen = [audio[i % len(audio)] for i in range(num_sessions)]

    async def all_of_them(address: str) -> list[list[Any]]:
        ai = client(address)
        jobs = [
            transcribe(ai, data, settings(coding, rate, TURNS if i % 3 else None), i)
            for i, (data, coding, rate) in enumerate(chosen)
        ]
        return await asyncio.gather(*jobs)

    with serving(model) as address:
        answers = asyncio.run(all_of_them(address))
    segments = [expected(model, from_wire(*one)) for one in chosen]
    assert [found(events) for events in answers] == [wanted(s) for s in segments]
    assert all(segments) and (num_sessions == 1 or max(map(len, segments)) > 1)
    for i, (events, of_stream) in enumerate(zip(answers, segments)):
        check_texts(events, of_stream, TURNS if i % 3 else None)


@pytest.mark.parametrize("turns", [TURNS, None])
@pytest.mark.parametrize("number", range(4))
def test_deltas_of_a_beam_are_never_taken_back(
    beam: LiveModel, audio: list, number: int, turns: dict | None
) -> None:
    data, coding, rate = audio[2 * number]
    with serving(beam) as address:
        events = asyncio.run(
            transcribe(client(address), data, settings(coding, rate, turns), number)
        )
    segments = expected(beam, from_wire(data, coding, rate))
    assert found(events) == wanted(segments)
    check_texts(events, segments, turns)
    assert len([e for e in events if e.type == f"{TRANSCRIPTION}.delta"]) > 1


def test_text_comes_while_the_speaker_goes_on_and_turns_end_by_themselves(
    model: LiveModel, audio: list
) -> None:
    data, coding, rate = next(a for a in audio if len(expected(model, from_wire(*a))) > 1)

    async def listen(address: str) -> list[Any]:
        async with client(address).realtime.connect(**CONNECTION) as connection:
            await connection.session.update(session=settings(coding, rate))
            await append(connection, data, random.Random(0))  # and no commit
            return await until(connection, lambda e: e.type == f"{TRANSCRIPTION}.completed")

    with serving(model) as address:
        events = asyncio.run(listen(address))
    [item] = completed(events)
    kinds = [e.type for e in events if getattr(e, "item_id", item.item_id) == item.item_id]
    order = ["session.created", "session.updated", "input_audio_buffer.speech_started"]
    deltas = kinds.count(f"{TRANSCRIPTION}.delta")
    order += [f"{TRANSCRIPTION}.delta"] * deltas + [f"{TRANSCRIPTION}.segment"]
    order += ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]
    order += ["conversation.item.added", "conversation.item.done", f"{TRANSCRIPTION}.completed"]
    assert deltas and kinds == order
    first = expected(model, from_wire(data, coding, rate))[0]
    by_kind = {e.type: e for e in events}
    assert item.transcript == first.text
    assert by_kind["input_audio_buffer.speech_started"].audio_start_ms == round(first.start * 1000)
    assert by_kind["input_audio_buffer.speech_stopped"].audio_end_ms == round(first.end * 1000)
    segment = by_kind[f"{TRANSCRIPTION}.segment"]
    assert (segment.start, segment.end) == (first.start, round(first.end, 3))
    assert [word["word"] for word in item.words] == [word.text for word in first.words]
    assert by_kind["conversation.item.done"].item.id == item.item_id


def test_each_commit_ends_a_stream_and_clear_drops_one(model: LiveModel, audio: list) -> None:
    same = [a for a in audio if a[1:] == ("pcm16", 16000)]
    first, second = (data for data, _, _ in same)

    async def three(address: str) -> list[list[Any]]:
        draw, answers = random.Random(0), []
        async with client(address).realtime.connect(**CONNECTION) as connection:
            await connection.session.update(session=settings(turns=None))
            await append(connection, first, draw)
            await connection.input_audio_buffer.commit()
            answers.append(await until_completed(connection))
            await append(connection, first[: len(first) // 2], draw)
            await connection.input_audio_buffer.clear()
            await until(connection, lambda e: e.type == "input_audio_buffer.cleared")
            await append(connection, second, draw)
            await connection.input_audio_buffer.commit()
            answers.append(await until_completed(connection))
        return answers

    with serving(model) as address:
        answers = asyncio.run(three(address))
    before = [0.0, (len(first) + len(first) // 2) / 32000]
    for events, data, offset in zip(answers, (first, second), before):
        tokens = wanted(expected(model, from_wire(data, "pcm16", 16000)))
        assert found(events) == [(t, round(at + offset, 3)) for t, at in tokens]
        seconds = round(len(data) / 32000, 3)
        assert completed(events)[0].usage.seconds == seconds
    ids = [[e.item_id for e in completed(events)] for events in answers]
    committed = [e for e in answers[1] if e.type == "input_audio_buffer.committed"]
    assert [e.previous_item_id for e in committed] == ids[0]


def test_the_older_shape_of_openai_is_spoken_too(model: LiveModel, audio: list) -> None:
    data, coding, rate = audio[2]
    assert coding == "g711_ulaw"

    async def older(address: str) -> list[Any]:
        query, headers = {"intent": "transcription"}, {"OpenAI-Beta": "realtime=v1"}
        async with client(address).beta.realtime.connect(
            **CONNECTION, extra_query=query, extra_headers=headers
        ) as connection:
            session = {
                "input_audio_format": coding,
                "input_audio_transcription": {"model": "any-name", "language": "en"},
                "turn_detection": None,
                "include": ["item.input_audio_transcription.logprobs"],
            }
            await connection.transcription_session.update(session=session)
            await append(connection, data, random.Random(0))
            await connection.input_audio_buffer.commit()
            return await until_completed(connection)

    with serving(model) as address:
        events = asyncio.run(older(address))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["transcription_session.created", "transcription_session.updated"]
    assert "conversation.item.created" in kinds and "conversation.item.added" not in kinds
    assert events[0].session["input_audio_format"] == "pcm16"
    assert events[0].session["turn_detection"]["silence_duration_ms"] == 400
    held = events[1].session
    assert (held.input_audio_format, held.turn_detection) == (coding, None)
    assert held.input_audio_transcription.language == "en"
    segments = expected(model, from_wire(data, coding, rate))
    assert completed(events)[0].transcript == joined(segments)
    assert found(events) == wanted(segments)


def test_a_wrong_event_is_answered_and_the_session_goes_on(model: LiveModel, audio: list) -> None:
    data, coding, rate = audio[0]
    good = base64.b64encode(data).decode()
    commit = {"type": "input_audio_buffer.commit"}

    def update(**audio_input: Any) -> dict[str, Any]:
        session = {"type": "transcription", "audio": {"input": audio_input}}
        return {"type": "session.update", "session": session}

    wrong: list[tuple[str | bytes | dict, str, str | None]] = [
        ("", "invalid_json", None),
        ("[" * 100000, "invalid_json", None),
        ("[1]", "invalid_json", None),
        (b"\x00\x01", "no_text", None),
        ({}, "invalid_value", "type"),
        ({"type": {}}, "invalid_value", "type"),
        ({"type": "response.create"}, "invalid_value", "type"),
        ({"type": "input_audio_buffer.append"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "a?b="}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "\u00e4"}, "invalid_value", "audio"),
        (commit, "input_audio_buffer_commit_empty", None),
        ({"type": "session.update", "session": []}, "invalid_value", "session"),
        (
            {"type": "session.update", "session": {"type": "realtime"}},
            "invalid_value",
            "session.type",
        ),
        (update(format={"type": "audio/opus"}), "invalid_value", "session.audio.input.format"),
        (
            update(format={"type": "audio/pcm", "rate": 0}),
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            update(format={"type": "audio/pcmu", "rate": 16000}),
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            update(turn_detection={"type": "none"}),
            "invalid_value",
            "session.audio.input.turn_detection.type",
        ),
        (
            update(transcription={"model": 5}),
            "invalid_value",
            "session.audio.input.transcription.model",
        ),
        (
            update(transcription={"keywords": ["a"]}),  # greedy search takes none
            "invalid_value",
            "session.audio.input.transcription.keywords",
        ),
    ]

    async def speak(address: str) -> tuple[list[dict], list[dict]]:
        answers, events = [], []
        async with connect(f"ws://{address}/v1/realtime?model=x") as websocket:
            created = json.loads(await websocket.recv())
            assert created["type"] == "session.created"
            for number, (event, _, _) in enumerate(wrong):
                if isinstance(event, dict):
                    event = json.dumps(event | {"event_id": f"wrong-{number}"})
                await websocket.send(event)
                answers.append(json.loads(await websocket.recv()))
            session = settings(coding, rate, None)
            await websocket.send(json.dumps({"type": "session.update", "session": session}))
            append_event = {"type": "input_audio_buffer.append", "audio": good}
            await websocket.send(json.dumps(append_event))
            # Within a stream its format cannot change, nor does a commit split a sample.
            await websocket.send(json.dumps(update(format={"type": "audio/pcma"})))
            half = {"type": "input_audio_buffer.append", "audio": "AA=="}
            await websocket.send(json.dumps(half))
            await websocket.send(json.dumps(commit))
            await websocket.send(json.dumps(half))
            await websocket.send(json.dumps(commit))
            while not events or not events[-1]["type"].endswith(".completed"):
                events.append(json.loads(await websocket.recv()))
        return answers, events

    with serving(model) as address:
        answers, events = asyncio.run(speak(address))
    for number, (answer, (event, code, param)) in enumerate(zip(answers, wrong)):
        assert answer["type"] == "error", answer
        error = answer["error"]
        assert (error["code"], error["param"]) == (code, param), (event, error)
        assert error["type"] == "invalid_request_error" and error["message"]
        assert error["event_id"] == (f"wrong-{number}" if isinstance(event, dict) else None)
    late = [e["error"]["code"] for e in events if e["type"] == "error"]
    assert late == ["invalid_value", "invalid_audio"]
    segments = expected(model, from_wire(data + bytes(2), coding, rate))
    assert events[-1]["transcript"] == joined(segments)


def test_keywords_are_the_hotwords_of_the_next_streams(beam: LiveModel, audio: list) -> None:
    data, coding, rate = next(a for a in audio if a[1:] == ("pcm16", 16000))
    word = beam.tokenizer.decode([beam.tokenizer.encode(["a"])[0][0], 7, 9])

    async def texts(address: str) -> list[str]:
        found = []
        async with client(address).realtime.connect(**CONNECTION) as connection:
            for keywords in [], [f"{word} :20"], []:
                session = settings(coding, rate, None, keywords=keywords)
                await connection.session.update(session=session)
                await append(connection, data, random.Random(0))
                await connection.input_audio_buffer.commit()
                found.append(completed(await until_completed(connection))[0].transcript)
        return found

    with serving(beam) as address:
        first, second, third = asyncio.run(texts(address))
    assert first == third == joined(expected(beam, from_wire(data, coding, rate)))
    assert word in second and word not in first


def test_keys_come_as_the_package_and_as_browsers_send_them(
    model: LiveModel, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")

    async def by_package(address: str, key: str) -> str:
        async with client(address, key).realtime.connect(**CONNECTION) as connection:
            return (await connection.recv()).type

    async def by_browser(address: str) -> tuple[str | None, str]:
        protocols = ["realtime", "openai-insecure-api-key.secret", "openai-beta.realtime-v1"]
        async with connect(f"ws://{address}/v1/realtime", subprotocols=protocols) as websocket:
            return websocket.subprotocol, json.loads(await websocket.recv())["type"]

    with serving(model, api_key_file=keys) as address:
        with pytest.raises(InvalidStatus, match="401"):
            asyncio.run(by_package(address, "wrong"))
        assert asyncio.run(by_package(address, "secret")) == "session.created"
        found = asyncio.run(by_browser(address))
    assert found == ("realtime", "transcription_session.created")


def test_a_server_without_endpoints_waits_for_commits(checkpoint: Path, audio: list) -> None:
    model = load_live(checkpoint)
    model = dataclasses.replace(model, rules=None)
    data, coding, rate = audio[0]

    async def speak(address: str) -> tuple[Any, list[Any]]:
        async with client(address).realtime.connect(**CONNECTION) as connection:
            created = await connection.recv()
            await connection.session.update(session=settings(coding, rate))
            refused = await connection.recv()
            assert refused.type == "error" and "endpoint" in refused.error.message
            await connection.session.update(session=settings(coding, rate, None))
            await append(connection, data, random.Random(0))
            await connection.input_audio_buffer.commit()
            return created, await until_completed(connection)

    with serving(model) as address:
        created, events = asyncio.run(speak(address))
    assert created.session.audio.input.turn_detection is None
    assert found(events) == wanted(expected(model, from_wire(data, coding, rate)))


def test_one_place_serves_one_connection_through_all_its_streams(
    model: LiveModel, audio: list
) -> None:
    data, coding, rate = audio[0]

    async def speak(address: str) -> None:
        async with client(address).realtime.connect(**CONNECTION) as connection:
            await connection.session.update(session=settings(coding, rate, None))
            for _ in range(3):
                with pytest.raises(InvalidStatus, match="503"):
                    async with client(address).realtime.connect(**CONNECTION):
                        pass
                await append(connection, data[:20000], random.Random(0))
                await connection.input_audio_buffer.commit()
                await until_completed(connection)

    with serving(model, max_sessions=1) as address:
        asyncio.run(speak(address))


def test_a_server_that_ends_gives_the_text_so_far(model: LiveModel, audio: list) -> None:
    data, coding, rate = next(a for a in audio if a[1:] == ("pcm16", 16000))

    async def speak(address: str, server: contextlib.ExitStack) -> tuple[list[Any], Any]:
        events = []
        async with client(address).realtime.connect(**CONNECTION) as connection:
            session = settings(coding, rate, None)
            await connection.session.update(session=session)
            await append(connection, data, random.Random(0))
            await connection.session.update(session=session)  # answered once all has arrived
            await until(connection, lambda e: e.type == "session.updated")
            events += await until(connection, lambda e: e.type == "session.updated")
            ending = asyncio.create_task(asyncio.to_thread(server.close))
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    events.append(await connection.recv())
            await ending
        return events, closed.value.rcvd

    with contextlib.ExitStack() as server:
        address = server.enter_context(serving(model))
        events, closing = asyncio.run(speak(address, server))
    [item] = completed(events)
    assert item.transcript == joined(expected(model, from_wire(data, coding, rate)))
    assert (closing.code, closing.reason) == (1001, "the server is shutting down")
