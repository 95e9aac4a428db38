"""Exported ONNX files as the encoder, decoder and joiner that searches and stream pools call.

A model with CTC alone is one file, whose encoder gives log-probs. They run in onnxruntime; neither
this nor what it imports needs lhotse, k2 or anything of training. Letters: N batch, n samples,
T encoder frames, J joiner width (of CTC: vocabulary), V vocabulary, C chunk size in XLSR frames,
U context size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import FRAME_SHIFT, RECEPTIVE_FIELD, SUBSAMPLING
from xlsr_transducer.core.options import option
from xlsr_transducer.data.tokenizer import hash_of_tokens, read_tokens
from xlsr_transducer.model.state import EncoderState, Wav2Vec2State
from xlsr_transducer.model.whole import WholeEncoder
from xlsr_transducer.recognition.exported import Recogniser, encode_chunks

CTC = "ctc"  # begins the name, and is in the kind, of the file of a model with CTC alone
# A file's metadata ends with its own SHA-256, computed with zeros in its place.
SEAL = b"\x0a\x06sha256\x12\x40"  # an entry of ONNX metadata: the key, and 64 characters to come
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
}


@dataclasses.dataclass(frozen=True)
class OnnxOptions:
    """Model."""

    encoder_model_filename: Path = option(
        Path("exp/encoder-best.onnx"), "what export wrote: encoder-*.onnx or ctc-*.onnx"
    )
    decoder_model_filename: Path | None = option(
        None, "decoder (default: the one beside; ctc-*.onnx needs none)"
    )
    joiner_model_filename: Path | None = option(None, "joiner (default: likewise)")
    tokens: Path | None = option(None, "tokens.txt (default: the one beside the encoder)")

    def files(self) -> list[Path]:
        """Returns encoder, decoder and joiner; with CTC alone only the first is there."""
        encoder = self.encoder_model_filename
        names = [encoder.name.replace("encoder", part, 1) for part in ("decoder", "joiner")]
        given = (self.decoder_model_filename, self.joiner_model_filename)
        return [encoder, *(g or encoder.with_name(n) for g, n in zip(given, names))]

    def tokens_file(self) -> Path:
        """Returns where the tokens are."""
        return self.tokens or self.encoder_model_filename.with_name("tokens.txt")


def digest(content: bytes | memoryview) -> tuple[str, str]:
    """Returns the SHA-256 that a file has in its metadata, and the one that it should have.

    The first is empty if there is none.
    """
    tail = bytes(content[-(1 << 16) :])
    found = tail.rfind(SEAL)
    if found < 0:
        return "", ""
    place = len(content) - len(tail) + found + len(SEAL)
    sha = hashlib.sha256(content[:place])
    sha.update(b"0" * 64)
    sha.update(content[place + 64 :])
    return bytes(content[place : place + 64]).decode("ascii", "replace"), sha.hexdigest()


def open_session(path: Path) -> Any:
    """Returns an onnxruntime session on the CPU, with as many threads as PyTorch has.

    Raises:
      UserError: onnxruntime is not installed, or the file is missing, damaged or not ours.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise UserError("ONNX files need onnxruntime: pip install onnxruntime") from e
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size:
        written, actual = digest(np.memmap(path, dtype=np.uint8, mode="r").data)
    if not path.stat().st_size or not actual or written != actual:
        raise UserError(
            f"{path}: not an ONNX file of this project, or truncated or changed since it was "
            "written; copy or export it again"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # Threads that wait by spinning take the cores that other processes need, such as more servers:
    # beside one of these a step took twice as long.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Its plan of which outputs share memory takes most of the time to load a large int8 graph; the
    # allocator takes freed memory again without it.
    options.enable_mem_reuse = False
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def metadata(session: Any) -> dict[str, str]:
    """Returns what export wrote about the model."""
    return session.get_modelmeta().custom_metadata_map


class OnnxModule(nn.Module):
    """A session that is called with tensors."""

    def __init__(self, session: Any):
        super().__init__()
        self.session = session
        self.names = [i.name for i in session.get_inputs()]
        # Searches ask a network's parameters for device and precision.
        self.nothing = nn.Parameter(torch.zeros(0), requires_grad=False)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Returns all outputs for all inputs, in their order."""
        feed = {name: x.numpy() for name, x in zip(self.names, inputs)}
        return [torch.from_numpy(x) for x in self.session.run(None, feed)]


def frame_seconds(about: dict[str, str]) -> float:
    """Returns the seconds of a frame of an encoder's output; older files do not tell."""
    return int(about.get("subsampling_factor", SUBSAMPLING)) * FRAME_SHIFT


class OnnxEncoder(OnnxModule):
    """Whole utterances."""

    def __init__(self, session: Any):
        super().__init__(session)
        about = metadata(session)
        self.frame_seconds = frame_seconds(about)
        # Files of older versions do not tell: then one head, which is less than they need.
        width, heads = (int(about.get(k, 1)) for k in ("conv_width", "num_heads"))
        advice = "use onnx_pretrained_streaming, or cut the audio into shorter pieces"
        self.whole = WholeEncoder(width, heads, int(about["chunk_size"]) > 0, True, advice)

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, n) samples, lengths (N,) -> (N, T, J), as the head takes it, lengths (N,)."""
        missing = max(RECEPTIVE_FIELD - x.shape[1], 0)
        out, lens = self.run(nn.functional.pad(x, (0, missing)), x_lens)
        return out, lens


class OnnxStreamingEncoder(OnnxModule):
    """Chunk by chunk, called like a ``StreamingXLSREncoder``."""

    def __init__(self, session: Any):
        super().__init__(session)
        about = metadata(session)
        self.chunk_size = int(about["chunk_size"])
        self.left_context_chunks = int(about["left_context_chunks"])
        self.attention_sink_size = int(about["attention_sink_size"])
        self.frame_seconds = frame_seconds(about)
        self.xlsr = types.SimpleNamespace(hop=int(about["hop"]), overlap=int(about["head"]))

    def get_init_states(self, batch_size: int, device: torch.device) -> EncoderState:
        """Returns the state of streams before their first sample."""
        fields = [
            torch.zeros([batch_size, *state.shape[1:]], dtype=DTYPES[state.type], device=device)
            for state in self.session.get_inputs()[2:]
        ]
        return EncoderState(Wav2Vec2State(*fields[:-1]), fields[-1])

    def streaming_forward(
        self, x: Tensor, x_lens: Tensor, states: EncoderState
    ) -> Tuple[Tensor, Tensor, EncoderState]:
        """Computes the next chunk of each stream (see ``StreamingXLSREncoder``)."""
        out, lens, *fields = self.run(x, x_lens, *states.xlsr, states.adapter)
        return out, lens, EncoderState(Wav2Vec2State(*fields[:-1]), fields[-1])


class OnnxDecoder(OnnxModule):
    """The decoder with the joiner's projection of its output."""

    def __init__(self, session: Any):
        super().__init__(session)
        about = metadata(session)
        self.context_size = int(about["context_size"])
        self.vocab_size = int(about["vocab_size"])
        self.blank_id = int(about["blank_id"])

    def forward(self, y: Tensor, need_pad: bool = False) -> Tensor:
        """(N, U) -> (N, 1, J)."""
        if need_pad:
            raise ValueError("an exported decoder takes contexts only")
        return self.run(y)[0].unsqueeze(1)


class OnnxJoiner(OnnxModule):
    """The joiner after its projections."""

    def __init__(self, session: Any):
        super().__init__(session)
        self.encoder_proj = nn.Identity()
        self.decoder_proj = nn.Identity()

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = False
    ) -> Tensor:
        """(*, J), (*, J) -> (*, V)."""
        sides = torch.broadcast_tensors(encoder_out, decoder_out)
        logits = self.run(*(side.flatten(0, -2) for side in sides))[0]
        return logits.view(*sides[0].shape[:-1], -1)


class GivenLogProbs(nn.Module):
    """The CTC head of an encoder whose output are log-probs."""

    def __init__(self) -> None:
        super().__init__()
        # As in ``OnnxModule``.
        self.nothing = nn.Parameter(torch.zeros(0), requires_grad=False)

    def forward(self, log_probs: Tensor) -> Tensor:
        """(*, V) -> (*, V), a copy, which a search may change."""
        return log_probs.clone()


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """Encoder and heads of one export, called like a ``SpeechModel``'s."""

    encoder: OnnxEncoder | OnnxStreamingEncoder
    tokens: Sequence[str]
    decoder: OnnxDecoder | None = None
    joiner: OnnxJoiner | None = None
    ctc_output: GivenLogProbs | None = None

    def parameters(self) -> Any:
        """Those of the encoder: device and precision."""
        return self.encoder.parameters()


def load_onnx(files: Sequence[Path], tokens: Path | None, is_streaming: bool) -> OnnxModel:
    """Opens encoder, decoder and joiner, and checks that they and the tokens belong together.

    Args:
      files: the three; of a model with CTC alone the first is all.
      tokens: tokens.txt; None: not needed.

    Raises:
      UserError: a file is missing, damaged, of another kind, or of another model.
    """
    sessions = [open_session(files[0])]
    is_ctc = CTC in metadata(sessions[0])["kind"]
    kinds = [f"{CTC} encoder"] if is_ctc else ["encoder", "decoder", "joiner"]
    kinds[0] = "streaming " * is_streaming + kinds[0]
    sessions += [open_session(path) for path in files[1 : len(kinds)]]
    about = [metadata(session) for session in sessions]
    for path, kind, values in zip(files, kinds, about):
        if values["kind"] != kind:
            other = "onnx_pretrained" + "_streaming" * (not is_streaming)
            hint = f"; use {other}" if "encoder" in values["kind"] and "encoder" in kind else ""
            raise UserError(f"{path}: holds a {values['kind']}, not a {kind}{hint}")
        if values["weights_sha256"] != about[0]["weights_sha256"]:
            raise UserError(f"{path}: belongs to another model than {files[0]}")
    names = read_tokens(tokens) if tokens else []
    if tokens and hash_of_tokens(names) != about[0]["tokens_sha256"]:
        raise UserError(f"{tokens}: belongs to another model than {files[0]}")
    encoder = (OnnxStreamingEncoder if is_streaming else OnnxEncoder)(sessions[0])
    if is_ctc:
        return OnnxModel(encoder, names, ctc_output=GivenLogProbs())
    return OnnxModel(encoder, names, OnnxDecoder(sessions[1]), OnnxJoiner(sessions[2]))


def load_offline(files: Sequence[Path], tokens: Path | None = None) -> Recogniser:
    """Returns the model for whole utterances (see ``load_onnx``)."""
    model = load_onnx(files, tokens, is_streaming=False)

    def encode(wave: Tensor) -> Iterator[Tensor]:
        out, lens = model.encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
        yield out[0, : lens[0]]

    return dataclasses.replace(_recogniser(model, encode), whole=model.encoder.whole)


def load_streaming(files: Sequence[Path], tokens: Path | None = None) -> Recogniser:
    """Returns the model for chunks (see ``load_onnx``)."""
    model = load_onnx(files, tokens, is_streaming=True)
    return _recogniser(model, lambda wave: encode_chunks(model.encoder, wave))


def _recogniser(model: OnnxModel, encode: Callable[[Tensor], Iterator[Tensor]]) -> Recogniser:
    heads, frame = (model.decoder, model.joiner), model.encoder.frame_seconds
    return Recogniser(encode, *heads, model.tokens, model.ctc_output, frame)
