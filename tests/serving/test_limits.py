"""Limits of sessions, sizes, times and hotwords, and what is told beyond them."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from websockets.exceptions import InvalidStatus

from tests.serving.test_access import handshake
from tests.serving.test_access import http as get
from tests.serving.test_hostile import ending, float32
from tests.serving.test_sherpa import finals, transcribe
from tests.support.live_client import connect, metric
from tests.support.live_server import ENDPOINT, expected, load_live, serving, texts_of, waves
from tests.support.random_models import tokenizer
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving.scheduler import Scheduler
from xlsr_transducer.serving.session import (
    LONGEST_HOTWORD,
    MOST_HOTWORDS,
    Sessions,
    post_to,
)

SECONDS = 300  # for what takes a second on an idle machine


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT)


@pytest.fixture(scope="module")
def beam(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT, "--decoding-method", "modified_beam_search")


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[torch.Tensor]:
    return waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 2)


@pytest.fixture(scope="module")
def narrow(model: LiveModel) -> Iterator[str]:
    """A server with small limits."""
    with serving(model, max_message_bytes=4096, max_upload_bytes=10_000) as address:
        yield address


@pytest.fixture(scope="module")
def hasty(model: LiveModel) -> Iterator[str]:
    """A server that waits for half a second."""
    with serving(model, idle_timeout=0.5) as address:
        yield address


def test_beyond_max_sessions_a_handshake_gets_503_and_ready_says_so(model: LiveModel) -> None:
    async def main(address: str) -> None:
        url = f"ws://{address}/"
        async with connect(url) as first, connect(url):
            for path in ("/", "/v1/realtime"):
                status, reason = await handshake(f"ws://{address}{path}")
                assert (status, reason) == (503, "the server is full: 2 sessions are open")
            ready = await asyncio.to_thread(get, address, "/ready")
            assert ready[0] == 503 and "full" in ready[2]
            assert (await asyncio.to_thread(get, address, "/health"))[0] == 200
            assert await asyncio.to_thread(metric, address, "xlsr_sessions") == 2
            assert await asyncio.to_thread(metric, address, "xlsr_max_sessions") == 2
            await first.close()
            assert (await handshake(url))[0] == 101
        refused = 'xlsr_sessions_refused_total{status="503"}'
        assert await asyncio.to_thread(metric, address, refused) == 2

    with serving(model, max_sessions=2, idle_timeout=SECONDS) as address:
        asyncio.run(main(address))


def test_a_caller_who_is_refused_is_told_when_to_try_again(model: LiveModel) -> None:
    async def main(address: str) -> None:
        async with connect(f"ws://{address}/"):
            with pytest.raises(InvalidStatus) as refusal:
                await connect(f"ws://{address}/")
        assert int(refusal.value.response.headers["Retry-After"]) > 0

    with serving(model, max_sessions=1, idle_timeout=SECONDS) as address:
        asyncio.run(main(address))


@pytest.mark.parametrize("messages", [[], [float32(0.0)]], ids=["nothing", "then nothing"])
def test_who_sends_nothing_for_the_idle_time_is_closed(hasty: str, messages: list[bytes]) -> None:
    code, reason = asyncio.run(ending(hasty, messages))
    assert (code, reason) == (1008, "nothing came, or was read, for 0.5 s")


def test_a_message_beyond_the_limit_closes_with_1009(narrow: str) -> None:
    assert asyncio.run(ending(narrow, [bytes(4096), "Done"]))[0] == 1000
    assert asyncio.run(ending(narrow, [bytes(4097), "Done"]))[0] == 1009


def upload(address: str, *pieces: bytes, length: int | None = None) -> tuple[int, dict]:
    """Posts a body, chunk by chunk without a ``length``; returns status and error."""
    connection = http.client.HTTPConnection(address, timeout=SECONDS)
    try:
        connection.putrequest("POST", "/v1/audio/transcriptions")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        if length is None:
            connection.putheader("Transfer-Encoding", "chunked")
        else:
            connection.putheader("Content-Length", str(length))
        connection.endheaders()
        for piece in pieces:
            connection.send(piece if length is not None else b"%x\r\n%s\r\n" % (len(piece), piece))
        if length is None:
            connection.send(b"0\r\n\r\n")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["error"]
    finally:
        connection.close()


START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def test_an_upload_beyond_the_limit_gets_413(narrow: str) -> None:
    for answer in (
        upload(narrow, length=10_001),
        upload(narrow, START + bytes(5000), bytes(5000), bytes(5000)),
    ):
        assert answer[0] == 413 and "larger than 10000 bytes" in answer[1]["message"]
    assert upload(narrow, START + b"abc\r\n--x--\r\n")[0] == 400  # it is no audio
    assert metric(narrow, "xlsr_sessions") == 0


def test_an_upload_that_stalls_gets_408(hasty: str) -> None:
    status, error = upload(hasty, START, length=9000)
    assert status == 408 and "for 0.5 s" in error["message"]
    assert metric(hasty, "xlsr_sessions") == 0


def phrases(seed: int) -> list[str]:
    """Returns words that the random model can spell."""
    draw = random.Random(seed)
    pieces = [p for p in tokenizer().tokens[3:] if p.strip("\u2581")]
    return ["".join(draw.sample(pieces, 2)).replace("\u2581", " ").strip() for _ in range(8)]


def test_sessions_with_different_hotwords_at_once_are_each_as_alone(
    beam: LiveModel, audio: list[torch.Tensor]
) -> None:
    """Chosen are hotwords that matter, where small changes of the audio do not."""
    wave, chosen = audio[0][: 3 * 16000], [([], None)]
    for seed in range(30):
        hotwords = phrases(seed) if seed else []
        scales = (1, 1 + 1e-5, 1 - 1e-5)
        lists = [texts_of(expected(beam, wave * scale, hotwords)) for scale in scales]
        if lists[0] == lists[1] == lists[2] and lists[0] not in [found for _, found in chosen]:
            chosen.append((hotwords, lists[0]))
        if len(chosen) == 4:
            break
    chosen = chosen[1:]
    assert len(chosen) == 3

    async def main(address: str) -> list[list[tuple]]:
        paths = [f"{address}/?hotwords={quote('/'.join(words))}" for words, _ in chosen]
        jobs = [transcribe(path, wave, seed) for seed, path in enumerate(paths)]
        return [finals(messages) for messages in await asyncio.gather(*jobs)]

    with serving(beam) as address:
        assert asyncio.run(main(address)) == [found for _, found in chosen]


@pytest.mark.parametrize(
    "hotwords, reason",
    [
        ("/".join(["a"] * (MOST_HOTWORDS + 1)), "hotwords: a session may have"),
        ("a" * (LONGEST_HOTWORD + 1), "longer than"),
        ("a :nan", "not a number"),
        ("a :1e999", "not a number"),
        ("\u4e2d\u6587", "no token for"),
        ("a\x00b", "no token for"),
    ],
)
def test_hotwords_that_cannot_be_used_are_refused(
    beam: LiveModel, hotwords: str, reason: str
) -> None:
    with serving(beam) as address:
        status, message = asyncio.run(handshake(f"ws://{address}/?hotwords={quote(hotwords)}"))
        assert status == 400 and reason in message
        assert metric(address, "xlsr_sessions") == 0


def test_hotwords_that_come_after_the_server_has_ended_a_session_do_not_keep_it(
    beam: LiveModel,
) -> None:
    async def main() -> None:
        scheduler = Scheduler(beam.engine(1), post_to(asyncio.get_running_loop()))
        session = Sessions(beam, scheduler, max_sessions=1, max_backlog=1.0).open()
        session.cut("the end")
        session.take_hotwords(phrases(1))
        async with asyncio.timeout(SECONDS):
            assert [segment async for segment in session.results()] == []
        scheduler.stop()

    asyncio.run(main())


def test_a_search_without_hotwords_says_which_has_them(narrow: str) -> None:
    status, reason = asyncio.run(handshake(f"ws://{narrow}/?hotwords=a"))
    assert status == 400 and "modified_beam_search" in reason


def test_metrics_tell_what_a_run_did(model: LiveModel, audio: list[torch.Tensor]) -> None:
    wave = audio[0][:16000]
    with serving(model) as address:
        for seed in range(3):
            asyncio.run(transcribe(address, wave, seed))
        asyncio.run(ending(address, ["no audio"]))
        seconds = metric(address, "xlsr_audio_seconds_total")
        assert metric(address, 'xlsr_sessions_ended_total{how="finished"}') == 3
        assert metric(address, 'xlsr_sessions_ended_total{how="bad data"}') == 1
        assert metric(address, 'xlsr_sessions_ended_total{how="left"}') == 0
        assert metric(address, "xlsr_backlog_seconds") == 0
        assert seconds == pytest.approx(3)
        computing = metric(address, "xlsr_computing_seconds_total")
        assert 0 < metric(address, "xlsr_latency_seconds_sum")
        assert metric(address, "xlsr_step_seconds_sum") == pytest.approx(computing)
        factor = metric(address, "xlsr_real_time_factor")
        assert factor == pytest.approx(computing / seconds)
        streams = metric(address, "xlsr_batch_size_sum")
        assert (
            streams == metric(address, "xlsr_latency_seconds_count") == 3 * 4
        )  # chunks of 0.32 s
        assert metric(address, "process_resident_memory_bytes") > 1e6


def test_each_session_leaves_one_line_in_the_log(
    model: LiveModel, audio: list[torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(model) as address:
        asyncio.run(transcribe(address, audio[0][:16000], 0))
        asyncio.run(ending(address, [float32(0.0), "no\n\x1b[31maudio"], "/?rate=8000"))
        asyncio.run(ending(address, [], "/?rate=%0a%1b"))
    lines = [r.getMessage() for r in caplog.records if "session " in r.getMessage()]
    assert lines[0] == "session 1: 1.0 s of audio, finished"
    assert lines[1].startswith("session 2: 0.0 s of audio, bad data: ")
    assert len(lines) == 3 and all(line.isprintable() for line in lines)
