"""Validation: losses per token and the WER of greedy search, on all of a split.

Of a classifier a label is a word, so that its WER is the share of utterances with a wrong one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from xlsr_transducer.data.datamodule import DataModule
from xlsr_transducer.data.labels import words_of
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.heads import LossOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.languages import Spread
from xlsr_transducer.recognition.scoring import Transcript, error_rate
from xlsr_transducer.search import Hypothesis, SearchOptions, make_search
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.gradient import autocast, finite
from xlsr_transducer.training.interrupt import Interrupt
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.samples import MOST_SAMPLES, Lattice, lattice_of


@dataclasses.dataclass(frozen=True)
class LanguageErrors:
    """The errors in the utterances of one language."""

    utterances: int
    words: int  # in the references
    wer: float  # percent


@dataclasses.dataclass(frozen=True)
class Validation:
    """The results of a validation."""

    sums: LossSums
    wer: float  # percent
    words: int  # in the references
    samples: list[Transcript]  # a few utterances, the same every time
    lattice: Lattice | None  # of the first of them that has tokens
    is_complete: bool  # False: it was interrupted
    languages: dict[str, LanguageErrors]  # of each; empty unless there are several

    @property
    def spread(self) -> Spread | None:
        """The worst language's WER, the mean of all, and the gap; None without several."""
        rates = {language: errors.wer for language, errors in self.languages.items()}
        return Spread.of(rates) if rates else None

    @property
    def worst(self) -> float:
        """The WER of the worst language; without several, that of all."""
        return self.spread.highest if self.spread else self.wer


@torch.no_grad()
def validate(
    model: SpeechModel,
    data: DataModule,
    splits: list[str],
    loss: LossOptions,
    chunk: ChunkSettings,
    autocast_dtype: torch.dtype | None,
    process: Process,
    interrupt: Interrupt,
) -> Validation:
    """Losses per token and WER over whole splits, in the precision of the training.

    The processes share the batches, and all get the result over all of them; samples and
    lattice are each process's own.
    """
    device = process.device
    classifier = model.classifier
    search = None if classifier else make_search(SearchOptions(), model)
    settings = dataclasses.astuple(chunk)
    sums, transcripts, lattice = LossSums(), [], None
    by_language: dict[str, list[Transcript]] = defaultdict(list)
    model.eval()
    for batch in data.valid_loader(splits, process.rank, process.world_size):
        if interrupt.requested:
            break
        for line in batch.skipped:
            logging.warning(f"skipped in validation, cannot be read: {line}")
        if not batch.ids:
            continue
        batch = batch.to(device)
        with autocast(device, autocast_dtype):
            out, lens = model.encoder(batch.inputs, batch.input_lens, *settings)
        out = out.float()
        losses = model.losses(out, lens, batch.tokens, batch.token_lens, loss)
        is_finite = finite(losses)
        bad = [i for i, ok in zip(batch.ids, is_finite.tolist()) if not ok]
        if bad:
            logging.warning(f"validation: loss not finite: {', '.join(bad)}")
        sums.add(losses, is_finite, batch.token_lens, batch.seconds)
        if search is None:
            results = [Hypothesis([i]) for i in classifier(out, lens).argmax(1).tolist()]
        else:
            results = search.results(
                search.advance(out, lens, search.init_state(len(batch.ids), device))
            )
        for name, text, hypothesis in zip(batch.ids, batch.texts, results):
            words = words_of(data.tokenizer, data.tokenizer.decode(hypothesis.tokens))
            transcripts.append(Transcript(name, words_of(data.tokenizer, text), words))
        for language, transcript in zip(batch.languages, transcripts[-len(batch.ids) :]):
            by_language[language].append(transcript)
        if lattice is None and search is not None and int(batch.token_lens[0]):
            name, tokens = batch.ids[0], batch.tokens[0, : batch.token_lens[0]].tolist()
            frames, pieces = out[0, : lens[0]], data.tokenizer.tokens
            lattice = lattice_of(model, name, frames, tokens, results[0], pieces, loss.rnnt_type)
    rate = error_rate([(t.ref, t.hyp) for t in transcripts], num_resamples=1)
    errors, words = process.sum([rate.errors, rate.num_ref])
    return Validation(
        sums.over_all(process),
        100.0 * errors / words if words else rate.percent,
        int(words),
        transcripts[:MOST_SAMPLES],
        lattice,
        is_complete=not process.any(interrupt.requested),
        languages=_errors_of(by_language, process),
    )


def _errors_of(
    by_language: dict[str, list[Transcript]], process: Process
) -> dict[str, LanguageErrors]:
    """Returns the errors of each language over all processes; empty unless there are several.

    Utterances whose manifest names no language belong to none.
    """
    languages = [name for name in process.union(by_language) if name]
    if len(languages) < 2:
        return {}
    counts: list[float] = []
    for language in languages:
        here: Sequence[Transcript] = by_language.get(language, ())
        rate = error_rate([(t.ref, t.hyp) for t in here], num_resamples=1)
        counts += [len(here), rate.num_ref, rate.errors]
    total = process.sum(counts)
    found = {}
    for language, *of_one in zip(languages, total[::3], total[1::3], total[2::3]):
        utterances, words, errors = of_one
        # Without a word in the references: no error, or infinitely many, as in ``ErrorRate``.
        wer = 100.0 * errors / words if words else math.inf if errors else 0.0
        found[language] = LanguageErrors(int(utterances), int(words), wer)
    return found
