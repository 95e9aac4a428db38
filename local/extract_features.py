"""Stage 3: features of XLSR at a cut, stored once for all trainings.

    python -m local.extract_features --xlsr exp/tiny_xlsr --cut frontend

reads DATA/manifests/cuts_SPLIT.jsonl.gz and writes, in DATA/features/NAME (by default named
after the settings), features.json, cuts_SPLIT.jsonl.gz, short_SPLIT.tsv and
unreadable_SPLIT.tsv with what was left out, the arrays (float16) and a log. Interrupted at any
time and started again, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fcntl
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lhotse import Features, MonoCut
from lhotse.utils import fastcopy

from local.extract_progress import Progress
from local.extract_shard import SHORTEST, Shard, ShardResult, plan_shards
from local.extract_workers import InProcess, Task, Workers
from local.extractors import describe_features
from local.manifests import (
    JsonlGzWriter,
    manifest_path,
    read_jsonl_gz,
    replacing,
    split_names,
)
from xlsr_transducer.data.audio import AUDIO_DURATION
from xlsr_transducer.data.features import INFO_FILE, SAMPLING_RATE, FeatureInfo, cuts_path
from xlsr_transducer.errors import UserError, run_command
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr
from xlsr_transducer.options import Number, Parser, folder_name

MAX_UNREADABLE = 1.0  # percent of a split's cuts


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
        help="folder in DATA/features (default: from cut, normalisation and chunks)",
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
    jobs = parser.add_mutually_exclusive_group()
    jobs.add_argument(
        "--num-jobs",
        type=Number(int, at_least=1, at_most=1024),
        default=3,
        help="workers, of one thread each (default: 3)",
    )
    jobs.add_argument("--single-process", action="store_true", help="no workers")
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
    """Raises UserError for what does not exist here."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    splits = split_names(args.data_dir)
    for split in args.splits or ():
        if split not in splits:
            raise UserError(f"--splits {split}: the splits are {', '.join(splits)}")


def feature_info(args: argparse.Namespace, checkpoint: XlsrCheckpoint) -> FeatureInfo:
    """What the options ask for, checked against the checkpoint before any work is done."""
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
    info.save(folder)
    handler = logging.FileHandler(folder / "log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UserError(f"another extraction is writing to {folder}: wait for it") from e
        logging.getLogger().addHandler(handler)
        try:
            yield folder
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()


def read_shards(args: argparse.Namespace, split: str) -> Iterator[Shard]:
    """The shards of a split, one at a time."""
    cuts = read_jsonl_gz(manifest_path(args.data_dir, "cuts", split))
    return plan_shards(split, itertools.islice(cuts, args.subset))


def extract_split(
    args: argparse.Namespace, folder: Path, split: str, runner: Workers | InProcess
) -> None:
    """Computes the shards of a split that are not there yet, then writes its manifest."""
    seconds = finished = 0.0
    todo: set[int] = set()
    for shard in read_shards(args, split):
        seconds += shard.seconds
        if ShardResult.load(folder / shard.path, shard) is None:
            todo.add(shard.index)
        else:
            finished += shard.seconds
    if finished:
        logging.info("%s: %.2f hours are there already", split, finished / 3600)
    if todo:
        cuts_path(folder, split).unlink(missing_ok=True)
        shards = (s for s in read_shards(args, split) if s.index in todo)
        with Progress(split, seconds - finished) as progress:
            runner.run(shards, progress)
        logging.info("%s: %.5f hours of audio per second", split, progress.speed())
    merge_split(args, folder, split)


def merge_split(args: argparse.Namespace, folder: Path, split: str) -> None:
    """Writes the manifest of a split in the order of the input, and the tables of omissions.

    Raises:
      UserError: too much audio could not be read, or none is left.
    """
    short, unreadable = (folder / f"{kind}_{split}.tsv" for kind in ("short", "unreadable"))
    count = {"stored": 0, "short": 0, "unreadable": 0}
    with replacing(cuts_path(folder, split)) as [manifest]:
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(JsonlGzWriter(manifest))
            tables = stack.enter_context(replacing(short, unreadable))
            files = [stack.enter_context(open(t, "w", encoding="utf-8")) for t in tables]
            for name, file in zip(("samples at 16 kHz", "reason"), files):
                file.write(f"utterance\t{name}\n")
            for shard in read_shards(args, split):
                result = ShardResult.load(folder / shard.path, shard)
                if result is None:
                    raise UserError(f"{folder / shard.path} changed or vanished: run this again")
                for cut in merge_shard(shard, result):
                    writer.write(cut)
                for file, entries in zip(files, (result.short, result.unreadable)):
                    for position, entry in entries.items():
                        what = entry["reason"] if isinstance(entry, dict) else entry
                        file.write(f"{shard.cuts[int(position)]['id']}\t{what}\n")
                count["stored"] += len(result.features)
                count["short"] += len(result.short)
                count["unreadable"] += len(result.unreadable)
        check_counts(split, count, short, unreadable)


def merge_shard(shard: Shard, result: ShardResult) -> Iterator[MonoCut]:
    """The cuts of a shard with their features attached, audio at 16 kHz."""
    for position, values in result.features.items():
        cut = MonoCut.from_dict(copy.deepcopy(shard.cuts[int(position)]))
        features = Features.from_dict(values)
        yield fastcopy(
            cut,
            duration=features.duration,
            recording=cut.recording.resample(SAMPLING_RATE),
            features=features,
            supervisions=[s.trim(features.duration) for s in cut.supervisions],
            custom={**(cut.custom or {}), AUDIO_DURATION: cut.duration},
        )


def check_counts(split: str, count: dict[str, int], short: Path, unreadable: Path) -> None:
    """Reports what was left out. Raises UserError if it was too much."""
    logging.info("%s: features of %d utterances", split, count["stored"])
    if count["short"]:
        logging.warning(
            "%s: %d utterances have less than %d samples at 16 kHz and were left out, see %s",
            split,
            count["short"],
            SHORTEST,
            short,
        )
    percent = 100 * count["unreadable"] / max(sum(count.values()), 1)
    message = f"{split}: the audio of {count['unreadable']} utterances ({percent:.1f} %) could "
    message += f"not be read, see {unreadable}"
    if percent > MAX_UNREADABLE:
        raise UserError(f"{message}; mend or remove them, then run this again")
    if count["unreadable"]:
        logging.warning("%s; they were left out", message)
    if not count["stored"]:
        raise UserError(f"{split}: no utterance is left")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    check_options(args)
    checkpoint = load_xlsr(args.xlsr)
    info = feature_info(args, checkpoint)
    with feature_folder(args, info) as folder:
        logging.info("%s: %d wide, in %s", args.xlsr, info.feature_dim, folder)
        task = Task(args.xlsr, info, folder, args.device, args.max_duration)
        runner = (
            InProcess(task, checkpoint) if args.single_process else Workers(task, args.num_jobs)
        )
        del checkpoint  # workers load it themselves, and it may be large
        with runner:
            for split in args.splits or split_names(args.data_dir):
                extract_split(args, folder, split, runner)


if __name__ == "__main__":
    run_command(main)
