"""Recognises files with an exported model and nothing else, for the commands
``pretrained``, ``jit_pretrained``, ``jit_pretrained_streaming``, ``jit_trace_pretrained``,
``onnx_pretrained``, ``onnx_pretrained_streaming``.

They import neither lhotse nor k2, and of ``training`` no more than reads checkpoint files.
Letters: n samples, T encoder frames, E width of the encoder.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError, complain
from xlsr_transducer.core.geometry import ENCODER_FRAME, SAMPLING_RATE
from xlsr_transducer.core.options import Parser, add_options, from_args, str2bool
from xlsr_transducer.data.audio_file import read_audio_file
from xlsr_transducer.data.stream_buffer import AudioBuffer
from xlsr_transducer.data.tokenizer import text_of
from xlsr_transducer.model.whole import WholeEncoder
from xlsr_transducer.search import SearchOptions, make_search
from xlsr_transducer.search.options import SELF_CONTAINED


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """An exported model, whatever file it came from."""

    encode: Callable[[Tensor], Iterable[Tensor]]  # (n,) samples -> (T, E), whole or in pieces
    decoder: nn.Module | None  # None without a transducer
    joiner: nn.Module | None
    tokens: Sequence[str]
    ctc_output: nn.Module | None = None  # None without a CTC head
    frame: float = ENCODER_FRAME  # seconds of a frame of the encoder's output
    whole: WholeEncoder | None = None  # where memory limits the length of utterances


@dataclasses.dataclass(frozen=True)
class Output:
    """The result of a model for one utterance."""

    tokens: list[int]
    frames: list[int]  # the encoder frame of each token
    encoder_out: Tensor | None = None  # (T, E), where the files give it


def without_repeats(labels: Sequence[int], per_frame: int, blank_id: int = 0) -> Output:
    """Returns the tokens of CTC's best labels: repeats and blanks taken out.

    Args:
      per_frame: how many labels there are for each encoder frame.
    """
    before = [blank_id, *labels]
    starts = [i for i, label in enumerate(labels) if label not in (blank_id, before[i])]
    return Output([labels[i] for i in starts], [i // per_frame for i in starts])


def recognise(
    recogniser: Recogniser, waves: Iterable[Tensor], options: SearchOptions
) -> Iterator[Output]:
    """Searches utterances, (n,) samples at 16 kHz each, one by one."""
    search = make_search(options, recogniser)
    for wave in waves:
        with torch.no_grad():
            state, pieces = search.init_state(1), []
            for piece in recogniser.encode(wave):
                pieces.append(piece)
                lens = torch.tensor([len(piece)])
                state = search.advance(piece.unsqueeze(0), lens, state)
        best = search.results(state)[0]
        yield Output(best.tokens, best.frames, torch.cat(pieces) if pieces else torch.zeros(0, 0))


def encode_chunks(encoder: nn.Module, wave: Tensor) -> Iterator[Tensor]:
    """(n,) samples -> (T, E) of each chunk, with the state carried along.

    Args:
      encoder: a ``StreamingXLSREncoder``, or what is called like one.
    """
    hop, overlap = encoder.xlsr.hop, encoder.xlsr.overlap
    buffer = AudioBuffer(encoder.chunk_size * hop, hop, overlap)
    buffer.add(wave)
    buffer.finish()
    first = buffer.pop_overlap()
    if first is None:
        return
    state = encoder.get_init_states(1, wave.device)
    state.xlsr.tail[0] = first
    while buffer.has_chunk():
        samples, valid = buffer.pop_chunk()
        out, lens, state = encoder.streaming_forward(
            samples.unsqueeze(0), torch.tensor([valid]), state
        )
        yield out[0, : lens[0]]


def run(
    argv: Sequence[str] | None, about: str, options: type, load: Callable[[Any], Recogniser]
) -> int:
    """Runs a command: prints a line per file, its name, a tab and its text, or an error.

    Args:
      about: what the command is for.
      options: the dataclass of options that ``load`` takes.

    Returns:
      The exit status: 2 if a file could not be read.
    """
    parser = Parser(description=about)
    parser.add_argument("wavs", nargs="+", type=Path, help="wav, flac, ogg or mp3, of any rate")
    parser.add_argument(
        "--timestamps", type=str2bool, default=False, help="print the tokens with their seconds"
    )
    for cls in (options, SearchOptions):
        add_options(parser, cls)
    parser.add_argument(
        "--method", dest="decoding_method", default=argparse.SUPPRESS, help="the same"
    )
    args = parser.parse_args(argv)
    search_options = from_args(SearchOptions, args)
    if search_options.method not in SELF_CONTAINED:
        raise UserError(
            f"--method {search_options.method}: here it is one of "
            f"{', '.join(SELF_CONTAINED)}; decode has the others"
        )
    recogniser = load(from_args(options, args))
    status = 0
    for path in args.wavs:
        try:
            wave = torch.from_numpy(read_audio_file(path))
            if recogniser.whole is not None:
                recogniser.whole.check(str(path), len(wave) / SAMPLING_RATE)
        except UserError as e:
            status = complain(str(e))
            continue
        [output] = recognise(recogniser, [wave], search_options)
        tokens = [recogniser.tokens[i] for i in output.tokens]
        line = f"{path}\t{text_of(tokens)}"
        if args.timestamps:
            times = [
                f"{frame * recogniser.frame:.2f} {t}" for frame, t in zip(output.frames, tokens)
            ]
            line += "\t" + " ".join(times)
        print(line, flush=True)
    return status
