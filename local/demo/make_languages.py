"""Makes a corpus of four synthetic languages, of which there is very unequally much to train on.

    python -m local.demo.make_languages --out-dir data/demo_languages/audio

writes, for each LANG of et, lv, de and es, wav files and the lists train_LANG.txt, val_LANG.txt
and test_LANG.txt (`path|text|speaker`); and train_labels.txt, val_labels.txt and test_labels.txt,
which hold the same files as `path|LANG|speaker`, to identify the language. In training the minutes
are 10 : 3 : 1 : 1; validation and test have as much of each language. A sentence is a random
string of the language's words. No sentence of validation or test occurs in training, and each of
the three has speakers of its own. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from local.demo.espeak import Synthesizer
from local.demo.language_words import ESTONIAN, GERMAN, LATVIAN, SPANISH
from local.demo.make_corpus import write_utterance
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.options import Number, Parser


@dataclasses.dataclass(frozen=True)
class Language:
    """A language of the corpus."""

    code: str  # ISO 639-1, and espeak-ng's voice
    share: float  # of the largest language's minutes of training
    words: tuple[str, ...]


LANGUAGES = (
    Language("et", 1.0, ESTONIAN),
    Language("lv", 0.3, LATVIAN),
    Language("de", 0.1, GERMAN),
    Language("es", 0.1, SPANISH),
)
# espeak-ng's variants of each voice. The toy network's pre-training has none of the test's.
SPEAKERS = {
    "train": ("m1", "m3", "m4", "m7", "f1", "f2", "f5", "linda"),
    "val": ("m5", "f4"),
    "test": ("m2", "f3", "norbert", "aunty"),
}
WORDS_PER_SENTENCE = (3, 6)


def make_list(
    split: str, language: Language, minutes: float, seed: int, out_dir: Path, taken: set[str]
) -> list[tuple[str, str]]:
    """Writes at least so many minutes of a language's wav files, then their list.

    Args:
      taken: sentences that may not occur; receives those that do.
    Returns:
      File name and speaker of each utterance.
    """
    synthesizer = Synthesizer()
    name = f"{split}_{language.code}"
    rng = np.random.default_rng([seed, *name.encode()])
    speakers = SPEAKERS[split]
    seconds, lines, utterances = 0.0, [], []
    with tqdm(total=round(60 * minutes), desc=name, unit="s", disable=None) as progress:
        while seconds < 60 * minutes:
            text = make_sentence(language.words, rng)
            if text in taken:
                continue
            taken.add(text)
            variant = speakers[len(lines) % len(speakers)]
            file_name = f"{name}_{len(lines):04d}.wav"
            voice = f"{language.code}+{variant}"
            seconds += write_utterance(out_dir / file_name, text, voice, synthesizer, rng)
            utterances.append((file_name, voice.replace("+", "_")))
            lines.append(f"{file_name}|{text}|{utterances[-1][1]}\n")
            progress.update(round(seconds) - progress.n)
    write_text(out_dir / f"{name}.txt", "".join(lines))
    logging.info("%s: %d utterances, %.1f minutes", name, len(lines), seconds / 60)
    return utterances


def make_sentence(words: Sequence[str], rng: np.random.Generator) -> str:
    """Returns a random string of words."""
    least, most = WORDS_PER_SENTENCE
    return " ".join(rng.choice(words, rng.integers(least, most + 1)))


def make_corpus(out_dir: Path, minutes: dict[str, float], seed: int) -> None:
    """Writes the whole corpus.

    Args:
      minutes: of each split; for train, those of the largest language.
    """
    taken: dict[str, set[str]] = {language.code: set() for language in LANGUAGES}
    for split in SPEAKERS:
        labels = []
        for language in LANGUAGES:
            share = language.share if split == "train" else 1.0
            utterances = make_list(
                split, language, share * minutes[split], seed, out_dir, taken[language.code]
            )
            labels += [f"{file}|{language.code}|{speaker}\n" for file, speaker in utterances]
        write_text(out_dir / f"{split}_labels.txt", "".join(labels))


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out-dir", type=Path, default=Path("data/demo_languages/audio"))
    for split, default, of in (
        ("train", 45.0, "the largest language in training"),
        ("val", 1.5, "each language in validation"),
        ("test", 3.0, "each language in test"),
    ):
        parser.add_argument(
            f"--{split}-minutes",
            type=Number(float, above=0),
            default=default,
            help=f"minutes of {of} (default: {default:g})",
        )
    parser.add_argument("--seed", type=Number(int, at_least=0), default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    minutes = {split: getattr(args, f"{split}_minutes") for split in SPEAKERS}
    make_corpus(args.out_dir, minutes, args.seed)


if __name__ == "__main__":
    run_command(main)
