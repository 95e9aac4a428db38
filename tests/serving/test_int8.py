"""ONNX exports behind the server: a session gives the same text alone and beside others."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.live_client import connect
from tests.support.live_server import expected, serving, texts_of
from tests.support.stream_driver import speech
from tests.support.tiny_recipe import closest_call
from xlsr_transducer import serve
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Parser
from xlsr_transducer.export import load_job
from xlsr_transducer.exporting import onnx_format, onnx_graphs
from xlsr_transducer.exporting.formats import FormatOptions
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.recognition.decoding import ChunkOptions
from xlsr_transducer.recognition.exported import encode_chunks
from xlsr_transducer.recognition.live import LiveModel, add_live_options
from xlsr_transducer.recognition.onnx_models import OnnxOptions, load_onnx

pytest.importorskip("onnxruntime")

RATE = 16000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random model's streaming and offline ONNX files, float32 and int8."""
    folder = tmp_path_factory.mktemp("onnx")
    options = FormatOptions(onnx=True, int8=True)
    job = load_job(CheckpointOptions(checkpoint=checkpoint), ChunkOptions(), options)
    about = onnx_format.describe(job)
    with torch.no_grad(), onnx_graphs.traceable(job.loaded.model):
        for write in (onnx_format.write_streaming, onnx_format.write_offline):
            onnx_format.quantize(write(job, job.loaded.model, "", folder, about), folder)
    job.loaded.tokenizer.write_tokens(folder / "tokens.txt")
    (folder / "bpe.model").write_bytes(job.loaded.tokenizer.to_bytes())
    return folder


def encoder_of(folder: Path, suffix: str) -> Path:
    [path] = folder.glob(f"encoder-*-chunk-16-left-2-sink-4{suffix}.onnx")
    return path


def load_onnx_live(encoder: Path, *options: str) -> LiveModel:
    parser = Parser()
    add_live_options(parser)
    return LiveModel.from_args(parser.parse_args(["--onnx", str(encoder), *options]))


async def transcribe(address: str, wave: torch.Tensor, pause: float = 0.0) -> list[tuple]:
    """Sends audio in half seconds; returns text, tokens and times of the segments."""
    async with connect(f"ws://{address}/") as websocket:
        await asyncio.sleep(pause)
        for piece in wave.split(RATE // 2):
            await websocket.send(piece.numpy().astype("<f4").tobytes())
        await websocket.send("Done")
        found = [json.loads(message) async for message in websocket]
    return [
        (m["text"], m["tokens"], m["timestamps"]) for m in found if m["is_final"] and m["text"]
    ]


def loud_after_silence(wave: torch.Tensor) -> torch.Tensor:
    """Returns audio that is all but silent and then at full scale: the normalisation, which knows
    the past alone, leaves values far larger than those of other streams."""
    wave = wave / wave.abs().max()
    wave[: len(wave) // 2] *= 1e-3
    return wave


def clear_waves(encoder: Path, count: int, lead: float) -> list[torch.Tensor]:
    """Returns audio of 1 to 2 s in which greedy search has no closer decision than ``lead``; the
    first one is loud."""
    files = OnnxOptions(encoder_model_filename=encoder)
    model, found, seed = load_onnx(files.files(), None, is_streaming=True), [], 0
    while len(found) < count:
        wave = speech(RATE + 997 * (seed % 16), seed, torch.float32)
        wave = wave if found else loud_after_silence(wave)
        frames = torch.cat(list(encode_chunks(model.encoder, wave)))
        if closest_call(model, frames) > lead:
            found.append(wave)
        seed += 1
    return found


@pytest.mark.parametrize("suffix, lead", [("", 1e-3), (".int8", 0.05)])
def test_a_session_gives_its_text_alone_beside_31_others_one_of_them_loud(
    exported: Path, suffix: str, lead: float
) -> None:
    encoder = encoder_of(exported, suffix)
    model = load_onnx_live(encoder, "--enable-endpoint", "0")
    waves = clear_waves(encoder, 8, lead)
    waves += waves[1:] * 3 + waves[1:4]

    async def together(address: str) -> list[list[tuple]]:
        jobs = [transcribe(address, wave, 0.02 * (i % 5)) for i, wave in enumerate(waves)]
        return await asyncio.gather(*jobs)

    with serving(model) as address:
        alone = [asyncio.run(transcribe(address, wave)) for wave in waves[:2]]
        found = asyncio.run(together(address))
    wanted = [texts_of(expected(model, wave)) for wave in waves]
    assert alone == wanted[:2]
    assert found == wanted and len(found) == 32
    assert sum(map(bool, wanted[:8])) >= 6


def test_the_command_serves_an_int8_export(exported: Path) -> None:
    encoder = encoder_of(exported, ".int8")
    command = [
        sys.executable,
        "-m",
        "xlsr_transducer.serve",
        "--port",
        "0",
        "--onnx",
        str(encoder),
    ]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        port = re.search(r":(\d+) in a browser", server.stdout.readline())[1]
        [wave] = clear_waves(encoder, 1, 0.05)
        found = asyncio.run(transcribe(f"localhost:{port}", wave))
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=120) == 0
    finally:
        server.kill()
        server.communicate()
    assert found == texts_of(expected(load_onnx_live(encoder), wave))


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--decode-chunk-len", "8"], "has its own chunk size"),
        (["--left-context-chunks", "1"], "has its own chunk size"),
        (["--decoding-method", "ctc_greedy_search"], "CTC head"),
    ],
)
def test_options_that_an_export_cannot_follow_are_refused(
    exported: Path, options: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        serve.main(["--onnx", str(encoder_of(exported, "")), *options])


def test_incomplete_and_offline_exports_are_refused(exported: Path, tmp_path: Path) -> None:
    encoder = encoder_of(exported, "")
    for name in (encoder.name, "tokens.txt"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    with pytest.raises(UserError, match="decoder-.*no such file"):
        serve.main(["--onnx", str(tmp_path / encoder.name)])
    [offline] = (
        set(exported.glob("encoder-*.onnx"))
        - set(exported.glob("*-chunk-*"))
        - set(exported.glob("*.int8.onnx"))
    )
    with pytest.raises(UserError, match="holds a encoder, not a streaming encoder"):
        serve.main(["--onnx", str(offline)])
    with pytest.raises(UserError, match="no such file"):
        serve.main(["--onnx", str(tmp_path / "encoder-none.onnx")])
