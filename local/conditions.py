"""How the WER moves with the recording: level, offset, telephone band, silence before speech.

    python -m local.conditions --exp-dir exp/streaming --data-dir data

decodes the sets as recorded and under each condition, with the model's own chunk setting, prints a
table, and writes it to EXP/conditions.txt (of sets of another corpus: EXP/conditions-SETS.txt).
Each condition is compared with the audio as recorded, utterance by utterance.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from xlsr_transducer.core.errors import complain, run_command
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.data.audio_file import resample
from xlsr_transducer.data.batches import Batch
from xlsr_transducer.evaluation.records import Record, word_errors
from xlsr_transducer.evaluation.significance import compare
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.audio_sets import AudioSet, audio_sets, name_in_results
from xlsr_transducer.recognition.decoding import ChunkOptions, LayerOptions, Results, batches
from xlsr_transducer.recognition.grid import BATCH_SECONDS, FrontEnd, Grid
from xlsr_transducer.recognition.level import at_level
from xlsr_transducer.search import SearchOptions

Change = Callable[[np.ndarray], np.ndarray]  # (n,) float32 samples at 16 kHz
RECORDED = "as recorded"
TELEPHONE = (300.0, 3400.0)  # Hz


def louder(decibels: float) -> Change:
    """Changes the level; what exceeds full scale is clipped, as a recording would be."""
    return lambda wave: np.clip(wave * 10 ** (decibels / 20), -1.0, 1.0)


def offset(value: float) -> Change:
    """Adds a constant, as some sound cards do."""
    return lambda wave: np.clip(wave + value, -1.0, 1.0)


def silent_first(seconds: float) -> Change:
    """Puts zeros before the speech."""
    return lambda wave: np.concatenate([np.zeros(int(seconds * SAMPLING_RATE)), wave])


def by_telephone(wave: np.ndarray) -> np.ndarray:
    """Returns what is left of the wave at 8 kHz between 300 and 3400 Hz."""
    narrow = resample(resample(wave, SAMPLING_RATE, 8000), 8000)
    return sosfiltfilt(butter(4, TELEPHONE, "bandpass", fs=SAMPLING_RATE, output="sos"), narrow)


CONDITIONS: dict[str, Change] = {
    RECORDED: lambda wave: wave,
    **{f"level {d:+d} dB": louder(d) for d in (10, -10, -20, -30, -40)},
    "every utterance at -26 dBFS": at_level,
    "level -40 dB, then at -26 dBFS": lambda wave: at_level(louder(-40)(wave)),
    "offset of 0.01": offset(0.01),
    "offset of 0.1": offset(0.1),
    "offset of 0.1, then at -26 dBFS": lambda wave: at_level(offset(0.1)(wave)),
    "8 kHz, 300 to 3400 Hz": by_telephone,
    "1 s of silence before": silent_first(1.0),
    "5 s of silence before": silent_first(5.0),
}


def changed(batch: Batch, change: Change) -> Batch:
    """Returns a batch of waveforms under a condition."""
    rows = [change(x[:n].numpy()) for x, n in zip(batch.inputs, batch.input_lens)]
    waves = [torch.from_numpy(np.ascontiguousarray(row, dtype=np.float32)) for row in rows]
    lens = torch.tensor([len(wave) for wave in waves])
    return dataclasses.replace(batch, inputs=pad_sequence(waves, True), input_lens=lens)


@torch.no_grad()
def decode(grid: Grid, audio: AudioSet, chunk: ChunkSettings) -> dict[str, Results]:
    """Recognises a set under each condition."""
    read = Results(audio)
    found = {name: read.sibling() for name in CONDITIONS}
    loader = batches(audio, grid.tokenizer, BATCH_SECONDS, 0)
    for batch in tqdm(loader, desc=audio.name, unit="batch", disable=None):
        for unread in batch.skipped:
            read.leave_out(unread)
        for name, change in CONDITIONS.items() if batch.ids else ():
            under = changed(batch, change).to(grid.device)
            x, lens = grid.xlsr.front_end(under.inputs, under.input_lens)
            found[name].add(under, grid.simulate(FrontEnd(under, x, lens), chunk))
    return found


def table(found: dict[str, dict[str, Results]], grid: Grid) -> str:
    """Returns WER, changed texts and p by condition, for each set."""
    heading = ["condition"]
    for name in found:
        heading += [f"{name}: WER %", "95 %", "texts changed", "p"]
    rows = {name: [name] for name in CONDITIONS}
    for results in found.values():
        decodes = {
            name: [
                Record(t.id, " ".join(t.ref), " ".join(t.hyp), t.ref, t.hyp)
                for t in result.transcripts(grid.tokenizer)
            ]
            for name, result in results.items()
        }
        plain = decodes[RECORDED]
        for name, records in decodes.items():
            rate, difference = word_errors(records), compare(plain, records)
            texts = sum(a.hyp != b.hyp for a, b in zip(plain, records))
            p = "" if name == RECORDED or difference is None else f"{difference.p:.4f}"
            cells = [f"{rate.percent:.2f}", f"{rate.low:.2f} to {rate.high:.2f}"]
            rows[name] += [*cells, f"{texts} of {len(records)}", p]
    return text_table([heading, *rows.values()])


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--split", default="", help="default: val and all tests")
    for cls in (CheckpointOptions, ChunkOptions, LayerOptions, SearchOptions):
        add_options(parser, cls)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    checkpoint, chunks, layers, search = (
        from_args(cls, args)
        for cls in (CheckpointOptions, ChunkOptions, LayerOptions, SearchOptions)
    )
    set_up_logging(checkpoint.exp_dir, "conditions")
    loaded = load_model(checkpoint)
    chunk = chunks.chunk(loaded.config)
    sets = audio_sets(args.data_dir, args.split)
    names = [name_in_results(audio, checkpoint.exp_dir) for audio in sets]
    grid = Grid(loaded, search, layers.cpu_layers)
    found = {name: decode(grid, audio, chunk) for name, audio in zip(names, sets)}
    text = f"{checkpoint.exp_dir}, {chunk.describe()}, {search.suffix()}\n{table(found, grid)}\n"
    print(text, end="")
    is_own = names == [audio.name for audio in sets]
    stem = "conditions" if is_own else "-".join(["conditions", *names])
    write_text(checkpoint.exp_dir / f"{stem}.txt", text)
    if any(results[RECORDED].unread for results in found.values()):
        return complain("utterances could not be read, see above; their words count as deleted")
    return 0


if __name__ == "__main__":
    run_command(main)
