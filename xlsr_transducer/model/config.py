"""The configuration of a model: all that a checkpoint holds besides weights and tokens."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Number, flag_of, numbers_of, option
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import StreamingXLSREncoder, XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions, kept_layers, mamba_layers
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import HEADS, ClassifierOptions, TransducerOptions, make_heads
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.xlsr_config import XlsrConfig

CHUNK_NAMES = ("chunk_size", "left_context_chunks", "attention_sink_size")
CHUNK_FLAGS = tuple(map(flag_of, CHUNK_NAMES))


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
        given = [name for name in CHUNK_NAMES if getattr(self, name)]
        if given and not self.streaming:
            raise UserError(
                f"{flag_of(given[0])} needs --streaming 1: a full-context model has no chunks"
            )
        if self.streaming:
            self.default().require_streaming()
            self.all_settings()

    def choices(self) -> tuple[list[int], list[int], list[int]]:
        """Returns the lists of chunk sizes, left contexts and sink sizes."""
        return chunk_lists(
            self.chunk_size or "32",
            self.left_context_chunks or "2",
            self.attention_sink_size or "4",
        )

    def default(self) -> ChunkSettings:
        """Returns the one setting of validation and decode."""
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
        """Returns the setting of a training step: the same on every process, for every restart."""
        if not self.streaming:
            return ChunkSettings()
        rng = random.Random(f"{seed} {step}")
        return ChunkSettings(*[rng.choice(values) for values in self.choices()]).simplified()


def chunk_lists(
    chunks: str, lefts: str, sinks: str, flags: Sequence[str] = CHUNK_FLAGS
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
    heads: tuple[str, ...]
    classifier: ClassifierOptions = ClassifierOptions()

    @property
    def has_attention(self) -> bool:
        """Whether any layer of XLSR has attention, and so a left context."""
        layers = self.xlsr.num_hidden_layers
        return len(mamba_layers(self.encoder, layers)) < layers

    @property
    def kept_layers(self) -> list[int]:
        """Which layers of the pretrained XLSR the model's layers 0, 1, ... are."""
        if not self.encoder.keep_layers:
            return list(range(self.xlsr.num_hidden_layers))
        return [int(number) for number in self.encoder.keep_layers.split(",")]

    @property
    def has_ctc(self) -> bool:
        """Whether there is a CTC head."""
        return "ctc" in self.heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``from_dict`` takes them."""
        plain = dataclasses.asdict(self)
        plain["xlsr"] = self.xlsr.to_dict()
        plain["heads"] = list(self.heads)
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
            config = cls(
                features=FeatureInfo(**features),
                xlsr=XlsrConfig.from_dict(values["xlsr"], where),
                encoder=EncoderOptions(**values["encoder"]),
                transducer=TransducerOptions(**values["transducer"]),
                streaming=StreamingOptions(**values["streaming"]),
                vocab_size=values["vocab_size"],
                heads=_heads(values),
                classifier=ClassifierOptions(**values.get("classifier", {})),
            )
            if len(config.kept_layers) != config.xlsr.num_hidden_layers:
                raise ValueError(f"keep_layers {config.encoder.keep_layers}")
            return config
        except (KeyError, TypeError, ValueError, AttributeError) as e:  # a UserError too
            raise UserError(f"{where}: the model's configuration is not understood ({e})") from e


def _heads(values: dict[str, Any]) -> tuple[str, ...]:
    """Returns the heads of a model from its configuration, which older files have as ``has_ctc``.

    Raises:
      ValueError: it has none, or an unknown one.
    """
    if "has_ctc" in values:
        return ("transducer", "ctc") if values["has_ctc"] else ("transducer",)
    heads = tuple(values["heads"])
    if not heads or not set(heads) <= set(HEADS):
        raise ValueError(f"heads {heads}")
    return heads


def with_layers(
    encoder: EncoderOptions, streaming: StreamingOptions, xlsr: XlsrConfig, cut: str
) -> tuple[EncoderOptions, StreamingOptions, XlsrConfig]:
    """Returns the options with the layers of ``--keep-layers`` and ``--mixer`` as numbers, and the
    shape of the XLSR that has only the layers that are kept.

    Args:
      xlsr: the pretrained one. cut: of the features.

    Raises:
      UserError: as ``with_kept_layers`` and ``with_mixer`` have it.
    """
    encoder, xlsr = with_kept_layers(encoder, xlsr, cut)
    return (*with_mixer(encoder, streaming, xlsr, cut), xlsr)


def with_kept_layers(
    encoder: EncoderOptions, xlsr: XlsrConfig, cut: str
) -> tuple[EncoderOptions, XlsrConfig]:
    """Returns the options with the layers of ``--keep-layers`` as numbers, and the shape of the
    XLSR that has only these.

    Raises:
      UserError: there are no such layers, or features of this cut have passed others.
    """
    kept = kept_layers(encoder, xlsr.num_hidden_layers)
    if len(kept) == xlsr.num_hidden_layers:
        return dataclasses.replace(encoder, keep_layers=""), xlsr
    below = max(xlsr.number_of_level(cut), 0)
    if kept[:below] != list(range(below)) or len(kept) == below:
        raise UserError(
            f"--keep-layers {encoder.keep_layers}: the features of --cut {cut} have passed layers "
            f"0 to {below - 1} of XLSR, so all of these must be kept, and one above them; use "
            "--cut frontend or waveform to leave out others"
        )
    numbers = ",".join(map(str, kept))
    return (
        dataclasses.replace(encoder, keep_layers=numbers),
        dataclasses.replace(xlsr, num_hidden_layers=len(kept)),
    )


def with_mixer(
    encoder: EncoderOptions, streaming: StreamingOptions, xlsr: XlsrConfig, cut: str
) -> tuple[EncoderOptions, StreamingOptions]:
    """Returns the options with the layers of ``--mixer`` as numbers.

    Raises:
      UserError: there are no such layers above the cut, or options of attention are given and no
        layer has any.
    """
    if encoder.mixer == "attention":
        return encoder, streaming
    layers = mamba_layers(encoder, xlsr.num_hidden_layers, max(xlsr.number_of_level(cut), 0))
    if not layers:
        raise UserError(
            f"--mixer {encoder.mixer}: no layer of XLSR lies above --cut {cut}; use --cut "
            "frontend or waveform"
        )
    encoder = dataclasses.replace(encoder, mixer_layers=",".join(map(str, layers)))
    if len(layers) == xlsr.num_hidden_layers and streaming.streaming:
        for name in CHUNK_NAMES[1:]:
            refuse_without_attention(flag_of(name), getattr(streaming, name))
        streaming = dataclasses.replace(
            streaming, left_context_chunks="0", attention_sink_size="0"
        )
    return encoder, streaming


def refuse_without_attention(flag: str, value: object) -> None:
    """Raises UserError if an option of attention is given for a network without any."""
    if value not in (None, ""):
        raise UserError(
            f"{flag} {value}: no layer of this network has attention; the state of Mamba-2 holds "
            "the whole past, so leave it out"
        )


def check_features(features: FeatureInfo, streaming: StreamingOptions) -> None:
    """Refuses features that contradict what the model is to be.

    Raises:
      UserError: names the reason, and the command that makes the right features.
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
            "the features were computed with --normalize utterance, which needs the end of "
            f"each utterance and so cannot stream; run {make} --normalize cumulative"
        )
    if features.cut in ("waveform", "frontend"):
        return
    chunk = " ".join(f"{flag} {value}" for flag, value in zip(CHUNK_FLAGS, streaming.default()))
    if features.chunk.is_full_context:
        raise UserError(
            f"the features of layer {features.cut} were computed with full attention and have "
            f"seen the future, so a streaming model cannot use them; run {make} {chunk}, or "
            "use --cut frontend"
        )
    drawn = streaming.all_settings()
    if drawn != {features.chunk}:
        raise UserError(
            f"the features were computed with {features.chunk.describe()}, but the model is to "
            f"be trained with {', '.join(sorted(d.describe() for d in drawn))}; give the same "
            f"settings, or run {make} {chunk}"
        )


def build_model(
    config: ModelConfig, whole: bool = False, streaming: bool | None = None
) -> SpeechModel:
    """Builds the network, without pretrained values.

    Args:
      whole: with the part below the level of the features too, so that it takes the waveform.
      streaming: with a ``StreamingXLSREncoder``; None: if it was trained so.
    """
    level = "waveform" if whole else config.features.cut
    arguments = (config.xlsr, config.encoder, level, config.features.normalize)
    if streaming or (streaming is None and config.streaming.streaming):
        trained = config.streaming if config.streaming.streaming else StreamingOptions(True)
        encoder: XLSREncoder = StreamingXLSREncoder(*arguments, trained.default())
    else:
        encoder = XLSREncoder(*arguments)
    of_heads = (encoder.output_dim, config.transducer, config.vocab_size, config.encoder.dropout)
    return SpeechModel(encoder, make_heads(config.heads, *of_heads, config.classifier))
