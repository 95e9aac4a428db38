"""Classifies utterances: whole, in random pieces, or chunk by chunk until a label is sure enough.

Letters: N utterances of a batch, n samples, V labels.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterator
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError, complain
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.batches import Batch
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.decoding import batches
from xlsr_transducer.recognition.facts import facts_of


@dataclasses.dataclass(frozen=True)
class Piece:
    """A change of audio: a piece of at most ``samples``, at a place drawn for the utterance."""

    samples: int
    seed: int
    number: int  # of the piece

    def __call__(self, cut: Cut, wave: np.ndarray, pause: float) -> np.ndarray:
        """(n,) samples -> at most ``samples`` of them."""
        spare = max(len(wave) - self.samples, 0)
        start = random.Random(f"{self.seed} {self.number} {cut.id}").randint(0, spare)
        return wave[start : start + self.samples]


@dataclasses.dataclass(frozen=True)
class ClassifyOptions(Options):
    """Classification."""

    times: int = option(
        1, "pieces of --max-seconds of each utterance, whose logits are averaged", at_least=1
    )
    max_seconds: float | None = option(
        None, "longest piece, at a random place (default: the whole utterance)", at_least=0.1
    )
    seed: int = option(42, "seed of these places", at_least=0)
    confidence: float | None = option(
        None,
        "decide chunk by chunk, as soon as a label has more than this probability",
        above=0,
        below=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times > 1 and self.max_seconds is None:
            raise UserError(f"--times {self.times} needs --max-seconds, such as 10")
        if self.confidence is not None and self.max_seconds is not None:
            raise UserError(
                f"--confidence {self.confidence} contradicts --max-seconds {self.max_seconds}: it "
                "reads an utterance from its beginning"
            )

    def piece(self, number: int) -> Piece | None:
        """Returns what makes piece ``number`` of an utterance; None: utterances stay whole."""
        if self.max_seconds is None:
            return None
        return Piece(int(self.max_seconds * SAMPLING_RATE), self.seed, number)

    def suffix(self) -> list[str]:
        """The part of result file names that carries them."""
        parts = []
        if self.max_seconds is not None:
            parts.append(f"times-{self.times}-max-seconds-{self.max_seconds:g}-seed-{self.seed}")
        if self.confidence is not None:
            parts.append(f"confidence-{self.confidence:g}")
        return parts


@dataclasses.dataclass(frozen=True)
class Decision:
    """The label of an utterance."""

    label: str
    probability: float
    seconds: float  # of audio that it took: all, or up to the chunk that made it sure enough
    is_sure: bool = False  # whether a chunk did


@dataclasses.dataclass
class Decisions:
    """The labels of one set, by utterance id."""

    audio: AudioSet
    by_chunk: bool = False  # whether they were made as soon as possible
    facts: dict[str, dict] = dataclasses.field(default_factory=dict)  # see ``facts_of``
    references: dict[str, str] = dataclasses.field(default_factory=dict)  # of unread ones too
    found: dict[str, Decision] = dataclasses.field(default_factory=dict)
    unread: dict[str, Unread] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for cut in self.audio.cuts:
            self.facts[cut.id] = facts_of(cut)
            self.references[cut.id] = cut.supervisions[0].text
        for unread in self.audio.unread.values():
            self.leave_out(unread)

    def leave_out(self, unread: Unread) -> None:
        """Takes in an utterance that cannot be read."""
        self.unread[unread.id] = unread
        self.references[unread.id] = unread.text
        if not self.audio.files:  # of files, the command complains
            logging.warning(f"{self.audio.name}: cannot be read, counts as wrong: {unread}")

    def seconds(self, utterance: str) -> float:
        """Returns the duration of an utterance; 0 if it has no audio."""
        return self.facts.get(utterance, {}).get("seconds", 0.0)


def print_labels(decisions: Decisions) -> int:
    """One line per file, its name, label and probability, or an error; returns the exit status."""
    status = 0
    for name, path in decisions.audio.files.items():
        if name in decisions.unread:
            status = complain(decisions.unread[name].reason)
        else:
            d = decisions.found[name]
            after = f"\tafter {d.seconds:.2f} s" if d.is_sure else ""
            print(f"{path}\t{d.label}\t{d.probability:.4f}{after}", flush=True)
    return status


@torch.no_grad()
def classify_set(
    audio: AudioSet,
    loaded: LoadedModel,
    options: ClassifyOptions,
    chunk: ChunkSettings,
    max_duration: float,
    num_workers: int,
) -> Decisions:
    """Classifies every utterance of a set.

    Args:
      chunk: what each frame sees; with a confidence, the settings of the streaming encoder.
      max_duration: seconds of a batch.
    """
    labels, decisions = loaded.tokenizer.tokens, Decisions(audio, options.confidence is not None)
    device = next(loaded.model.parameters()).device
    pieces: dict[str, list[Tensor]] = {}  # logits (V,) of each
    for number in range(options.times):
        part = _longer(audio, options.max_seconds) if number else audio
        change = options.piece(number)
        loader = batches(part, loaded.tokenizer, max_duration, num_workers, change)
        for batch in tqdm(loader, desc=audio.name, unit="batch", disable=None):
            for unread in () if number else batch.skipped:
                decisions.leave_out(unread)
            if not batch.ids:
                continue
            here = batch.to(device)
            if options.confidence is not None:
                found = decide_early(loaded.model, here, options.confidence, labels)
                decisions.found.update(zip(batch.ids, found))
                continue
            out, lens = loaded.model.encoder.encode(here.inputs, here.input_lens, *chunk)
            for name, row in zip(batch.ids, loaded.model.classifier(out, lens).double().cpu()):
                pieces.setdefault(name, []).append(row)
    for name, logits in pieces.items():
        probability, label = torch.stack(logits).mean(0).softmax(0).max(0)
        given = (labels[int(label)], float(probability), decisions.seconds(name))
        decisions.found[name] = Decision(*given)
    return decisions


def _longer(audio: AudioSet, seconds: float) -> AudioSet:
    """Returns the utterances of a set that are cut into pieces; of others, one is the whole."""
    longer = [cut for cut in audio.cuts if cut.duration > seconds]
    return dataclasses.replace(audio, cuts=CutSet.from_cuts(longer))


def logits_by_chunk(
    model: SpeechModel, inputs: Tensor, input_lens: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields after each chunk the logits (N, V) of all frames so far, and their count (N,).

    The last ones are those of ``model.classifier`` on the whole utterances, with the same chunk
    settings, but for rounding.

    Args:
      model: with a classifier and a ``StreamingXLSREncoder``, whose chunk is set.
      inputs: (N, n) samples; input_lens: (N,) int64.
    """
    encoder, head = model.encoder, model.classifier
    overlap, size = encoder.xlsr.overlap, encoder.chunk_size * encoder.xlsr.hop
    chunks = max(-(-(inputs.shape[1] - overlap) // size), 1)
    inputs = F.pad(inputs, (0, overlap + chunks * size - inputs.shape[1]))
    state = encoder.get_init_states(len(inputs), inputs.device)
    state.xlsr.tail.copy_(inputs[:, :overlap])
    mean = head.init_state(len(inputs), inputs.device)
    for start in range(overlap, inputs.shape[1], size):
        lens = (input_lens - start).clamp(0, size)
        out, lens, state = encoder.streaming_forward(inputs[:, start : start + size], lens, state)
        mean = head.advance(out, lens, mean)
        yield head.logits(mean), mean.count


def decide_early(
    model: SpeechModel, batch: Batch, confidence: float, labels: list[str]
) -> list[Decision]:
    """Decides on each utterance as soon as a label is more probable than ``confidence``, or else
    at its end."""
    encoder, lengths = model.encoder, (batch.input_lens / SAMPLING_RATE).tolist()
    received = encoder.xlsr.overlap
    early: list[Optional[Decision]] = [None] * len(lengths)
    for logits, counts in logits_by_chunk(model, batch.inputs, batch.input_lens):
        received += encoder.chunk_size * encoder.xlsr.hop
        probabilities, best = logits.double().softmax(1).max(1)
        rows = list(zip(best.tolist(), probabilities.tolist(), counts.tolist(), lengths))
        for i, (label, probability, count, length) in enumerate(rows):
            if early[i] is None and count and probability > confidence:
                seconds = min(received / SAMPLING_RATE, length)
                early[i] = Decision(labels[label], probability, seconds, is_sure=True)
        if all(early):
            break
    at_end = [Decision(labels[label], p, length) for label, p, _, length in rows]
    return [first or last for first, last in zip(early, at_end)]
