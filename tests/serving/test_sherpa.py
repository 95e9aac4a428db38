"""sherpa's websocket protocol: what arrives equals what the engine finds alone."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
import torch

from tests.support.live_client import connect
from tests.support.live_server import ENDPOINT, expected, load_live, serving, texts_of, waves
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.live import LiveModel


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT)


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[torch.Tensor]:
    return waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 8)


async def transcribe(address: str, wave: torch.Tensor, seed: int) -> list[dict]:
    """Sends audio in messages of random sizes; returns the messages that came back."""
    draw = random.Random(seed)
    await asyncio.sleep(draw.random() * 0.3)
    received = []

    async def receive(websocket) -> None:
        async for message in websocket:
            received.append(json.loads(message))

    async with connect(f"ws://{address}/") as websocket:
        reading = asyncio.create_task(receive(websocket))
        data = wave.numpy().astype("<f4").tobytes()
        while data:
            size = int(200000 ** draw.random())
            await websocket.send(data[:size])
            data = data[size:]
        await websocket.send("Done")
        await reading
        assert websocket.close_code == 1000
    return received


def finals(messages: list[dict]) -> list[tuple]:
    """Returns text, tokens and times of the segments that ended; checks the last message."""
    assert [m["final"] for m in messages] == [False] * (len(messages) - 1) + [True]
    found = [m for m in messages if m["is_final"] and m["tokens"]]
    assert [m["segment"] for m in found] == list(range(len(found)))
    return [(m["text"], m["tokens"], m["timestamps"]) for m in found]


@pytest.mark.parametrize("num_sessions", [1, 8, pytest.param(32, marks=pytest.mark.long)])
def test_sessions_give_the_segments_of_each_stream_alone(
    model: LiveModel, audio: list[torch.Tensor], num_sessions: int
) -> None:
    chosen = [audio[i % len(audio)] for i in range(num_sessions)]

    async def all_of_them(address: str) -> list[list[dict]]:
        jobs = [transcribe(address, wave, i) for i, wave in enumerate(chosen)]
        return await asyncio.gather(*jobs)

    with serving(model) as address:
        answers = asyncio.run(all_of_them(address))
    wanted = [texts_of(expected(model, wave)) for wave in chosen]
    assert [finals(messages) for messages in answers] == wanted
    assert max(map(len, wanted)) > 1 and all(wanted)


def test_silence_gives_one_empty_last_message(model: LiveModel) -> None:
    with serving(model) as address:
        messages = asyncio.run(transcribe(address, torch.zeros(0), 0))
    [last] = messages
    assert last["text"] == "" and last["final"] and last["is_final"]
