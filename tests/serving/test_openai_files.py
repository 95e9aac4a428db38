"""OpenAI's transcription of files, by its own client: formats, streams, errors, exact text."""

from __future__ import annotations

import asyncio
import http.client
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.support.live_client import metric
from tests.support.live_server import ENDPOINT, expected, load_live, serving, waves
from xlsr_transducer.data.media import open_media
from xlsr_transducer.data.tokenizer import text_of
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.spans import TimedText
from xlsr_transducer.recognition.subtitles import render

av = pytest.importorskip("av")
openai = pytest.importorskip("openai")

SESSIONS, AUDIO_SECONDS = "xlsr_sessions", "xlsr_audio_seconds_total"  # of /metrics
ENDED = 'xlsr_sessions_ended_total{{how="{}"}}'
KINDS = [("WAV", 16000), ("FLAC", 24000), ("OGG", 8000), ("MP3", 16000), ("M4A", 16000)]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, *ENDPOINT)


@pytest.fixture(scope="module")
def beam(checkpoint: Path) -> LiveModel:
    unsure = ("--decoding-method", "modified_beam_search", "--temperature", "2")
    return load_live(checkpoint, *ENDPOINT, *unsure)


def file_of(wave: torch.Tensor, kind: str, rate: int) -> bytes:
    data = io.BytesIO()
    if kind == "M4A":
        with av.open(data, "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=rate)
            frame = av.AudioFrame.from_ndarray(wave.numpy()[None], "fltp", "mono")
            frame.sample_rate = rate
            container.mux([*stream.encode(frame), *stream.encode(None)])
    else:
        soundfile.write(data, wave.numpy(), rate, format=kind)
    return data.getvalue()


def received(data: bytes) -> torch.Tensor:
    """Returns what a server receives of a file."""
    with open_media(io.BytesIO(data)) as media:
        return torch.from_numpy(np.concatenate(list(media.pieces)))


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> list[bytes]:
    """A file of each of ``KINDS``."""
    network = load_model(CheckpointOptions(checkpoint=checkpoint)).model
    found = []
    for seed, kind in enumerate(KINDS):

        def through(wave: torch.Tensor, kind: tuple[str, int] = kind) -> torch.Tensor:
            return received(file_of(wave, *kind))

        found.append(file_of(waves(network, 1, seed, through)[0], *kind))
    return found


def client(address: str, key: str = "unused") -> Any:
    return openai.OpenAI(api_key=key, base_url=f"http://{address}/v1", max_retries=0, timeout=120)


def transcribe(address: str, data: bytes, **asked: Any) -> Any:
    """Returns the answer; all events if ``stream`` is asked for."""
    with client(address) as ai:
        answer = ai.audio.transcriptions.create(file=("a", data), model="any-name", **asked)
        return list(answer) if asked.get("stream") else answer


def joined(segments: list[TimedText]) -> str:
    return text_of(token for segment in segments for token in segment.tokens)


@pytest.mark.parametrize("num_sessions", [1, 32])
def test_files_give_the_tokens_and_times_of_each_alone(
    model: LiveModel, files: list[bytes], num_sessions: int
) -> None:
    async def all_of_them(address: str) -> list[Any]:
        async with openai.AsyncOpenAI(
            api_key="unused", base_url=f"http://{address}/v1", max_retries=0, timeout=120
        ) as ai:

            async def one(number: int) -> Any:
                await asyncio.sleep(number % 7 / 20)
                return await ai.audio.transcriptions.create(
                    file=("a", files[number % len(files)]),
                    model="any-name",
                    response_format="verbose_json",
                    timestamp_granularities=["word", "segment"],
                )

            return await asyncio.gather(*map(one, range(num_sessions)))

    with serving(model) as address:
        answers = asyncio.run(all_of_them(address))
    segments = [expected(model, received(data)) for data in files]
    assert all(segments) and max(map(len, segments)) > 1
    ids = {name: number for number, name in enumerate(model.tokens)}
    for number, answer in enumerate(answers):
        of_file, wave = segments[number % len(files)], received(files[number % len(files)])
        assert answer.text == joined(of_file)
        assert answer.duration == answer.usage.seconds == round(len(wave) / 16000, 3)
        assert [(w.word, w.start, w.end) for w in answer.words] == [
            (w.text, round(w.start, 3), round(w.end, 3)) for s in of_file for w in s.words
        ]
        assert [(s.id, s.text, s.start, s.end, s.tokens) for s in answer.segments] == [
            (n, s.text, round(s.start, 3), round(s.end, 3), [ids[t] for t in s.tokens])
            for n, s in enumerate(of_file)
        ]


def test_every_format_is_given(model: LiveModel, files: list[bytes]) -> None:
    data = files[0]
    segments, seconds = expected(model, received(data)), len(received(data)) / 16000
    with serving(model) as address:
        plain = transcribe(address, data, include=["logprobs"], language="de", prompt="x")
        assert plain.text == joined(segments)
        tokens = [(t, at) for s in segments for t, at in zip(s.tokens, s.timestamps)]
        assert [(t.token.replace(" ", "\u2581"), t.timestamp) for t in plain.logprobs] == tokens
        assert transcribe(address, data, response_format="text") == joined(segments) + "\n"
        for name in ("srt", "vtt"):
            found = transcribe(address, data, response_format=name)
            assert found == render(name, segments, seconds) and "-->" in found
        verbose = transcribe(address, data, response_format="verbose_json", language="de")
        assert verbose.language == "de" and verbose.words is None and verbose.segments


@pytest.mark.parametrize("search", ["model", "beam"])
def test_a_stream_of_deltas_is_the_text(
    request: pytest.FixtureRequest, files: list[bytes], search: str
) -> None:
    model = request.getfixturevalue(search)
    data = max(files[:2], key=lambda data: len(received(data)))
    with serving(model) as address:
        events = transcribe(address, data, stream=True)
    assert events[-1].type == "transcript.text.done"
    deltas = [event.delta for event in events[:-1]]
    assert len(deltas) > 1 and "".join(deltas) == events[-1].text
    assert events[-1].text == joined(expected(model, received(data)))


def test_keywords_are_hotwords(beam: LiveModel, model: LiveModel, files: list[bytes]) -> None:
    data = files[0]
    word = beam.tokenizer.decode([beam.tokenizer.encode(["a"])[0][0], 7, 9])
    with serving(beam) as address:
        with_it = transcribe(address, data, keywords=[f"{word} :20"]).text
        without = transcribe(address, data).text
        with pytest.raises(openai.BadRequestError, match="no token for 'Z'") as caught:
            transcribe(address, data, keywords=["Z"])
    assert caught.value.param == "keywords"
    assert word in with_it and with_it != without == joined(expected(beam, received(data)))
    with serving(model) as address:
        with pytest.raises(openai.BadRequestError, match="modified_beam_search"):
            transcribe(address, data, keywords=[word])


def test_wrong_requests_are_told_what_is_wrong(model: LiveModel, files: list[bytes]) -> None:
    data = files[0]
    with serving(model, max_upload_bytes=len(data) + 2000) as address:
        for asked, param in (
            (dict(response_format="diarized_json"), "response_format"),
            (dict(response_format="srt", stream=True), "response_format"),
            (dict(timestamp_granularities=["hour"]), "timestamp_granularities"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                transcribe(address, data, **asked)
            assert caught.value.param == param and param in caught.value.message
            assert caught.value.type == "invalid_request_error"
        for broken in (b"", b"no audio at all", data[:40]):
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError, match="file: ") as caught:
                    transcribe(address, broken, stream=stream)
                assert (caught.value.param, caught.value.code) == ("file", "invalid_audio")
        with pytest.raises(openai.APIStatusError, match="larger than") as caught:
            transcribe(address, data + bytes(5000))
        assert caught.value.status_code == 413
        connection = http.client.HTTPConnection(address)
        for kind, body in (
            ("application/json", b"{}"),
            ("multipart/form-data", b""),
            ("multipart/form-data; boundary=x", b"--x--\r\n"),
            ("multipart/form-data; boundary=x", b"\x00" * 300),
        ):
            connection.request("POST", "/v1/audio/transcriptions", body, {"Content-Type": kind})
            response = connection.getresponse()
            assert response.status == 400 and b'"message"' in response.read()
        assert transcribe(address, data).text == joined(expected(model, received(data)))
        assert metric(address, ENDED.format("bad data")) == 3 + 6 + 4
        assert metric(address, ENDED.format("left")) == 0


def test_a_file_that_breaks_off_ends_its_stream_with_an_error(
    model: LiveModel, files: list[bytes]
) -> None:
    samples = np.tile(received(files[0]).numpy(), 12)
    whole = file_of(torch.from_numpy(samples), "FLAC", 16000)
    with serving(model) as address:
        with pytest.raises(openai.APIError, match="file: "):
            transcribe(address, whole[: len(whole) // 2], stream=True)
        with pytest.raises(openai.BadRequestError, match="file: "):
            transcribe(address, whole[: len(whole) // 2])
        assert metric(address, ENDED.format("bad data")) == 2
        assert metric(address, ENDED.format("failed")) == 0


def test_keys_and_places_are_asked_for(
    model: LiveModel, files: list[bytes], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    with serving(model, api_key_file=keys, max_sessions=1) as address:
        with pytest.raises(openai.AuthenticationError):
            transcribe(address, files[0])
        with pytest.raises(openai.AuthenticationError):
            client(address).models.list()
        ai = client(address, "secret")
        assert ai.audio.transcriptions.create(file=("a", files[0]), model="x").text
        # A connection of which the upload does not end keeps the one place.
        slow = http.client.HTTPConnection(address)
        slow.putrequest("POST", "/v1/audio/transcriptions")
        for header in (
            ("Content-Length", "1000"),
            ("Authorization", "Bearer secret"),
            ("Content-Type", "multipart/form-data; boundary=x"),
        ):
            slow.putheader(*header)
        slow.endheaders(b"--x\r\n")
        wait_for(address, SESSIONS, lambda x: x == 1)
        with pytest.raises(openai.InternalServerError, match="full") as caught:
            ai.audio.transcriptions.create(file=("a", files[0]), model="x")
        assert caught.value.status_code == 503
        slow.close()
        wait_for(address, SESSIONS, lambda x: x == 0)
        assert ai.audio.transcriptions.create(file=("a", files[0]), model="x").text


def wait_for(address: str, name: str, is_so: Callable[[float], bool]) -> None:
    """Returns once the value ``name`` of ``/metrics`` is as wanted."""
    for _ in range(100000):
        if is_so(metric(address, name)):
            return
    raise AssertionError(f"{name} is never so")


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_makes_room(model: LiveModel, files: list[bytes], stream: bool) -> None:
    """The file would take long: it is far from computed when its sender leaves."""
    samples = np.tile(received(files[0]).numpy(), 300)
    data = file_of(torch.from_numpy(samples), "FLAC", 16000)
    with serving(model) as address:

        async def leave() -> None:
            async with openai.AsyncOpenAI(
                api_key="unused", base_url=f"http://{address}/v1", max_retries=0, timeout=120
            ) as ai:
                asking = asyncio.ensure_future(
                    ai.audio.transcriptions.create(file=("a", data), model="x", stream=stream)
                )
                if stream:
                    async for event in await asking:
                        assert event.type == "transcript.text.delta"
                        break
                else:
                    await asyncio.to_thread(wait_for, address, AUDIO_SECONDS, lambda x: x > 0)
                    asking.cancel()

        asyncio.run(leave())
        wait_for(address, SESSIONS, lambda x: x == 0)
        assert metric(address, AUDIO_SECONDS) < len(samples) / 16000 / 2
        assert transcribe(address, files[0]).text


def test_the_model_is_listed_and_answers_to_every_name(model: LiveModel) -> None:
    with serving(model) as address:
        listed = client(address).models.list().data
        assert [m.id for m in listed] == [model.name]
        assert client(address).models.retrieve("some/name").id == "some/name"
