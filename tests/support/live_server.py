"""A small model with random weights behind a real server, for tests of the protocols.

What it recognises is nonsense that depends on every sample, which is what equality needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from tests.support.random_models import RATE, ROUNDING, encoded, write_random_model
from tests.support.stream_driver import speech
from tests.support.tiny_recipe import closest_call
from xlsr_transducer.core.options import Parser
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.live import LiveModel, add_live_options
from xlsr_transducer.recognition.spans import TimedText
from xlsr_transducer.serving.options import ServeOptions
from xlsr_transducer.serving.server import listen, serve
from xlsr_transducer.serving.wire import CODINGS, WireAudio

ENDPOINT = ("--rule2-min-trailing-silence", "0.4", "--rule3-min-utterance-length", "3")


def write_checkpoint(folder: Path) -> Path:
    """Writes the checkpoint of a random streaming transducer; returns its path."""
    return write_random_model(folder / "pretrained.pt", ("transducer",))


def load_live(checkpoint: Path, *options: str) -> LiveModel:
    """Returns the model with command line options; without endpoints unless they say so."""
    parser = Parser()
    add_live_options(parser)
    given = ["--checkpoint", str(checkpoint), "--cpu-layers", "pytorch", *options]
    return LiveModel.from_args(parser.parse_args(given))


def to_wire(wave: torch.Tensor, coding: str) -> bytes:
    """Returns (n,) samples at any rate as the bytes of a coding: the nearest value of each."""
    if coding == "pcm16":
        return (wave.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes()
    values = torch.from_numpy(CODINGS[coding][1](bytes(range(256))))
    ordered, byte = values.sort()
    return (
        byte[torch.bucketize(wave, (ordered[1:] + ordered[:-1]) / 2)]
        .numpy()
        .astype("u1")
        .tobytes()
    )


def from_wire(data: bytes, coding: str, rate: int) -> torch.Tensor:
    """Returns (n,) samples at 16 kHz of the bytes of a coding: what a server receives."""
    audio = WireAudio(coding, rate)
    return torch.from_numpy(np.concatenate([audio.decode(data), audio.finish()]))


def waves(
    model: SpeechModel,
    count: int,
    seed: int = 0,
    received: Callable[[torch.Tensor], torch.Tensor] = lambda wave: wave,
) -> list[torch.Tensor]:
    """Returns ``count`` pieces of audio of 1 to 6 s in which no decision of greedy search is so
    close that rounding could turn it.

    Args:
      received: what a server receives of a piece.
    """
    draw, found = random.Random(seed), []
    while len(found) < count:
        wave = speech(draw.randint(RATE, 6 * RATE), draw.randrange(10**6), torch.float32)
        if draw.random() < 0.5:  # silence within, where segments end
            wave[len(wave) // 3 : len(wave) // 2] = 0
        if closest_call(model, encoded(model, received(wave))) > ROUNDING:
            found.append(wave)
    return found


def expected(
    model: LiveModel, wave: torch.Tensor, hotwords: Sequence[str] = ()
) -> list[TimedText]:
    """Returns the segments of (n,) samples alone, as ``streaming_decode`` finds them."""
    engine = model.engine(1)
    stream = engine.open("alone", model.hotwords(hotwords))
    stream.accept(wave)
    stream.finish()
    while len(engine):
        engine.step()
    return [model.timed(found, n, is_final=True) for n, found in enumerate(stream.segments)]


@contextlib.contextmanager
def serving(model: LiveModel, **options: object) -> Iterator[str]:
    """Runs a server in a thread; yields its address as ``localhost:12345``."""
    listener = listen(ServeOptions(port=0, drain_timeout=0, **options))
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete,
        args=(serve(model, ServeOptions(**options, drain_timeout=0), listener, stop),),
    )
    thread.start()
    try:
        yield f"localhost:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def texts_of(segments: Sequence[TimedText]) -> list[tuple[str, list[str], list[float]]]:
    """Returns text, tokens and times of segments: what has to be equal."""
    return [(s.text, s.tokens, s.timestamps) for s in segments]
