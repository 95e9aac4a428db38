"""Stage 3: features of XLSR at a cut, stored once for all trainings.

    python -m local.extract_features --xlsr exp/toy_xlsr --cut frontend

reads DATA/manifests/cuts_SPLIT.jsonl.gz and writes, in DATA/features/NAME (by default named
after the settings), features.json, cuts_SPLIT.jsonl.gz, short_SPLIT.tsv and
unreadable_SPLIT.tsv with what was left out, the arrays (float16) and a log. Interrupted at any
time and started again, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lhotse import Features, MonoCut, NumpyFilesWriter
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from local.audio_identity import settings_digest
from local.extract_progress import Progress
from local.extract_shard import Shard, Stored, load_stored, plan_shards
from local.extract_workers import InProcess, Task, Workers
from local.extractors import describe_features
from local.manifests import JsonlGzWriter, manifest_path, read_jsonl_gz, split_names
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import locked, replacing
from xlsr_transducer.core.geometry import FRAME_SHIFT, RECEPTIVE_FIELD, SAMPLING_RATE
from xlsr_transducer.core.logs import LogFile
from xlsr_transducer.core.options import Number, Parser, folder_name
from xlsr_transducer.data.audio import AUDIO_DURATION
from xlsr_transducer.data.cuts import first_channel
from xlsr_transducer.data.features import INFO_FILE, cuts_path
from xlsr_transducer.data.flaws import damage_named, input_flaw
from xlsr_transducer.data.sources import cuts_digest, note_source
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr

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


class Split:
    """The cuts of a split, and what is stored of them already."""

    def __init__(self, args: argparse.Namespace, folder: Path, name: str):
        self.args, self.folder, self.name = args, folder, name
        self.manifest = manifest_path(args.data_dir, "cuts", name)
        self.digest = cuts_digest(self.manifest) if self.manifest.is_file() else ""
        self.flawed: dict[str, str] = {}  # id -> reason
        self.stored: dict[str, Stored] = {}  # by id
        self.seconds = 0.0  # of all cuts
        self.missing_seconds = 0.0  # of those that must be computed

    def cuts(self) -> Iterator[dict]:
        """The cuts, each of one channel, as dictionaries."""
        for cut in itertools.islice(read_jsonl_gz(self.manifest), self.args.subset):
            if cut.get("type") == "MultiCut":
                cut = first_channel(deserialize_item(cut)).to_dict()
            yield cut

    def find_stored(self) -> None:
        """Notes what is there, and what gives no features."""
        with damage_named(self.manifest):
            for cut in self.cuts():
                flaw = input_flaw(deserialize_item(copy.deepcopy(cut)), from_waveform=True)
                if flaw:
                    self.flawed[cut["id"]] = flaw
        present = load_stored(self.folder, self.name)
        self.stored, self.seconds, self.missing_seconds = {}, 0.0, 0.0
        for cut in self._sound_cuts():
            self.seconds += cut["duration"]
            settings = settings_digest(cut)
            entries = (e for e in present.get(cut["id"], []) if e.fits(cut, settings))
            entry = next(entries, None)
            if entry is None:
                self.missing_seconds += cut["duration"]
            else:
                self.stored[cut["id"]] = entry

    def missing_shards(self) -> Iterator[Shard]:
        """What must be computed."""
        missing = (cut for cut in self._sound_cuts() if cut["id"] not in self.stored)
        return plan_shards(self.name, missing)

    def _sound_cuts(self) -> Iterator[dict]:
        return (cut for cut in self.cuts() if cut["id"] not in self.flawed)


def extract_split(
    args: argparse.Namespace, folder: Path, name: str, runner: Workers | InProcess
) -> None:
    """Computes the features of a split that are not there yet, then writes its manifest."""
    split = Split(args, folder, name)
    split.find_stored()
    missing = split.missing_seconds
    if missing < split.seconds:
        logging.info("%s: %.2f hours are there already", name, (split.seconds - missing) / 3600)
    if missing:
        cuts_path(folder, name).unlink(missing_ok=True)
        with Progress(name, missing) as progress:
            runner.run(split.missing_shards(), progress)
        logging.info("%s: %.5f hours of audio per second", name, progress.speed())
        split.find_stored()
    merge_split(split)
    if not args.subset:
        remove_unused_shards(split)


def merge_split(split: Split) -> None:
    """Writes the manifest of a split in the order of the input, and the tables of omissions.

    Raises:
      UserError: too much audio could not be read, or none is left.
    """
    folder, name = split.folder, split.name
    short, unreadable = (folder / f"{kind}_{name}.tsv" for kind in ("short", "unreadable"))
    count = {"stored": 0, "short": 0, "unreadable": 0}
    with replacing(cuts_path(folder, name)) as [manifest]:
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(JsonlGzWriter(manifest))
            tables = stack.enter_context(replacing(short, unreadable))
            files = [stack.enter_context(open(t, "w", encoding="utf-8")) for t in tables]
            for title, file in zip(("samples at 16 kHz", "reason"), files):
                file.write(f"utterance\t{title}\n")
            for cut in split.cuts():
                entry = split.stored.get(cut["id"])
                reason = split.flawed.get(cut["id"]) or (entry.unreadable if entry else "")
                if entry is None and not reason:
                    raise UserError(f"the audio of {cut['id']} changed meanwhile: run this again")
                if reason:
                    files[1].write(f"{cut['id']}\t{reason}\n")
                elif entry.samples or not entry.key:
                    files[0].write(f"{cut['id']}\t{entry.samples}\n")
                else:
                    writer.write(with_features(cut, entry))
                kind = "unreadable" if reason else "stored" if entry.key else "short"
                count[kind] += 1
        check_counts(name, count, short, unreadable)
    note_source(folder, cuts_path(folder, name).name, split.digest)


def with_features(values: dict, entry: Stored) -> MonoCut:
    """The cut with its features attached, audio at 16 kHz."""
    cut = MonoCut.from_dict(copy.deepcopy(values))
    features = Features(
        type="xlsr",
        num_frames=entry.shape[0],
        num_features=entry.shape[1],
        frame_shift=FRAME_SHIFT,
        sampling_rate=SAMPLING_RATE,
        start=cut.start,
        duration=round(entry.shape[0] * FRAME_SHIFT, 2),
        storage_type=NumpyFilesWriter.name,
        storage_path=entry.shard,  # below the folder of the features
        storage_key=entry.key,
        recording_id=cut.recording_id,
        channels=cut.channel,
    )
    return fastcopy(
        cut,
        duration=features.duration,
        recording=cut.recording.resample(SAMPLING_RATE),
        features=features,
        supervisions=[s.trim(features.duration) for s in cut.supervisions],
        custom={**(cut.custom or {}), AUDIO_DURATION: cut.duration},
    )


def remove_unused_shards(split: Split) -> None:
    """Removes the shards of a complete split of which no utterance is used any more."""
    used = {entry.shard for entry in split.stored.values()}
    for folder in (split.folder / split.name).glob("shard_*"):
        if f"{split.name}/{folder.name}" not in used:
            shutil.rmtree(folder)
            logging.info("%s: removed, its utterances are in no list any more", folder)


def check_counts(split: str, count: dict[str, int], short: Path, unreadable: Path) -> None:
    """Reports what was left out. Raises UserError if it was too much."""
    logging.info("%s: features of %d utterances", split, count["stored"])
    if count["short"]:
        logging.warning(
            "%s: %d utterances have less than %d samples at 16 kHz and were left out, see %s",
            split,
            count["short"],
            RECEPTIVE_FIELD,
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
