"""From a recording and its transcript to rows: encoded, aligned, cut into utterances."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from local.extract_progress import Progress
from local.importers.text_list import read_lines
from local.segmenting.pauses import find_pause
from local.segmenting.transcripts import Phrase, Transcript
from local.segmenting.utterances import Row, SegmentOptions, Written, segment
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import replacing
from xlsr_transducer.data.audio_file import AudioProblem, open_blocks
from xlsr_transducer.data.media import open_media
from xlsr_transducer.data.text import TextNormalizer
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.long_alignment import Aligner, Unit
from xlsr_transducer.recognition.long_encoding import Encoded, encode_recording, stored_seconds


@dataclass(frozen=True)
class Recording:
    """What is to be cut into utterances."""

    audio: Path
    transcript: Path
    speaker: str

    def __post_init__(self) -> None:
        for path in (self.audio, self.transcript):
            if not path.is_file():
                raise UserError(f"{path}: no such file")
        if "|" in str(self.audio.resolve()) or "\n" in str(self.audio.resolve()):
            raise UserError(f"{self.audio}: a list cannot name it; rename it, without | in it")


def read_recordings(path: Path) -> list[Recording]:
    """Reads a list of ``audio|transcript|speaker``, with paths relative to its folder.

    Raises:
      UserError: names the line that is wrong.
    """
    if not path.is_file():
        raise UserError(f"--list {path}: no such file")
    found: dict[Path, Recording] = {}
    for number, line in read_lines(path):
        try:
            fields = [field.strip() for field in line.decode("utf-8").split("|")]
            if len(fields) != 3 or not all(fields):
                raise UserError("a line has audio|transcript|speaker")
            audio, transcript = (path.parent / field for field in fields[:2])
            one = Recording(audio, transcript, fields[2])
            if audio.resolve() in found:
                raise UserError(f"{audio}: is named twice")
            found[audio.resolve()] = one
        except (UserError, UnicodeDecodeError) as e:
            raise UserError(f"{path}:{number}: {e}") from e
    if not found:
        raise UserError(f"{path}: names no recording")
    return list(found.values())


def weights_digest(model: torch.nn.Module) -> str:
    """Returns the SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Segmenter:
    """Cuts recordings into utterances with one model."""

    def __init__(
        self,
        loaded: LoadedModel,
        digest: str,
        chunk: ChunkSettings,
        method: str,
        window: float,
        normalizer: TextNormalizer,
        options: SegmentOptions,
        work: Path,
    ):
        """
        Args:
          digest: of the model's weights.
          window: the longest that is encoded at once, in seconds.
          work: folder in which each recording gets one.
        """
        self.encoder, self.chunk, self.window = loaded.model.encoder, chunk, window
        self.aligner = Aligner(loaded.model, loaded.tokenizer, method)
        self.normalizer, self.options, self.work = normalizer, options, work
        self._about = {"weights": digest, "view": chunk.describe()}

    def encode(self, recording: Recording) -> Encoded:
        """Encodes a recording, or resumes what a killed run has left.

        Raises:
          UserError: it cannot be read, or is too short.
        """
        path = recording.audio.resolve()
        name = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        folder = self.work / f"{path.stem}-{name}"
        state = path.stat()
        about = {**self._about, "audio": f"{path} {state.st_size} {state.st_mtime_ns}"}
        about["window"] = f"{self.window:g} s"
        there = stored_seconds(folder, about, self.encoder.frame_seconds)
        if there:
            logging.info(f"{path.name}: resumes after {there / 60:.1f} minutes that are there")
        try:
            with open_blocks(path), open_media(path) as media:  # what ./prepare.sh reads, too
                total = max((media.seconds or there) - there, 0.0)
                with Progress(path.name, total) as progress:
                    args = (self.encoder, self.chunk, media.pieces, self.window, folder, about)
                    encoded = encode_recording(*args, progress.add)
        except AudioProblem as e:
            raise UserError(f"{recording.audio}: {e}") from e
        if not encoded.num_frames:
            raise UserError(f"{recording.audio}: is shorter than a frame of the model")
        return encoded

    def rows(self, recording: Recording, transcript: Transcript) -> list[Row]:
        """Returns the utterances of a recording, and all that is in none.

        Raises:
          UserError: the recording cannot be read, or the model can spell no phrase.
        """
        written = [self.written(phrase) for phrase in transcript.phrases]
        usable = [k for k, one in enumerate(written) if one.unit]
        if not usable:
            raise UserError(f"{recording.transcript}:{written[0].phrase.line}: {written[0].flaw}")
        encoded = self.encode(recording)
        recognised = self.aligner.recognise(encoded)
        found = self.aligner.align(encoded, [written[k].unit for k in usable], recognised)
        placed = dict(zip(usable, found))
        aligned = [placed.get(k) for k in range(len(written))]
        pauses = functools.partial(find_pause, encoded, least=self.options.min_pause)
        rows = segment(recognised, aligned, written, encoded.seconds, pauses, self.options)
        flaws = (
            Row(None, None, flaw.text, f"{recording.transcript}:{flaw.line}: {flaw.reason}")
            for flaw in transcript.flaws
        )
        return [*rows, *flaws]

    def written(self, phrase: Phrase) -> Written:
        """Returns a phrase with what the model makes of it."""
        words = self.normalizer(phrase.text).split()
        try:
            unit: Unit | None = self.aligner.unit(words)
        except UserError as e:
            return Written(phrase, None, {}, str(e))
        each = [self.normalizer(word).split() for word in phrase.words]
        places: dict[int, int] = {}
        if [word for part in each for word in part] == words:
            counts = np.cumsum([len(part) for part in each]).tolist()
            places = {count: i + 1 for i, count in enumerate(counts) if 0 < count < len(words)}
        return Written(phrase, unit, places)


LIST_HEADER = "#path|start|end|text|speaker"


def list_lines(recording: Recording, rows: Sequence[Row]) -> Iterator[str]:
    """Yields a line of the list for each utterance, under ``LIST_HEADER``."""
    path = recording.audio.resolve()
    for row in rows:
        if not row.reason:
            yield f"{path}|{row.start:.3f}|{row.end:.3f}|{row.text}|{recording.speaker}"


TABLE_HEADER = "audio start end speaker state confidence errors odds text".replace(" ", "\t")


def table_lines(recording: Recording, rows: Sequence[Row]) -> Iterator[str]:
    """Yields a line of the table for each row, under ``TABLE_HEADER``."""
    path = recording.audio.resolve()
    for row in rows:
        times = ["" if t is None else f"{t:.3f}" for t in (row.start, row.end)]
        given = (row.confidence, ".4f"), (row.errors, "d"), (row.odds, ".2f")
        scores = ["" if value is None else format(value, form) for value, form in given]
        cells = [str(path), *times, recording.speaker, row.reason or "utterance", *scores]
        yield "\t".join([*cells, row.text])


def write_results(out_dir: Path, done: Sequence[tuple[Recording, Sequence[Row]]]) -> Path:
    """Writes segments.txt and segments.tsv in ``out_dir``; returns the first of them."""
    paths = out_dir / "segments.txt", out_dir / "segments.tsv"
    makers = (LIST_HEADER, list_lines), (TABLE_HEADER, table_lines)
    with replacing(*paths) as temporary:
        for path, (header, lines) in zip(temporary, makers):
            content = itertools.chain([header], *(lines(*one) for one in done))
            path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")
    return paths[0]
