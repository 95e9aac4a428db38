"""Stage 3: features of XLSR at a level, stored once for all trainings.

    python -m local.extract_features --xlsr exp/toy_xlsr --cut frontend

reads DATA/manifests/cuts_SPLIT.jsonl.gz and writes, in DATA/features/NAME (by default named
after the settings), features.json, cuts_SPLIT.jsonl.gz, short_SPLIT.tsv and
unreadable_SPLIT.tsv with what was left out, the arrays (float16) and a log. Interrupted at any
time and started again, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from local.extract_cluster import (
    local_cluster,
    prepare_dask,
    remote_cluster,
    slurm_cluster,
    slurm_options,
    tls_security,
)
from local.extract_progress import Progress
from local.extract_split import Split, merge_split, remove_unused
from local.extract_workers import InProcess, Task, Workers
from local.extractors import describe_features
from local.manifests import split_names
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import locked
from xlsr_transducer.core.logs import LogFile, set_up_logging
from xlsr_transducer.core.options import Number, Parser, folder_name, str2bool
from xlsr_transducer.data.features import INFO_FILE, cuts_path
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr

NUM_JOBS = 3


def get_parser() -> Parser:
    parser = Parser(
        prog="extract_features.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data"), help="default: data")
    add("--splits", nargs="+", metavar="SPLIT", help="default: all in manifests/splits.json")
    add(
        "--name",
        type=folder_name,
        help="folder in DATA/features (default: from level, normalisation and chunks)",
    )
    add(
        "--xlsr",
        default="facebook/wav2vec2-large-xlsr-53",
        help="Hugging Face name, folder, or fairseq .pt (default: %(default)s)",
    )
    add("--cut", default="frontend", help="frontend (default), a layer from 1, or last")
    add(
        "--normalize",
        choices=("cumulative", "utterance", "none"),
        help="of the waveform (default: cumulative, which can stream; utterance with s3prl)",
    )
    add(
        "--chunk-size",
        type=Number(int, at_least=1, also=-1),
        default=-1,
        help="20 ms frames; -1 (default): whole utterance",
    )
    add(
        "--left-context-chunks",
        type=Number(int, at_least=0, also=-1),
        default=-1,
        help="-1 (default): all",
    )
    add("--attention-sink-size", type=Number(int, at_least=0), default=0, help="default: 0")
    add(
        "--extractor",
        choices=("transformers", "s3prl"),
        default="transformers",
        help="transformers (default): the network as Hugging Face's Wav2Vec2Model defines it, "
        "computed by this project's module, which can also mask by chunk; s3prl: by s3prl, for "
        "layers in full context",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: workers share all GPUs")
    add(
        "--num-jobs",
        type=Number(int, at_least=1, at_most=1024),
        help=f"workers, of one thread each, on this machine or by --slurm (default: {NUM_JOBS})",
    )
    add("--single-process", action="store_true", help="no workers and no Dask")
    add("--dask", metavar="ADDRESS", help="the scheduler of a Dask cluster: tls://HOST:PORT")
    add(
        "--dask-tls",
        type=Path,
        help="its certificates: a folder with ca.pem, cert.pem and key.pem, or a YAML file that "
        "names them as ca, cert and key",
    )
    add(
        "--dask-insecure",
        type=str2bool,
        default=False,
        help="1: a tcp:// scheduler without TLS, where whoever reaches it runs programs as you",
    )
    add(
        "--slurm",
        type=Path,
        metavar="YAML",
        help="workers in jobs of SLURM: options of dask-jobqueue's SLURMCluster, such as queue, "
        "cores, memory, walltime",
    )
    add(
        "--max-duration",
        type=Number(float, above=0),
        default=30.0,
        help="seconds per batch (default: 30)",
    )
    add(
        "--subset",
        type=Number(int, at_least=1),
        help="only the first N utterances of each split, for a trial",
    )
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for what does not exist here, and for options that exclude each other."""
    elsewhere = bool(args.dask or args.slurm)
    if args.device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    splits = split_names(args.data_dir)
    for split in args.splits or ():
        if split not in splits:
            raise UserError(f"--splits {split}: the splits are {', '.join(splits)}")
    ways = {"--single-process": args.single_process, "--dask": args.dask, "--slurm": args.slurm}
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        raise UserError(f"{given[0]} contradicts {given[1]}: give one of them")
    if args.num_jobs and (args.single_process or args.dask):
        raise UserError(f"--num-jobs has no effect with {given[0]}: leave one of them out")
    check_dask(args.dask, args.dask_tls, args.dask_insecure)


def check_dask(address: str | None, tls: Path | None, insecure: bool) -> None:
    """Raises UserError for a scheduler that is not asked for as what it is."""
    if not address:
        if tls or insecure:
            raise UserError("--dask-tls and --dask-insecure belong to --dask, which is not given")
        return
    if not re.fullmatch(r"(tls|tcp)://[^\s/]+:\d+", address):
        raise UserError(f"--dask {address}: must be such as tls://HOST:PORT")
    if address.startswith("tls://") and (insecure or not tls):
        raise UserError(f"--dask {address}: give its certificates, by --dask-tls FOLDER")
    if address.startswith("tcp://") and (tls or not insecure):
        raise UserError(
            f"--dask {address}: Dask runs what it is sent, by anybody over tcp://: start the "
            "scheduler with TLS and give --dask-tls FOLDER, or --dask-insecure 1 in a network you "
            "trust"
        )


def make_runner(
    args: argparse.Namespace, task: Task, checkpoint: XlsrCheckpoint
) -> InProcess | Workers:
    """Returns what computes shards, as the options say.

    Raises:
      UserError: Dask is missing, or there are no certificates.
    """
    if args.single_process:
        return InProcess(task, checkpoint)
    prepare_dask()
    num_jobs = args.num_jobs or NUM_JOBS
    if args.slurm:
        options = slurm_options(args.slurm)
        return Workers(task, lambda: slurm_cluster(options, num_jobs, task.folder))
    if args.dask:
        security = tls_security(args.dask_tls) if args.dask_tls else None
        return Workers(task, lambda: remote_cluster(args.dask, security))
    return Workers(task, lambda: local_cluster(num_jobs))


def feature_info(args: argparse.Namespace, checkpoint: XlsrCheckpoint) -> FeatureInfo:
    """Returns what the options ask for, checked against the checkpoint before any work is done."""
    normalize = args.normalize or ("utterance" if args.extractor == "s3prl" else "cumulative")
    chunk = ChunkSettings(args.chunk_size, args.left_context_chunks, args.attention_sink_size)
    chunk = chunk.require_consistent().simplified()
    return describe_features(checkpoint, args.cut, normalize, chunk, args.extractor)


@contextlib.contextmanager
def feature_folder(args: argparse.Namespace, info: FeatureInfo) -> Iterator[Path]:
    """The folder for these features, for this process alone, with its log."""
    subset = f"-subset-{args.subset}" if args.subset else ""
    folder = args.data_dir / "features" / (args.name or info.name + subset)
    if (folder / INFO_FILE).is_file():
        differences = info.differences(FeatureInfo.load(folder))
        if differences:
            raise UserError(
                f"{folder} holds features made with other settings ({'; '.join(differences)}, "
                "the new one first): give another --name, or remove the folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"another extraction is writing to {folder}: wait for it"):
        info.save(folder)
        handler = LogFile(folder / "log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            yield folder
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()


def extract_split(
    args: argparse.Namespace, folder: Path, name: str, width: int, runner: Workers | InProcess
) -> None:
    """Computes the features of a split that are not there yet, then writes its manifests.

    Args:
      width: of the features.
    """
    split = Split(args.data_dir, folder, name, args.subset)
    split.find_stored()
    missing = split.missing_seconds
    if missing < split.seconds:
        logging.info("%s: %.2f hours are there already", name, (split.seconds - missing) / 3600)
    if missing:
        cuts_path(folder, name).unlink(missing_ok=True)
        with Progress(name, missing) as progress:
            runner.run(split.missing_shards(width), progress)
        logging.info("%s: %.5f hours of audio per second", name, progress.speed())
        split.find_stored()
    merge_split(split)
    if not args.subset:
        remove_unused(split)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    check_options(args)
    checkpoint = load_xlsr(args.xlsr)
    info = feature_info(args, checkpoint)
    with feature_folder(args, info) as folder:
        logging.info("%s: %d wide, in %s", args.xlsr, info.feature_dim, folder)
        # Workers may stand in another folder.
        task = Task(info.xlsr, info, folder.resolve(), args.device, args.max_duration)
        runner = make_runner(args, task, checkpoint)
        del checkpoint  # workers load it themselves, and it may be large
        with runner:
            for split in args.splits or split_names(args.data_dir):
                extract_split(args, folder, split, info.feature_dim, runner)


if __name__ == "__main__":
    run_command(main)
