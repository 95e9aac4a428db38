"""lhotse's own manifests: cuts, or recordings with supervisions, as JSON lines."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from local.importers.entry import Corpus, Entry, missing_parts, plain_columns
from local.importers.json_lines import read_json_lines
from local.importers.parts import EACH, TOLERANCE, Wanted
from local.importers.safety import place_problem, refuse_command
from local.utterances import RecordingPool
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.cuts import COLUMNS

_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError)
KINDS = ("recordings", "supervisions", "cuts")


def kind_of(item: Mapping[str, Any]) -> str:
    """Returns which of lhotse's manifests an object is from; '' if from none."""
    if str(item.get("type", "")).endswith("Cut") or {"start", "recording"} <= item.keys():
        return "cuts"
    if {"sources", "sampling_rate"} <= item.keys():
        return "recordings"
    return "supervisions" if {"recording_id", "start", "duration"} <= item.keys() else ""


@dataclasses.dataclass
class LhotseCorpus(Corpus):
    """Utterances of lhotse's manifests: each supervision is one."""

    channel: Wanted = None
    recordings: Path | None = None  # beside the supervisions at ``path``; None for cuts

    form = "lhotse's manifests"

    def entries(self) -> Iterator[Entry]:
        rows = self._of_cuts() if self.recordings is None else self._of_supervisions()
        for line, found, content in rows:
            if isinstance(found, str):
                yield Entry(line, content, problem=found)
                continue
            recording, supervision = found
            try:
                yield from self._parse(line, content, recording, supervision)
            except UserError:
                raise
            except _DAMAGE as e:
                problem = f"no manifest of lhotse: {type(e).__name__} {e}"
                yield Entry(line, content, problem=problem)

    def _of_supervisions(self) -> Iterator[tuple[int, tuple[dict, dict] | str, str]]:
        names = (
            str(one.get("recording_id"))
            for _, one, _ in read_json_lines(self.path)
            if isinstance(one, dict)
        )
        pool = RecordingPool(self._read_recordings(), names)
        for line, one, content in read_json_lines(self.path):
            if not isinstance(one, str):
                name = str(one.get("recording_id"))
                recording = pool.take(name)
                missing = f"no such recording: {name} in {self.recordings}"
                one = missing if recording is None else (recording, one)
            yield line, one, content

    def _read_recordings(self) -> Iterator[dict]:
        for line, one, _ in read_json_lines(self.recordings):
            if isinstance(one, str) or not isinstance(one.get("id"), str):
                reason = one if isinstance(one, str) else "a recording without id"
                raise UserError(f"{self.recordings}, line {line}: {reason}")
            yield {**one, "line": line}

    def _of_cuts(self) -> Iterator[tuple[int, tuple[dict, dict] | str, str]]:
        for line, cut, content in read_json_lines(self.path):
            if isinstance(cut, str):
                yield line, cut, content
                continue
            try:
                found = list(_utterances_of(cut))
            except _DAMAGE as e:
                found = [f"no manifest of lhotse: {type(e).__name__} {e}"]
            for one in found:
                yield line, one, content

    def _parse(
        self, line: int, content: str, recording: dict, supervision: dict
    ) -> Iterator[Entry]:
        file, number = (self.recordings, recording["line"]) if self.recordings else (None, line)
        problem = _recording_problem(recording, file or self.path, number)
        custom = {**(supervision.get("custom") or {}), "gender": supervision.get("gender")}
        custom.update(custom.pop(COLUMNS, None) or {})  # of a manifest of this recipe
        text = (supervision.get("text") or "").strip()
        told = supervision["channel"]
        told = tuple(told) if isinstance(told, list) else (told,)
        entry = Entry(
            line, content, text=text, speaker=supervision.get("speaker") or "",
            language=supervision.get("language") or "", id=str(supervision["id"]),
            recording=recording["id"], start=float(supervision["start"]),
            end=supervision["start"] + supervision["duration"], channels=told,
            columns=plain_columns(custom), problem=problem or missing_parts("recording", text),
        )  # fmt: skip
        if entry.problem:
            yield entry
            return
        sources = recording["sources"]
        if len(sources) == 1:
            yield self._in_source(entry, sources[0])
            return
        chosen = self._chosen(told)
        for channel in chosen:  # each of the sources is a file
            source = next((s for s in sources if channel in s["channels"]), None)
            if source is None:
                yield dataclasses.replace(entry, problem=f"no such channel: {channel}")
                continue
            suffix = f"-c{channel}"
            one = self._in_source(dataclasses.replace(entry, channels=(channel,)), source)
            name = entry.id + suffix * (len(chosen) > 1)
            yield dataclasses.replace(one, id=name, recording=entry.recording + suffix)

    def _chosen(self, told: tuple[int, ...]) -> tuple[int, ...]:
        if self.channel == EACH:
            return told
        return (self.channel,) if self.channel in told else told[:1]

    def _in_source(self, entry: Entry, source: dict) -> Entry:
        positions = {channel: i for i, channel in enumerate(source["channels"])}
        path = source["source"]
        missing = [c for c in entry.channels if c not in positions]
        problem = f"no such channel: {missing[0]}" if missing else ""
        return dataclasses.replace(
            entry, path=path, audio=self.locate(path), channel_in_file=positions, problem=problem
        )


def _utterances_of(cut: dict) -> Iterator[tuple[dict, dict] | str]:
    """Yields recording and supervision, in the time of the recording, or what is wrong."""
    if cut.get("type") not in ("MonoCut", "MultiCut", "Cut", None):
        yield f"a {cut['type']}: only parts of one recording can be used"
        return
    if not cut.get("recording"):
        yield "no recording: the cut has none"
        return
    if not cut.get("supervisions"):
        yield "empty text: the cut has no supervision"
        return
    for supervision in cut["supervisions"]:
        start, end = supervision["start"], supervision["start"] + supervision["duration"]
        if start < -TOLERANCE or end > cut["duration"] + TOLERANCE:
            yield "segment beyond the cut: the supervision has text that is not in it"
            continue
        start, end = max(start, 0.0), min(end, cut["duration"])
        custom = {**(cut.get("custom") or {}), **(supervision.get("custom") or {})}
        yield cut["recording"], {
            **supervision, "start": cut["start"] + start, "duration": end - start,
            "custom": custom, "channel": supervision.get("channel", cut.get("channel", 0)),
        }  # fmt: skip


def _recording_problem(recording: dict, file: Path, line: int) -> str:
    """Returns why a recording cannot be used; '' if it can. Raises UserError for a command."""
    for source in recording["sources"]:
        kind, place = source["type"], source["source"]
        if kind == "command":
            refuse_command(str(place), file, line)
        if kind != "file":
            return f"audio that is no file: of type {kind}" + f", {place}" * (kind == "url")
        problem = place_problem(str(place), file, line)
        if problem:
            return problem
    if recording.get("transforms"):
        return "a recording that lhotse changes when it reads it (transforms): save it as a file"
    return "" if recording["sources"] else "missing file: the recording has no sources"


def partner_of(path: Path, kind: str) -> Path:
    """Returns the supervisions of recordings, or the recordings of supervisions.

    Args:
      kind: of the manifest at ``path``.

    Raises:
      UserError: there is none, or more than one that it could be.
    """
    wanted = "supervisions" if kind == "recordings" else "recordings"
    partner = path.with_name(path.name.replace(kind, wanted))
    if kind in path.name and partner.is_file():
        return partner
    found = manifests_in(path.parent, wanted)
    if len(found) == 1:
        return found[0]
    named = ": " + ", ".join(p.name for p in found) if found else ""
    raise UserError(
        f"{path}: lhotse's {kind}, whose {wanted} must lie beside them as {partner.name}, or as "
        f"the only ones; there are {len(found)}{named}"
    )


def manifests_in(folder: Path, kind: str) -> list[Path]:
    """Returns the manifests of a kind in a folder, told by their names."""
    names = (name for name in sorted(os.listdir(folder)) if kind in name)
    return [folder / name for name in names if name.endswith((".jsonl", ".jsonl.gz"))]
