"""Stored features: where they lie and how they are read.

DATA/features/NAME/ holds features.json (a ``model.feature_info.FeatureInfo``),
cuts_SPLIT.jsonl.gz (lhotse cuts of 16 kHz recordings with features attached) and
SPLIT/features.*.tar with the arrays (in folders of older versions, one file each).
A cut lasts as long as its frames, 20 ms each. Its audio is 5 to 25 ms longer, which is less
than another frame needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlsr_transducer.core.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

INFO_FILE = "features.json"
# Tables KIND_SPLIT.tsv of the utterances without features.
OMISSIONS = {"short": "too short for a frame", "unreadable": "its audio could not be read"}


def read_info(folder: Path) -> dict[str, Any]:
    """Reads features.json: how the features of a folder were made.

    Raises:
      UserError: it is missing or damaged.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing: make the features with ./extract_features.sh")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        extraction_command(values)
        return values
    except (ValueError, KeyError, TypeError) as e:
        raise damaged_info(folder, e) from e


def damaged_info(folder: Path, error: Exception) -> UserError:
    """Returns the error of a features.json that is not understood."""
    return UserError(
        f"{folder / INFO_FILE} is damaged ({error}); remove {folder} and run "
        "./extract_features.sh again"
    )


def extraction_command(info: dict[str, Any]) -> str:
    """Returns the command that makes features as features.json describes, without the folder."""
    words = ["./extract_features.sh", "--xlsr", info["xlsr"], "--cut", info["cut"]]
    words += ["--normalize", info["normalize"]]
    if info["chunk"]["chunk_size"] != -1:
        for name, value in info["chunk"].items():
            words += ["--" + name.replace("_", "-"), value]
    if info["extractor"] != "transformers":
        words += ["--extractor", info["extractor"]]
    return " ".join(map(str, words))


def cuts_path(folder: Path, split: str) -> Path:
    """The manifest of a split, which is there when the split is complete."""
    return folder / f"cuts_{split}.jsonl.gz"


def present_cuts(folder: Path, split: str) -> Path:
    """The manifest of a split that is read: a plain ``.jsonl`` where there is no other."""
    path = cuts_path(folder, split)
    plain = path.with_suffix("")
    return plain if plain.is_file() and not path.is_file() else path


def find_features(data_dir: Path, name: str | None = None) -> Path:
    """The folder of the features to use.

    Args:
      name: a folder's name in DATA/features or its path; None for the only one there.

    Raises:
      UserError: there are none, or several to choose from.
    """
    root = Path(data_dir) / "features"
    present = sorted(p.parent for p in root.glob(f"*/{INFO_FILE}"))
    if name is not None:
        for folder in (root / name, Path(name)):
            if (folder / INFO_FILE).is_file():
                return folder
    command = f"./extract_features.sh --data-dir {data_dir} --xlsr NAME_OR_DIR_OR_PT"
    if not present:
        raise UserError(f"{root} holds no features: make them with {command}")
    names = ", ".join(p.name for p in present)
    if name is not None:
        raise UserError(f"{root} holds no features called {name}, only {names}")
    if len(present) > 1:
        raise UserError(f"{root} holds several features, choose one of them: {names}")
    return present[0]


def load_feature_cuts(folder: Path, split: str) -> CutSet:
    """The cuts of a split, read lazily, with ``cut.load_features()`` ready to use.

    Raises:
      UserError: the split is missing or its extraction was not completed.
    """
    from xlsr_transducer.data import shar  # noqa: F401  lhotse learns to read its features
    from xlsr_transducer.data.cuts import load_cuts

    path = cuts_path(folder, split)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: run ./extract_features.sh again, it continues where it stopped"
        )
    # Stored paths start at the folder, so that it can be moved.
    return load_cuts(path).with_features_path_prefix(folder)


def without_features(folder: Path, split: str) -> dict[str, list[str]]:
    """The ids of utterances that the extraction left out, by reason."""
    found: dict[str, list[str]] = {}
    for kind, reason in OMISSIONS.items():
        path = folder / f"{kind}_{split}.tsv"
        if path.is_file():
            rows = path.read_text(encoding="utf-8").splitlines()[1:]
            found[reason] = [row.split("\t")[0] for row in rows]
    return {reason: ids for reason, ids in found.items() if ids}


def read_features(cut: Cut) -> np.ndarray:
    """The stored features (T, D) of a cut, in the precision in which they are stored.

    Raises:
      UserError: the file cannot be read, is truncated, or holds values that are not finite.
    """
    path = f"{cut.features.storage_path}/{cut.features.storage_key}"
    try:
        values = cut.load_features()
    except (OSError, ValueError, EOFError) as e:
        if isinstance(e, FileNotFoundError):
            raise UserError(f"{path}: no such file of features") from e
        # lhotse adds the whole cut to the message, in lines of its own.
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"{path}: unreadable features ({reason})") from e
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds values that are not finite")
    return values
