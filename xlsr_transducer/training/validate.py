"""Validation: losses per token and the WER of greedy search, on all of a split."""

from __future__ import annotations

import torch

from xlsr_transducer.data.datamodule import DataModule
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.transducer import LossOptions, Transducer
from xlsr_transducer.scoring import error_rate
from xlsr_transducer.search import SearchOptions, make_search
from xlsr_transducer.training.metrics import LossSums


@torch.no_grad()
def validate(
    model: Transducer,
    data: DataModule,
    splits: list[str],
    loss: LossOptions,
    chunk: ChunkSettings,
) -> tuple[LossSums, float, int]:
    """Losses, WER in percent, and the number of reference words."""
    device = next(model.parameters()).device
    search = make_search(SearchOptions(), model.decoder, model.joiner)
    settings = (chunk.chunk_size, chunk.left_context_chunks, chunk.attention_sink_size)
    sums, pairs = LossSums(), []
    model.eval()
    for batch in data.valid_loader(splits):
        if not batch.ids:
            continue
        batch = batch.to(device)
        losses = model(batch.inputs, batch.input_lens, batch.tokens, batch.token_lens, loss, chunk)
        is_finite = torch.stack([torch.isfinite(x) for x in losses]).all(0)
        sums.add(losses, is_finite, batch.token_lens, batch.seconds)
        out, lens = model.encoder(batch.inputs, batch.input_lens, *settings)
        state = search.advance(out, lens, search.init_state(len(batch.ids), device))
        for text, hypothesis in zip(batch.texts, search.results(state)):
            words = data.tokenizer.decode(hypothesis.tokens).split()
            pairs.append((text.split(), words))
    rate = error_rate(pairs, num_resamples=1)
    return sums, rate.percent, rate.num_ref
