"""NeMo's manifests: JSON lines with audio_filepath, duration, offset and text."""

from __future__ import annotations

from collections.abc import Iterator

from local.importers.entry import Corpus, Entry, missing_parts, plain_columns
from local.importers.json_lines import read_json_lines
from local.importers.safety import place_problem

PATH = "audio_filepath"
_USED = (PATH, "duration", "offset", "text", "speaker", "lang")


class Nemo(Corpus):
    """A manifest of NeMo. Its other keys are columns."""

    form = "NeMo's JSON lines"

    def entries(self) -> Iterator[Entry]:
        for line, row, content in read_json_lines(self.path):
            if isinstance(row, str):
                yield Entry(line, content, problem=row)
            else:
                yield self._parse(line, row, content)

    def _parse(self, line: int, row: dict, content: str) -> Entry:
        path, text = row.get(PATH), row.get("text")
        for key, value in ((PATH, path), ("text", text)):
            if not isinstance(value, str):
                state = "is no text" if key in row else "is missing"
                return Entry(line, content, problem=f"key {key} {state}")
        path, text = path.strip(), text.strip()
        times = [row.get(key) for key in ("offset", "duration")]
        if any(not isinstance(t, (int, float, type(None))) for t in times):
            return Entry(line, content, problem=f"times that are no seconds: {times}")
        offset, duration = times
        is_segment = offset is not None and duration is not None
        return Entry(
            line, content, path, self.locate(path), text, str(row.get("speaker") or ""),
            str(row.get("lang") or ""), start=offset or 0.0,
            end=offset + duration if is_segment else None,
            duration=duration if offset is None else None,
            columns=plain_columns({n: v for n, v in row.items() if n not in _USED}),
            problem=missing_parts(path, text) or place_problem(path, self.path, line),
        )  # fmt: skip
