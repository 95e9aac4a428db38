"""One model, many latencies: WER for each chunk setting, simulated and really streamed.

    python -m local.streaming_table --exp-dir exp/streaming --data-dir data

prints a table, writes it to EXP/streaming_table.txt with a picture beside it (of sets of another
corpus than the model's: EXP/streaming_table-SETS.txt), and fails if any utterance's tokens or
their times differ between simulation and streaming, or if one could not be read.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from xlsr_transducer import decode
from xlsr_transducer.core.errors import complain, run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import chunk_lists
from xlsr_transducer.model.cpu_choice import AUTO, CPU_LAYERS
from xlsr_transducer.recognition.audio_sets import AudioSet, audio_sets, name_in_results
from xlsr_transducer.recognition.decoding import Results, load_recogniser
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.recognition.scoring import ErrorRate, error_rate
from xlsr_transducer.recognition.streaming_sets import decode_set as decode_set_streaming
from xlsr_transducer.search import SearchOptions, make_search

FRAME_MS = 20


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--split", default="", help="default: all test splits and val")
    for name, values in (("chunks", "16,32,64"), ("lefts", "1,2,4"), ("sinks", "0,4,16")):
        parser.add_argument(f"--{name}", default=values, help=f"(default: {values})")
    parser.add_argument("--num-decode-streams", type=Number(int, at_least=1), default=16)
    parser.add_argument("--cpu-layers", choices=CPU_LAYERS, default=AUTO, help="as in decode")
    for cls in (CheckpointOptions, SearchOptions):
        add_options(parser, cls)
    return parser


def word_errors(results: Results, loaded: LoadedModel) -> ErrorRate:
    """WER of a set; all words of an utterance that could not be read count as deleted."""
    return error_rate([(t.ref, t.hyp) for t in results.transcripts(loaded.tokenizer)])


def differing(a: Results, b: Results) -> list[str]:
    """Utterances whose tokens or times are not the same."""
    keys = a.hypotheses.keys() | b.hypotheses.keys()
    both = {k: (a.hypotheses.get(k), b.hypotheses.get(k)) for k in keys}
    return sorted(
        k
        for k, (x, y) in both.items()
        if x is None or y is None or (x.tokens, x.frames) != (y.tokens, y.frames)
    )


class Table:
    """Runs the settings and collects the rows."""

    def __init__(self, loaded: LoadedModel, sets: list[AudioSet], args: argparse.Namespace):
        self.loaded, self.sets, self.args = loaded, sets, args
        self.names = [name_in_results(audio, args.exp_dir) for audio in sets]
        model = loaded.model
        self.search = make_search(
            from_args(SearchOptions, args),
            model.decoder,
            model.joiner,
            ctc_output=model.ctc_output,
        )
        self.rows: list[tuple[ChunkSettings, list[ErrorRate]]] = []
        self.different: list[str] = []
        self.unread: dict[str, int] = {}  # utterances, by set

    def run(self, chunk: ChunkSettings) -> None:
        """Simulates one setting, and streams it if it can stream."""
        rates = []
        for audio in self.sets:
            simulated = decode.decode_set(audio, self.loaded, self.search, chunk, 100.0, 0)
            rates.append(word_errors(simulated, self.loaded))
            self.unread[audio.name] = len(simulated.unread)
            if chunk.is_full_context:
                continue
            self.loaded.model.encoder.set_chunk(chunk)
            engine = StreamingEngine(self.loaded.model.encoder, self.search)
            streamed, _ = decode_set_streaming(
                audio, engine, self.loaded.tokenizer, self.args.num_decode_streams, 0.1
            )
            for name in differing(simulated, streamed):
                self.different.append(f"{audio.name} {chunk.describe()} {name}")
        self.rows.append((chunk, rates))
        logging.info(f"{chunk.describe()}: " + ", ".join(f"{r.percent:.2f} %" for r in rates))

    def format(self) -> str:
        """The table as text."""
        words = [str(rate.num_ref) for rate in self.rows[0][1]]
        widths = [max(14, len(name) + 2) for name in self.names]
        lines = [f"{'chunk':>16}{'left':>6}{'sinks':>7}" + _cells(self.names, widths)]
        lines.append(f"{'words':>29}" + _cells(words, widths))
        lines.append(f"{'unread':>29}" + _cells(map(str, self.unread.values()), widths))
        for chunk, rates in self.rows:
            cells = f"{chunk.chunk_size:>6} ({chunk.chunk_size * FRAME_MS:>4} ms)"
            cells = "whole utterance" if chunk.is_full_context else cells
            left = "" if chunk.is_full_context else str(chunk.left_context_chunks)
            sinks = "" if chunk.is_full_context else str(chunk.attention_sink_size)
            line = f"{cells:>16}{left:>6}{sinks:>7}"
            lines.append(line + _cells((f"{r.percent:.2f}" for r in rates), widths))
        return "\n".join(lines)

    def file_stem(self) -> str:
        """The name of the table's files, another one for sets of another corpus."""
        if self.names == [audio.name for audio in self.sets]:
            return "streaming_table"
        return "-".join(["streaming_table", *self.names])

    def plot(self, path: Path) -> None:
        """WER over the chunk size, one line per left context, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5 * len(self.sets), 3.6), layout="tight")
        axes = figure.subplots(1, len(self.sets), squeeze=False)[0]
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


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    lists = chunk_lists(args.chunks, args.lefts, args.sinks, ("--chunks", "--lefts", "--sinks"))
    settings = [ChunkSettings(*v).require_streaming() for v in itertools.product(*lists)]
    checkpoint = from_args(CheckpointOptions, args)
    set_up_logging(checkpoint.exp_dir, "streaming-table")
    loaded = load_recogniser(checkpoint, True, args.cpu_layers)
    sets = audio_sets(args.data_dir, args.split)
    table = Table(loaded, sets, args)
    table.run(ChunkSettings())
    for setting in settings:
        table.run(setting)
    title = f"WER (%) of {checkpoint.exp_dir}, {table.search.options.suffix()}"
    same = f"{len(table.different)} utterances differ between simulation and streaming"
    text = "\n".join([title, table.format(), same, *table.different[:20]])
    print(text)
    paths = [checkpoint.exp_dir / (table.file_stem() + end) for end in (".txt", ".png")]
    with replacing(*paths) as [text_file, picture]:
        text_file.write_text(text + "\n", encoding="utf-8")
        table.plot(picture)
    if table.different:
        return 1
    if any(table.unread.values()):
        return complain("utterances could not be read, see above; their words count as deleted")
    return 0


if __name__ == "__main__":
    run_command(main)
