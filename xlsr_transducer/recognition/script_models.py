"""TorchScript files as a ``Recogniser``: scripted for whole utterances or chunks, or traced.

Letters: N batch, n samples, T encoder frames, U context size, D decoder and E encoder width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import ENCODER_FRAME, RECEPTIVE_FIELD
from xlsr_transducer.core.options import option
from xlsr_transducer.data.tokenizer import hash_of_tokens, read_tokens
from xlsr_transducer.model.whole import WholeEncoder, whole_encoder
from xlsr_transducer.recognition.exported import Recogniser

# What zipfile raises for archives of which some bytes were changed.
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
TOKENS_RECORD = "tokens_sha256"  # in TorchScript files, beside the network
FRAME = 160  # samples: chunk_size and pad_length count 20 ms and 10 ms


@dataclasses.dataclass(frozen=True)
class ScriptOptions:
    """Model."""

    nn_model_filename: Path = option(Path("exp/cpu_jit.pt"), "what export --jit 1 wrote")
    tokens: Path | None = option(None, "tokens.txt (default: the one beside the model)")


@dataclasses.dataclass(frozen=True)
class StreamingScriptOptions(ScriptOptions):
    """Model."""

    nn_model_filename: Path = option(
        Path("exp/jit_script_chunk_32_left_2.pt"), "what export --jit 1 wrote"
    )


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """Model."""

    encoder_model_filename: Path = option(Path("exp/encoder_jit_trace.pt"), "the encoder")
    decoder_model_filename: Path = option(Path("exp/decoder_jit_trace.pt"), "the decoder")
    joiner_model_filename: Path = option(Path("exp/joiner_jit_trace.pt"), "the joiner")
    tokens: Path | None = option(None, "tokens.txt (default: the one beside the encoder)")


def load_scripted(options: ScriptOptions) -> Recogniser:
    """Returns the model for whole utterances in a cpu_jit.pt.

    Raises:
      UserError: the file is none, or its model streams.
    """
    path = options.nn_model_filename
    model = _load_model(path)
    if hasattr(model.encoder, "get_init_states"):
        raise UserError(f"{path}: streams; use jit_pretrained_streaming")
    whole = whole_script(path, model.encoder)
    found = _recogniser(path, options.tokens, model, _encode_whole(model.encoder))
    return dataclasses.replace(found, whole=whole)


def load_streaming_script(options: ScriptOptions) -> Recogniser:
    """Returns the model in a jit_script_chunk_*.pt.

    Raises:
      UserError: the file is none, or its model does not stream.
    """
    path = options.nn_model_filename
    model = _load_model(path)
    encoder = model.encoder
    if not hasattr(encoder, "get_init_states"):
        raise UserError(f"{path}: does not stream; use jit_pretrained for it")

    def encode(wave: Tensor) -> Iterator[Tensor]:
        states = encoder.get_init_states(1)
        for window, valid in windows(wave, encoder.chunk_size, encoder.pad_length):
            out, lens, states = encoder(window.unsqueeze(0), torch.tensor([valid]), states)
            yield out[0, : lens[0]]

    return _recogniser(path, options.tokens, model, encode)


def load_traced(options: TraceOptions) -> Recogniser:
    """Returns the model in three traced files.

    Raises:
      UserError: a file is not the part that it is given as.
    """
    encoder = load_script(options.encoder_model_filename)
    decoder = load_script(options.decoder_model_filename)
    joiner = load_script(options.joiner_model_filename)
    for path, part, name, own in (
        (options.encoder_model_filename, encoder, "encoder", "scripted"),
        (options.decoder_model_filename, decoder, "decoder", "embedding"),
        (options.joiner_model_filename, joiner, "joiner", "output_linear"),
    ):
        if not hasattr(part, own):
            raise UserError(f"{path}: is no traced {name}")
    count = len(decoder.embedding.weight)
    tokens = tokens_beside(options.encoder_model_filename, options.tokens, count)
    whole = whole_script(options.encoder_model_filename, encoder.scripted)
    parts = (_encode_whole(encoder), TracedDecoder(decoder), TracedJoiner(joiner))
    return Recogniser(*parts, tokens, frame=_frame(encoder.scripted), whole=whole)


class TracedDecoder(nn.Module):
    """A traced decoder as searches call it. Traces keep weights and no numbers."""

    def __init__(self, traced: torch.jit.ScriptModule):
        super().__init__()
        self.traced = traced
        has_conv = hasattr(traced.conv, "weight")
        self.context_size: int = traced.conv.weight.shape[2] if has_conv else 1
        self.blank_id = 0

    def forward(self, y: Tensor, need_pad: bool = False) -> Tensor:
        """(N, U) -> (N, 1, D)."""
        return self.traced(y, torch.tensor([need_pad]))


class TracedJoiner(nn.Module):
    """A traced joiner as searches call it. It projects anew at each call: its trace does."""

    def __init__(self, traced: torch.jit.ScriptModule):
        super().__init__()
        self.traced = traced
        self.encoder_proj = nn.Identity()
        self.decoder_proj = nn.Identity()

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = False
    ) -> Tensor:
        """(*, E) and (*, D) -> (*, V)."""
        return self.traced(encoder_out, decoder_out, torch.tensor([True]))


def windows(wave: Tensor, chunk_size: int, pad_length: int) -> Iterator[tuple[Tensor, int]]:
    """Yields what a streaming encoder takes in turn: (n,), and how many samples are valid."""
    shift = 2 * chunk_size * FRAME
    size = shift + pad_length * FRAME
    for start in range(0, len(wave) - RECEPTIVE_FIELD + 1, shift):
        window = wave[start : start + size]
        yield F.pad(window, (0, size - len(window))), len(window)


def tokens_beside(model: Path, tokens: Path | None, expected: int) -> list[str]:
    """Returns the tokens in the file ``tokens``, by default in tokens.txt beside the model.

    Args:
      model: a TorchScript file, of which export wrote the hash of the tokens into it.
      expected: how many tokens the model has.

    Raises:
      UserError: there is no such file, it is broken, or of another model.
    """
    path = tokens or model.parent / "tokens.txt"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the tokens of the model with --tokens")
    found = read_tokens(path)
    if len(found) != expected:
        raise UserError(
            f"{path}: has {len(found)} tokens, and the model in {model} has {expected}; give the "
            "tokens.txt that was exported with it"
        )
    with zipfile.ZipFile(model) as archive:
        records = [n for n in archive.namelist() if n.endswith(f"/extra/{TOKENS_RECORD}")]
        written = [archive.read(name).decode() for name in records]
    if written not in ([], [hash_of_tokens(found)]):
        raise UserError(
            f"{path}: belongs to another model than {model}; give the tokens.txt that was "
            "exported with it"
        )
    return found


def load_script(path: Path) -> torch.jit.ScriptModule:
    """Returns the module of a TorchScript file, on the CPU.

    Raises:
      UserError: the file is missing, damaged or no TorchScript.
    """
    _check_archive(path)
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, EOFError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UserError(
            f"{path}: no TorchScript file, or one of a newer PyTorch than {torch.__version__} "
            f"({reason}); export it again"
        ) from e


def _check_archive(path: Path) -> None:
    """Compares the checksums in a file by PyTorch, which does not look at them itself.

    Raises:
      UserError: the file is missing, truncated or changed.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except _BROKEN_ARCHIVE as e:
        raise UserError(
            f"{path}: no file by PyTorch, or truncated ({e}); copy or export it again"
        ) from e
    if changed:
        raise UserError(f"{path}: damaged ({changed} was changed); copy or export it again")


def _load_model(path: Path) -> torch.jit.ScriptModule:
    """Returns the module of a TorchScript file with an encoder and a decoder and a joiner, or a
    CTC head."""
    model = load_script(path)
    is_ctc = hasattr(model, "ctc_output") and not hasattr(model, "joiner")
    needed = ("encoder", "ctc_output") if is_ctc else ("encoder", "decoder", "joiner")
    missing = [name for name in needed if not hasattr(model, name)]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; give a file that export --jit 1 wrote")
    return model


def _recogniser(
    path: Path,
    tokens: Path | None,
    model: torch.jit.ScriptModule,
    encode: Callable[[Tensor], Iterator[Tensor]],
) -> Recogniser:
    """Returns the heads of a file with what encodes for them."""
    decoder, joiner = getattr(model, "decoder", None), getattr(model, "joiner", None)
    rows = model.ctc_output.weight if decoder is None else decoder.embedding.weight
    found = tokens_beside(path, tokens, len(rows))
    return Recogniser(encode, decoder, joiner, found, model.ctc_output, _frame(model.encoder))


def _frame(encoder: nn.Module) -> float:
    """Returns the seconds of a frame of a scripted encoder; older files do not tell."""
    return getattr(encoder.encoder, "frame_seconds", ENCODER_FRAME)


def _encode_whole(encoder: nn.Module) -> Callable[[Tensor], Iterator[Tensor]]:
    def encode(wave: Tensor) -> Iterator[Tensor]:
        out, lens = encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
        yield out[0, : lens[0]]

    return encode


def whole_script(path: Path, offline: nn.Module) -> WholeEncoder | None:
    """Returns ``whole_encoder`` of a scripted ``OfflineEncoder``.

    Raises:
      UserError: it is none.
    """
    advice = (
        "export the model with --left-context-chunks 2 and another --decode-chunk-len than -1, "
        "or cut the audio into shorter pieces"
    )
    try:
        return whole_encoder(
            offline.encoder, offline.chunk_size, offline.left_context_chunks, advice
        )
    except AttributeError as e:
        raise UserError(f"{path}: has another encoder than those that export writes") from e
