"""Aligns the utterances of a set with their texts, in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from lhotse import CutSet
from torch import Tensor
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.batches import Batch
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.alignment import align, align_ctc
from xlsr_transducer.recognition.alignment_files import Aligned
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.decoding import DecodeOptions, batches
from xlsr_transducer.recognition.spans import token_spans, word_spans
from xlsr_transducer.search import Hypothesis


def sets_to_align(options: DecodeOptions, wavs: list[Path], texts: list[str]) -> list[AudioSet]:
    """Returns what to align, as ``audio_sets`` finds it, with the given texts for wav files.

    Raises:
      UserError: there is not one text for each file.
    """
    if len(wavs) != len(texts):
        raise UserError(f"{len(wavs)} audio files, but {len(texts)} --text: give one for each")
    found = options.audio_sets(wavs)
    if not wavs:
        return found
    text_of = dict(zip(found[0].files, texts))
    cuts = list(found[0].cuts)
    for cut in cuts:
        cut.supervisions[0].text = " ".join(text_of[cut.id].split())
    return [dataclasses.replace(found[0], cuts=CutSet.from_cuts(cuts))]


def check_texts(texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Refuses given texts that the model cannot emit.

    Raises:
      UserError: one is empty, or has a word of unknown characters.
    """
    for text in texts:
        if not text.split():
            raise UserError("--text is empty: give the words of the audio")
        for word, ids in zip(text.split(), tokenizer.encode(text.split())):
            if tokenizer.unk_id in ids:
                raise UserError(
                    f"--text {text!r}: {word!r} has characters that the model's tokens lack; "
                    "spell it like the training text"
                )


@torch.no_grad()
def align_set(
    audio: AudioSet,
    loaded: LoadedModel,
    chunk: ChunkSettings,
    topology: str,
    max_duration: float,
    num_workers: int,
) -> tuple[list[Aligned], list[Unread]]:
    """Aligns every utterance of a set, in batches.

    Args:
      topology: `ctc`, or a type of the transducer's loss.

    Returns:
      The alignments in the order of files given by name, otherwise of ids; what could not be
      aligned.
    """
    model, tokenizer, found = loaded.model, loaded.tokenizer, []
    left_out = list(audio.unread.values())
    device = next(model.parameters()).device
    loader = batches(audio, tokenizer, max_duration, num_workers)
    for batch in tqdm(loader, desc=audio.name, unit="batch", disable=None):
        left_out += batch.skipped
        if not batch.ids:
            continue
        batch = batch.to(device)
        out, lens = model.encoder.encode(batch.inputs, batch.input_lens, *chunk)
        aligned, failed = align_batch(audio, batch, out, lens, model, tokenizer, topology)
        found += aligned
        left_out += failed
    place = {name: number for number, name in enumerate(audio.files)}
    return sorted(found, key=lambda a: (place.get(a.id), a.id)), left_out


def without_language(path: Hypothesis, tokenizer: Tokenizer) -> Hypothesis:
    """Returns an alignment without the token of the language, which is no part of the text."""
    languages = set(tokenizer.languages.values())
    kept = [i for i, token in enumerate(path.tokens) if token not in languages]
    if len(kept) == len(path.tokens):
        return path
    lists = ([values[i] for i in kept] for values in (path.tokens, path.frames, path.log_probs))
    tokens, frames, log_probs = lists
    return dataclasses.replace(path, tokens=tokens, frames=frames, log_probs=log_probs)


def align_batch(
    audio: AudioSet,
    batch: Batch,
    out: Tensor,
    lens: Tensor,
    model: SpeechModel,
    tokenizer: Tokenizer,
    topology: str | None = None,
) -> tuple[list[Aligned], list[Unread]]:
    """Aligns a batch of a set whose encoder output (N, T, E) with lengths (N,) is there.

    Args:
      topology: as in ``align_set``; by default `regular`, or `ctc` without a transducer.

    Returns:
      The alignments; what has no path.
    """
    topology = topology or ("ctc" if model.joiner is None else "regular")
    given = (model, out, lens, batch.tokens, batch.token_lens)
    paths = align_ctc(*given) if topology == "ctc" else align(*given, topology)
    found, left_out, frame = [], [], model.encoder.frame_seconds
    for i, path in enumerate(paths):
        name, text = batch.ids[i], batch.texts[i]
        if path.score == -float("inf"):
            reason = f"no path for {int(batch.token_lens[i])} tokens in {int(lens[i])} frames"
            reason = f"{audio.shown(name)}: {reason}" if audio.files else reason
            left_out.append(Unread(name, text, reason))
            continue
        path = without_language(path, tokenizer)
        tokens = token_spans(path, tokenizer.tokens, frame)
        starts = [tokenizer.word_starts[t] for t in path.tokens]
        words = word_spans(tokens, starts, text.split())
        seconds = max(float(batch.input_lens[i]) / SAMPLING_RATE, int(lens[i]) * frame)
        found.append(Aligned(name, words, tokens, seconds))
    return found, left_out
