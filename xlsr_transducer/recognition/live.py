"""A model that recognises live streams: a checkpoint or an ONNX export, a search, endpoint rules.

The commands that take live audio (``serve``, ``microphone``, ``transcribe``) share these options.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Parser, add_options, from_args, option
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.recognition.decoding import ChunkOptions, LayerOptions, load_recogniser
from xlsr_transducer.recognition.endpoint import EndpointOptions, EndpointRules
from xlsr_transducer.recognition.engine import StreamingEncoder, StreamingEngine
from xlsr_transducer.recognition.onnx_models import OnnxOptions, load_onnx
from xlsr_transducer.recognition.spans import TimedText, timed_text
from xlsr_transducer.search import (
    Bias,
    BiasOptions,
    Hypothesis,
    Search,
    SearchOptions,
    make_search,
)
from xlsr_transducer.search.bias import FREE
from xlsr_transducer.search.context_graph import context_graph, phrase_tokens
from xlsr_transducer.search.token_graph import TokenGraph


@dataclasses.dataclass(frozen=True)
class LiveOptions(LayerOptions, ChunkOptions):
    """Live recognition."""

    onnx: Path | None = option(
        None, "encoder of a streaming ONNX export instead of a checkpoint; the rest lies beside it"
    )

    def require_no_chunk(self) -> None:
        """Raises UserError if a chunk setting is given for an ONNX file, which has its own."""
        if any(
            getattr(self, field.name) is not None for field in dataclasses.fields(ChunkOptions)
        ):
            raise UserError(
                f"--onnx {self.onnx} has its own chunk size, left context and sinks: leave out "
                "--decode-chunk-len, --left-context-chunks and --attention-sink-size"
            )


OPTIONS = (CheckpointOptions, LiveOptions, SearchOptions, BiasOptions, EndpointOptions)


def add_live_options(parser: Parser) -> None:
    """Adds the options of a live model; endpointing is on."""
    for cls in OPTIONS:
        defaults = {"enable_endpoint": True} if cls is EndpointOptions else {}
        add_options(parser, cls, **defaults)


@dataclasses.dataclass(frozen=True)
class LiveModel:
    """What an engine needs, and what turns its results into text."""

    name: str
    encoder: StreamingEncoder
    search: Search
    rules: EndpointRules | None
    tokens: Sequence[str]
    tokenizer: Tokenizer | None  # an ONNX export without its bpe.model has none
    context_score: float

    @staticmethod
    def from_args(args: argparse.Namespace) -> LiveModel:
        """Loads what the options of ``add_live_options`` describe.

        Raises:
          UserError: the model cannot be used, or options contradict each other.
        """
        checkpoint, live, search, bias, endpoint = (from_args(cls, args) for cls in OPTIONS)
        search.require_streaming()
        bias.require_supported(search)
        parts = _from_onnx(live) if live.onnx else _from_checkpoint(checkpoint, live)
        model, tokens, tokenizer = parts
        source = str(live.onnx or checkpoint.source)
        ready = make_search(search, model, _bias(search, bias, tokens, tokenizer, source))
        name = live.onnx.stem if live.onnx else Path(checkpoint.source).name.removesuffix(".pt")
        return LiveModel(
            name,
            model.encoder,
            ready,
            endpoint.rules(model.encoder.frame_seconds),
            tokens,
            tokenizer,
            bias.context_score,
        )

    def engine(self, num_slots: int = 16) -> StreamingEngine:
        """Returns an engine without streams."""
        return StreamingEngine(self.encoder, self.search, self.rules, num_slots)

    @property
    def why_no_hotwords(self) -> str:
        """Why a stream may not bring hotwords of its own; "" if it may."""
        if self.tokenizer is not None and getattr(self.search, "bias", None) is not None:
            return ""
        method = FREE[self.search.ctc_output is not None]
        return f"hotwords need --decoding-method {method}" + (
            " and bpe.model beside the ONNX files" if self.tokenizer is None else ""
        )

    def hotwords(self, phrases: Sequence[str]) -> TokenGraph | None:
        """Returns a stream's hotwords: ``phrase``, or ``phrase :score``; None without a phrase.

        Raises:
          UserError: the search takes none, or a phrase has characters that the model lacks.
        """
        phrases = [phrase for phrase in phrases if phrase.strip()]
        if not phrases:
            return None
        if self.why_no_hotwords:
            raise UserError(self.why_no_hotwords)
        found = [
            phrase_tokens(phrase, self.tokenizer, self.context_score, f"hotword {number}")
            for number, phrase in enumerate(phrases, 1)
        ]
        return context_graph(found, len(self.tokens))

    def timed(self, hypothesis: Hypothesis, segment: int, is_final: bool) -> TimedText:
        """Returns a segment with its text and times."""
        return timed_text(hypothesis, self.tokens, self.encoder.frame_seconds, segment, is_final)


def _from_checkpoint(
    options: CheckpointOptions, live: LiveOptions
) -> tuple[Any, Sequence[str], Tokenizer]:
    loaded = load_recogniser(options, True, live.cpu_layers)
    loaded.model.encoder.set_chunk(live.chunk(loaded.config).require_streaming())
    return loaded.model, loaded.tokenizer.tokens, loaded.tokenizer


def _from_onnx(live: LiveOptions) -> tuple[Any, Sequence[str], Tokenizer | None]:
    live.require_no_chunk()
    files = OnnxOptions(encoder_model_filename=live.onnx)
    model = load_onnx(files.files(), files.tokens_file(), is_streaming=True)
    bpe = live.onnx.with_name("bpe.model")
    return model, model.tokens, Tokenizer.load(bpe.parent) if bpe.is_file() else None


def _bias(
    search: SearchOptions,
    options: BiasOptions,
    tokens: Sequence[str],
    tokenizer: Tokenizer | None,
    source: str,
) -> Bias | None:
    """Returns the graphs and language model of all streams; for searches that take hotwords of a
    stream's own, empty ones if nothing was asked for."""
    if tokenizer is None and options != BiasOptions():
        raise UserError(f"{source}: hotwords and language models need bpe.model beside it")
    loaded = options.load(tokenizer, source) if tokenizer else None
    if loaded is None and search.method in FREE:
        return Bias(len(tokens))
    return loaded
