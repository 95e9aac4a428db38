"""What eight-bit weights change: text, size and speed, on the validation set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.exporting.formats import Job
from xlsr_transducer.exporting.onnx_format import names
from xlsr_transducer.onnx_pretrained import load
from xlsr_transducer.onnx_pretrained_streaming import load as load_streaming
from xlsr_transducer.recognition.audio_sets import audio_sets
from xlsr_transducer.recognition.exported import recognise
from xlsr_transducer.recognition.scoring import error_rate
from xlsr_transducer.search import SearchOptions


@dataclasses.dataclass(frozen=True)
class Validation:
    """The validation set in memory."""

    waves: list[np.ndarray]  # (n,) samples at 16 kHz each
    texts: list[list[str]]  # words

    @property
    def seconds(self) -> float:
        return sum(len(wave) for wave in self.waves) / SAMPLING_RATE


def load_validation(data_dir: Path) -> Validation:
    """Reads the first validation set of a corpus.

    Raises:
      UserError: there is none.
    """
    splits = load_splits(data_dir)["val"]
    if not splits:
        raise UserError(f"--int8 1 measures on a validation set, and {data_dir} has none")
    cuts = list(audio_sets(data_dir, splits[0])[0].cuts)
    texts = [cut.supervisions[0].text.split() for cut in cuts]
    return Validation([read_audio(cut) for cut in cuts], texts)


def report(job: Job, folder: Path, validation: Validation) -> str:
    """A table of all precisions, offline and chunk by chunk, and what it was measured on."""
    kinds = [False, True] if not job.chunk.is_full_context else [False]
    suffixes = ["", *(s for s in (".fp16", ".int8") if getattr(job.options, s[1:]))]
    rows = [("encoder", "size", "RTF", "WER % to the float files' text", "WER % to the reference")]
    for is_streaming in kinds:
        floating: list[list[str]] = []
        for suffix in suffixes:
            files = [folder / name for name in names(job, suffix, is_streaming)]
            if not all(file.is_file() for file in files):
                continue  # it did not pass
            texts, seconds = _recognised(job, files, is_streaming, validation)
            floating = floating or texts
            size = f"{files[0].stat().st_size / 1e6:.1f} MB"
            rtf = f"{seconds / validation.seconds:.4f}"
            rates = [error_rate(list(zip(r, texts))) for r in (floating, validation.texts)]
            rows.append((files[0].name, size, rtf, *(str(rate) for rate in rates)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
    about = (
        f"{len(validation.waves)} utterances of the validation set, {validation.seconds:.0f} s, "
        f"{torch.get_num_threads()} thread(s), processor time, [95 %]"
    )
    return "\n".join([about, "", lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _recognised(
    job: Job, files: Sequence[Path], is_streaming: bool, validation: Validation
) -> tuple[list[list[str]], float]:
    """The words of every utterance, and the seconds that it took."""
    recogniser = (load_streaming if is_streaming else load)(files)
    waves = [torch.from_numpy(wave) for wave in validation.waves]
    start = time.process_time()
    progress = tqdm(waves, desc=files[0].name, unit="utt", disable=None)
    outputs = list(recognise(recogniser, progress, SearchOptions()))
    seconds = time.process_time() - start
    return [job.loaded.tokenizer.decode(o.tokens).split() for o in outputs], seconds
