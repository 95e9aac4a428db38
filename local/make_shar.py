"""Packs features or audio into Lhotse Shar: ``python -m local.make_shar --help``.

    python -m local.make_shar --data-dir data --features frontend-cumulative --out-dir /big/shar
    ./train.sh --data-dir data --features /big/shar ...

    python -m local.make_shar --data-dir data --audio 1 --out-dir /big/audio
    ./train.sh --data-dir /big/audio --lang-dir data/lang_bpe_2500 --cut waveform --xlsr ...

OUT/SPLIT/ holds ordinary Shar, which lhotse's own ``CutSet.from_shar`` reads too; manifests beside
it hold the place of each utterance. Audio is written as 16-bit FLAC, with the channel and rate
that training uses. A split whose manifest is there is complete, and is not written again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lhotse import CutSet, Features, Recording
from lhotse.cut import Cut
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy
from tqdm import tqdm

from local.manifests import JsonlGzWriter, manifest_path, split_names
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import disk_errors_named, replacing, write_bytes
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Number, Parser, str2bool
from xlsr_transducer.data.audio import num_samples
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.features import INFO_FILE, cuts_path, find_features, load_feature_cuts
from xlsr_transducer.data.flaws import input_flaw
from xlsr_transducer.data.shar import FEATURES_TYPE, members, source_in_tar
from xlsr_transducer.data.sources import cuts_digest, load_sources, note_source, stale_features


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--features", help="pack these features (default: the only ones)")
    parser.add_argument("--audio", type=str2bool, default=False, help="pack the audio instead")
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument(
        "--shard-size", type=Number(int, at_least=1), default=1000, help="utterances per tar file"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.audio:
        pack_audio(args.data_dir, args.out_dir, args.shard_size)
    else:
        source = find_features(args.data_dir, args.features)
        pack_features(args.data_dir, source, args.out_dir, args.shard_size)


def pack_features(data_dir: Path, source: Path, out_dir: Path, shard_size: int) -> None:
    """Makes of a folder of features another one, which ``--features`` takes too."""
    write_bytes(out_dir / INFO_FILE, (source / INFO_FILE).read_bytes())

    def place(cut: Cut, tar: Path, where: str) -> Cut:
        path = str(tar.relative_to(out_dir))
        features: Features = fastcopy(
            cut.features, storage_type=FEATURES_TYPE, storage_path=path, storage_key=where
        )
        return fastcopy(cut, features=features)

    for split in split_names(data_dir):
        reason = stale_features(source, data_dir, split)
        if reason:
            raise UserError(reason)
        for path in source.glob(f"*_{split}.tsv"):
            write_bytes(out_dir / path.name, path.read_bytes())
        digest = load_sources(source).get(cuts_path(source, split).name, "")
        _pack(
            load_feature_cuts(source, split), cuts_path(out_dir, split), digest, out_dir / split,
            {"features": "numpy"}, ".npy", shard_size, place,
        )  # fmt: skip


def pack_audio(data_dir: Path, out_dir: Path, shard_size: int) -> None:
    """Makes of a data folder another one, for ``--cut waveform``."""

    def place(cut: Cut, tar: Path, where: str) -> Cut:
        recording = Recording(
            id=cut.recording_id,
            sources=[source_in_tar(tar.resolve(), where)],
            sampling_rate=SAMPLING_RATE,
            num_samples=num_samples(cut),
            duration=num_samples(cut) / SAMPLING_RATE,
        )
        return fastcopy(cut, recording=recording, start=0.0, channel=0)

    for split in split_names(data_dir):
        path = manifest_path(data_dir, "cuts", split)
        cuts = load_cuts(path).filter(_has_audio).resample(SAMPLING_RATE)
        _pack(
            cuts, manifest_path(out_dir, "cuts", split), cuts_digest(path), out_dir / split,
            {"recording": "flac"}, ".flac", shard_size, place,
        )  # fmt: skip
    splits = Path("manifests", "splits.json")
    write_bytes(out_dir / splits, (data_dir / splits).read_bytes())


def _has_audio(cut: Cut) -> bool:
    reason = input_flaw(cut, from_waveform=True)
    if reason:
        logging.warning(f"left out: {cut.id}: {reason}")
    return not reason


def _pack(
    cuts: CutSet,
    manifest: Path,
    source: str,
    folder: Path,
    fields: dict[str, str],
    suffix: str,
    shard_size: int,
    place: Callable[[Cut, Path, str], Cut],
) -> None:
    """Writes a split's shards, then the manifest that completes it.

    Args:
      source: digest of the manifest that the cuts come from.

    Raises:
      UserError: the split was packed from another manifest before.
    """
    if manifest.is_file():
        if load_sources(manifest.parent).get(manifest.name) != source:
            raise UserError(
                f"{manifest} was packed from other utterances or another text than there are "
                "now: give another --out-dir, or remove this one"
            )
        logging.info(f"{manifest} is there: not written again")
        return
    field = next(iter(fields))
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        with SharWriter(folder, fields, shard_size, warn_unused_fields=False) as writer:
            for cut in tqdm(cuts, desc=f"{folder.name}: packed", unit=" cuts", disable=None):
                writer.write(cut)
            tars = [Path(path) for path in writer.output_paths[field]]
    with replacing(manifest) as [temporary], JsonlGzWriter(temporary) as lines:
        for cut, (tar, name, where) in zip(cuts, _places(tars, suffix), strict=True):
            if name != cut.id:
                raise UserError(f"{tar}: holds {name} where {cut.id} should be")
            lines.write(place(cut, tar, where))
    note_source(manifest.parent, manifest.name, source)
    logging.info(f"{manifest}: {len(tars)} tar files")


def _places(tars: list[Path], suffix: str) -> Iterator[tuple[Path, str, str]]:
    for tar in tars:
        for name, where in members(tar, suffix):
            yield tar, name, where


if __name__ == "__main__":
    run_command(main)
