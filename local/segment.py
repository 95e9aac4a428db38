"""Cuts long recordings with transcripts into utterances for training.

    python -m local.segment --exp-dir exp/full --audio news.mp3 --transcript news.srt \\
      --out-dir data/news

writes OUT_DIR/segments.txt, a list of `path|start|end|text|speaker` for ./prepare.sh, and
OUT_DIR/segments.tsv, which has each utterance with its confidence, and all that was left out
with the reason. The transcript (.txt, .srt or .vtt) may miss what was spoken and have what was
not. With --list, many recordings: a line `audio|transcript|speaker` for each. The model is any
with a CTC head or a transducer that recognises most of the words. What it computed stays in
OUT_DIR/work: a killed run resumes there, and a run with other options too; remove it in the end.
"""

from __future__ import annotations

import argparse
import collections
import logging
from collections.abc import Sequence
from pathlib import Path

from local.segmenting.recordings import (
    Recording,
    Segmenter,
    read_recordings,
    weights_digest,
    write_results,
)
from local.segmenting.transcripts import read_transcript
from local.segmenting.utterances import Row, SegmentOptions
from xlsr_transducer.core.errors import UserError, complain, run_command
from xlsr_transducer.core.files import locked
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args, word
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.data.text import TextNormalizer
from xlsr_transducer.data.text_options import add_text_options, read_record, text_options
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.decoding import ChunkOptions, LayerOptions, use_device

METHODS = ("ctc", "transducer")


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="a recording, of any kind and length")
    parser.add_argument("--transcript", type=Path, help="its text: .txt, .srt or .vtt")
    parser.add_argument("--speaker", type=word, help="of --audio (default: its name)")
    parser.add_argument("--list", type=Path, help="audio|transcript|speaker of many recordings")
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="the corpus of the model, if it is here: text is normalised as it was there",
    )
    parser.add_argument("--lang", type=word, default="et", help="language of the text")
    parser.add_argument(
        "--method", choices=METHODS, help="which head (default: ctc, if the model has it)"
    )
    parser.add_argument(
        "--window-seconds",
        type=Number(float, at_least=2, at_most=60),
        default=20.0,
        help="encoded at once: as long as the longer utterances of the model's training "
        "(default: 20)",
    )
    for cls in (SegmentOptions, CheckpointOptions, ChunkOptions, LayerOptions):
        add_options(parser, cls)
    add_text_options(parser)
    return parser


def recordings(args: argparse.Namespace) -> list[Recording]:
    """Returns what the options name.

    Raises:
      UserError: there is none, or not all that belongs to it.
    """
    if bool(args.list) == bool(args.audio) or bool(args.audio) != bool(args.transcript):
        raise UserError("give --audio and --transcript, or a --list")
    if args.list:
        if args.speaker:
            raise UserError("--speaker belongs to --audio; a --list names its speakers")
        return read_recordings(args.list)
    return [Recording(args.audio, args.transcript, args.speaker or args.audio.stem)]


def head_of(method: str | None, heads: Sequence[str]) -> str:
    """Returns the head that aligns.

    Raises:
      UserError: the model lacks it.
    """
    found = method or next((name for name in METHODS if name in heads), METHODS[0])
    if found not in heads:
        wanted = method or " or ".join(METHODS)
        raise UserError(f"this needs a model with {wanted}; this one has {', '.join(heads)}")
    return found


def report(name: str, rows: Sequence[Row]) -> None:
    """Logs how much of a recording is in utterances, and why the rest is not."""
    counts: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for row in rows:
        count = counts[row.reason or "utterances"]
        count[0] += 1
        count[1] += (row.end - row.start) if row.start is not None else 0.0
    table = [["", "number", "minutes"]]
    table += [[key, str(n), f"{s / 60:.1f}"] for key, (n, s) in counts.items()]
    logging.info(f"{name}:\n{text_table(table, is_right=True)}")


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    options, checkpoint = (from_args(cls, args) for cls in (SegmentOptions, CheckpointOptions))
    todo = recordings(args)
    set_up_logging()
    loaded = load_model(checkpoint)
    method = head_of(args.method, loaded.config.heads)
    digest = weights_digest(loaded.model)
    use_device(loaded.model, args.cpu_layers)
    segmenter = Segmenter(
        loaded,
        digest,
        from_args(ChunkOptions, args).chunk(loaded.config),
        method,
        args.window_seconds,
        TextNormalizer(text_options(args, read_record(args.data_dir)), args.lang),
        options,
        args.out_dir / "work",
    )
    status, done = 0, []
    with locked(args.out_dir / ".lock", f"{args.out_dir}: another run works there"):
        for recording in todo:
            try:
                rows = segmenter.rows(recording, read_transcript(recording.transcript))
            except UserError as e:
                status = complain(str(e))
                continue
            report(recording.audio.name, rows)
            done.append((recording, rows))
        if done:
            path = write_results(args.out_dir, done)
            count = sum(not row.reason for _, rows in done for row in rows)
            logging.info(f"{count} utterances: {path}; all else: {path.with_suffix('.tsv')}")
            if not count:
                status = complain(f"no utterance: {path.with_suffix('.tsv')} tells why")
    return status


if __name__ == "__main__":
    run_command(main)
