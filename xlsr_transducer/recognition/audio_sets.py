"""The input of the decoding commands: files given by name, a manifest, or splits of a corpus."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.data.audio import cut_of_file
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.flaws import Unread, flaw
from xlsr_transducer.data.splits import load_splits

CORPORA = "corpora"  # in the folder of a training run: which corpus has which name there


@dataclasses.dataclass(frozen=True)
class AudioSet:
    """Utterances to decode under one name, each with an id of its own."""

    name: str
    cuts: CutSet  # each with a text, which is empty for files
    unread: Mapping[str, Unread] = dataclasses.field(default_factory=dict)  # not in ``cuts``
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)  # given by name, by id
    manifest: Path = Path()  # where ``cuts`` come from, if not from files
    digest: str = ""  # SHA-256 of what the manifest holds

    def shown(self, utterance: str) -> str:
        """Returns the name of an utterance for people: its file as it was given, or its id."""
        return str(self.files.get(utterance, utterance))


def audio_sets(
    data_dir: Path, split: str = "", manifest: Path | None = None, wavs: Sequence[Path] = ()
) -> list[AudioSet]:
    """Returns what to decode: wav files if given, else a manifest if given, else splits.

    Files that cannot be read, and utterances that the manifest describes badly, are ``unread``.

    Args:
      split: names, separated by commas; empty: all but training.

    Raises:
      UserError: a manifest or split does not exist, is damaged, holds no usable utterance, or
        two of one id.
    """
    if wavs:
        return [_of_files(wavs)]
    if manifest:
        if not manifest.is_file():
            raise UserError(f"--manifest {manifest}: no such file")
        return [_of_manifest(manifest.name.split(".")[0].replace("cuts_", "", 1), manifest)]
    splits = load_splits(data_dir)
    names = split.split(",") if split else [*splits["val"], *splits["test"]]
    paths = {name: data_dir / "manifests" / f"cuts_{name}.jsonl.gz" for name in names}
    for name, path in paths.items():
        if not path.is_file():
            raise UserError(f"--split {name}: no {path}; run ./prepare.sh")
    return [_of_manifest(name, path) for name, path in paths.items()]


def _of_files(paths: Sequence[Path]) -> AudioSet:
    cuts, unread, files = [], {}, {}
    for path in paths:
        name, count = str(path), 1
        while name in files:
            count += 1
            name = f"{path} ({count})"
        files[name] = path
        try:
            cut = cut_of_file(path)
        except (UserError, OSError) as e:
            unread[name] = Unread.because(name, "", e)
            continue
        supervision = SupervisionSegment(name, name, 0, cut.duration, text="")
        cuts.append(dataclasses.replace(cut, id=name, supervisions=[supervision]))
    return AudioSet("files", CutSet.from_cuts(cuts), unread, files)


def _of_manifest(name: str, path: Path) -> AudioSet:
    digest, unread, seen = hashlib.sha256(), {}, {}
    cuts = load_cuts(path)
    for number, cut in enumerate(cuts, 1):
        if cut.id in seen:
            raise UserError(
                f"{path}: utterances {seen[cut.id]} and {number} have the same id, {cut.id}; "
                "give each utterance an id of its own"
            )
        seen[cut.id] = number
        digest.update(json.dumps(cut.to_dict(), sort_keys=True, default=str).encode())
        reason = flaw(cut, from_waveform=True)
        if reason:
            texts = [s.text for s in cut.supervisions if isinstance(s.text, str)]
            unread[cut.id] = Unread(cut.id, " ".join(texts), reason)
    if len(unread) == len(seen):
        raise UserError(f"{path}: no utterance of it has audio and a text to compare with")
    if unread:
        cuts = cuts.filter(functools.partial(_is_usable, unread))
    return AudioSet(name, cuts, unread, manifest=path, digest=digest.hexdigest())


def _is_usable(unread: Mapping[str, Unread], cut: Cut) -> bool:
    return cut.id not in unread


def name_in_results(audio: AudioSet, exp_dir: Path) -> str:
    """Returns the name that stands for a set in the result files of ``exp_dir``, for no other
    corpus.

    A split of the corpus that was trained on has its own name; of another one, that of the data
    folder too; and where a set of other content has that name, the hash of the content too.
    ``exp_dir``/corpora keeps who has which name.

    Raises:
      UserError: it cannot be kept there.
    """
    folder = audio.manifest.resolve().parent
    folder = folder.parent if folder.name == "manifests" else folder
    trained_on = _trained_on(exp_dir)
    is_own = trained_on is None or trained_on == folder
    name = audio.name if is_own else f"{audio.name}-{folder.name}"
    for candidate in (name, f"{name}-{audio.digest[:8]}"):
        owner = exp_dir / CORPORA / f"{candidate}.json"
        if not owner.is_file():
            about = {"manifest": str(audio.manifest.resolve()), "sha256": audio.digest}
            write_text(owner, json.dumps(about, indent=2) + "\n")
        if _digest_in(owner) == audio.digest:
            return candidate
    raise UserError(f"{owner}: names another corpus than {audio.manifest}; remove it")


def _trained_on(exp_dir: Path) -> Path | None:
    """Returns the data folder of a training run, as far as the run's settings tell."""
    try:
        settings = json.loads((exp_dir / "settings.json").read_text(encoding="utf-8"))
        return Path(settings["DataOptions"]["data_dir"]).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest_in(owner: Path) -> str:
    try:
        return json.loads(owner.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{owner}: damaged ({e}); remove it") from e
