"""What a model is: everything that travels with a checkpoint besides weights and tokens."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Number, numbers_of, option
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import EncoderOptions, StreamingXLSREncoder, XLSREncoder
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.transducer import Transducer, TransducerOptions
from xlsr_transducer.model.xlsr_config import XlsrConfig

CHUNK_FLAGS = ("--chunk-size", "--left-context-chunks", "--attention-sink-size")


@dataclasses.dataclass(frozen=True)
class StreamingOptions:
    """Streaming. Of each list the first value is what validation and decode use."""

    streaming: bool = option(False, "train StreamingXLSREncoder instead of XLSREncoder")
    chunk_size: str = option(
        "",
        "XLSR frames (20 ms) computed together; -1: whole utterance; a list draws per batch "
        "(32 when streaming)",
    )
    left_context_chunks: str = option("", "earlier chunks seen; -1: all (2 when streaming)")
    attention_sink_size: str = option("", "first frames, always seen (4 when streaming)")

    def __post_init__(self) -> None:
        given = [
            f
            for f in ("chunk_size", "left_context_chunks", "attention_sink_size")
            if getattr(self, f)
        ]
        if given and not self.streaming:
            flag = "--" + given[0].replace("_", "-")
            raise UserError(f"{flag} needs --streaming 1: a full-context model has no chunks")
        if self.streaming:
            self.default().require_streaming()
            self.all_settings()

    def choices(self) -> tuple[list[int], list[int], list[int]]:
        """The lists of chunk sizes, left contexts and sink sizes."""
        return chunk_lists(
            self.chunk_size or "32",
            self.left_context_chunks or "2",
            self.attention_sink_size or "4",
        )

    def default(self) -> ChunkSettings:
        """The one setting of validation and decode."""
        if not self.streaming:
            return ChunkSettings()
        return ChunkSettings(*[values[0] for values in self.choices()]).simplified()

    def all_settings(self) -> set[ChunkSettings]:
        """Every setting that training can draw."""
        drawn = itertools.product(*self.choices())
        return {ChunkSettings(*values).simplified() for values in drawn}

    def costly_settings(self) -> list[ChunkSettings]:
        """Of the settings that training can draw, those that can need the most memory.

        The whole utterance needs no mask. With chunks the mask is as large whatever they are, but
        the windows of the positional convolution overlap the more the smaller the chunks.
        """
        drawn = self.all_settings() if self.streaming else {ChunkSettings()}
        whole = [s for s in drawn if s.is_full_context]
        chunks = [s for s in drawn if not s.is_full_context]
        return whole + sorted(chunks, key=lambda s: s.chunk_size)[:1]

    def draw(self, seed: int, step: int) -> ChunkSettings:
        """The setting of a training step: the same on every process, for every restart."""
        if not self.streaming:
            return ChunkSettings()
        rng = random.Random(f"{seed} {step}")
        return ChunkSettings(*[rng.choice(values) for values in self.choices()]).simplified()


def chunk_lists(
    chunks: str, lefts: str, sinks: str, flags: tuple[str, str, str] = CHUNK_FLAGS
) -> tuple[list[int], list[int], list[int]]:
    """Lists such as "16,32,-1" of chunk sizes, left contexts and sink sizes.

    Raises:
      UserError: names the one of ``flags`` whose list is wrong.
    """
    size_or_all = Number(int, at_least=1, also=-1), Number(int, at_least=0, also=-1)
    kinds = (*size_or_all, Number(int, at_least=0))
    chunk, left, sink = map(numbers_of, flags, (chunks, lefts, sinks), kinds)
    return chunk, left, sink


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole configuration of a model."""

    features: FeatureInfo
    xlsr: XlsrConfig
    encoder: EncoderOptions
    transducer: TransducerOptions
    streaming: StreamingOptions
    vocab_size: int
    has_ctc: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``from_dict`` takes them."""
        plain = dataclasses.asdict(self)
        plain["xlsr"] = self.xlsr.to_dict()
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "checkpoint") -> ModelConfig:
        """Rebuilds what ``to_dict`` wrote.

        Raises:
          UserError: fields are missing or unknown; ``where`` names the file.
        """
        try:
            features = dict(values["features"])
            features["chunk"] = ChunkSettings(**features["chunk"])
            return cls(
                features=FeatureInfo(**features),
                xlsr=XlsrConfig.from_dict(values["xlsr"], where),
                encoder=EncoderOptions(**values["encoder"]),
                transducer=TransducerOptions(**values["transducer"]),
                streaming=StreamingOptions(**values["streaming"]),
                vocab_size=values["vocab_size"],
                has_ctc=values["has_ctc"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:  # a UserError too
            raise UserError(f"{where}: the model's configuration is not understood ({e})") from e


def check_features(features: FeatureInfo, streaming: StreamingOptions) -> None:
    """Refuses features that contradict what the model is to be.

    Raises:
      UserError: says why, and the command that makes the right features.
    """
    make = f"./extract_features.sh --xlsr {features.xlsr} --cut {features.cut}"
    if not streaming.streaming:
        if not features.chunk.is_full_context:
            raise UserError(
                f"the features were computed with {features.chunk.describe()}, but the model is "
                f"not streaming; train with --streaming 1, or run {make}"
            )
        return
    if features.normalize == "utterance":
        raise UserError(
            "the features were computed with --normalize utterance, which has heard the end of "
            f"each utterance and so cannot stream; run {make} --normalize cumulative"
        )
    if features.cut in ("waveform", "frontend"):
        return
    chunks = [
        f"--chunk-size {c} --left-context-chunks {l} --attention-sink-size {s}"
        for c, l, s in [dataclasses.astuple(streaming.default())]
    ]
    if features.chunk.is_full_context:
        raise UserError(
            f"the features of layer {features.cut} were computed with full attention and have "
            f"seen the future, so a streaming model cannot use them; run {make} {chunks[0]}, or "
            "use --cut frontend"
        )
    drawn = streaming.all_settings()
    if drawn != {features.chunk}:
        raise UserError(
            f"the features were computed with {features.chunk.describe()}, but the model is to "
            f"be trained with {', '.join(sorted(d.describe() for d in drawn))}; give the same "
            f"settings, or run {make} {chunks[0]}"
        )


def build_model(
    config: ModelConfig, whole: bool = False, streaming: bool | None = None
) -> Transducer:
    """The network, without pretrained values.

    Args:
      whole: with the part below the cut too, so that it hears the waveform.
      streaming: with a ``StreamingXLSREncoder``; None: if it was trained so.
    """
    cut = "waveform" if whole else config.features.cut
    arguments = (config.xlsr, config.encoder, cut, config.features.normalize)
    if streaming or (streaming is None and config.streaming.streaming):
        trained = config.streaming if config.streaming.streaming else StreamingOptions(True)
        encoder: XLSREncoder = StreamingXLSREncoder(*arguments, trained.default())
    else:
        encoder = XLSREncoder(*arguments)
    return Transducer(
        encoder, config.transducer, config.vocab_size, config.encoder.dropout, config.has_ctc
    )
