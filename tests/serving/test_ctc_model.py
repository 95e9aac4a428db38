"""A model with CTC alone and frames of 20 ms is served, transcribes and is exported as others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import soundfile
import torch

from tests.support.live_client import connect
from tests.support.live_server import ENDPOINT, expected, load_live, serving, texts_of
from tests.support.random_models import RATE, closest_ctc, encoded, write_random_model
from tests.support.stream_driver import speech
from xlsr_transducer import transcribe
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Parser
from xlsr_transducer.export import load_job
from xlsr_transducer.exporting import onnx_format, onnx_graphs
from xlsr_transducer.exporting.formats import FormatOptions
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.decoding import ChunkOptions
from xlsr_transducer.recognition.live import LiveModel, add_live_options


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ctc") / "pretrained.pt"
    return write_random_model(path, ("ctc",), adapter="none")


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[torch.Tensor]:
    """Three pieces with silence inside, where segments end."""
    model, found = load_model(CheckpointOptions(checkpoint=checkpoint)).model, []
    for seed in range(100):
        wave = speech(3 * RATE + 1111 * (seed % 5), seed, torch.float32)
        wave[RATE : 2 * RATE] = 0
        if closest_ctc(model, encoded(model, wave)) > 1e-3:
            found.append(wave)
    return found[:3]


async def recognise(address: str, wave: torch.Tensor) -> list[tuple]:
    """Sends audio in half seconds; returns text, tokens and times of the segments."""
    async with connect(f"ws://{address}/") as websocket:
        for piece in wave.split(RATE // 2):
            await websocket.send(piece.numpy().astype("<f4").tobytes())
        await websocket.send("Done")
        found = [json.loads(message) async for message in websocket]
    return [
        (m["text"], m["tokens"], m["timestamps"]) for m in found if m["is_final"] and m["tokens"]
    ]


async def recognise_all(address: str, waves: list[torch.Tensor]) -> list[list[tuple]]:
    return await asyncio.gather(*(recognise(address, wave) for wave in waves))


def onnx_live(checkpoint: Path, folder: Path, *options: str) -> LiveModel:
    """The model of an ONNX export, as ``serve --onnx`` loads it."""
    job = load_job(CheckpointOptions(checkpoint=checkpoint), ChunkOptions(), FormatOptions())
    about = onnx_format.describe(job)
    with torch.no_grad(), onnx_graphs.traceable(job.loaded.model):
        [name] = onnx_format.write_streaming(job, job.loaded.model, "", folder, about).files
    job.loaded.tokenizer.write_tokens(folder / "tokens.txt")
    (folder / "bpe.model").write_bytes(job.loaded.tokenizer.to_bytes())
    parser = Parser()
    add_live_options(parser)
    return LiveModel.from_args(parser.parse_args(["--onnx", str(folder / name), *options]))


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_callers_get_the_segments_that_each_stream_has_alone(checkpoint, audio, tmp_path, kind):
    own = load_live(checkpoint, *ENDPOINT)
    wanted = [texts_of(expected(own, wave)) for wave in audio]
    if kind == "onnx":
        pytest.importorskip("onnx")
        own = onnx_live(checkpoint, tmp_path, *ENDPOINT)
    with serving(own) as address:
        assert asyncio.run(recognise_all(address, audio)) == wanted
    times = [time for found in wanted for _, _, times in found for time in times]
    assert any(round(time / 0.02) % 2 for time in times)
    # Rule 2, 0.4 s of blanks: the silence ends a segment in each of them.
    assert len(audio) == 3 and all(len(found) > 1 for found in wanted)


def test_a_caller_brings_hotwords_with_prefix_search(checkpoint, audio, tmp_path):
    pytest.importorskip("onnx")
    hotwords = ["sone :3", "tela :4"]
    prefix = ("--decoding-method", "ctc_prefix_beam_search", *ENDPOINT)
    own = load_live(checkpoint, *prefix)
    plain, biased = (texts_of(expected(own, audio[0], words)) for words in ((), hotwords))
    assert biased != plain
    exported = onnx_live(checkpoint, tmp_path, *prefix)
    assert texts_of(expected(exported, audio[0], hotwords)) == biased
    greedy = load_live(checkpoint)
    with pytest.raises(UserError, match="need --decoding-method .*ctc_prefix_beam_search"):
        greedy.hotwords(hotwords)


def test_recordings_are_transcribed_with_times_of_20_ms(checkpoint, audio, tmp_path):
    soundfile.write(tmp_path / "a.wav", audio[0].numpy(), RATE, subtype="FLOAT")
    given = ["--checkpoint", str(checkpoint), "--cpu-layers=pytorch", *ENDPOINT]
    given += [str(tmp_path / "a.wav"), "--format=json", f"--output-dir={tmp_path / 'out'}"]
    assert transcribe.main(given) == 0
    found = json.loads((tmp_path / "out" / "a.json").read_text())
    wanted = expected(load_live(checkpoint, *ENDPOINT), audio[0])
    assert [s["text"] for s in found["segments"]] == [s.text for s in wanted if s.words]
    starts = [w["start"] for s in found["segments"] for w in s["words"]]
    assert starts == [round(w.start, 3) for s in wanted for w in s.words] and starts
