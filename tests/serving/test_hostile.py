"""Whatever callers send: at most their own session ends, and they are told why."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.serving.test_sherpa import finals, transcribe
from tests.support.live_client import connect
from tests.support.live_server import ENDPOINT, expected, load_live, serving, texts_of, waves
from tests.support.server_process import ServerProcess, server_process
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving import server, transport
from xlsr_transducer.serving.connection import cut_to_fit

SECONDS = 300  # for what takes a second on an idle machine
MAX_SESSIONS = 100
MAX_BACKLOG = 2  # s
SEED = int(os.environ.get("XLSR_FUZZ_SEED", "0"))
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
BIG = b"\0" * 100_000_000


def float32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT)


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[torch.Tensor]:
    return waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 4)


@pytest.fixture(scope="module")
def address(model: LiveModel) -> Iterator[str]:
    with serving(model) as address:
        yield address


@pytest.fixture(scope="module")
def process(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("hostile") / "log.txt"
    limits = ["--max-sessions", str(MAX_SESSIONS), "--max-backlog", str(MAX_BACKLOG)]
    with server_process(checkpoint, log, *ENDPOINT, *limits) as process:
        yield process


async def ending(address: str, messages: list[str | bytes], path: str = "/") -> tuple[int, str]:
    """Sends messages; returns close code and reason."""
    async with connect(f"ws://{address}{path}") as websocket:
        with contextlib.suppress(ConnectionClosed):
            for message in messages:
                await websocket.send(message)
        with contextlib.suppress(ConnectionClosed):
            async for _ in websocket:
                pass
    return websocket.close_code, websocket.close_reason


def raw(address: str, *pieces: bytes) -> bytes:
    """Sends bytes, each piece after an answer to the one before; returns all answers."""
    host, port = address.split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        for piece in pieces[:-1]:
            connection.sendall(piece)
            answer += connection.recv(1 << 16)
        connection.sendall(pieces[-1])
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(1 << 16):
                answer += data
    return answer


@pytest.mark.parametrize(
    "messages, code, reason",
    [
        (["hello"], 1007, "audio is sent in binary messages"),
        (["{"], 1007, "audio is sent in binary messages"),
        ([b"abc", "Done"], 1007, "ends within a sample"),
        ([float32(float("nan"))], 1007, "NaN or infinite"),
        ([float32(0.0, float("-inf"))], 1007, "NaN or infinite"),
        ([float32(1e30)], 1007, "divide 16-bit samples by 32768"),
        ([b"", b"", "Done"], 1000, ""),
        ([b"\0\0\0", b"\0", "Done"], 1000, ""),
        ([BIG], 1009, "exceeds limit"),
        ([BIG.decode()], 1009, "exceeds limit"),
    ],
    ids=["text", "JSON", "odd", "NaN", "infinite", "1e30", "empty", "cut", "100 MB", "long text"],
)
def test_a_message_that_is_no_audio_ends_its_session_with_a_reason(
    address: str, messages: list[str | bytes], code: int, reason: str
) -> None:
    found = asyncio.run(ending(address, messages))
    assert found[0] == code and reason in found[1]


@pytest.mark.parametrize("path, reason", [("/?rate=7", "from 4000"), ("/?rate=x", "rate 'x'")])
def test_a_rate_that_is_none_ends_the_session_with_a_reason(
    address: str, path: str, reason: str
) -> None:
    code, found = asyncio.run(ending(address, [float32(0.0), "Done"], path))
    assert code == 1007 and reason in found


@pytest.mark.parametrize(
    "frame, code, reason",
    [
        (b"\x81\x03abc", 1002, b"masking"),
        (b"\xff\xff\xff", 1002, b"opcode"),
        (b"\x80\x80\0\0\0\0", 1002, b"continuation"),
        (b"\x81\x82\0\0\0\0\xff\xff", 1007, b"not UTF-8"),
    ],
    ids=["unmasked", "reserved", "continuation", "UTF-8"],
)
def test_bytes_that_are_no_websocket_end_it_with_a_reason(
    address: str, frame: bytes, code: int, reason: bytes
) -> None:
    answer = raw(address, UPGRADE, frame)
    assert re.search(rb"\x88." + code.to_bytes(2, "big") + b"[^\x00]*" + reason, answer)


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"\x16\x03\x01 trash\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 100_000, 400),
        (UPGRADE.replace(b"GET /", b"GET /" + b"x" * 9000), 431),
        (UPGRADE.replace(b"Host: x", b"Host: x\r\nA: " + b"x" * 9000), 431),
        (UPGRADE.replace(b"Host: x", b"Host: x" + b"\r\nA: x" * 200), 431),
        (UPGRADE.replace(b"GET /", b"GET /nothing"), 404),
        (UPGRADE.replace(b"GET /", b"GET /?hotwords=A"), 400),
        (POST + b"Content-Length: 0\r\n\r\n", 405),
        (
            POST + b"Content-Length: 9999999999\r\n\r\n",
            413,
        ),
    ],
)
def test_a_request_that_is_wrong_gets_a_status_and_a_reason(
    address: str, request_: bytes, status: int
) -> None:
    answer = raw(address, request_)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert re.search(rb'\{"error":\{"message":"[^"]+', answer)


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/page/../../app.py", "//etc/passwd",
             "/%00", "/..\\app.py", "/" + "../" * 20 + "etc/passwd", "/" + "x" * 5000],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(address: str, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert raw(address, head.encode()).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_request_that_never_ends_is_given_up(
    address: str, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(transport, "HEAD_SECONDS", 0.2)
    assert raw(address, start).startswith(b"HTTP/1.1 408")


def test_after_an_answer_a_request_that_never_ends_is_given_up(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HEAD_SECONDS", 0.2)
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert b"HTTP/1.1 408" in raw(address, whole, b"GET / HT")


def test_what_is_sent_to_a_caller_whose_websocket_has_just_been_ended_is_no_defect(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An error is due for each of the first frames when the last one ends the websocket."""
    start = UPGRADE.replace(b"GET /", b"GET /v1/realtime")
    frames = frame(b"no JSON", opcode=1) * 50 + b"\x81\x03abc"
    for _ in range(5):
        answer = raw(address, start, frames)
        assert answer.endswith(b"incorrect masking")
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


def unread(address: str, path: str = "/") -> socket.socket:
    """Opens a websocket on a connection that takes only few bytes that are not read."""
    host, port = address.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.settimeout(SECONDS)
    connection.sendall(UPGRADE.replace(b"GET /", b"GET " + path.encode()))
    assert connection.recv(12) == b"HTTP/1.1 101"
    return connection


def frame(payload: bytes, opcode: int = 2) -> bytes:
    """Returns a short message as a client sends it."""
    assert len(payload) < 126
    return bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def send_until_cut_off(connection: socket.socket, data: bytes) -> int:
    """Sends ``data`` again and again, and reads nothing; returns how many bytes were taken."""
    taken = 0
    with contextlib.suppress(ConnectionError):
        while True:
            connection.sendall(data)
            taken += len(data)
    return taken


def test_who_pings_and_never_reads_is_not_read_from_and_is_cut_off(
    model: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLOSE_SECONDS", 0.5)
    with serving(model, idle_timeout=1.0) as address:
        with unread(address) as connection:
            taken = send_until_cut_off(connection, frame(b"p" * 125, opcode=9) * 100)
        assert b'ended_total{how="idle"} 1.0' in raw(address, METRICS)
    assert taken < 20e6  # each ping that is read leaves a pong in memory


def test_results_that_are_never_read_stop_the_audio_and_end_the_session(
    checkpoint: Path, audio: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' results come meanwhile."""
    monkeypatch.setattr(server, "CLOSE_SECONDS", 0.5)
    model = load_live(checkpoint, "--enable-endpoint", "false")  # so that results become long
    data = torch.cat(audio).numpy().astype("<f4").tobytes()
    frames = b"".join(frame(data[i : i + 124]) for i in range(0, len(data), 124))

    async def main(address: str) -> int:
        with unread(address) as connection:
            taken = asyncio.create_task(
                asyncio.to_thread(send_until_cut_off, connection, frames[: 130 * 1000])
            )
            while not taken.done():
                messages = await transcribe(address, audio[0], 0)
                assert finals(messages) == texts_of(expected(model, audio[0]))
            return await taken

    with serving(model, idle_timeout=1.0) as address:
        taken = asyncio.run(main(address))
        assert b"xlsr_sessions 0.0" in raw(address, METRICS)
    assert taken < 50e6


async def flood(address: str, wave: torch.Tensor, sample: Callable[[], float]) -> list[float]:
    """Sends audio as fast as it is taken; returns what ``sample`` gave at each result."""
    found = []
    async with connect(f"ws://{address}/") as websocket:

        async def send() -> None:
            for piece in wave.split(1600):
                await websocket.send(piece.numpy().astype("<f4").tobytes())
            await websocket.send("Done")

        sending = asyncio.create_task(send())
        async for _ in websocket:
            found.append(await asyncio.to_thread(sample))
        await sending
    assert websocket.close_code == 1000
    return found


def test_audio_faster_than_it_is_computed_waits_at_the_caller(
    process: ServerProcess, audio: list[torch.Tensor]
) -> None:
    wave = torch.cat(audio * 4)
    name = "xlsr_backlog_seconds"
    waiting = asyncio.run(flood(process.address, wave, lambda: process.metric(name)))
    assert len(wave) / 16000 > 10 * MAX_BACKLOG
    assert (
        max(waiting) <= MAX_BACKLOG + 0.101
    )  # a message of 0.1 s was let in while there was room
    assert max(waiting) > MAX_BACKLOG / 2


def test_sessions_of_callers_who_die_are_closed(address: str) -> None:
    async def die(act: int) -> None:
        websocket = await connect(f"ws://{address}/")
        await websocket.send(float32(*[0.0] * 16000))
        if act:
            await websocket.send("Done")
        websocket.transport.abort()

    async def main() -> None:
        await asyncio.gather(*(die(i % 2) for i in range(10)))
        while b"\nxlsr_sessions 0.0\n" not in await asyncio.to_thread(raw, address, METRICS):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(main(), SECONDS))


def test_who_leaves_after_the_end_of_the_audio_is_not_computed_for(
    model: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be computed until the session is closed."""
    may_step, step = threading.Event(), StreamingEngine.step

    def held(engine: StreamingEngine) -> tuple:
        assert may_step.wait(SECONDS)
        return step(engine)

    async def main(address: str) -> None:
        websocket = await connect(f"ws://{address}/")
        await websocket.send(float32(*[0.0] * 16000))
        await websocket.send("Done")
        await websocket.close()
        while b"\nxlsr_sessions 0.0\n" not in await asyncio.to_thread(raw, address, METRICS):
            await asyncio.sleep(0.05)

    monkeypatch.setattr(StreamingEngine, "step", held)
    with serving(model) as address:
        try:
            asyncio.run(asyncio.wait_for(main(address), SECONDS))
        finally:
            may_step.set()


@pytest.mark.parametrize("reason", ["short", "e" * 200, "\u00e9" * 100, "\u4e2d" * 100])
def test_a_reason_is_cut_to_what_a_closing_frame_takes(reason: str) -> None:
    found = cut_to_fit(reason)
    assert reason.startswith(found) and len(found.encode()) <= 123
    assert found == reason or len(found.encode()) > 123 - 4


async def many(address: str, count: int) -> tuple[list[int], list]:
    """Opens connections that stay; returns the statuses of their handshakes."""
    statuses, opened = [], []

    async def one() -> None:
        try:
            opened.append(await connect(f"ws://{address}/"))
            statuses.append(101)
        except InvalidStatus as e:
            statuses.append(e.response.status_code)

    for start in range(0, count, 100):
        await asyncio.gather(*(one() for _ in range(start, min(start + 100, count))))
    return statuses, opened


async def speak_beside(
    process: ServerProcess, count: int, taken: int, model: LiveModel, wave: torch.Tensor
) -> None:
    """Opens ``count`` connections, of which ``taken`` are; one of these speaks."""
    statuses, opened = await many(process.address, count)
    assert sorted(statuses) == [101] * taken + [503] * (count - taken)
    await opened.pop().close()
    messages = await transcribe(process.address, wave, 0)
    assert finals(messages) == texts_of(expected(model, wave))
    await asyncio.gather(*(websocket.close() for websocket in opened))


def test_more_connections_than_there_may_be_sessions_are_told(
    model: LiveModel, audio: list[torch.Tensor], process: ServerProcess
) -> None:
    refused = 'xlsr_sessions_refused_total{status="503"}'
    asyncio.run(speak_beside(process, 3 * MAX_SESSIONS, MAX_SESSIONS, model, audio[0]))
    assert process.metric(refused) == 2 * MAX_SESSIONS
    assert process.get("/ready")[0] == 200


@pytest.mark.long
def test_two_thousand_connections_at_once_leave_room_for_one_who_speaks(
    model: LiveModel, audio: list[torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    transport.allow_many_files()
    options = [*ENDPOINT, "--max-sessions", "2000"]
    with server_process(checkpoint, tmp_path / "log.txt", *options) as process:
        asyncio.run(speak_beside(process, 2000, 2000, model, audio[0]))


class Fuzz:
    """Callers who send nonsense, mixed with audio, drawn from a seed."""

    def __init__(self, address: str, seed: int):
        self.address = address
        self.draw = random.Random(seed)
        self.sent = 0

    def message(self) -> str | bytes:
        """Returns something to send in one message."""
        draw = self.draw
        size = int(20000 ** draw.random())
        self.sent += 1
        return draw.choice(
            [
                lambda: draw.randbytes(size),
                lambda: np.random.default_rng(size).normal(0, 0.1, size).astype("<f4").tobytes(),
                lambda: bytes(4 * size),
                lambda: float32(draw.choice([float("nan"), float("inf"), 1e30, -1e-45, 15.9])),
                lambda: "".join(chr(draw.randrange(1, 0xD800)) for _ in range(size % 300)),
                lambda: draw.choice(["Done", "done", "", "{}", '{"type":"session.update"}', "0"]),
                lambda: b"",
                self.event,
            ]
        )()

    def event(self) -> str:
        """Returns an event of the realtime protocol, right or nearly so."""
        draw = self.draw
        kinds = ["append", "append", "append", "commit", "clear", "cancel"]
        data = base64.b64encode(draw.randbytes(draw.randint(0, 3000))).decode()
        event = {"type": f"input_audio_buffer.{draw.choice(kinds)}", "audio": data}
        event[draw.choice(["audio", "type", "event_id", "x"])] = draw.choice([data[:-1], 1, None])
        return json.dumps(event)

    def path(self) -> str:
        """Returns an address, mostly a good one."""
        good = ["/", "/", "/", "/?rate=8000", "/?rate=48000", "/v1/realtime"]
        bad = [f"/?rate={self.draw.randint(-1, 10**6)}", "/?hotwords=A", "/?rate=%00", "/x"]
        return self.draw.choice(good * 4 + bad)

    async def call(self) -> None:
        """Makes one connection, sends up to 20 messages, and ends it in some way."""
        messages = [self.message() for _ in range(self.draw.randint(1, 20))]
        how = self.draw.choice(["close", "abort", "read", "frames"])
        rest, path = self.draw.randbytes(self.draw.randint(1, 500)), self.path()
        with contextlib.suppress(ConnectionClosed, InvalidHandshake, OSError):
            async with connect(f"ws://{self.address}{path}") as websocket:
                for message in messages:
                    await websocket.send(message)
                if how == "frames":
                    websocket.transport.write(rest)
                if how == "abort":
                    websocket.transport.abort()
                if how == "read" and "realtime" not in path:  # which has another end
                    await websocket.send("Done")
                    async for _ in websocket:
                        pass


async def fuzz(address: str, count: int, seed: int) -> int:
    """Sends at least ``count`` messages over eight connections at a time."""
    fuzz = Fuzz(address, seed)
    while fuzz.sent < count:
        await asyncio.gather(*(fuzz.call() for _ in range(8)))
    return fuzz.sent


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.long)])
def test_nonsense_changes_nobody_elses_text_and_leaves_nothing_behind(
    model: LiveModel, audio: list[torch.Tensor], process: ServerProcess, count: int
) -> None:
    async def main(address: str) -> None:
        fuzzing = asyncio.create_task(fuzz(address, count, SEED))
        seed = 0
        while not fuzzing.done():
            wave = audio[seed % len(audio)]
            messages = await transcribe(address, wave, seed)
            assert finals(messages) == texts_of(expected(model, wave))
            seed += 1
        await fuzzing

    asyncio.run(fuzz(process.address, count // 4, SEED + 1))  # so that all buffers are there
    before = process.metric("process_resident_memory_bytes")
    asyncio.run(main(process.address))
    assert process.metric("process_resident_memory_bytes") - before < 50e6
    assert process.metric("xlsr_sessions") == 0
    assert process.metric('xlsr_sessions_ended_total{how="failed"}') == 0
    assert process.get("/health")[0] == 200
    assert "Traceback" not in process.log.read_text()
