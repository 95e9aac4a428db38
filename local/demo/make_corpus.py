"""Makes the demo corpus: Estonian from a small closed grammar, spoken by espeak-ng's voices.

    python -m local.demo.make_corpus --out-dir data/demo

writes NAME.wav and the lists train.txt, val.txt, test_seen.txt and test_unseen.txt
(`path|text|speaker`). No test or validation sentence occurs in training, and the speakers of
test_unseen occur nowhere else. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import lfilter
from tqdm import tqdm

from local.demo.espeak import Synthesizer
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import write_bytes, write_text
from xlsr_transducer.core.options import Number, Parser

SEEN_VOICES = (
    "et", "et+m1", "et+m3", "et+m4", "et+m7", "et+f1", "et+f2", "et+f5", "et+linda",
)  # fmt: skip
UNSEEN_VOICES = ("et+m2", "et+f3")

# One of these takes the place of <name> in a sentence; values may hold further <names>.
GRAMMAR: dict[str, tuple[str, ...]] = {
    "sentence": (
        "<time> <verb> <day>, <ordinal> <month>",
        "<ordinal> <month> on <day>, kell on <hour>",
        "<day>, <ordinal> <month>, on ilm <quality> ja <quality>",
        "<time> <daytime> <falls>, <place> <falls>",
        "<place> puhub <strength> tuul, <time> <falls>",
        "<time> on <place> <number> kraadi <degree>",
        "<place> on <number> kraadi <degree> ja <falls>",
        "kell on <hour>, <ordinal> <month>",
        "ärata mind <time> <daytime> kell <hour>",
        "minu number on <digit> <digit> <digit> <digit>",
        "lülita <time> <daytime> <device> <where> <switch>",
        "kustuta <daytime> kell <hour> tuli <where>",
        "mängi <where> <daytime> <music>, palun",
        "osta poest <goods>, <goods> ja <goods>",
        "palun osta <number> <piece> ja <goods>",
        "helista <person>, täna on <ordinal> <month>",
        "<time> sõidan ma <person> külla, kell on <hour>",
    ),
    "time": ("täna", "homme", "eile", "ülehomme"),
    "verb": ("on", "oli"),
    "day": (
        "esmaspäev", "teisipäev", "kolmapäev", "neljapäev", "reede", "laupäev", "pühapäev",
    ),
    "daytime": ("hommikul", "päeval", "õhtul", "öösel"),
    "month": (
        "jaanuar", "veebruar", "märts", "aprill", "mai", "juuni", "juuli", "august",
        "september", "oktoober", "november", "detsember",
    ),
    "ordinal": (
        "esimene", "teine", "kolmas", "neljas", "viies", "kuues", "seitsmes", "kaheksas",
        "üheksas", "kümnes",
    ),
    "digit": ("null", "<unit>"),
    "unit": ("üks", "kaks", "kolm", "neli", "viis", "kuus", "seitse", "kaheksa", "üheksa"),
    "hour": ("<unit>", "kümme"),
    "number": ("<unit>", "kümme", "<tens> <unit>", "sada <unit>", "<tens>"),
    "tens": ("kakskümmend", "kolmkümmend", "viiskümmend"),
    "quality": ("külm", "soe", "tuuline", "pilvine", "kuiv", "päikeseline"),
    "falls": ("sajab vihma", "sajab lund", "tuleb torm", "paistab päike"),
    "place": ("põhjas", "lõunas", "idas", "läänes"),
    "strength": ("tugev", "nõrk"),
    "degree": ("sooja", "külma"),
    "device": ("raadio", "televiisor", "lamp"),
    "switch": ("sisse", "välja"),
    "where": ("köögis", "toas", "esikus"),
    "music": ("džässi", "muusikat", "uut laulu"),
    "goods": ("leiba", "piima", "juustu", "šokolaadi", "kohvi"),
    "piece": ("õuna", "muna"),
    "person": ("emale", "isale", "õele", "vennale"),
}  # fmt: skip
_NAME = re.compile(r"<(\w+)>")


def grammar_words() -> set[str]:
    """Returns every word of the grammar."""
    texts = [_NAME.sub(" ", choice) for choices in GRAMMAR.values() for choice in choices]
    return {word for text in texts for word in re.findall(r"\w+", text)}


def make_sentence(rng: np.random.Generator) -> str:
    """One sentence of the grammar, with capital letter and full stop."""

    def expand(name: str) -> str:
        choices = GRAMMAR[name]
        chosen = choices[int(rng.integers(len(choices)))]
        return _NAME.sub(lambda m: expand(m.group(1)), chosen)

    text = expand("sentence")
    return text[0].upper() + text[1:] + "."


def distinct_sentences(count: int, rng: np.random.Generator, taken: set[str]) -> list[str]:
    """``count`` different sentences, none of them in ``taken``, which receives them."""
    sentences: list[str] = []
    for _ in range(100 * count + 1000):
        if len(sentences) == count:
            return sentences
        text = make_sentence(rng)
        if text not in taken:
            taken.add(text)
            sentences.append(text)
    raise UserError(f"the demo's grammar does not have {count} more sentences: ask for fewer")


def speaking_style(rng: np.random.Generator) -> dict[str, int]:
    """Speed, pitch and pauses of one utterance: arguments of ``Synthesizer.speak``."""
    return {
        "rate": int(rng.integers(150, 191)),
        "pitch": int(rng.integers(38, 63)),
        "pitch_range": int(rng.integers(35, 66)),
        "word_gap": int(rng.integers(0, 4)),
    }


def record(
    samples: np.ndarray, sampling_rate: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Puts speech (int16) into a room: silence around it, level, coloured noise of 10 to 35 dB.

    Returns the int16 samples and how many samples of silence come before the speech.
    """
    before, after = (rng.uniform(0.05, 0.2, size=2) * sampling_rate).astype(int)
    speech = np.pad(samples.astype(np.float64) / 32768, (before, after))
    speech *= 10 ** (rng.uniform(-9, 0) / 20)
    pole = rng.uniform(0.0, 0.95)  # 0: white noise; near 1: a low rumble
    noise = lfilter([1.0], [1.0, -pole], rng.standard_normal(len(speech)))
    power = np.mean(speech[before : len(speech) - after] ** 2)
    noise *= np.sqrt(power / np.mean(noise**2)) * 10 ** (-rng.uniform(10, 35) / 20)
    mixed = speech + noise
    mixed *= min(1.0, 0.99 / np.abs(mixed).max())
    return np.round(mixed * 32767).astype(np.int16), int(before)


def write_utterance(
    path: Path, text: str, voice: str, synthesizer: Synthesizer, rng: np.random.Generator
) -> float:
    """Writes ``text``, spoken in some style in some room, as wav. Returns its seconds."""
    speech = synthesizer.speak(text, voice, **speaking_style(rng))
    samples, _ = record(speech.samples, speech.sampling_rate, rng)
    wav = io.BytesIO()  # as libsndfile does not tell why a file cannot be written
    soundfile.write(wav, samples, speech.sampling_rate, subtype="PCM_16", format="WAV")
    write_bytes(path, wav.getvalue())
    return len(samples) / speech.sampling_rate


def make_split(
    name: str, sentences: list[str], voices: Sequence[str], seed: int, out_dir: Path
) -> float:
    """Writes the wav files of one split, then its list. Returns the seconds of audio."""
    synthesizer = Synthesizer()
    rng = np.random.default_rng([seed, *name.encode()])
    seconds = 0.0
    lines = []
    for i, text in enumerate(tqdm(sentences, desc=name, disable=None)):
        voice = voices[i % len(voices)]
        file_name = f"{name}_{i:04d}.wav"
        seconds += write_utterance(out_dir / file_name, text, voice, synthesizer, rng)
        lines.append(f"{file_name}|{text}|{voice.replace('+', '_')}\n")
    write_text(out_dir / f"{name}.txt", "".join(lines))
    return seconds


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out-dir", type=Path, default=Path("data/demo"))
    parser.add_argument(
        "--num-train", type=Number(int, at_least=1), default=800, help="training utterances"
    )
    parser.add_argument(
        "--num-val", type=Number(int, at_least=1), default=40, help="validation utterances"
    )
    parser.add_argument(
        "--num-test-seen", type=Number(int, at_least=1), default=100, help="of voices in training"
    )
    parser.add_argument(
        "--num-test-unseen",
        type=Number(int, at_least=1),
        default=60,
        help="of voices in test only",
    )
    parser.add_argument("--seed", type=Number(int, at_least=0), default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    splits = (  # training first, so that it holds every word, and the rarest sentences too
        ("train", args.num_train, SEEN_VOICES),
        ("val", args.num_val, SEEN_VOICES),
        ("test_seen", args.num_test_seen, SEEN_VOICES),
        ("test_unseen", args.num_test_unseen, UNSEEN_VOICES),
    )
    rng = np.random.default_rng(args.seed)
    taken: set[str] = set()
    for name, count, voices in splits:
        sentences = distinct_sentences(count, rng, taken)
        seconds = make_split(name, sentences, voices, args.seed, args.out_dir)
        logging.info(
            "%s: %d utterances, %.1f minutes, %d voices", name, count, seconds / 60, len(voices)
        )


if __name__ == "__main__":
    run_command(main)
