"""The end of a server: SIGTERM or Ctrl-C lets open sessions finish, and a second one does not."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import soundfile
import torch
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError

from tests.serving.test_access import handshake
from tests.serving.test_sherpa import finals
from tests.support.live_client import SECONDS, connect
from tests.support.live_server import ENDPOINT, RATE, expected, load_live, texts_of, waves
from tests.support.server_process import ServerProcess, server_process
from xlsr_transducer.data.tokenizer import text_of
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.live import LiveModel


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT)


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[torch.Tensor]:
    return waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 6)


def run(
    checkpoint: Path,
    folder: Path,
    main: Callable[[ServerProcess], Awaitable[None]],
    *options: str,
) -> tuple[int, str]:
    """Runs ``main`` with a server, which it ends; returns its exit status and its log."""
    log = folder / "log.txt"
    patience = ["--idle-timeout", "3600"]
    with server_process(checkpoint, log, *ENDPOINT, *patience, *options) as process:
        asyncio.run(main(process))
        return process.status(), log.read_text()


async def send(websocket: ClientConnection, wave: torch.Tensor) -> None:
    for piece in wave.split(3200):
        await websocket.send(piece.numpy().astype("<f4").tobytes())


async def rest(websocket: ClientConnection) -> list[dict]:
    return [json.loads(message) async for message in websocket]


async def until_draining(process: ServerProcess) -> None:
    while (answer := await asyncio.to_thread(process.get, "/ready"))[0] == 200:
        await asyncio.sleep(0.02)
    assert answer[0] == 503 and "shutting down" in answer[1]


def wav(wave: torch.Tensor) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave.numpy(), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def form(data: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    file = head % (b"file", b'; filename="a.wav"', data)
    return head % (b"model", b"", b"any") + file + b"--x--\r\n"


async def begin_upload(
    process: ServerProcess, body: bytes, others: int
) -> http.client.HTTPConnection:
    """Posts the first half of a body; returns once its session is open beside ``others``."""
    connection = http.client.HTTPConnection(process.address, timeout=SECONDS)
    connection.putrequest("POST", "/v1/audio/transcriptions")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[: len(body) // 2])
    while await asyncio.to_thread(process.metric, "xlsr_sessions") != others + 1:
        await asyncio.sleep(0.02)
    return connection


def test_sessions_and_uploads_finish_after_sigterm_and_no_new_ones_begin(
    model: LiveModel, audio: list[torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    """Several are in flight, at different places of their audio."""

    async def session(process: ServerProcess, wave: torch.Tensor, share: float) -> None:
        async with connect(f"ws://{process.address}/") as websocket:
            half = int(len(wave) * share)
            await send(websocket, wave[:half])
            arrived.release()
            await draining.wait()
            await send(websocket, wave[half:])
            await websocket.send("Done")
            assert finals(await rest(websocket)) == texts_of(expected(model, wave))
        assert websocket.close_code == 1000

    async def main(process: ServerProcess) -> None:
        jobs = [session(process, wave, n / len(audio)) for n, wave in enumerate(audio)]
        sessions = asyncio.gather(*jobs)
        for _ in audio:
            await arrived.acquire()
        upload = await begin_upload(process, body, len(audio))
        process.end(signal.SIGTERM)
        await until_draining(process)
        for path in ("/", "/v1/realtime"):
            answer = await handshake(f"ws://{process.address}{path}")
            assert answer == (503, "the server is shutting down")
        late = http.client.HTTPConnection(process.address, timeout=SECONDS)
        late.request("POST", "/v1/audio/transcriptions", body)
        assert late.getresponse().status == 503
        assert process.get("/health")[0] == 200
        draining.set()
        await asyncio.wait_for(sessions, SECONDS)
        upload.send(body[len(body) // 2 :])
        answer = await asyncio.to_thread(upload.getresponse)
        assert answer.status == 200
        tokens = [token for s in expected(model, audio[0]) for token in s.tokens]
        assert json.loads(answer.read())["text"] == text_of(tokens)

    body = form(wav(audio[0]))
    draining, arrived = asyncio.Event(), asyncio.Semaphore(0)
    status, log = run(checkpoint, tmp_path, main, "--drain-timeout", str(SECONDS))
    assert status == 0 and "Traceback" not in log
    assert log.count("finished") == len(audio) + 1


def test_ctrl_c_ends_sessions_at_the_drain_timeout_with_their_text_so_far(
    model: LiveModel, audio: list[torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    """One caller speaks on, the other is silent. An upload fails rather than give half a text."""
    wave, body = audio[0], form(wav(audio[0]))

    async def main(process: ServerProcess) -> None:
        url = f"ws://{process.address}/"
        async with connect(url) as speaks, connect(url, max_size=None) as silent:
            await send(speaks, wave)
            upload = await begin_upload(process, body, 2)
            process.end(signal.SIGINT)
            for websocket, received in ((speaks, wave), (silent, wave[:0])):
                found = await asyncio.wait_for(rest(websocket), SECONDS)
                assert finals(found) == texts_of(expected(model, received))
                assert websocket.close_code == 1001
                assert websocket.close_reason == "the server is shutting down"
            answer = await asyncio.to_thread(upload.getresponse)
            assert answer.status == 503 and b"shutting down" in answer.read()

    status, log = run(checkpoint, tmp_path, main, "--drain-timeout", "0.5")
    assert status == 0 and "Traceback" not in log
    assert log.count("cut: the server is shutting down") == 2


def test_a_second_signal_ends_the_server_at_once(checkpoint: Path, tmp_path: Path) -> None:
    async def main(process: ServerProcess) -> None:
        async with connect(f"ws://{process.address}/") as websocket:
            process.end(signal.SIGINT)
            await until_draining(process)
            process.end(signal.SIGTERM)
            with pytest.raises(ConnectionClosedError, match="no close frame"):
                await websocket.recv()

    status, log = run(checkpoint, tmp_path, main, "--drain-timeout", "3600")
    assert status == 128 + signal.SIGTERM and "Traceback" not in log
    assert "a second signal: ended at once" in log
