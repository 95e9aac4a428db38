"""The sources of files in a data folder: digests of them, recorded beside the files.

Features, BPE models and language models hold or follow the text of DATA/manifests/cuts_*, its only
home. A file that was made from another text is refused, with the command that makes it again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import alone_in, disk_errors_named, write_text
from xlsr_transducer.data.features import (
    cuts_path,
    extraction_command,
    present_cuts,
    read_info,
)
from xlsr_transducer.data.flaws import damage_named
from xlsr_transducer.data.splits import load_splits

SOURCES_FILE = "sources.json"  # name of a file beside it -> digest of its source
DIGESTS_FILE = "digests.json"  # beside manifests: their digests, and of which files


def cuts_digest(manifest: Path) -> str:
    """A digest of a manifest's utterances in their order, but not of their paths."""
    return _noted(manifest.name, [manifest], utterance_bytes)


def utterance_bytes(cut: dict) -> bytes:
    """Returns what tells an utterance from another: id, times, text, language, but no paths."""
    times = [cut["id"], cut.get("start"), cut.get("duration")]
    languages = [s.get("language") for s in cut.get("supervisions") or ()]
    return json.dumps([*times, _texts(cut), languages]).encode()


def text_digest(data_dir: Path) -> str:
    """A digest of the training text, in its order."""
    folder = data_dir / "manifests"
    manifests = [present_cuts(folder, split) for split in load_splits(data_dir)["train"]]
    return _noted("training text", manifests, lambda cut: json.dumps(_texts(cut)).encode())


def _noted(key: str, manifests: list[Path], part: Callable[[dict], bytes]) -> str:
    """Returns a digest of the cuts of manifests, which is noted beside them: ten million lines are
    read once, and not by every process that asks."""
    files = []
    for manifest in manifests:
        with damage_named(manifest):
            stat = manifest.stat()
        files.append([manifest.name, stat.st_size, stat.st_mtime_ns])
    if not files or not os.access(manifests[0].parent, os.W_OK):
        return _digest(manifests, part)
    path = manifests[0].parent / DIGESTS_FILE
    with disk_errors_named(path), alone_in(path.parent):
        notes = _load(path)
        if notes.get(key, {}).get("files") != files:
            notes[key] = {"files": files, "digest": _digest(manifests, part)}
            write_text(path, json.dumps(notes, indent=2) + "\n")
        return notes[key]["digest"]


def _digest(manifests: list[Path], part: Callable[[dict], bytes]) -> str:
    digest = hashlib.sha256()
    for manifest in manifests:
        opened = gzip.open if manifest.suffix == ".gz" else open
        with damage_named(manifest), opened(manifest, "rb") as lines:
            for line in lines:
                digest.update(part(json.loads(line)))
    return digest.hexdigest()


def _texts(cut: dict) -> list[object]:
    return [supervision.get("text") for supervision in cut.get("supervisions") or ()]


def note_source(folder: Path, name: str, digest: str) -> None:
    """Records what the file ``name`` of a folder was made from; '' forgets it."""
    sources = {**load_sources(folder), name: digest}
    kept = {key: value for key, value in sorted(sources.items()) if value}
    write_text(folder / SOURCES_FILE, json.dumps(kept, indent=2) + "\n")


def load_sources(folder: Path) -> dict[str, str]:
    """The digests of a folder's sources by file; empty where nothing or nonsense is recorded."""
    return _load(folder / SOURCES_FILE)


def _load(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def stale_features(folder: Path, data_dir: Path, split: str) -> str:
    """Returns why the features of a split must be made again; empty if they need not."""
    manifest = present_cuts(data_dir / "manifests", split)
    name = cuts_path(folder, split).name
    if not manifest.is_file() or load_sources(folder).get(name) == cuts_digest(manifest):
        return ""
    command = f"{extraction_command(read_info(folder))} --data-dir {data_dir} --name {folder.name}"
    if folder.resolve().parent != (data_dir / "features").resolve():
        command += f", with a link to {folder} in {data_dir / 'features'}"
    command += ", which computes only what is new"
    return f"{folder / name} was not made from {manifest} as it is now: run {command}"


def stale_text(lang_dir: Path, data_dir: Path) -> list[str]:
    """Returns which files of a ``lang_*`` follow an older text, with the command for each.

    A folder outside of ``data_dir`` belongs to another text, and a file about which nothing is
    recorded to nobody.
    """
    sources = load_sources(lang_dir)
    if not sources or lang_dir.resolve().parent != data_dir.resolve():
        return []
    _, kind, *size = lang_dir.name.split("_")  # lang_bpe_N, lang_label
    unit = f"--vocab-size {size[0]}" if size else f"--unit {kind}"
    digest, found = text_digest(data_dir), []
    for name, source in sources.items():
        if source == digest:
            continue
        known = {"bpe.model": 2, "labels.txt": 2, "lm": 6}
        stage = known.get(name, 5 if name.startswith("ngram") else 7)
        found.append(
            f"{lang_dir / name} was not made from the training text as it is now: run "
            f"./prepare.sh --stage {stage} --stop-stage {stage} --data-dir {data_dir} {unit}"
        )
    return found


def require_current(data_dir: Path, features: Path | None, lang_dir: Path) -> None:
    """Refuses features and a BPE model that were made from another text or other audio.

    Raises:
      UserError: names the first of them, and the command that makes it again.
    """
    splits = load_splits(data_dir)
    if not splits["train"]:
        raise UserError(f"{data_dir} holds no training set: give ./prepare.sh a --train-list")
    for split in [*splits["train"], *splits["val"]] if features else ():
        reason = stale_features(features, data_dir, split)
        if reason:
            raise UserError(reason)
    for reason in stale_text(lang_dir, data_dir):
        if any(str(lang_dir / name) in reason for name in ("bpe.model", "labels.txt")):
            raise UserError(reason)
