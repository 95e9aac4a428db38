"""Recognises whole utterances, seeing what a streaming model would see:
``python -m xlsr_transducer.decode --exp-dir exp``, or followed by wav files.

It processes the waveform, whatever features the model was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.audio_sets import AudioSet, name_in_results
from xlsr_transducer.recognition.decoding import (
    DecodeOptions,
    Results,
    batches,
    closest,
    decode_device,
    load_recogniser,
    require_languages,
    require_memory,
    status_of,
    suffix,
)
from xlsr_transducer.recognition.level import LevelOptions
from xlsr_transducer.recognition.scoring import format_table
from xlsr_transducer.search import BiasOptions, Search, SearchOptions, make_search
from xlsr_transducer.search.options import ORACLE

OPTIONS = (CheckpointOptions, DecodeOptions, LevelOptions, SearchOptions, BiasOptions)


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("wavs", nargs="*", type=Path, help="audio files to transcribe")
    parser.add_argument(
        "--max-duration", type=Number(float, above=0), default=200.0, help="seconds per batch"
    )
    for cls in OPTIONS:
        add_options(parser, cls)
    return parser


@torch.no_grad()
def decode_set(
    audio: AudioSet, loader: DataLoader, loaded: LoadedModel, search: Search, chunk: ChunkSettings
) -> Results:
    """Recognises every utterance of a set, in the batches of ``loader``."""
    model, results = loaded.model, Results(audio, frame=loaded.model.encoder.frame_seconds)
    device = next(model.parameters()).device
    for batch in tqdm(loader, desc=audio.name, unit="batch", disable=None):
        for unread in batch.skipped:
            results.leave_out(unread)
        if not batch.ids:
            continue
        start = time.perf_counter()
        batch = batch.to(device)
        out, lens = model.encoder.encode(batch.inputs, batch.input_lens, *chunk)
        state = search.advance(out, lens, search.init_state(len(batch.ids), device))
        if search.options.decoding_method == ORACLE:
            nbest = search.nbest(state, search.options.num_paths)
            found = closest(nbest, batch.texts, loaded.tokenizer)
        else:
            found = search.results(state)
        results.elapsed += time.perf_counter() - start
        results.add(batch, found)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    checkpoint, options, level, search_options, bias_options = (
        from_args(cls, args) for cls in OPTIONS
    )
    bias_options.require_supported(search_options)
    if search_options.method == ORACLE and args.wavs:
        raise UserError(f"--decoding-method {ORACLE} needs texts to compare with: no audio files")
    set_up_logging()
    sets = options.audio_sets(args.wavs)
    loaded = load_recogniser(checkpoint, cpu_layers=options.cpu_layers)
    search_options = search_options.resolved(loaded.model)
    folder = checkpoint.exp_dir / search_options.method
    if not args.wavs:
        set_up_logging(folder, "decode")
    chunk = options.chunk(loaded.config)
    require_languages(sets, loaded.tokenizer)
    require_memory(sets, loaded.model.encoder, chunk, decode_device())
    bias = bias_options.load(loaded.tokenizer, checkpoint.source)
    lg = bias_options.load_lg(loaded.tokenizer)
    search = make_search(search_options, loaded.model, bias, lg)
    settings = suffix(checkpoint, chunk, search_options, bias_options, *level.suffix())
    given = (loaded.tokenizer, args.max_duration, options.num_workers, level.change())
    scores, speeds = [], []
    for audio in sets:
        name = "" if audio.files else name_in_results(audio, checkpoint.exp_dir)
        results = decode_set(audio, batches(audio, *given), loaded, search, chunk)
        if audio.files:
            return results.print_texts(loaded.tokenizer)
        scores.append(results.write(folder, name, settings, loaded.tokenizer))
        speeds.append(f"{name} {results.rtf:.4f}")
    print(format_table(scores), f"RTF on {decode_device()}: " + ", ".join(speeds), sep="\n")
    return status_of(scores)


if __name__ == "__main__":
    run_command(main)
