"""Recordings of any length as text and subtitles, in constant memory.

Each file is a stream of one engine, which computes a chunk of each at a time. Segments are written
as they end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError, complain
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.audio_file import AudioProblem
from xlsr_transducer.data.media import open_media
from xlsr_transducer.recognition.engine import Stream, StreamingEngine
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.subtitles import ENDINGS, WRITERS

STDIN = Path("-")


@dataclasses.dataclass(frozen=True)
class TranscribeOptions(Options):
    """Output."""

    format: str = option("txt", "what to write", tuple(WRITERS))
    output_dir: Path | None = option(
        None, "folder for the results, each named after its file; without it one file's is printed"
    )
    num_streams: int = option(8, "files at once", at_least=1)

    def outputs(self, files: Sequence[Path]) -> dict[Path, Path | None]:
        """Returns where the result of each file goes; None: to stdout.

        Raises:
          UserError: two results have one name, or one is that of a file.
        """
        if self.output_dir is None:
            if len(files) > 1:
                raise UserError("several files need an --output-dir for their results")
            return {files[0]: None}
        found: dict[Path, Path | None] = {}
        source: dict[Path, Path] = {file.resolve(): file for file in files if file != STDIN}
        for file in files:
            stem = "stdin" if file == STDIN else file.stem
            path = self.output_dir / f"{stem}{ENDINGS[self.format]}"
            if path.resolve() in source:
                other = source[path.resolve()]
                raise UserError(f"{path}: would be the result of {file}, and that of {other}")
            source[path.resolve()] = file
            found[file] = path
        return found


def transcribe_files(model: LiveModel, files: Sequence[Path], options: TranscribeOptions) -> int:
    """Transcribes files, or standard input for ``-``; complains of those that it cannot read.

    Returns:
      the exit status: 2 if there were any.

    Raises:
      UserError: the results cannot have the names that they would get.
    """
    outputs = options.outputs(files)
    engine = model.engine(min(options.num_streams, len(files)))
    status, running = 0, []
    with _Progress(files) as progress:
        jobs = (
            (file, _transcribe(model, engine, file, output, options.format, progress))
            for file, output in outputs.items()
        )
        try:
            while True:
                running += itertools.islice(jobs, options.num_streams - len(running))
                if not running:
                    return status
                for job in list(running):
                    over = _advance(*job, progress)
                    if over is not None:
                        running.remove(job)
                        status = max(status, over)
                engine.step()
        finally:  # their unfinished results are removed
            for _, steps in running:
                steps.close()


def _advance(file: Path, steps: Iterator[None], progress: _Progress) -> int | None:
    """Lets a file go on to its next step; returns its exit status once it is over."""
    try:
        next(steps)
    except StopIteration:
        return 0
    except (AudioProblem, UserError) as e:
        return progress.complain(f"{_shown(file)}: {e}")
    return None


def _transcribe(
    model: LiveModel,
    engine: StreamingEngine,
    file: Path,
    output: Path | None,
    format: str,
    progress: _Progress,
) -> Iterator[None]:
    """Transcribes a file; yields whenever the engine has to do a step.

    Raises:
      AudioProblem, UserError: it cannot be read, or the result cannot be written.
    """
    writer, number = WRITERS[format](), 0
    source = sys.stdin.buffer if file == STDIN else file
    with (
        open_media(source) as media,
        _open_output(output) as out,
        _open_stream(engine, _shown(file)) as stream,
    ):
        progress.print(writer.header, out)
        for piece in itertools.chain(media.pieces, [None]):
            if piece is None:
                stream.finish()
            else:
                stream.accept(torch.from_numpy(piece))
            while _waits(stream, engine):
                before = stream.arrived
                yield
                progress.add(stream.arrived - before)
                for found in stream.take_segments():
                    segment = model.timed(found, number, is_final=True)
                    progress.print(writer.add(segment), out)
                    number += 1
        progress.print(writer.finish(stream.seconds), out)


def _waits(stream: Stream, engine: StreamingEngine) -> bool:
    """Returns whether a step of the engine would compute a chunk of a stream, or end it."""
    return stream.buffer.has_chunk() or (stream.buffer.is_finished and stream in engine.streams)


def _shown(file: Path) -> str:
    return "standard input" if file == STDIN else str(file)


@contextlib.contextmanager
def _open_output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    with replacing(path) as [temporary], open(temporary, "w", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def _open_stream(engine: StreamingEngine, name: str) -> Iterator[Stream]:
    stream = engine.open(name)
    try:
        yield stream
    finally:
        if stream in engine.streams:
            engine.close(stream)


class _Progress:
    """A bar of the seconds of audio that are done; none where stderr is no terminal."""

    def __init__(self, files: Sequence[Path]):
        self._files = files
        self._seconds = 0.0

    def __enter__(self) -> _Progress:
        self._bar = tqdm(unit=" s of audio", disable=None)
        if not self._bar.disable:
            self._bar.total = _total(self._files)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, seconds: float) -> None:
        """Takes in that so much more audio is done."""
        self._seconds += seconds
        self._bar.update(round(self._seconds) - self._bar.n)

    def print(self, text: str, out: TextIO) -> None:
        """Writes and flushes text, in a file or beside the bar."""
        if text:
            with self._bar.external_write_mode(out):
                out.write(text)
                out.flush()

    def complain(self, message: str) -> int:
        """Does ``complain`` beside the bar."""
        with self._bar.external_write_mode(sys.stderr):
            return complain(message)


def _total(files: Sequence[Path]) -> int | None:
    """Returns the seconds of all files that can be read; None where a header does not tell."""
    total = 0.0
    for file in files:
        if file == STDIN or not file.is_file():
            return None
        with contextlib.suppress(AudioProblem), open_media(file) as media:
            if media.seconds is None:
                return None
            total += media.seconds
    return round(total)
