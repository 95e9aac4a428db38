"""Clients of sherpa and sherpa-onnx, unchanged, get the text that the engine finds alone.

sherpa-onnx's program is the real one. The others cannot be installed here: each class below sends
and reads message by message what that client does, and fails where it would.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from websockets.exceptions import InvalidStatus

from tests.support.live_client import connect
from tests.support.live_server import (
    ENDPOINT,
    RATE,
    ROUNDING,
    encoded,
    expected,
    load_live,
    serving,
    waves,
)
from tests.support.tiny_recipe import closest_call
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.live import LiveModel

PROGRAM = "sherpa-onnx-online-websocket-client"
# What sherpa's Python client reads of every message.
SIX_KEYS = ("method", "segment", "text", "tokens", "timestamps", "final")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT)


@pytest.fixture(scope="module")
def wavs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """16-bit files in which no decision is close."""
    folder, found = tmp_path_factory.mktemp("wavs"), []
    network = load_model(CheckpointOptions(checkpoint=checkpoint)).model
    for wave in waves(network, 6):
        path = folder / f"{len(found)}.wav"
        soundfile.write(path, wave.numpy(), RATE, "PCM_16")
        if closest_call(network, encoded(network, read(path))) > ROUNDING:
            found.append(path)
    assert len(found) >= 3
    return found[:3]


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def texts(model: LiveModel, path: Path) -> list[str]:
    """Returns what the engine finds in each segment."""
    return [segment.text for segment in expected(model, read(path))]


def messages_of(data: np.ndarray, size: int = 8000) -> list[bytes]:
    return [data[start : start + size].tobytes() for start in range(0, len(data), size)]


def program() -> str:
    found = shutil.which(PROGRAM, path=str(Path(sys.executable).parent)) or shutil.which(PROGRAM)
    if found is None:
        pytest.skip(f"{PROGRAM} is not installed")
    return found


def test_sherpa_onnx_own_program_prints_the_text_and_exits_with_0(
    model: LiveModel, wavs: list[Path]
) -> None:
    command = [program(), "--seconds-per-message=0.01"]
    with serving(model) as address:
        command.append(f"--server-port={address.partition(':')[2]}")
        running = [
            subprocess.Popen([*command, str(wav)], stderr=subprocess.PIPE, text=True)
            for wav in wavs
        ]
        printed = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * len(wavs)
    for wav, text in zip(wavs, printed):
        results = [json.loads(found) for found in re.findall(r'\{"method".*\}', text)]
        segments = {r["segment"]: r["text"] for r in results if r["text"]}
        assert list(segments.values()) == texts(model, wav)


class SherpaOnnxPython:
    """sherpa-onnx's ``online-websocket-client-decode-file.py``: reads until "Done!" or the end,
    every message as JSON."""

    async def run(self, websocket, data: np.ndarray) -> list[dict]:
        async def receive() -> list[dict]:
            found = []
            async for message in websocket:
                if message == "Done!":
                    break
                found.append(json.loads(message))
            return found

        receiving = asyncio.create_task(receive())
        for message in messages_of(data):
            await websocket.send(message)
            await asyncio.sleep(0.001)
        await websocket.send("Done")
        return await receiving


class SherpaPython:
    """sherpa's ``streaming_client.py``: every message is JSON with six keys; ``final`` ends."""

    async def run(self, websocket, data: np.ndarray) -> list[dict]:
        async def receive() -> list[dict]:
            found = []
            async for message in websocket:
                result = json.loads(message)
                found.append({key: result[key] for key in SIX_KEYS})
                if found[-1]["final"]:
                    break
            return found

        receiving = asyncio.create_task(receive())
        for message in messages_of(data, 4096):
            await websocket.send(message)
        await websocket.send("Done")
        return await receiving


class SherpaCpp:
    """sherpa's C++ client: sends in the background, and closes at the first ``final``."""

    async def run(self, websocket, data: np.ndarray) -> list[dict]:
        async def send() -> None:
            for message in messages_of(data, 1600):
                await websocket.send(message)
            await websocket.send("Done")

        sending, found = asyncio.create_task(send()), []
        while not (found and found[-1]["final"]):
            found.append(json.loads(await websocket.recv()))
            assert {"segment", "text", "tokens", "timestamps", "start_time"} <= found[-1].keys()
        assert sending.done(), "a final result before all audio was sent"
        await websocket.close()
        return found


@pytest.mark.parametrize("client", [SherpaOnnxPython, SherpaPython, SherpaCpp])
def test_emulated_clients_get_the_text(model: LiveModel, wavs: list[Path], client: type) -> None:
    async def talk(address: str, wav: Path) -> list[dict]:
        async with connect(f"ws://{address}") as websocket:
            return await client().run(websocket, read(wav).numpy())

    async def all_of_them(address: str) -> list[list[dict]]:
        return await asyncio.gather(*(talk(address, wav) for wav in wavs))

    with serving(model) as address:
        answers = asyncio.run(all_of_them(address))
    for wav, results in zip(wavs, answers):
        segments = {r["segment"]: r["text"] for r in results if r["text"]}
        assert list(segments.values()) == texts(model, wav)


PAGE = "https://pages.example.org"


async def use_page(address: str, data: np.ndarray) -> dict[int, str]:
    """Does what sherpa's browser page does: shows text by segment, and closes right after
    "Done"; here once the first text is there. Returns what is shown."""
    async with connect(f"ws://{address}/", origin=PAGE) as websocket:
        for message in messages_of(data, 4096):
            await websocket.send(message)
        message = json.loads(await websocket.recv())
        await websocket.send("Done")
    return {message["segment"]: message["text"]}


async def wait_for_room(address: str) -> None:
    """Returns once the server takes a session: a page does not learn when its own is over."""
    while True:
        try:
            async with connect(f"ws://{address}/"):
                return
        except InvalidStatus as e:
            assert e.response.status_code == 503


def test_sherpas_page_on_an_allowed_site_gets_text_and_leaves_no_session_behind(
    model: LiveModel, wavs: list[Path]
) -> None:
    async def visit(address: str) -> dict[int, str]:
        shown = await use_page(address, read(wavs[0]).numpy())
        await asyncio.wait_for(wait_for_room(address), 60)
        return shown

    with serving(model, allow_origin=PAGE, max_sessions=1) as address:
        [(segment, text)] = asyncio.run(visit(address)).items()
    assert segment == 0 and texts(model, wavs[0])[0].startswith(text) and text


def test_a_page_of_another_site_is_refused(model: LiveModel, wavs: list[Path]) -> None:
    with serving(model) as address, pytest.raises(InvalidStatus) as refused:
        asyncio.run(use_page(address, read(wavs[0]).numpy()))
    assert refused.value.response.status_code == 403
    assert PAGE in json.loads(refused.value.response.body)["error"]["message"]
