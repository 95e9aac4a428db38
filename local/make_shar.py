"""Packs audio into Lhotse Shar: ``python -m local.make_shar --help``.

    python -m local.make_shar --data-dir data --out-dir /big/audio
    ./train.sh --data-dir /big/audio --lang-dir data/lang_bpe_2500 --cut waveform --xlsr ...

OUT/SPLIT/ holds ordinary Shar, which lhotse's own ``CutSet.from_shar`` reads too; manifests beside
it hold the place of each utterance. Audio is written as 16-bit FLAC, with the channel and rate
that training uses. A split whose manifest is there is complete, and is not written again.
(Features need no packing: ./extract_features.sh writes Shar.)
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse import Recording
from lhotse.cut import Cut
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy
from tqdm import tqdm

from local.manifests import JsonlGzWriter, manifest_path, split_names
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import disk_errors_named, replacing, write_bytes
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.data.audio import num_samples
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.flaws import input_flaw
from xlsr_transducer.data.shar import members, source_in_tar
from xlsr_transducer.data.sources import cuts_digest, load_sources, note_source


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument(
        "--shard-size", type=Number(int, at_least=1), default=1000, help="utterances per tar file"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pack_audio(args.data_dir, args.out_dir, args.shard_size)


def pack_audio(data_dir: Path, out_dir: Path, shard_size: int) -> None:
    """Makes of a data folder another one, for ``--cut waveform``."""
    for split in split_names(data_dir):
        _pack(
            manifest_path(data_dir, "cuts", split),
            manifest_path(out_dir, "cuts", split),
            out_dir / split,
            shard_size,
        )
    splits = Path("manifests", "splits.json")
    write_bytes(out_dir / splits, (data_dir / splits).read_bytes())


def _in_tar(cut: Cut, tar: Path, where: str) -> Cut:
    """Returns a cut whose audio lies in a tar file, at ``OFFSET:SIZE``."""
    recording = Recording(
        id=cut.recording_id,
        sources=[source_in_tar(tar.resolve(), where)],
        sampling_rate=SAMPLING_RATE,
        num_samples=num_samples(cut),
        duration=num_samples(cut) / SAMPLING_RATE,
    )
    return fastcopy(cut, recording=recording, start=0.0, channel=0)


def _has_audio(cut: Cut) -> bool:
    reason = input_flaw(cut, from_waveform=True)
    if reason:
        logging.warning(f"left out: {cut.id}: {reason}")
    return not reason


def _pack(source: Path, manifest: Path, folder: Path, shard_size: int) -> None:
    """Writes a split's shards, then the manifest that completes it.

    Args:
      source: the manifest that the cuts come from.

    Raises:
      UserError: the split was packed from another manifest before.
    """
    digest = cuts_digest(source)
    if manifest.is_file():
        if load_sources(manifest.parent).get(manifest.name) != digest:
            raise UserError(
                f"{manifest} was packed from other utterances or another text than there are "
                "now: give another --out-dir, or remove this one"
            )
        logging.info(f"{manifest} is there: not written again")
        return
    cuts = load_cuts(source).filter(_has_audio).resample(SAMPLING_RATE)
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        fields = {"recording": "flac"}
        with SharWriter(folder, fields, shard_size, warn_unused_fields=False) as writer:
            for cut in tqdm(cuts, desc=f"{folder.name}: packed", unit=" cuts", disable=None):
                writer.write(cut)
            tars = [Path(path) for path in writer.output_paths["recording"]]
    with replacing(manifest) as [temporary], JsonlGzWriter(temporary) as lines:
        for cut, (tar, name, where) in zip(cuts, _places(tars), strict=True):
            if name != cut.id:
                raise UserError(f"{tar}: holds {name} where {cut.id} should be")
            lines.write(_in_tar(cut, tar, where))
    note_source(manifest.parent, manifest.name, digest)
    logging.info(f"{manifest}: {len(tars)} tar files")


def _places(tars: list[Path]) -> Iterator[tuple[Path, str, str]]:
    for tar in tars:
        for name, where in members(tar, ".flac"):
            yield tar, name, where


if __name__ == "__main__":
    run_command(main)
