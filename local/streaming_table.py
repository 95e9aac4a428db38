"""One model, many latencies: WER for each chunk setting, simulated and really streamed.

    python -m local.streaming_table --exp-dir exp/streaming --data-dir data

prints a table, writes it to EXP/streaming_table.txt with a picture beside it (of sets of another
corpus than the model's: EXP/streaming_table-SETS.txt), and fails if any utterance's tokens or
their times differ between simulation and streaming, or if one could not be read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from xlsr_transducer.core.errors import complain, run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import chunk_lists
from xlsr_transducer.model.cpu_choice import AUTO, CPU_LAYERS
from xlsr_transducer.recognition.audio_sets import audio_sets, name_in_results
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.grid import Grid, GridResult
from xlsr_transducer.recognition.scoring import ErrorRate, error_rate
from xlsr_transducer.search import SearchOptions

FRAME_MS = 20


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--split", default="", help="default: all test splits and val")
    for name, values in (("chunks", "16,32,64"), ("lefts", "1,2,4"), ("sinks", "4")):
        parser.add_argument(f"--{name}", default=values, help=f"(default: {values})")
    parser.add_argument("--cpu-layers", choices=CPU_LAYERS, default=AUTO, help="as in decode")
    for cls in (CheckpointOptions, SearchOptions):
        add_options(parser, cls)
    return parser


class Table:
    """WER of each setting (rows) and set (columns)."""

    def __init__(self, names: list[str], columns: list[list[GridResult]], tokenizer: Tokenizer):
        """
        Args:
          names: of the sets, in the results of the training.
          columns: of each set, one result per setting.
        """
        self.names = names
        self.unread = [len(column[0].simulated.unread) for column in columns]
        self.different = [
            f"{name} {result.chunk.describe()} {utterance}"
            for name, column in zip(names, columns)
            for result in column
            for utterance in result.differing()
        ]
        self.rows = [
            (row[0].chunk, [word_errors(result.simulated, tokenizer) for result in row])
            for row in zip(*columns)
        ]

    def format(self) -> str:
        """Returns the table as text."""
        words = [str(rate.num_ref) for rate in self.rows[0][1]]
        widths = [max(14, len(name) + 2) for name in self.names]
        lines = [f"{'chunk':>16}{'left':>6}{'sinks':>7}" + _cells(self.names, widths)]
        lines.append(f"{'words':>29}" + _cells(words, widths))
        lines.append(f"{'unread':>29}" + _cells(map(str, self.unread), widths))
        for chunk, rates in self.rows:
            cells = f"{chunk.chunk_size:>6} ({chunk.chunk_size * FRAME_MS:>4} ms)"
            cells = "whole utterance" if chunk.is_full_context else cells
            left = "" if chunk.is_full_context else str(chunk.left_context_chunks)
            sinks = "" if chunk.is_full_context else str(chunk.attention_sink_size)
            line = f"{cells:>16}{left:>6}{sinks:>7}"
            lines.append(line + _cells((f"{r.percent:.2f}" for r in rates), widths))
        return "\n".join(lines)

    def plot(self, path: Path) -> None:
        """Draws the WER over the chunk size, one line per left context, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5 * len(self.names), 3.6), layout="tight")
        axes = figure.subplots(1, len(self.names), squeeze=False)[0]
        for number, (axis, name) in enumerate(zip(axes, self.names)):
            for chunk, rates in self.rows:
                if chunk.is_full_context:
                    label = "whole utterance"
                    axis.axhline(rates[number].percent, color="gray", ls=":", label=label)
            self._lines(axis, number)
            axis.set(title=name, xlabel="chunk (ms)", ylabel="WER (%)", ylim=(0, None))
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=7)
        figure.savefig(path, dpi=120, format="png")

    def _lines(self, axis, number: int) -> None:
        chunked = [(c, r[number].percent) for c, r in self.rows if not c.is_full_context]
        kinds = sorted({(c.left_context_chunks, c.attention_sink_size) for c, _ in chunked})
        for left, sinks in kinds:
            points = [
                (c.chunk_size * FRAME_MS, percent)
                for c, percent in chunked
                if (c.left_context_chunks, c.attention_sink_size) == (left, sinks)
            ]
            axis.plot(*zip(*sorted(points)), "o-", ms=3, label=f"left {left}, sinks {sinks}")


def _cells(values: Iterable[str], widths: Iterable[int]) -> str:
    return "".join(value.rjust(width) for value, width in zip(values, widths))


def word_errors(results: Results, tokenizer: Tokenizer) -> ErrorRate:
    """Returns the WER of a set; words of an utterance that could not be read count as deleted."""
    return error_rate([(t.ref, t.hyp) for t in results.transcripts(tokenizer)])


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    lists = chunk_lists(args.chunks, args.lefts, args.sinks, ("--chunks", "--lefts", "--sinks"))
    chunked = [ChunkSettings(*v).require_streaming() for v in itertools.product(*lists)]
    checkpoint, search = (from_args(cls, args) for cls in (CheckpointOptions, SearchOptions))
    search.require_streaming()
    set_up_logging(checkpoint.exp_dir, "streaming-table")
    loaded = load_model(checkpoint, streaming=True)
    sets = audio_sets(args.data_dir, args.split)
    grid = Grid(loaded, search, args.cpu_layers)
    columns = [grid.decode(audio, [ChunkSettings(), *chunked]) for audio in sets]
    names = [name_in_results(audio, checkpoint.exp_dir) for audio in sets]
    table = Table(names, columns, loaded.tokenizer)
    title = f"WER (%) of {checkpoint.exp_dir}, {search.suffix()}"
    same = f"{len(table.different)} utterances differ between simulation and streaming"
    text = "\n".join([title, table.format(), same, *table.different[:20]])
    print(text)
    is_own = names == [audio.name for audio in sets]
    stem = "streaming_table" if is_own else "-".join(["streaming_table", *names])
    paths = [checkpoint.exp_dir / (stem + end) for end in (".txt", ".png")]
    with replacing(*paths) as [text_file, picture]:
        text_file.write_text(text + "\n", encoding="utf-8")
        table.plot(picture)
    if table.different:
        return 1
    if any(table.unread):
        return complain("utterances could not be read, see above; their words count as deleted")
    return 0


if __name__ == "__main__":
    run_command(main)
