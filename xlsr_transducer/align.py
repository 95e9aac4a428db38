"""Finds when given words were said: ``python -m xlsr_transducer.align --exp-dir exp``, or with
a wav file and ``--text``.

The text is what the manifests hold, spelled as in training. For each set it leaves, in
``exp/alignments``, a CTM file of words, and a TextGrid of words and tokens per utterance.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import torch
from lhotse import CutSet
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError, complain, run_command
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.geometry import ENCODER_FRAME, SAMPLING_RATE
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.loss.rnnt_loss import RNNT_TYPES
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.alignment import Span, align, align_ctc, token_spans, word_spans
from xlsr_transducer.recognition.audio_sets import AudioSet, name_in_results
from xlsr_transducer.recognition.decoding import (
    DecodeOptions,
    batches,
    decode_device,
    load_recogniser,
    require_memory,
)

METHODS = ("transducer", "ctc")


@dataclasses.dataclass(frozen=True)
class Aligned:
    """One utterance: words and tokens with their times, and how long it lasts in seconds."""

    id: str
    words: list[Span]
    tokens: list[Span]
    seconds: float


def get_parser() -> Parser:
    parser = Parser(description=" ".join(__doc__.splitlines()[:2]))
    parser.add_argument("wavs", nargs="*", type=Path, help="audio files to align")
    parser.add_argument("--text", action="append", help="text of a file, once for each of them")
    parser.add_argument(
        "--method", choices=METHODS, default=METHODS[0], help="whose lattice: the CTC head's too"
    )
    parser.add_argument(
        "--rnnt-type", choices=RNNT_TYPES, default="regular", help="topology, as in training"
    )
    parser.add_argument(
        "--max-duration", type=Number(float, above=0), default=200.0, help="seconds per batch"
    )
    for cls in (CheckpointOptions, DecodeOptions):
        add_options(parser, cls)
    return parser


def sets_to_align(options: DecodeOptions, wavs: list[Path], texts: list[str]) -> list[AudioSet]:
    """What to align, as ``audio_sets`` finds it, with the given texts for wav files.

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
    """Refuses given texts that the model cannot say.

    Raises:
      UserError: one is empty, or has a word of unknown characters.
    """
    for text in texts:
        if not text.split():
            raise UserError("--text is empty: give the words that are said")
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
    settings = (chunk.chunk_size, chunk.left_context_chunks, chunk.attention_sink_size)
    loader = batches(audio, tokenizer, max_duration, num_workers)
    for batch in tqdm(loader, desc=audio.name, unit="batch", disable=None):
        left_out += batch.skipped
        if not batch.ids:
            continue
        batch = batch.to(device)
        out, lens = model.encoder.encode(batch.inputs, batch.input_lens, *settings)
        given = (model, out, lens, batch.tokens, batch.token_lens)
        paths = align_ctc(*given) if topology == "ctc" else align(*given, topology)
        for i, path in enumerate(paths):
            name, text = batch.ids[i], batch.texts[i]
            if path.score == -float("inf"):
                reason = f"no path for {int(batch.token_lens[i])} tokens in {int(lens[i])} frames"
                reason = f"{audio.shown(name)}: {reason}" if audio.files else reason
                left_out.append(Unread(name, text, reason))
                continue
            tokens = token_spans(path, tokenizer.tokens, ENCODER_FRAME)
            starts = [tokenizer.word_starts[t] for t in path.tokens]
            words = word_spans(tokens, starts, text.split())
            seconds = max(float(batch.input_lens[i]) / SAMPLING_RATE, int(lens[i]) * ENCODER_FRAME)
            found.append(Aligned(name, words, tokens, seconds))
    place = {name: number for number, name in enumerate(audio.files)}
    return sorted(found, key=lambda a: (place.get(a.id), a.id)), left_out


def report(audio: AudioSet, left_out: Sequence[Unread]) -> int:
    """Logs what was left out of a set; returns the exit status, 2 if that is anything."""
    if audio.files:
        return max((complain(unread.reason) for unread in left_out), default=0)
    for unread in left_out:
        logging.warning(f"{audio.name}: not aligned: {unread}")
    if not left_out:
        return 0
    return complain(f"{audio.name}: {len(left_out)} utterances not aligned; the log names them")


def ctm(alignments: Sequence[Aligned]) -> str:
    """NIST's CTM: id, channel, start, duration, word, confidence."""
    lines = []
    for a in alignments:
        for w in a.words:
            duration = f"{w.end - w.start:.3f}"
            line = f"{_escaped(a.id, ' ')} 1 {w.start:.3f} {duration} {w.text} {w.confidence:.3f}"
            lines.append(line + "\n")
    return "".join(lines)


def text_grid(aligned: Aligned) -> str:
    """Praat's TextGrid with a tier of words and one of tokens; silence is an empty interval."""
    xmax = f"xmax = {aligned.seconds:.6f}"
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", xmax]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    tiers = ("words", aligned.words), ("tokens", aligned.tokens)
    for number, (name, spans) in enumerate(tiers, 1):
        intervals = _without_gaps(spans, aligned.seconds)
        lines += [f"    item [{number}]:", '        class = "IntervalTier"']
        lines += [f'        name = "{name}"', "        xmin = 0", f"        {xmax}"]
        lines += [f"        intervals: size = {len(intervals)}"]
        for i, (text, start, end) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{i}]:", f"            xmin = {start:.6f}"]
            lines += [f"            xmax = {end:.6f}", f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


def _without_gaps(spans: list[Span], seconds: float) -> list[tuple[str, float, float]]:
    """The spans, and empty ones between them, from 0 to ``seconds``."""
    intervals, now = [], 0.0
    for span in [*spans, Span("", seconds, seconds, 0.0)]:
        if span.start - now > 1e-6:
            intervals.append(("", now, span.start))
        if span.text:
            intervals.append((span.text, span.start, span.end))
        now = span.end
    return intervals


def write_alignments(folder: Path, name: str, alignments: Sequence[Aligned]) -> None:
    """Writes ``NAME.ctm`` and ``NAME/ID.TextGrid`` into ``folder``."""
    for a in alignments:
        write_text(folder / name / f"{_escaped(a.id, ' /:')}.TextGrid", text_grid(a))
    write_text(folder / f"{name}.ctm", ctm(alignments))


def _escaped(name: str, characters: str) -> str:
    """``name`` with white space and the given characters as in a URL."""
    return re.sub(rf"[\s%{re.escape(characters)}]", lambda m: quote(m[0], safe=""), name)


def _topology(method: str, rnnt_type: str, has_ctc: bool) -> str:
    if method == "transducer":
        return rnnt_type
    if rnnt_type != "regular":
        raise UserError(f"--rnnt-type {rnnt_type} works with --method transducer only")
    if not has_ctc:
        raise UserError(
            "--method ctc needs a model with a CTC head: train it with --ctc-loss-scale above 0"
        )
    return "ctc"


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    checkpoint, options = (from_args(cls, args) for cls in (CheckpointOptions, DecodeOptions))
    folder = checkpoint.exp_dir / "alignments"
    sets = sets_to_align(options, args.wavs, args.text or [])
    set_up_logging(folder, "align")
    loaded = load_recogniser(checkpoint, cpu_layers=options.cpu_layers)
    check_texts(args.text or [], loaded.tokenizer)
    chunk = options.chunk(loaded.config)
    require_memory(sets, loaded.model.encoder, chunk, decode_device())
    topology = _topology(args.method, args.rnnt_type, loaded.config.has_ctc)
    settings, status = f"{checkpoint.describe()}-{chunk.describe()}-{topology}", 0
    for audio in sets:
        own_name = audio.name if audio.files else name_in_results(audio, checkpoint.exp_dir)
        found, left_out = align_set(
            audio, loaded, chunk, topology, args.max_duration, options.num_workers
        )
        write_alignments(folder, f"{own_name}-{settings}", found)
        logging.info(f"{own_name}: {len(found)} aligned, in {folder}/{own_name}-{settings}.ctm")
        if audio.files:
            print(ctm(found), end="", flush=True)
        status = max(status, report(audio, left_out))
    return status


if __name__ == "__main__":
    run_command(main)
