"""sherpa-onnx's stock streaming server with a network of random weights; for ``benchmarks.serve``.

Its transducers take filter banks, so XLSR itself does not run there. The network here has
transformer layers of the same number and widths, at the same 20 ms, with as much left context, and
the same decoder and joiner; it takes the place of sherpa-onnx's "conformer". It has no
convolutions on the waveform, and so less to compute: 0.95 of XLS-R 300M's parameters remain, but
only a small part of the toy network's work.

Letters: N streams, T frames of 20 ms, L layers, D width, P frames of left context.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.serve_models import make_config, make_network, make_tokenizer, noise, set_blank
from xlsr_transducer.exporting import onnx_graphs
from xlsr_transducer.exporting.onnx_int8 import quantize_matrices
from xlsr_transducer.model.xlsr_config import XlsrConfig

BINS = 80  # of the filter banks, every 10 ms
LEFT = 64  # P
PROGRAM = "sherpa-onnx-online-websocket-server"
START_SECONDS = 120.0


class Layer(nn.Module):
    """A transformer layer, as XLS-R's are: normalisation first."""

    def __init__(self, config: XlsrConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm, self.final_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide = nn.Linear(width, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, width)

    def split(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, heads, T, D / heads)."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, past: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, D), left context (N, P, D), hidden (N, 1, 1, P + T) -> output, left context."""
        normed = self.norm(x)
        keys = torch.cat((past, normed), 1)
        scores = self.split(self.q(normed)) @ self.split(self.k(keys)).transpose(2, 3)
        scores = scores / (x.shape[2] // self.heads) ** 0.5 + hidden
        mixed = (scores.softmax(-1) @ self.split(self.v(keys))).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.narrow(F.gelu(self.wide(self.final_norm(x)))), keys[:, -LEFT:]


class Encoder(nn.Module):
    """What sherpa-onnx calls as a streaming conformer."""

    def __init__(self, config: XlsrConfig, joiner_dim: int):
        super().__init__()
        self.input = nn.Sequential(nn.LayerNorm(2 * BINS), nn.Linear(2 * BINS, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(2 * config.hidden_size)
        self.output = nn.Linear(2 * config.hidden_size, joiner_dim)

    def forward(
        self, x: Tensor, attention: Tensor, convolution: Tensor, processed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 2 T, bins), states (L, P, N, D) and (L, 1, N, D), (N,) frames so far ->
        (N, T / 2, joiner's width), new states."""
        x = self.input(x.reshape(x.shape[0], -1, 2 * BINS))
        size = LEFT + x.shape[1]
        # `processed` counts frames of 40 ms.
        slots = torch.arange(size, device=x.device) - LEFT + 2 * processed.unsqueeze(1)
        hidden = torch.zeros(slots.shape).masked_fill(slots < 0, -1e9)[:, None, None]
        kept = []
        for layer, past in zip(self.layers, attention.transpose(1, 2)):
            x, past = layer(x, past, hidden)
            kept.append(past)
        out = self.output(self.norm(x.reshape(x.shape[0], x.shape[1] // 2, -1)))
        return out, torch.stack(kept).transpose(1, 2), convolution * 1.0


def filter_banks(seconds: float) -> Tensor:
    """Returns (1, frames, bins) of noise."""
    from lhotse.features.kaldi.layers import Wav2LogFilterBank

    return Wav2LogFilterBank(num_filters=BINS)(noise(seconds)[None])


def export(
    module: nn.Module, inputs: dict[str, Tensor], outputs: dict, path: Path, **meta
) -> None:
    """Writes a graph; the values of ``outputs``, and of inputs, are which axis counts streams."""
    import onnx

    axes = {name: {axis: "N"} for name, axis in outputs.items()}
    axes |= {name: {2 if value.dim() == 4 else 0: "N"} for name, value in inputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the number of layers, which is constant
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in meta.items()})
    onnx.save(model, str(path))


@torch.no_grad()
def write(size: str, chunk_size: int, is_int8: bool, folder: Path) -> list[str]:
    """Writes the model; returns the options of sherpa-onnx's programs that name it."""
    names = ("encoder", "decoder", "joiner")
    paths = {name: folder / f"sherpa-{size}-{chunk_size}-{name}.onnx" for name in names}
    quantized = paths["encoder"].with_suffix(".int8.onnx")
    tokens = folder / f"sherpa-{size}-tokens.txt"
    used = {**paths, "encoder": quantized if is_int8 else paths["encoder"], "tokens": tokens}
    options = [f"--{name}={path}" for name, path in used.items()]
    if all(path.is_file() for path in used.values()):
        return options
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(size, chunk_size)
    xlsr, network = config.xlsr, make_network(config)
    make_tokenizer(config.vocab_size).write_tokens(tokens)
    decoder = onnx_graphs.ProjectedDecoder(network.decoder, network.joiner)
    joiner = onnx_graphs.ProjectedJoiner(network.joiner)
    encoder = Encoder(xlsr, config.transducer.joiner_dim).eval()
    layers, width = xlsr.num_hidden_layers, xlsr.hidden_size
    states = {
        "attention": torch.zeros(layers, LEFT, 1, width),
        "convolution": torch.zeros(layers, 1, 1, width),
        "processed": torch.zeros(1, dtype=torch.int64),
    }
    features = filter_banks(8.0)
    frames = encoder(features[:, : 4 * (features.shape[1] // 4)], *states.values())[0]
    tune(encoder, network, frames[0])
    states = {name: torch.cat([x, x], 2 if x.dim() == 4 else 0) for name, x in states.items()}
    inputs = {"x": torch.zeros(2, 2 * chunk_size, BINS), **states}
    outputs = {"encoder_out": 0, "new_attention": 2, "new_convolution": 2}
    about = {
        "model_type": "conformer",
        "num_encoder_layers": layers,
        "T": 2 * chunk_size,
        "decode_chunk_len": 2 * chunk_size,
        "left_context": LEFT,
        "encoder_dim": width,
        "pad_length": 0,
        "cnn_module_kernel": 2,
    }
    export(encoder, inputs, outputs, paths["encoder"], **about)
    context = torch.zeros(2, network.decoder.context_size, dtype=torch.int64)
    sizes = {"vocab_size": config.vocab_size, "context_size": network.decoder.context_size}
    export(decoder, {"y": context}, {"decoder_out": 0}, paths["decoder"], **sizes)
    sides = {"encoder_out": decoder(context), "decoder_out": decoder(context)}
    export(joiner, sides, {"logit": 0}, paths["joiner"], **sizes)
    if is_int8:
        quantize_matrices(paths["encoder"], quantized)
    return options


def tune(encoder: Encoder, network: nn.Module, frames: Tensor) -> None:
    """Lets the joiner answer to what changes in (T, J), as often as in ``make_network``."""
    scale = frames.std(0)
    encoder.output.weight.div_(scale.unsqueeze(1))
    encoder.output.bias.sub_(frames.mean(0)).div_(scale)
    network.joiner.encoder_proj = nn.Identity()
    network.joiner.output_linear.bias.zero_()
    set_blank(network, (frames - frames.mean(0)) / scale)


def start(
    args: argparse.Namespace, first: Callable[[], None] | None
) -> tuple[subprocess.Popen, int]:
    """Starts the server with as many working threads as ``--threads``; returns it and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = write(args.size, args.chunk_size, args.form == "int8", args.dir)
    program = Path(sys.executable).with_name(PROGRAM)
    options += [f"--port={port}", f"--num-work-threads={args.threads}", "--model-type=conformer"]
    options += [f"--log-file={args.dir / 'sherpa.log'}", *args.sherpa_options.split()]
    with (args.dir / "server.log").open("w") as log:
        process = subprocess.Popen([program, *options], stderr=log, stdout=log, preexec_fn=first)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process, port
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{PROGRAM} did not start: {(args.dir / 'server.log').read_text()[-500:]}")
