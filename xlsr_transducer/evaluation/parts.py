"""The grid's recognition in parts of some minutes, whose results are kept in files.

So it can be shared out among processes, and goes on where it was interrupted. A part's folder is
named by a hash of all that its results depend on: weights, search, utterances and their audio.

    PART/utterances.json   texts, word times by forced alignment, what could not be read
    PART/SETTING.json      tokens of each utterance, with frames and log-probs
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.alignment_sets import align_batch
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.grid import FrontEnd, Grid
from xlsr_transducer.search import Hypothesis, SearchOptions

PART_SECONDS = 300.0
FORMAT = 2  # of the files; another one is another hash
UTTERANCES = "utterances"


@dataclasses.dataclass(frozen=True)
class Part:
    """Some utterances of a set, and the folder of their results."""

    audio: AudioSet
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def missing(self, settings: list[ChunkSettings]) -> list[ChunkSettings]:
        """Returns the settings without results."""
        return [s for s in settings if not self.path(s.describe()).is_file()]

    def is_done(self, settings: list[ChunkSettings]) -> bool:
        return self.path(UTTERANCES).is_file() and not self.missing(settings)

    def read(self, name: str) -> dict[str, Any]:
        """Returns what a file holds.

        Raises:
          UserError: it is damaged.
        """
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise UserError(f"{path}: damaged ({e}); remove it") from e

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        write_text(self.path(name), json.dumps(content, ensure_ascii=False) + "\n")

    def hypotheses(self, chunk: ChunkSettings) -> dict[str, Hypothesis]:
        """Returns what was recognised with a setting, by utterance."""
        return {
            name: Hypothesis(tokens, frames, log_probs=log_probs)
            for name, (tokens, frames, log_probs) in self.read(chunk.describe()).items()
        }

    def write_hypotheses(self, chunk: ChunkSettings, found: Mapping[str, Hypothesis]) -> None:
        rounded = {
            name: (h.tokens, h.frames, [round(p, 5) for p in h.log_probs])
            for name, h in found.items()
        }
        self.write(chunk.describe(), rounded)


def model_digest(loaded: LoadedModel) -> str:
    """Returns a hash of weights, configuration and tokens."""
    digest = hashlib.sha256(json.dumps(loaded.config.to_dict(), sort_keys=True).encode())
    digest.update(loaded.tokenizer.to_bytes())
    for name, value in sorted(loaded.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def parts_of(
    audio: AudioSet, folder: Path, about: Mapping[str, Any], seconds: float = PART_SECONDS
) -> Iterator[Part]:
    """Yields the parts of a set.

    Args:
      folder: of all parts.
      about: what results depend on besides the utterances, as plain values.
      seconds: least duration of a part that is not the last.
    """
    kept: list[Cut] = []
    total = 0.0
    for cut in audio.cuts:
        kept.append(cut)
        total += cut.duration
        if total >= seconds:
            yield part_of(audio, kept, folder, about)
            kept, total = [], 0.0
    if kept:
        yield part_of(audio, kept, folder, about)


def part_of(audio: AudioSet, cuts: list[Cut], folder: Path, about: Mapping[str, Any]) -> Part:
    """Returns a part of the given utterances."""
    digest = hashlib.sha256(json.dumps([FORMAT, dict(about)], sort_keys=True).encode())
    for cut in cuts:
        digest.update(json.dumps(cut.to_dict(), sort_keys=True, default=str).encode())
        for source in cut.recording.sources:
            if source.type == "file" and os.path.exists(source.source):
                status = os.stat(source.source)
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    own = dataclasses.replace(audio, cuts=CutSet.from_cuts(cuts), unread={})
    return Part(own, folder / digest.hexdigest()[:32])


def described(digest: str, search: SearchOptions, alignment: ChunkSettings) -> dict[str, Any]:
    """Returns the ``about`` of parts: what their results depend on besides the utterances.

    Args:
      digest: of the model.
      alignment: the setting of the forced alignment.
    """
    return {
        "model": digest,
        "search": dataclasses.asdict(search),
        "alignment": alignment.describe(),
    }


def decode_part(
    grid: Grid,
    part: Part,
    settings: list[ChunkSettings],
    alignment: ChunkSettings,
    is_written: Callable[[], object] = lambda: None,
) -> None:
    """Computes what a part lacks, and writes each setting when it is there.

    Args:
      is_written: called after each setting.
    """
    if part.is_done(settings):
        return
    read = Results(part.audio, frame=grid.encoder.frame_seconds)
    fronts = list(grid.front_ends(part.audio, read))
    if not part.path(UTTERANCES).is_file():
        part.write(UTTERANCES, _utterances(grid, part, fronts, read, alignment))
    for chunk in part.missing(settings):
        found: dict[str, Hypothesis] = {}
        for front in fronts:
            found.update(zip(front.batch.ids, grid.simulate(front, chunk)))
        part.write_hypotheses(chunk, found)
        is_written()


def _utterances(
    grid: Grid, part: Part, fronts: list[FrontEnd], read: Results, alignment: ChunkSettings
) -> dict[str, Any]:
    """Returns the references of a part, with the times of their words in seconds."""
    words: dict[str, list] = {}
    not_aligned: dict[str, str] = {}
    for front in fronts:
        out, lens = grid.encode(front, alignment)
        given = (part.audio, front.batch, out, lens, grid.upper, grid.tokenizer)
        found, failed = align_batch(*given, "ctc" if grid.upper.joiner is None else "regular")
        for one in found:
            words[one.id] = [
                (w.text, round(w.start, 4), round(w.end, 4), round(w.confidence, 5))
                for w in one.words
            ]
        not_aligned.update((unread.id, unread.reason) for unread in failed)
    texts = {i: text for f in fronts for i, text in zip(f.batch.ids, f.batch.texts)}
    return {
        "texts": texts,
        "seconds": {cut.id: cut.duration for cut in part.audio.cuts if cut.id in texts},
        "unread": {u.id: (u.text, u.reason) for u in read.unread.values()},
        "words": words,
        "not_aligned": not_aligned,
    }
