"""Modules for ONNX files, whose traces keep the call contracts of sherpa-onnx.

Encoders come with the joiner's projection of their output, decoders with theirs, so that a
joiner call is an addition, a tanh and one matrix product; with CTC alone, encoders give its
log-probs. Letters: N batch, n samples, T encoder frames, E width of the encoder, J what its output
becomes, C chunk size in XLSR frames, U context size, V vocabulary, R frames of 20 ms in an encoder
frame.
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Tuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.compat import attend_in_steps, gelu
from xlsr_transducer.exporting.scripted import OfflineEncoder
from xlsr_transducer.model import wav2vec2_layers
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.encoder import Adapter
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.state import fields_of, state_of
from xlsr_transducer.model.wav2vec2_front_end import ConvLayer
from xlsr_transducer.model.wav2vec2_layers import PositionalConv

# A server that normalises the utterance has taken its level away. Models that receive it are given
# the level for which cumulative normalisation is made.
LEVEL = 0.05


class LogProbs(nn.Module):
    """A CTC head: (N, T, E) -> log-probs (N, T, V), in float32."""

    def __init__(self, output: nn.Linear):
        super().__init__()
        self.ctc_output = output

    def forward(self, encoder_out: Tensor) -> Tensor:
        return self.ctc_output(encoder_out).float().log_softmax(-1)


def projection_of(model: SpeechModel) -> nn.Module:
    """Returns what an encoder's output passes in its file: (N, T, E) -> (N, T, J)."""
    return LogProbs(model.ctc_output) if model.joiner is None else model.joiner.encoder_proj


class WholeUtterances(nn.Module):
    """The offline encoder: (N, n) samples, int64 lengths (N,) -> (N, T, J), lengths (N,)."""

    def __init__(self, encoder: OfflineEncoder, projection: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.projection = projection

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        out, lens = self.encoder(x, x_lens)
        return self.projection(out).float(), lens


class OneChunk(nn.Module):
    """The streaming encoder: (N, 320 C) samples and a state -> (N, C / R, J) and the new one."""

    def __init__(self, model: SpeechModel, names: Sequence[str]):
        """``names``: of the tensors of a state, in the order of the graph's inputs."""
        super().__init__()
        self.encoder = model.encoder
        self.projection = projection_of(model)
        self.names = names

    def forward(self, x: Tensor, x_lens: Tensor, *fields: Tensor) -> Tuple[Tensor, ...]:
        state = state_of(dict(zip(self.names, fields)))
        out, lens, state = self.encoder.streaming_forward(x, x_lens, state)
        return (self.projection(out).float(), lens, *fields_of(state).values())


class ProjectedDecoder(nn.Module):
    """Contexts (N, U) int64, -1 for no token -> (N, J)."""

    def __init__(self, decoder: Decoder, joiner: Joiner):
        super().__init__()
        self.decoder = decoder
        self.projection = joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        # Three dimensions make it a MatMul, whose weight no quantizer turns over.
        return self.projection(self.decoder(y, False))[:, 0].float()


class ProjectedJoiner(nn.Module):
    """Encoder and decoder side, (N, J) each -> logits (N, V)."""

    def __init__(self, joiner: Joiner):
        super().__init__()
        self.joiner = joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        dtype = self.joiner.output_linear.weight.dtype
        return self.joiner(encoder_out.to(dtype), decoder_out.to(dtype), False).float()


class GreedySearch(nn.Module):
    """At most one token per frame: (T, J) -> tokens (T,), blank where there is none."""

    def __init__(self, decoder: ProjectedDecoder, joiner: ProjectedJoiner):
        super().__init__()
        self.decoder = decoder
        self.joiner = joiner
        self.blank_id = decoder.decoder.blank_id
        self.context_size = decoder.decoder.context_size

    def forward(self, encoder_side: Tensor) -> Tensor:
        context = torch.full([1, self.context_size], -1, dtype=torch.int64)
        context[:, -1] = self.blank_id
        decoder_side = self.decoder(context)
        tokens = torch.full([encoder_side.shape[0]], self.blank_id, dtype=torch.int64)
        for t in range(encoder_side.shape[0]):
            token = self.joiner(encoder_side[t : t + 1], decoder_side).argmax(-1)
            if bool(token != self.blank_id):
                tokens[t : t + 1] = token
                context = torch.cat((context[:, 1:], token.unsqueeze(0)), dim=1)
                decoder_side = self.decoder(context)
        return tokens


class WholeRecogniser(nn.Module):
    """One utterance (1, n) to scores (1, 2 T, V), 1 or 0, from which CTC search reads tokens.

    Every encoder frame makes two frames of 20 ms, its token and a blank, so that equal tokens
    side by side stay two and times are right. Made for sherpa-onnx's omnilingual_asr_ctc, which
    takes mean and variance out of the samples; ``level`` is what they are multiplied by.
    """

    def __init__(self, encoder: nn.Module, search: GreedySearch, vocab_size: int, level: float):
        super().__init__()
        self.encoder = encoder
        self.search = search
        self.vocab_size = vocab_size
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        lens = torch.full([1], x.shape[1], dtype=torch.int64)
        encoder_side = self.encoder(x * self.level, lens)[0][0]
        tokens = self.search(encoder_side)
        blanks = torch.full_like(tokens, self.search.blank_id)
        tokens = torch.stack((tokens, blanks), dim=1).flatten()
        return F.one_hot(tokens, self.vocab_size).float().unsqueeze(0)


class WholeCtc(nn.Module):
    """One utterance (1, n) to log-probs (1, R T, V), for the same servers as ``WholeRecogniser``.

    Those of a frame of 40 ms come twice: the search for a CTC model reads one token, and times
    are right.
    """

    def __init__(self, encoder: nn.Module, repeats: int, level: float):
        super().__init__()
        self.encoder = encoder
        self.repeats = repeats
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        lens = torch.full([1], x.shape[1], dtype=torch.int64)
        log_probs = self.encoder(x * self.level, lens)[0]
        return log_probs.unsqueeze(2).expand(-1, -1, self.repeats, -1).flatten(1, 2)


def half(model: SpeechModel) -> SpeechModel:
    """Returns a copy with float16 weights; audio and its statistics stay as they are."""
    return copy.deepcopy(model).half()


def level_of(normalize: str) -> float:
    """Returns what a model multiplies samples by that come with a variance of 1."""
    return 1.0 if normalize == "utterance" else LEVEL


@contextlib.contextmanager
def traceable(model: SpeechModel) -> Iterator[None]:
    """Inside, the network is computed in steps that ONNX has, in every precision."""
    xlsr, adapter = model.encoder.xlsr, model.encoder.adapter
    changed: dict[nn.Module, Callable] = {xlsr.encoder.pos_conv_embed: _gathered_windows}
    if isinstance(adapter, Adapter):
        changed[adapter.conv] = _convolution_by_product
        with torch.no_grad():
            adapter.conv.product = _as_linear(adapter.conv)
    for layer in xlsr.feature_extractor.conv_layers[1:]:
        if layer.has_layer_norm:
            changed[layer] = _layer_by_product
            with torch.no_grad():
                layer.product = _as_linear(layer.conv)
    for module, forward in changed.items():
        module.forward = types.MethodType(forward, module)
    try:
        with mock.patch.object(wav2vec2_layers, "attend", attend_in_steps):
            yield
    finally:
        for module in changed:
            del module.forward
            if hasattr(module, "product"):
                del module.product


def _gathered_windows(self: PositionalConv, x: Tensor, chunk_size: int) -> Tensor:
    """``PositionalConv.forward`` without ``Tensor.unfold``, for any number of frames."""
    batch, frames, width = x.shape
    if chunk_size < 0:
        return self._convolve(F.pad(x, (0, 0, self.left, 0)))
    chunks = (frames + chunk_size - 1) // chunk_size
    x = F.pad(x, (0, 0, self.left, chunks * chunk_size - frames))
    starts = chunk_size * torch.arange(chunks)
    windows = x[:, starts.unsqueeze(1) + torch.arange(self.left + chunk_size)]
    out = self._convolve(windows.flatten(0, 1))
    return out.reshape(batch, chunks * chunk_size, width)[:, :frames]


def _as_linear(conv: nn.Conv1d) -> nn.Linear:
    """Returns the convolution as a product with all samples that an output sees, side by side."""
    width, inputs, kernel = conv.weight.shape
    linear = nn.Linear(inputs * kernel, width, bias=conv.bias is not None, dtype=conv.weight.dtype)
    # Copies, as the tracer does not take parameters that two modules share.
    linear.weight.copy_(conv.weight.transpose(1, 2).flatten(1))
    if conv.bias is not None:
        linear.bias.copy_(conv.bias)
    return linear.requires_grad_(False)


def _layer_by_product(self: ConvLayer, x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
    """``ConvLayer.forward`` as a matrix product, which is faster and can have eight bits."""
    kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
    lens = (torch.div(lens - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
    y = self.product(_seen_samples(x.transpose(1, 2), kernel, stride))
    return gelu(self.layer_norm(y)).transpose(1, 2), lens


def _convolution_by_product(self: nn.Conv1d, x: Tensor) -> Tensor:
    """``Conv1d.forward`` as a matrix product, whose sums depend on no number of threads."""
    seen = _seen_samples(x.transpose(1, 2), self.kernel_size[0], self.stride[0])
    return self.product(seen).transpose(1, 2)


def _seen_samples(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(N, n, D) -> (N, T, kernel D): what each output of a convolution sees, side by side."""
    frames = (x.shape[1] - kernel) // stride + 1
    return torch.cat([x[:, i::stride][:, :frames] for i in range(kernel)], dim=2)
