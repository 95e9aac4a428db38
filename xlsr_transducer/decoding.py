"""What ``decode`` and ``streaming_decode`` share: settings, audio to decode, result files."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import kaldialign
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.cut import Cut
from torch.utils.data import DataLoader

from xlsr_transducer.config import ModelConfig
from xlsr_transducer.data.audio import cut_of_file
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.flaws import flaw
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.errors import UserError
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.cpu_inference import prepare_for_cpu
from xlsr_transducer.model.normalize import check_mode
from xlsr_transducer.options import Options, option
from xlsr_transducer.scoring import Score, Transcript, write_results
from xlsr_transducer.search import BiasOptions, Hypothesis, SearchOptions
from xlsr_transducer.training.checkpoint import CheckpointOptions, LoadedModel, load_model


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
            raise UserError(f"--{next(iter(given)).replace('_', '-')} needs --decode-chunk-len")
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
class DecodeOptions(ChunkOptions):
    """Decoding."""

    data_dir: Path = option(Path("data"), "what prepare.sh wrote")
    split: str = option("", "splits to decode, such as val,test (default: all but training)")
    manifest: Path | None = option(None, "decode this lhotse cut manifest instead of splits")
    num_workers: int = option(2, "processes that read audio", at_least=0, at_most=1024)


@dataclasses.dataclass(frozen=True)
class AudioSet:
    """Utterances to decode under one name."""

    name: str
    cuts: CutSet
    has_text: bool

    def skip(self, line: str) -> None:
        """Leaves out what cannot be read, ``line`` says why; of files given by name, an error."""
        if not self.has_text:
            raise UserError(f"cannot be read: {line}")
        logging.warning(f"{self.name}: skipped, cannot be read: {line}")


def audio_sets(options: DecodeOptions, wavs: list[Path]) -> list[AudioSet]:
    """What to decode: wav files if given, else a manifest if given, else splits.

    Raises:
      UserError: a file or split does not exist.
    """
    if wavs:
        return [AudioSet("files", CutSet.from_cuts([_cut_of(path) for path in wavs]), False)]
    if options.manifest:
        if not options.manifest.is_file():
            raise UserError(f"--manifest {options.manifest}: no such file")
        name = options.manifest.name.split(".")[0].replace("cuts_", "", 1)
        return [_scored_set(name, options.manifest)]
    splits = load_splits(options.data_dir)
    names = options.split.split(",") if options.split else [*splits["val"], *splits["test"]]
    return [_scored_set(name, _manifest_of(options.data_dir, name)) for name in names]


def _cut_of(path: Path) -> MonoCut:
    cut = cut_of_file(path)
    cut.id = str(path)
    cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text="")]
    return cut


def _manifest_of(data_dir: Path, name: str) -> Path:
    path = data_dir / "manifests" / f"cuts_{name}.jsonl.gz"
    if not path.is_file():
        raise UserError(f"--split {name}: no {path}; run ./prepare.sh")
    return path


def _scored_set(name: str, manifest: Path) -> AudioSet:
    """The utterances of a manifest that have audio and a text; the others are named in the log.

    Raises:
      UserError: there are none, or the manifest is damaged.
    """
    skipped: dict[str, str] = {}  # id -> reason; each pass over the cuts finds the same ones

    def is_sound(cut: Cut) -> bool:
        reason = flaw(cut, from_waveform=True)
        if reason and cut.id not in skipped:
            skipped[cut.id] = reason
            logging.warning(f"{name}: skipped, cannot be used: {cut.id}: {reason}")
        return not reason

    cuts = load_cuts(manifest).filter(is_sound)
    if next(iter(cuts), None) is None:
        raise UserError(f"{manifest}: no utterance of it has audio and a text to compare with")
    return AudioSet(name, cuts, True)


def batches(
    audio: AudioSet, tokenizer: Tokenizer, max_duration: float, num_workers: int
) -> DataLoader:
    """Padded batches of waveforms, in a fixed order."""
    options = DataOptions(max_duration=max_duration, num_workers=num_workers)
    data = DataModule(options, None, tokenizer)
    return data.fixed_loader(audio.cuts.map(data.tokenized))


def decode_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_recogniser(options: CheckpointOptions, streaming: bool | None = None) -> LoadedModel:
    """The model on the device where it recognises, with the kernels that are fast there."""
    loaded = load_model(options, streaming)
    loaded.model.to(decode_device())
    if decode_device().type == "cpu":
        prepare_for_cpu(loaded.model)
    return loaded


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
    """What was recognised in one set."""

    audio: AudioSet
    texts: dict[str, str] = dataclasses.field(default_factory=dict)  # references
    hypotheses: dict[str, Hypothesis] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # of audio
    elapsed: float = 0.0  # of computing

    def write(self, folder: Path, suffix: str, tokenizer: Tokenizer) -> Score:
        """Writes icefall's result files and the tokens with their times."""
        transcripts = [
            Transcript(i, self.texts[i].split(), tokenizer.decode(h.tokens).split())
            for i, h in sorted(self.hypotheses.items())
        ]
        return write_results(folder, self.audio.name, suffix, transcripts, self.hypotheses)

    def print_texts(self, tokenizer: Tokenizer) -> None:
        """One line per file: its name and its text."""
        for name, hypothesis in self.hypotheses.items():
            print(f"{name}\t{tokenizer.decode(hypothesis.tokens)}")

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of audio."""
        return self.elapsed / max(self.seconds, 1e-9)


def suffix(
    checkpoint: CheckpointOptions, chunk: ChunkSettings, search: SearchOptions, bias: BiasOptions
) -> str:
    """The part of result file names that carries every setting."""
    parts = (checkpoint.describe(), chunk.describe(), search.suffix(), *bias.suffix())
    return "-".join(parts)
