"""Writes a trained model in the formats of other programs, each checked against the checkpoint:
``python -m xlsr_transducer.export --exp-dir exp --jit 1``.

Every file is loaded again in a fresh process and run on audio; one whose encoder output or text
is not the checkpoint's is deleted, and the exit status is 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.exporting import classifier, int8_report
from xlsr_transducer.exporting.formats import FormatOptions, Job, chosen_formats
from xlsr_transducer.exporting.parity import (
    Reference,
    Verdict,
    built_in_audio,
    check,
    format_table,
)
from xlsr_transducer.exporting.placing import put_in_place, scratch_folder
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.recognition.decoding import ChunkOptions

TOKENS, BPE_MODEL = "tokens.txt", "bpe.model"


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--out-dir", type=Path, help="where the files go (default: --exp-dir)")
    parser.add_argument(
        "--wav", type=Path, nargs="+", default=[], help="audio to compare on (default: built in)"
    )
    for cls in (CheckpointOptions, ChunkOptions, FormatOptions):
        add_options(parser, cls)
    return parser


def load_job(
    checkpoint: CheckpointOptions, chunk_options: ChunkOptions, formats: FormatOptions
) -> Job:
    """Returns the model as it is exported: plain layers on the CPU, without gradients."""
    loaded = load_model(checkpoint)
    classifier.check_formats(loaded, formats)
    chunk = chunk_options.chunk(loaded.config)
    if not chunk.is_full_context:
        if not isinstance(loaded.model.encoder, StreamingXLSREncoder):
            loaded = load_model(checkpoint, streaming=True)
        loaded.model.encoder.set_chunk(chunk)
    loaded.model.requires_grad_(False)
    return Job(loaded, chunk, checkpoint.describe(), checkpoint.exp_dir, formats)


def export(job: Job, out_dir: Path, reference: Reference) -> list[Verdict]:
    """Writes and checks all formats; what passes is put into ``out_dir``."""
    verdicts = []
    for write in chosen_formats(job.options, job.loaded.model.classifier is not None):
        with scratch_folder(out_dir) as folder:
            job.loaded.tokenizer.write_tokens(folder / TOKENS)
            (folder / BPE_MODEL).write_bytes(job.loaded.tokenizer.to_bytes())
            passed = {TOKENS: out_dir, BPE_MODEL: out_dir}
            for artifact in write(job, folder):
                logging.info(f"checking {', '.join(artifact.files)} in a fresh process")
                verdicts.append(check(artifact, folder, reference))
                if verdicts[-1].is_passed:
                    passed.update(dict.fromkeys(artifact.files, artifact.home or out_dir))
            put_in_place(folder, passed)
    return verdicts


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    set_up_logging()
    checkpoint, chunk, formats = (
        from_args(cls, args) for cls in (CheckpointOptions, ChunkOptions, FormatOptions)
    )
    out_dir = args.out_dir or checkpoint.exp_dir
    for folder in (out_dir, formats.hf):
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; give a folder for what is exported")
    waves = [torch.from_numpy(read_audio(path)) for path in args.wav] or built_in_audio()
    job = load_job(checkpoint, chunk, formats)
    validation = int8_report.load_validation(formats.data_dir) if formats.int8 else None
    verdicts = export(job, out_dir, Reference(job.loaded, waves))
    print(format_table(verdicts))
    if validation:
        print("\n" + int8_report.report(job, out_dir, validation))
    failed = [name for v in verdicts if not v.is_passed for name in v.artifact.files]
    if failed:
        print(f"deleted, as they do not give what the checkpoint gives: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
