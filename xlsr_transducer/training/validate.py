"""Validation: losses per token and the WER of greedy search, on all of a split.

Of a classifier a label is a word, so that its WER is the share of utterances with a wrong one.
"""

from __future__ import annotations

import dataclasses
import logging

import torch

from xlsr_transducer.data.datamodule import DataModule
from xlsr_transducer.data.labels import words_of
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.heads import LossOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.scoring import Transcript, error_rate
from xlsr_transducer.search import Hypothesis, SearchOptions, make_search
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.gradient import autocast, finite
from xlsr_transducer.training.interrupt import Interrupt
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.samples import MOST_SAMPLES, Lattice, lattice_of


@dataclasses.dataclass(frozen=True)
class Validation:
    """The results of a validation."""

    sums: LossSums
    wer: float  # percent
    words: int  # in the references
    samples: list[Transcript]  # a few utterances, the same every time
    lattice: Lattice | None  # of the first of them that has tokens
    is_complete: bool  # False: it was interrupted


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
        if lattice is None and model.joiner is not None and int(batch.token_lens[0]):
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
    )
