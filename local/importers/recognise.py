"""Recognises what a corpus is by its files, and opens it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from local.importers import common_voice, hugging_face, kaldi, lhotse_manifests, nemo
from local.importers.common_voice import CommonVoice
from local.importers.entry import Corpus
from local.importers.hugging_face import HuggingFace
from local.importers.json_lines import first_object, is_gzip
from local.importers.lhotse_manifests import LhotseCorpus
from local.importers.parts import Wanted
from local.importers.text_list import Layout, TextList
from local.lists import ListFile
from xlsr_transducer.core.errors import UserError

LOOKED_FOR = (
    "a list path|text|speaker or path|start|end|text|speaker, a table of Common Voice (columns "
    "client_id, path, sentence) or the folder of a language, a Kaldi folder (wav.scp), lhotse's "
    "cuts or recordings with supervisions (.jsonl, .jsonl.gz), NeMo's JSON lines "
    "(audio_filepath), a data set of Hugging Face (its folder, or hf:NAME)"
)
# Words in the names of a folder's manifests, by role.
_ROLES = {"train": "train", "val": "dev|val|valid|validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What is given about corpora besides their place."""

    audio_root: Path | None = None  # relative paths begin here; None: as the corpus has it
    channel: Wanted = None  # of recordings with several
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # names by role
    store: Path = Path("audio")  # where audio out of data sets is written


def open_corpora(
    splits: Mapping[str, Sequence[ListFile]], options: ImportOptions
) -> dict[str, list[Corpus]]:
    """Opens the corpora of all splits; files and folders are looked at, audio is not.

    Raises:
      UserError: one does not exist, cannot be recognised, or is given twice.
    """
    given: set[tuple[str, ...]] = set()
    found: dict[str, list[Corpus]] = {}
    for split, lists in splits.items():
        role = split if split in ("train", "val") else "test"
        found[split] = [open_corpus(one, role, options) for one in lists]
        for corpus in found[split]:
            if corpus.identity in given:
                raise UserError(f"the list {corpus.path} is given twice")
            given.add(corpus.identity)
    return found


def open_corpus(one: ListFile, role: str, options: ImportOptions) -> Corpus:
    """Opens one corpus.

    Args:
      role: train, val or test, for corpora that hold them all.

    Raises:
      UserError: it does not exist, or cannot be recognised.
    """
    path = one.path
    if one.is_on_hub or path.is_dir() and hugging_face.is_folder(path):
        store = dict(store=options.store, columns=options.columns)
        return HuggingFace(path, path, role=role, **store)
    one.require()
    found = _in_folder(path, role) if path.is_dir() else path
    if found is None:
        raise UserError(f"{path}: not understood; looked for {LOOKED_FOR}")
    if found.is_dir():
        return kaldi.Kaldi(path, options.audio_root or path.resolve())
    folder = options.audio_root or found.resolve().parent
    item = first_object(found)
    if item is not None:
        return _of_json(found, item, folder, options.channel)
    if not is_gzip(found):
        if common_voice.is_table(found):
            clips = options.audio_root or common_voice.clips_of(found)
            return CommonVoice(found, clips, role=role)
        if Layout.of(found) is not None:
            return TextList(found, folder)
    raise UserError(f"{found}: not understood; looked for {LOOKED_FOR}")


def _in_folder(path: Path, role: str) -> Path | None:
    """Returns what is read in a folder: a file of it, or the folder itself if it is Kaldi's."""
    if (path / kaldi.WAV).is_file():
        return path
    if common_voice.is_folder(path):
        return common_voice.table_of(path, role)
    for kind in ("cuts", "supervisions"):
        found = lhotse_manifests.manifests_in(path, kind)
        if len(found) > 1:
            word = re.compile(rf"(?<![a-z])({_ROLES[role]})(?![a-z])")
            found = [p for p in found if word.search(p.name)] or found
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise UserError(f"{path}: holds several manifests, give one of them: {names}")
        if found:
            return found[0]
    return None


def _of_json(path: Path, item: Mapping, folder: Path, channel: Wanted) -> Corpus:
    if nemo.PATH in item:
        return nemo.Nemo(path, folder)
    kind = lhotse_manifests.kind_of(item)
    if not kind:
        keys = ", ".join(sorted(map(str, item)))[:200]
        raise UserError(f"{path}: not understood (keys {keys}); looked for {LOOKED_FOR}")
    if kind == "cuts":
        return LhotseCorpus(path, folder, channel=channel)
    partner = lhotse_manifests.partner_of(path, kind)
    pair = (partner, path) if kind == "recordings" else (path, partner)
    return LhotseCorpus(pair[0], folder, channel=channel, recordings=pair[1])
