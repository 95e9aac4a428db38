"""A corpus in several languages: the tiny recipe's, whose utterances are said to be in them."""

from __future__ import annotations

from pathlib import Path

from local.manifests import JsonlGzWriter, read_jsonl_gz
from xlsr_transducer.data.sources import cuts_digest, note_source

LANGUAGES = ("et", "lv", "et", "fi")  # of the utterances in their order
FEATURES = "frontend-cumulative"


def in_languages(corpus: Path, data: Path) -> Path:
    """Makes ``data`` a copy of a data folder, with its features, in several languages."""
    features = data / "features" / FEATURES
    for folder in (data / "manifests", features):
        folder.mkdir(parents=True)
        for path in (corpus / folder.relative_to(data)).iterdir():
            if path.name.startswith("cuts_") and path.suffix == ".gz":
                with JsonlGzWriter(folder / path.name) as writer:
                    for i, cut in enumerate(read_jsonl_gz(path)):
                        cut["supervisions"][0]["language"] = LANGUAGES[i % len(LANGUAGES)]
                        writer.write(cut)
            elif path.suffix not in (".index", ".lock") and path.name != "digests.json":
                (folder / path.name).symlink_to(path)
    (features / "sources.json").unlink()
    for manifest in (data / "manifests").glob("cuts_*.gz"):
        note_source(features, manifest.name, cuts_digest(manifest))
    for name in ("lang_bpe_60", "toy_xlsr"):
        (data / name).symlink_to(corpus / name)
    return data
