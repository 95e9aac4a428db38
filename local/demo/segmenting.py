"""Does ``local.segment`` find what was spoken where? Makes a long recording, and compares.

    python -m local.demo.segmenting --exp-dir exp/demo/streaming --window-seconds 6

The demo's validation and test sentences are spoken anew, with pauses of 0.3 to 3 s of faint noise
between them, each in its own noise; the synthesizer tells where each begins and ends. A tenth of
them is missing from the transcript, which has as many others that nobody spoke. ``local.segment``
then runs as a program. Prints how much was kept, what of it is wrong, how far its bounds are from
the true ones, and the program's time and memory. The demo's model is a toy network and the speech
synthetic: its figures tell whether the method works, and nothing about XLSR.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from local.demo.espeak import Synthesizer
from local.demo.make_corpus import make_sentence, record, speaking_style
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.data.text import TextNormalizer, TextOptions

PAUSE = (0.3, 3.0)  # seconds
NOISE = 0.001  # rms of the noise in a pause: -60 dB of full scale
MISSING = EXTRA = 0.1  # of the sentences
NEAR = 0.2  # seconds from a true bound


class Sentence(NamedTuple):
    """What was spoken, and when, in seconds."""

    start: float
    end: float
    words: list[str]


def read_sentences(folder: Path) -> list[tuple[str, str]]:
    """Returns texts and voices of the demo's validation and test lists."""
    paths = [folder / f"{name}.txt" for name in ("val", "test_seen", "test_unseen")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such list; run ./demo.sh first, or give --data-dir")
    rows = [line.split("|") for path in paths for line in path.read_text("utf-8").splitlines()]
    return [(text, speaker.replace("_", "+")) for _, text, speaker in rows]


def make_recording(
    rows: Sequence[tuple[str, str]], rng: np.random.Generator
) -> tuple[np.ndarray, int, list[tuple[float, float, str]]]:
    """Speaks sentences; returns int16 samples, their rate, and start, end and text of each."""
    synthesizer, parts, spoken, length = Synthesizer(), [], [], 0
    for number in rng.permutation(len(rows)).tolist():
        text, voice = rows[number]
        speech = synthesizer.speak(text, voice, **speaking_style(rng))
        rate = speech.sampling_rate
        samples, before = record(speech.samples, rate, rng)
        sounds = [at for at, name in speech.phonemes if not name.startswith("_")]
        silences = [at for at, name in speech.phonemes if name.startswith("_")]
        end = next((at for at in silences if at > sounds[-1]), len(speech.samples))
        spoken.append(((length + before + sounds[0]) / rate, (length + before + end) / rate, text))
        pause = NOISE * 32767 * rng.standard_normal(int(rng.uniform(*PAUSE) * rate))
        parts += [samples, np.round(pause).astype(np.int16)]
        length += len(parts[-2]) + len(parts[-1])
    return np.concatenate(parts), rate, spoken


def make_transcript(texts: Sequence[str], seed: int) -> tuple[str, list[int]]:
    """Returns the sentences without some, and with some that are not among them; and the numbers
    of those that are in it."""
    draw, rng, taken = random.Random(seed), np.random.default_rng(seed), set(texts)
    lines, written = [], []
    for number, text in enumerate(texts):
        if draw.random() < EXTRA:
            other = make_sentence(rng)
            while other in taken:
                other = make_sentence(rng)
            lines.append(other)
        if draw.random() >= MISSING:
            lines.append(text)
            written.append(number)
    return " ".join(lines) + "\n", written


def score(kept: Sequence[Sentence], spoken: Sequence[Sentence]) -> tuple[int, int, list[float]]:
    """Compares utterances with what was spoken in their time.

    Returns:
      how many have other words; words of sentences that they have; the distances of their
      bounds from the true ones in seconds, but for those within a sentence.
    """
    starts, ends = (np.array([s[i] for s in spoken]) for i in (0, 1))
    wrong, count, distances = 0, 0, []
    for one in kept:
        overlap = np.minimum(ends, one.end) - np.maximum(starts, one.start)
        inside = np.flatnonzero(overlap > NEAR)
        words = [word for k in inside for word in spoken[k].words]
        if one.words != words:
            size = len(one.words)
            places = [i for i in range(len(words)) if words[i : i + size] == one.words]
            if not places:
                logging.warning(f"wrong: {one}, but {' '.join(words)}")
                wrong += 1
                continue
            if places[0] + size == len(words):
                distances.append(abs(one.end - ends[inside[-1]]))
            elif not places[0]:
                distances.append(abs(one.start - starts[inside[0]]))
        else:
            distances += [abs(one.start - starts[inside[0]]), abs(one.end - ends[inside[-1]])]
        count += len(one.words)
    return wrong, count, distances


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp-dir", type=Path, default=Path("exp/demo/streaming"))
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo_corpus"))
    parser.add_argument("--out-dir", type=Path, default=Path("exp/demo/segmenting"))
    parser.add_argument("--methods", default="ctc,transducer")
    parser.add_argument("--window-seconds", default="6")
    parser.add_argument(
        "--repeat", type=Number(int, at_least=1), default=1, help="the same audio so often"
    )
    parser.add_argument("--seed", type=Number(int, at_least=0), default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    set_up_logging()
    rows = read_sentences(args.data_dir / "demo")
    samples, rate, once = make_recording(rows, np.random.default_rng(args.seed))
    length = len(samples) / rate
    spoken = [
        (start + k * length, end + k * length, text)
        for k in range(args.repeat)
        for start, end, text in once
    ]
    audio, transcript = (args.out_dir / name for name in ("recording.wav", "recording.txt"))
    with replacing(audio, transcript) as temporary:
        with soundfile.SoundFile(temporary[0], "w", rate, 1, "PCM_16", format="WAV") as file:
            for _ in range(args.repeat):
                file.write(samples)
        text, written = make_transcript([text for *_, text in spoken], args.seed)
        temporary[1].write_text(text, encoding="utf-8")
    normalize = TextNormalizer(TextOptions())
    truth = [Sentence(start, end, normalize(text).split()) for start, end, text in spoken]
    total = sum(len(truth[number].words) for number in written)
    table = [["head", "utterances", "words kept %", "wrong", "bounds within 0.2 s %",
              "median s", "minutes", "peak GiB"]]  # fmt: skip
    for method in args.methods.split(","):
        out, began = args.out_dir / method, time.monotonic()
        command = [sys.executable, "-m", "local.segment", f"--audio={audio}", f"--out-dir={out}"]
        command += [f"--transcript={transcript}", f"--exp-dir={args.exp_dir}"]
        command += [f"--method={method}", f"--window-seconds={args.window_seconds}"]
        subprocess.run(command, check=True)
        took = (time.monotonic() - began) / 60
        lines = (out / "segments.txt").read_text(encoding="utf-8").splitlines()
        fields = [line.split("|") for line in lines[1:]]
        kept = [Sentence(float(f[1]), float(f[2]), normalize(f[3]).split()) for f in fields]
        wrong, count, distances = score(kept, truth)
        near = 100 * np.mean(np.array(distances) <= NEAR)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        table.append([method, str(len(kept)), f"{100 * count / total:.1f}", str(wrong),
                      f"{near:.1f}", f"{np.median(distances):.3f}", f"{took:.1f}",
                      f"{peak:.2f}"])  # fmt: skip
    minutes = args.repeat * length / 60
    print(f"{len(truth)} sentences in {minutes:.1f} minutes, {len(written)} of them in the text")
    print(text_table(table, is_right=True))


if __name__ == "__main__":
    run_command(main)
