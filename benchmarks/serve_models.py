"""Models of random weights that emit tokens as often as speech has them, for ``benchmarks.serve``.

A random joiner would emit a token in every frame or in none. Here the score of blank is set such
that ``TOKENS_PER_SECOND`` come, as the size of results, the search's work and the endpoints
depend on it. What is recognised is nonsense.
"""

from __future__ import annotations

import random
import types
from pathlib import Path

import torch
from torch import Tensor

from local.demo.make_toy_xlsr import SHAPE
from xlsr_transducer.core.geometry import ENCODER_FRAME, SAMPLING_RATE
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import TransducerOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.xlsr_config import XlsrConfig

TOKENS_PER_SECOND = 4.0
# Network, widths of encoder, decoder and joiner, and tokens: the demo's, and the defaults.
SIZES = {
    "toy": (SHAPE, (144, 128, 192), 80),
    "300m": (XlsrConfig(), (512, 512, 512), 500),
}


def noise(seconds: float, seed: int = 0) -> Tensor:
    """Returns (n,) samples of noise whose level rises and falls as that of syllables."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    level = 0.05 + 0.045 * torch.sin(2 * torch.pi * 3.1 * time)
    return level * torch.randn(len(time), generator=generator)


def make_config(size: str, chunk_size: int) -> ModelConfig:
    """Returns the configuration of a streaming model."""
    xlsr, widths, vocab_size = SIZES[size]
    encoder_dim, decoder_dim, joiner_dim = widths
    return ModelConfig(
        features=FeatureInfo("random", "0" * 64, "waveform", "cumulative", 1),
        xlsr=xlsr,
        encoder=EncoderOptions(encoder_dim=encoder_dim),
        transducer=TransducerOptions(decoder_dim=decoder_dim, joiner_dim=joiner_dim),
        streaming=StreamingOptions(True, str(chunk_size)),
        vocab_size=vocab_size,
        heads=("transducer",),
    )


@torch.no_grad()
def make_network(config: ModelConfig) -> SpeechModel:
    """Returns a network of random weights in evaluation mode."""
    torch.manual_seed(0)
    network = build_model(config, whole=True).requires_grad_(False).eval()
    network.encoder.set_chunk(config.streaming.default())
    wave = noise(8.0)
    chunk = config.streaming.default()
    frames = network.encoder(wave[None], torch.tensor([len(wave)]), *chunk)[0][0]
    # A joiner that answers to what changes from frame to frame.
    joiner, output = network.joiner, network.joiner.output_linear
    joiner.encoder_proj.weight.normal_().div_(frames.std(0) * frames.shape[1] ** 0.5)
    joiner.encoder_proj.bias.copy_(-joiner.encoder_proj.weight @ frames.mean(0))
    output.weight.normal_()
    output.bias.zero_()
    set_blank(network, frames)
    return network


def set_blank(network: SpeechModel, frames: Tensor) -> None:
    """Lets greedy search find about ``TOKENS_PER_SECOND`` in frames (T, E)."""
    blank = network.decoder.blank_id
    context = torch.full((1, network.decoder.context_size), blank)
    side = network.decoder(context, need_pad=False)[:, 0]
    logits = network.joiner(frames, side.expand(len(frames), -1))
    lead = logits[:, blank].clone()
    logits[:, blank] = -float("inf")
    lead = logits.amax(1) - lead
    share = TOKENS_PER_SECOND * ENCODER_FRAME
    network.joiner.output_linear.bias[blank] = torch.quantile(lead, 1 - share)


def make_tokenizer(vocab_size: int) -> object:
    """Returns a BPE tokenizer of random words."""
    from local.prepare_lang import train_bpe
    from xlsr_transducer.data.tokenizer import Tokenizer

    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulmnrstk", k=draw.randint(2, 7))) for _ in range(1000)]
    return Tokenizer(
        train_bpe([" ".join(draw.choices(words, k=8)) for _ in range(500)], vocab_size)
    )


def write_model(size: str, chunk_size: int, form: str, folder: Path) -> list[str]:
    """Writes a model; returns the options of ``serve`` that name it.

    Args:
      form: ``pytorch``, ``onnx`` or ``int8``.
    """
    from xlsr_transducer.core.tensor_files import save_atomically
    from xlsr_transducer.exporting import onnx_format, onnx_graphs
    from xlsr_transducer.exporting.formats import FormatOptions, Job
    from xlsr_transducer.model.checkpoint import LoadedModel, model_content

    config = make_config(size, chunk_size)
    name = f"{size}-{chunk_size}"
    path = folder / f"{name}.pt"
    chunk = config.streaming.default()
    encoder = folder / f"encoder-{name}-{chunk.describe()}{'.int8' * (form == 'int8')}.onnx"
    wanted = path if form == "pytorch" else encoder
    option = ["--checkpoint" if form == "pytorch" else "--onnx", str(wanted)]
    if wanted.is_file():
        return option
    folder.mkdir(parents=True, exist_ok=True)
    network, tokenizer = make_network(config), make_tokenizer(config.vocab_size)
    if form == "pytorch":
        save_atomically(model_content(config, tokenizer, network.state_dict()), path)
        return option
    tokenizer.write_tokens(folder / "tokens.txt")
    (folder / "bpe.model").write_bytes(tokenizer.to_bytes())
    loaded = LoadedModel(network, config, types.SimpleNamespace(tokens=tokenizer.tokens))
    job = Job(loaded, chunk, name, folder, FormatOptions())
    with torch.no_grad(), onnx_graphs.traceable(network):
        about = onnx_format.describe(job)
        artifact = onnx_format.write_streaming(job, network, "", folder, about)
    if form == "int8":
        onnx_format.quantize(artifact, folder)
    return option
