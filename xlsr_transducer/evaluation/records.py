"""Utterances as result files tell of them: what every analysis of a decode starts from.

for results in find_results(Path("exp/streaming")):
    records = results.read(Normalizer.parse("none"))
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kaldialign

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.section import AlignedWord
from xlsr_transducer.recognition.audio_sets import CORPORA
from xlsr_transducer.recognition.scoring import GAP, ErrorRate, error_rate
from xlsr_transducer.recognition.spans import Span


@dataclasses.dataclass(frozen=True)
class Record:
    """One utterance with one decode."""

    id: str
    ref: str  # as it is
    hyp: str
    ref_words: list[str]  # as scored
    hyp_words: list[str]
    spans: Sequence[Span] = ()  # the recognised words before normalisation; empty if unknown
    seconds: float | None = None
    speaker: str = ""  # '' if unknown
    custom: dict[str, Any] = dataclasses.field(default_factory=dict)
    audio: str = ""  # path, '' if unknown or no file
    start: float = 0.0  # seconds in it
    language: str = ""  # '' if unknown
    unread: str = ""  # why it could not be read

    @functools.cached_property
    def aligned(self) -> list[AlignedWord]:
        """The words as scored, reference beside recognised."""
        return [
            AlignedWord(r, h) for r, h in kaldialign.align(self.ref_words, self.hyp_words, GAP)
        ]

    @functools.cached_property
    def num_errors(self) -> int:
        """Insertions, deletions and substitutions."""
        return sum(word.kind != "correct" for word in self.aligned)

    @property
    def about(self) -> str:
        """One line for people: speaker, duration, errors."""
        parts = [self.speaker, f"{self.seconds:.1f} s" if self.seconds is not None else ""]
        parts.append(f"{counted(self.num_errors, 'error')} in "
                     f"{counted(len(self.ref_words), 'word')}")  # fmt: skip
        parts.append(f"could not be read: {self.unread}" if self.unread else "")
        return ", ".join(part for part in parts if part)


def slug(label: str) -> str:
    """Returns a label as a part of a name in the report: a-z, 0-9 and -."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def counted(count: int, what: str) -> str:
    """``1 error``, ``2 errors``."""
    return f"{count} {what}" + "s" * (count != 1)


def word_errors(records: Iterable[Record]) -> ErrorRate:
    """Returns the WER of records, with its interval."""
    return error_rate([(r.ref_words, r.hyp_words) for r in records])


@dataclasses.dataclass(frozen=True)
class ResultFiles:
    """The result files of one set with one setting."""

    exp_dir: Path
    recogs: Path
    set_name: str
    suffix: str  # the settings

    @property
    def method(self) -> str:
        """Folder of the files below the experiment's, such as ``streaming/greedy_search``."""
        folder = self.recogs.parent
        return str(folder.relative_to(self.exp_dir)) if folder != self.exp_dir else ""

    def read(self, normalizer: Normalizer) -> list[Record]:
        """Returns the utterances in the order of the file.

        Raises:
          UserError: a file is damaged.
        """
        beside = self.recogs.name.replace("recogs-", "", 1).removesuffix(".txt") + ".jsonl"
        facts = _by_id(self.recogs.with_name(f"utterances-{beside}"))
        tokens = _by_id(self.recogs.with_name(f"tokens-{beside}"))
        records = []
        for name, ref, hyp in read_recogs(self.recogs):
            known = facts.get(name, {})
            ref, hyp = known.get("ref", ref), known.get("hyp", hyp)
            spans = [Span(*word) for word in tokens.get(name, {}).get("words", ())]
            scored = [normalizer(text).split() for text in (ref, hyp)]
            fields = ("seconds", "speaker", "language", "custom", "audio", "start", "unread")
            more = {field: known[field] for field in fields if field in known}
            more["custom"] = {**known.get("columns", {}), **known.get("custom", {})}
            records.append(Record(name, ref, hyp, *scored, spans, **more))
        return records


def find_results(exp_dir: Path, set_name: str = "") -> list[ResultFiles]:
    """Returns all results below a folder, ordered by path; of one set if it is named.

    The names of files hold set and settings with a dash between. Where the set's name may end is
    told by the files beside, by ``corpora/``, or by ``set_name``.
    """
    sets = {path.stem for path in (exp_dir / CORPORA).glob("*.json")} | {set_name} - {""}
    found = []
    for path in sorted(exp_dir.rglob("recogs-*.txt")):
        stem = path.stem.removeprefix("recogs-")
        name = _set_in(path, stem) or max(
            (s for s in sets if stem.startswith(f"{s}-")), key=len, default=stem.split("-")[0]
        )
        if not set_name or name == set_name:
            suffix = stem.removeprefix(name).removeprefix("-")
            found.append(ResultFiles(exp_dir, path, name, suffix))
    return found


def _set_in(recogs: Path, stem: str) -> str:
    """Returns the set as the file beside tells it; '' where there is none."""
    path = recogs.with_name(f"utterances-{stem}.jsonl")
    if not path.is_file():
        return ""
    with open(path, encoding="utf-8") as f:
        line = f.readline()
    return str(_parsed(path, 1, line).get("set", "")) if line else ""


def read_recogs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields id, reference and recognised text from icefall's ``recogs-*.txt``.

    Raises:
      UserError: a line is not as icefall writes it.
    """
    waiting: tuple[str, str] | None = None
    for number, line in enumerate(_lines(path), 1):
        kind = "hyp" if waiting else "ref"
        name, mark, words = line.partition(f":\t{kind}=")
        try:
            text = " ".join(ast.literal_eval(words))
        except (ValueError, SyntaxError, TypeError) as e:
            raise UserError(f"{path}:{number}: expected `id:<tab>{kind}=[...]`") from e
        if not mark or (waiting and waiting[0] != name):
            raise UserError(f"{path}:{number}: expected `id:<tab>{kind}=[...]`")
        if waiting:
            yield *waiting, text
        waiting = None if waiting else (name, text)
    if waiting:
        raise UserError(f"{path}: ends without the recognised words of {waiting[0]}")


def _by_id(path: Path) -> dict[str, dict]:
    """Returns the records of a file of JSON lines; none where there is no file."""
    if not path.is_file():
        return {}
    entries = [_parsed(path, number, line) for number, line in enumerate(_lines(path), 1)]
    return {entry["id"]: entry for entry in entries}


def _lines(path: Path) -> list[str]:
    """Not by ``splitlines``, which divides at other characters too, and texts may hold them."""
    text = path.read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n") if text else []


def _parsed(path: Path, number: int, line: str) -> dict:
    try:
        entry = json.loads(line)
        entry["id"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}:{number}: not a record of an utterance") from e
    return entry


def shared(decodes: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Returns the records of the utterances that all decodes have, in one order of ids."""
    by_id = [{record.id: record for record in records} for records in decodes]
    common = sorted(set.intersection(*(set(found) for found in by_id))) if by_id else []
    return [[found[name] for name in common] for found in by_id]
