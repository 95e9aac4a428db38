"""Settings, results and result files of all commands that decode."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import kaldialign
import torch
from torch.utils.data import DataLoader

from xlsr_transducer.core.errors import UserError, complain
from xlsr_transducer.core.geometry import ENCODER_FRAME
from xlsr_transducer.core.options import Options, flag_of, option
from xlsr_transducer.data.batches import Batch, Change
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.data.tokenizer import Tokenizer, require_language
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.model.cpu_choice import AUTO, CPU_LAYERS
from xlsr_transducer.model.cpu_inference import prepare_for_cpu
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.normalize import check_mode
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.whole import whole_encoder
from xlsr_transducer.recognition.audio_sets import AudioSet, audio_sets
from xlsr_transducer.recognition.facts import facts_of
from xlsr_transducer.recognition.scoring import Score, Transcript, write_results
from xlsr_transducer.recognition.spans import timed_text
from xlsr_transducer.search import BiasOptions, Hypothesis, SearchOptions


@dataclasses.dataclass(frozen=True)
class ChunkOptions(Options):
    """What each frame sees."""

    decode_chunk_len: int | None = option(
        None,
        "chunk size in XLSR frames (20 ms); -1: whole utterance (default: the model's)",
        at_least=1,
        also=-1,
    )
    left_context_chunks: int | None = option(
        None, "earlier chunks seen (default: the model's)", at_least=0, also=-1
    )
    attention_sink_size: int | None = option(
        None, "first frames seen (default: the model's)", at_least=0
    )

    def chunk(self, config: ModelConfig) -> ChunkSettings:
        """What each frame may see: the model's setting, changed by what was given.

        Raises:
          UserError: settings that contradict each other or the model's normalisation.
        """
        default = config.streaming.default()
        given = {
            "chunk_size": self.decode_chunk_len,
            "left_context_chunks": self.left_context_chunks,
            "attention_sink_size": self.attention_sink_size,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if given.get("chunk_size") == -1:
            # The model's own left context and sinks have no meaning then.
            default = ChunkSettings()
        elif given.get("left_context_chunks") == -1:
            default = dataclasses.replace(default, attention_sink_size=0)
        if default.is_full_context and given and "chunk_size" not in given:
            raise UserError(f"{flag_of(next(iter(given)))} needs --decode-chunk-len")
        chunk = dataclasses.replace(default, **given).require_consistent()
        if chunk.is_full_context:
            return chunk
        check_mode(config.features.normalize, streaming=True)
        if not config.streaming.streaming:
            logging.warning(f"the model was trained in full context, not with {chunk.describe()}")
        elif chunk not in config.streaming.all_settings():
            logging.warning(f"the model was not trained with {chunk.describe()}")
        return chunk


@dataclasses.dataclass(frozen=True)
class LayerOptions(Options):
    """Computing."""

    cpu_layers: str = option(
        AUTO,
        "linear layers on a CPU: PyTorch's own or oneDNN's (auto: the faster one here, measured "
        "once and kept in the user's cache folder)",
        choices=CPU_LAYERS,
    )


@dataclasses.dataclass(frozen=True)
class DecodeOptions(LayerOptions, ChunkOptions):
    """Decoding."""

    data_dir: Path = option(Path("data"), "what prepare.sh wrote")
    split: str = option("", "splits to decode, such as val,test (default: all but training)")
    manifest: Path | None = option(None, "decode this lhotse cut manifest instead of splits")
    num_workers: int = option(2, "processes that read audio", at_least=0, at_most=1024)

    def audio_sets(self, wavs: Sequence[Path] = ()) -> list[AudioSet]:
        """What to decode (see ``audio_sets``)."""
        return audio_sets(self.data_dir, self.split, self.manifest, wavs)


def batches(
    audio: AudioSet,
    tokenizer: Tokenizer,
    max_duration: float,
    num_workers: int,
    change: Change = None,
) -> DataLoader:
    """Padded batches of waveforms, in a fixed order, with a change of what is read."""
    options = DataOptions(max_duration=max_duration, num_workers=num_workers)
    data = DataModule(options, None, tokenizer)
    return data.fixed_loader(audio.cuts, change)


def decode_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_recogniser(
    options: CheckpointOptions, streaming: bool | None = None, cpu_layers: str = AUTO
) -> LoadedModel:
    """Loads a model and puts it on the device where it recognises (see ``use_device``)."""
    loaded = load_model(options, streaming)
    use_device(loaded.model, cpu_layers)
    return loaded


def use_device(model: SpeechModel, cpu_layers: str = AUTO) -> torch.device:
    """Moves a model to the device where it recognises, with the kernels that are fast there."""
    device = decode_device()
    model.to(device)
    if device.type == "cpu":
        prepare_for_cpu(model, cpu_layers)
    return device


def require_memory(
    sets: list[AudioSet], encoder: XLSREncoder, chunk: ChunkSettings, device: torch.device
) -> None:
    """Refuses the longest utterance where it has to be encoded in one piece that does not fit.

    Raises:
      UserError: names the utterance and the options with which it would be encoded in blocks.
    """
    advice = "cut the audio into shorter pieces"
    if encoder.is_blockwise(32, 2):
        size = "--decode-chunk-len 32 " * chunk.is_full_context
        advice = f"give {size}--left-context-chunks 2, or {advice}"
    whole = whole_encoder(encoder, chunk.chunk_size, chunk.left_context_chunks, advice)
    if whole is None:
        return
    for audio in sets:
        longest = max(audio.cuts, key=lambda cut: cut.duration, default=None)
        if longest is not None:
            whole.check(longest.id, longest.duration, device)


def require_languages(sets: list[AudioSet], tokenizer: Tokenizer) -> None:
    """Raises UserError if a model that emits languages does not know one of a manifest's."""
    for audio in sets:
        for cut in audio.cuts if not audio.files else ():
            where = f"{audio.manifest}, {cut.id}"
            require_language(tokenizer, cut.supervisions[0].language or "", where)


def closest(
    nbest: list[list[Hypothesis]], texts: list[str], tokenizer: Tokenizer
) -> list[Hypothesis]:
    """Of each utterance's hypotheses, the first of those with the fewest word errors."""

    def errors(hypothesis: Hypothesis, text: str) -> int:
        words = tokenizer.decode(hypothesis.tokens).split()
        return kaldialign.edit_distance(text.split(), words)["total"]

    return [min(hyps, key=lambda h: errors(h, text)) for hyps, text in zip(nbest, texts)]


@dataclasses.dataclass
class Results:
    """The hypotheses of one set, by utterance id."""

    audio: AudioSet
    texts: dict[str, str] = dataclasses.field(default_factory=dict)  # references
    hypotheses: dict[str, Hypothesis] = dataclasses.field(default_factory=dict)
    unread: dict[str, Unread] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # of audio
    elapsed: float = 0.0  # of computing
    frame: float = ENCODER_FRAME  # seconds of a frame of the encoder's output

    def __post_init__(self) -> None:
        for unread in self.audio.unread.values():
            self.leave_out(unread)

    def sibling(self) -> Results:
        """Returns empty results of the same utterances; texts and unread ones are shared."""
        other = copy.copy(self)
        other.hypotheses = {}
        return other

    def add(self, batch: Batch, found: Sequence[Hypothesis]) -> None:
        """Takes in what was recognised in a batch."""
        self.seconds += batch.seconds
        self.texts.update(zip(batch.ids, batch.texts))
        self.hypotheses.update(zip(batch.ids, found))

    def leave_out(self, unread: Unread) -> None:
        """Takes in an utterance that cannot be read."""
        self.unread[unread.id] = unread
        if not self.audio.files:  # of files, ``print_texts`` complains
            logging.warning(f"{self.audio.name}: cannot be read, counts as deleted: {unread}")

    def transcripts(self, tokenizer: Tokenizer) -> list[Transcript]:
        """References and recognised words; none of an utterance that could not be read."""
        found = [
            Transcript(i, self.texts[i].split(), tokenizer.decode(h.tokens).split())
            for i, h in self.hypotheses.items()
        ]
        found += [Transcript(u.id, u.text.split(), []) for u in self.unread.values()]
        return sorted(found, key=lambda t: t.id)

    def write(self, folder: Path, name: str, suffix: str, tokenizer: Tokenizer) -> Score:
        """Writes icefall's result files and the tokens with their times.

        Args:
          name: of the set, in ``folder`` (see ``name_in_results``).
        """
        reasons = {i: unread.reason for i, unread in self.unread.items()}
        facts = {cut.id: facts_of(cut) for cut in self.audio.cuts}
        if tokenizer.languages:
            for i, hypothesis in self.hypotheses.items():
                facts[i]["language_found"] = tokenizer.language_of(hypothesis.tokens)
        words = {
            i: timed_text(h, tokenizer.tokens, self.frame).words
            for i, h in self.hypotheses.items()
        }
        given = (self.transcripts(tokenizer), self.hypotheses, reasons, facts, words)
        found = write_results(folder, name, suffix, *given)
        logging.info(f"{name}: WER {found.wer.percent:.2f} %, {found.num_unread} unread")
        return found

    def print_texts(self, tokenizer: Tokenizer) -> int:
        """One line per file, its name and its text, or an error; returns the exit status."""
        status = 0
        for name, path in self.audio.files.items():
            if name in self.unread:
                status = complain(self.unread[name].reason)
            else:
                text = tokenizer.decode(self.hypotheses[name].tokens)
                print(f"{path}\t{text}", flush=True)
        return status

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of audio."""
        return self.elapsed / max(self.seconds, 1e-9)


def suffix(
    checkpoint: CheckpointOptions,
    chunk: ChunkSettings,
    search: SearchOptions,
    bias: BiasOptions,
    *more: str,
) -> str:
    """The part of result file names that carries every setting."""
    parts = (checkpoint.describe(), chunk.describe(), search.suffix(), *bias.suffix(), *more)
    return "-".join(parts)


def status_of(scores: Sequence[Score]) -> int:
    """The exit status of a decode: 2, with an error, if any utterance could not be read."""
    bad = [s for s in scores if s.num_unread]
    if not bad:
        return 0
    counts = ", ".join(f"{s.num_unread} of {s.num_utterances} of {s.set_name}" for s in bad)
    return complain(
        f"could not be read: {counts}; all words of these utterances count as deleted, the log "
        "and errs-*.txt name them"
    )
