"""An experiment as the report sees it: its model, and what it recognised with every setting."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import ENCODER_FRAME
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.evaluation.delays import Word
from xlsr_transducer.evaluation.options import EvaluateOptions, settings_for
from xlsr_transducer.evaluation.parts import (
    UTTERANCES,
    Part,
    described,
    model_digest,
    part_of,
    parts_of,
)
from xlsr_transducer.evaluation.steps import StepCost, measure_step
from xlsr_transducer.evaluation.work import Work, decode_parts
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.audio_sets import AudioSet, name_in_results
from xlsr_transducer.recognition.decoding import (
    Results,
    decode_device,
    load_recogniser,
    require_memory,
    suffix,
)
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.recognition.streaming_sets import decode_set
from xlsr_transducer.search import BiasOptions, Hypothesis, SearchOptions, make_search

REPORT = "report"  # folder in that of a training run
PARTS, RESULTS = "parts", "results"  # folders in the report's
STREAMS = 16  # computed at once when utterances are streamed

Hypotheses = Mapping[str, Hypothesis]  # by utterance


@dataclasses.dataclass
class EvaluatedSet:
    """A set of utterances, and what was recognised of it; dictionaries by utterance id."""

    name: str
    audio: AudioSet
    texts: dict[str, str] = dataclasses.field(default_factory=dict)  # references
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    unread: dict[str, Unread] = dataclasses.field(default_factory=dict)
    words: dict[str, Sequence[Word]] = dataclasses.field(default_factory=dict)  # aligned
    not_aligned: dict[str, str] = dataclasses.field(default_factory=dict)  # reasons
    simulated: dict[ChunkSettings, dict[str, Hypothesis]] = dataclasses.field(default_factory=dict)
    streamed: dict[ChunkSettings, Hypotheses] = dataclasses.field(default_factory=dict)
    frame: float = ENCODER_FRAME  # seconds of a frame of the encoder's output

    def results(self, chunk: ChunkSettings) -> Results:
        """Returns what a decode with a setting gives."""
        return Results(
            dataclasses.replace(self.audio, unread={}),  # they are among ``self.unread``
            self.texts,
            self.simulated[chunk],
            dict(self.unread),
            seconds=sum(self.seconds.values()),
            frame=self.frame,
        )

    def differing(self, chunk: ChunkSettings) -> list[str]:
        """Returns the utterances that streaming recognised otherwise, or at other times."""
        return sorted(
            name
            for name, streamed in self.streamed.get(chunk, {}).items()
            if (streamed.tokens, streamed.frames)
            != (self.simulated[chunk][name].tokens, self.simulated[chunk][name].frames)
        )


@dataclasses.dataclass
class Experiment:
    """One model on all sets."""

    name: str
    checkpoint: CheckpointOptions
    search: SearchOptions
    loaded: LoadedModel
    digest: str  # of the model
    own: ChunkSettings  # the setting that the model was validated with
    settings: list[ChunkSettings]
    sets: list[EvaluatedSet]
    costs: dict[ChunkSettings, StepCost] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of the training run."""
        return self.checkpoint.exp_dir

    def suffix(self, chunk: ChunkSettings) -> str:
        """Returns the part of names of result files that carries all settings."""
        return suffix(self.checkpoint, chunk, self.search, BiasOptions())

    def write_results(self) -> None:
        """Writes the result files of every set and setting, as decoding commands name them."""
        for one in self.sets:
            for chunk in self.settings:
                results = one.results(chunk)
                folder = self.folder / REPORT / RESULTS
                results.write(folder, one.name, self.suffix(chunk), self.loaded.tokenizer)


def evaluate(
    checkpoint: CheckpointOptions,
    options: EvaluateOptions,
    search: SearchOptions,
    sets: Sequence[AudioSet],
    cpu_layers: str,
) -> Experiment:
    """Recognises all sets with all settings, as far as that is not done already.

    Raises:
      UserError: the checkpoint cannot be used, or nothing that was asked for fits in memory.
    """
    loaded = load_recogniser(checkpoint, None, cpu_layers)
    search = search.resolved(loaded.model)
    own = loaded.config.streaming.default()
    settings, notes = settings_for(loaded.config, options.settings()), []
    if own.is_full_context:
        notes.append(
            "The model was not trained for streaming: it is evaluated in full context alone."
        )
    try:
        require_memory(list(sets), loaded.model.encoder, ChunkSettings(), decode_device())
    except UserError as e:
        if own.is_full_context:
            raise
        settings.remove(ChunkSettings())
        notes.append(f"Full context is left out: {e}.")
    alignment = settings[0] if settings[0].is_full_context else own
    digest = model_digest(loaded)
    about = described(digest, search, alignment)
    folder = checkpoint.exp_dir / REPORT / PARTS
    parts = [list(parts_of(audio, folder, about)) for audio in sets]
    work = Work(checkpoint, search, cpu_layers, tuple(settings), alignment)
    decode_parts([part for own_parts in parts for part in own_parts], work, options.jobs)
    frame = loaded.model.encoder.frame_seconds
    found = [_evaluated(audio, own_parts, settings, checkpoint.exp_dir, frame)
             for audio, own_parts in zip(sets, parts)]  # fmt: skip
    notes += [_unread_note(one) for one in found if one.unread]
    name = checkpoint.exp_dir.name
    experiment = Experiment(
        name, checkpoint, search, loaded, digest, own, settings, found, notes=notes
    )
    if not own.is_full_context:
        _stream(experiment, options.verify, {**about, "streamed": True}, folder)
    return experiment


def told_apart(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Returns the experiments with names of their own: of one name, the folders instead."""
    names = [experiment.name for experiment in experiments]
    return [
        e if names.count(e.name) == 1 else dataclasses.replace(e, name=str(e.folder))
        for e in experiments
    ]


def _unread_note(one: EvaluatedSet) -> str:
    first = next(iter(one.unread.values()))
    return (
        f"{one.name}: {len(one.unread)} of {len(one.unread) + len(one.texts)} utterances cannot "
        f"be read, and their words count as deleted; the first is {first}."
    )


def _evaluated(
    audio: AudioSet,
    parts: Sequence[Part],
    settings: Sequence[ChunkSettings],
    exp_dir: Path,
    frame: float,
) -> EvaluatedSet:
    """Reads the results of a set's parts, with encoder frames of ``frame`` seconds."""
    name = name_in_results(audio, exp_dir)
    found = EvaluatedSet(name, audio, unread=dict(audio.unread), frame=frame)
    found.simulated = {chunk: {} for chunk in settings}
    for part in parts:
        known = part.read(UTTERANCES)
        for name in ("texts", "seconds", "words", "not_aligned"):
            getattr(found, name).update(known[name])
        found.unread.update({i: Unread(i, *rest) for i, rest in known["unread"].items()})
        for chunk in settings:
            found.simulated[chunk].update(part.hypotheses(chunk))
    return found


def _stream(experiment: Experiment, verify: int, about: Mapping, folder: Path) -> None:
    """Measures a step with every setting, and streams the first utterances of each set."""
    loaded, model = experiment.loaded, experiment.loaded.model
    search = make_search(experiment.search, model)
    for chunk in experiment.settings:
        if chunk.is_full_context:
            continue
        experiment.costs[chunk] = measure_step(model, search, chunk)
        for one in experiment.sets:
            readable = (cut for cut in one.audio.cuts if cut.id in one.texts)
            cuts = list(islice(readable, verify))
            if not cuts:
                continue
            part = part_of(one.audio, cuts, folder, about)
            if part.missing([chunk]):
                model.encoder.set_chunk(chunk)
                engine = StreamingEngine(model.encoder, search, None, STREAMS)
                results, _ = decode_set(part.audio, engine, loaded.tokenizer, STREAMS, 0.1)
                part.write_hypotheses(chunk, results.hypotheses)
            one.streamed[chunk] = part.hypotheses(chunk)
            if one.differing(chunk):
                logging.warning(f"{one.name}, {chunk.describe()}: streaming differs")
