"""Models of Hugging Face on the same sets, by transformers' own pipeline, for comparison.

CTC models, Whisper and its kind, and pairs of speech encoder and text decoder all pass through
``pipeline("automatic-speech-recognition")``, which knows how each is called. Their texts are
normalised and scored as the recogniser's are.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse.cut import Cut
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.recognition.audio_sets import AudioSet, name_in_results
from xlsr_transducer.recognition.decoding import decode_device
from xlsr_transducer.recognition.facts import facts_of
from xlsr_transducer.recognition.scoring import Score, Transcript, write_results

ABOUT = "baseline.json"  # in the folder of a baseline: what it is
METHOD = "transformers"  # folder of its result files
WHISPER_SAMPLES = 30 * SAMPLING_RATE  # longer audio needs its long-form algorithm


@dataclasses.dataclass(frozen=True)
class BaselineOptions(Options):
    """The baseline."""

    model: str = option("", "name at Hugging Face, or a folder with a model of transformers")
    language: str = option(
        "",
        "language code that is given to a Whisper model ('': it detects it), or the token of the "
        "language that an encoder with a text decoder writes, such as de_DE",
    )
    task: str = option(
        "transcribe", "what a Whisper model does", choices=("transcribe", "translate")
    )
    num_beams: int = option(1, "beam size of models with a decoder", at_least=1, at_most=100)
    batch_size: int = option(
        8,
        "utterances at once of a Whisper model, which pads all to 30 s; others take one by one, "
        "as the pipeline would transcribe their padding",
        at_least=1,
        at_most=4096,
    )

    def suffix(self) -> str:
        """The part of result file names that carries the settings."""
        parts = [name_of(self.model), f"beams-{self.num_beams}"]
        parts += [self.language] if self.language else []
        parts += [self.task] if self.task != "transcribe" else []
        return "-".join(parts)


def name_of(model: str) -> str:
    """``openai/whisper-large-v2``: ``whisper-large-v2``, a name for a folder."""
    return re.sub(r"[^\w.-]+", "_", model.rstrip("/").rsplit("/", 1)[-1]).lstrip(".-") or "model"


def is_baseline(folder: Path) -> bool:
    """Returns whether a folder holds the results of a baseline."""
    return (folder / ABOUT).is_file()


class Baseline:
    """A model of transformers that recognises."""

    def __init__(self, options: BaselineOptions):
        """Loads it.

        Raises:
          UserError: there is no such model, or it is none that recognises speech.
        """
        import transformers

        self.options = options
        try:
            # Code that lies beside a model is not run.
            self.pipe = transformers.pipeline(
                "automatic-speech-recognition",
                model=options.model,
                device=decode_device(),
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(
                f"--model {options.model}: no model of transformers that recognises speech "
                f"({reason})"
            ) from e
        self.is_whisper = self.pipe.type == "seq2seq_whisper"
        self.language_token = self._language_token()
        self.about = {
            "model": options.model,
            "type": self.pipe.type,
            "revision": getattr(self.pipe.model.config, "_commit_hash", None),
            "transformers": transformers.__version__,
            "parameters": sum(p.numel() for p in self.pipe.model.parameters()),
        }

    def _language_token(self) -> int | None:
        """The token that begins what an encoder with a text decoder writes, if one is asked for.

        Raises:
          UserError: its tokenizer has no such token.
        """
        language, tokenizer = self.options.language, self.pipe.tokenizer
        if self.pipe.type != "seq2seq" or not language:
            return None
        token = tokenizer.convert_tokens_to_ids(language)
        if token in (None, tokenizer.unk_token_id):
            raise UserError(
                f"--language {language}: --model {self.options.model} has no such token; XLS-R's "
                "translators have de_DE, for example"
            )
        return token

    @torch.no_grad()
    def texts(self, waves: Sequence[Any]) -> list[str]:
        """Returns the texts of waveforms (n,) float32 at 16 kHz.

        Raises:
          UserError: the model has no such language, for example.
        """
        is_short = [self.is_whisper and len(w) <= WHISPER_SAMPLES for w in waves]
        together = iter(self._run([w for w, short in zip(waves, is_short) if short]))
        return [next(together) if s else self._run([w])[0] for w, s in zip(waves, is_short)]

    def _run(self, waves: Sequence[Any]) -> list[str]:
        """Returns the texts of waveforms that can be a batch."""
        if not waves:
            return []
        items = [{"raw": wave, "sampling_rate": SAMPLING_RATE} for wave in waves]
        more: dict[str, Any] = {}
        generate: dict[str, Any] = {"num_beams": self.options.num_beams}
        if self.is_whisper:
            more["return_timestamps"] = len(waves[0]) > WHISPER_SAMPLES
            if getattr(self.pipe.model.generation_config, "is_multilingual", False):
                generate["task"] = self.options.task
                generate.update(
                    {"language": self.options.language} if self.options.language else {}
                )
        if self.language_token is not None:
            generate["forced_bos_token_id"] = self.language_token
        if self.pipe.type.startswith("seq2seq"):
            more["generate_kwargs"] = generate
        try:
            found = self.pipe(items, batch_size=len(items), **more)
        except ValueError as e:  # transformers' word for settings that the model lacks
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"--model {self.options.model}: {reason}") from e
        return [" ".join(one["text"].split()) for one in found]


def decode_set(
    baseline: Baseline, audio: AudioSet, normalizer: Normalizer, out: Path
) -> tuple[Score, list[tuple[str, str]]]:
    """Recognises a set and writes icefall's files into ``out``/transformers.

    The words in ``recogs-*`` are normalised; the texts as they are lie in ``utterances-*``.

    Returns:
      The score of the normalised words; (reference, recognised) texts as they are.
    """
    hyps: dict[str, str] = {}
    unread = {name: found.reason for name, found in audio.unread.items()}
    refs = {name: found.text for name, found in audio.unread.items()}
    facts: dict[str, dict[str, Any]] = {}
    progress = tqdm(desc=audio.name, unit="utt", disable=None)
    for cuts in _groups(iter(audio.cuts), baseline.options.batch_size):
        waves, names = [], []
        for cut in cuts:
            refs[cut.id], facts[cut.id] = cut.supervisions[0].text, facts_of(cut)
            try:
                waves.append(read_audio(cut))
                names.append(cut.id)
            except UserError as e:
                logging.warning(f"{audio.name}: cannot be read, counts as deleted: {cut.id}: {e}")
                unread[cut.id] = str(e)
        if waves:
            hyps.update(zip(names, baseline.texts(waves)))
        progress.update(len(cuts))
    progress.close()
    for name, ref in refs.items():
        facts.setdefault(name, {}).update(ref=ref, hyp=hyps.get(name, ""))
    transcripts = [
        Transcript(name, normalizer(ref).split(), normalizer(hyps.get(name, "")).split())
        for name, ref in refs.items()
    ]
    about = {**baseline.about, "scored": normalizer.description}
    write_text(out / ABOUT, json.dumps(about, indent=2) + "\n")
    name, suffix = name_in_results(audio, out), baseline.options.suffix()
    result = write_results(out / METHOD, name, suffix, transcripts, None, unread, facts)
    return result, [(refs[i], hyps.get(i, "")) for i in refs]


def _groups(cuts: Iterator[Cut], size: int) -> Iterator[list[Cut]]:
    while group := list(itertools.islice(cuts, size)):
        yield group
