"""Features as older versions of the extraction stored them: one file an utterance."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from lhotse import CutSet

from xlsr_transducer.data.features import cuts_path, load_feature_cuts


def store_one_file_each(folder: Path, splits: tuple[str, ...]) -> None:
    """Turns a folder of features into such a one."""
    for split in splits:
        cuts = list(load_feature_cuts(folder, split))
        arrays = [cut.load_features() for cut in cuts]
        shutil.rmtree(folder / split)
        shard = folder / split / "shard_0"
        shard.mkdir(parents=True)
        for row, (cut, array) in enumerate(zip(cuts, arrays)):
            np.save(shard / f"{row:06d}.npy", array)
            cut.features.storage_type = "numpy_files"
            cut.features.storage_path = str(shard.relative_to(folder))
            cut.features.storage_key = f"{row:06d}.npy"
        CutSet.from_cuts(cuts).to_file(cuts_path(folder, split))
