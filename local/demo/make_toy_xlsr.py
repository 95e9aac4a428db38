"""Makes the toy network: a tiny network with XLSR's architecture, for machines without XLSR.

    python -m local.demo.make_toy_xlsr --out exp/toy_xlsr [--steps N] [--seed S]

writes a folder in Hugging Face's format. ``--steps 0`` leaves the weights random; otherwise
they are pre-trained on synthesized Estonian that shares no word with the demo. Nothing that it
recognises says anything about XLSR.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from local.demo.pretraining import Outcome, pretrain
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.exporting.hugging_face import hugging_face_weights, write_folder
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_config import XlsrConfig

SHAPE = XlsrConfig(
    conv_dim=(16, 32, 64, 64, 96, 96, 128),
    hidden_size=144,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    num_conv_pos_embeddings=32,
    num_conv_pos_embedding_groups=16,
    hidden_dropout=0.05,
    attention_dropout=0.05,
    layerdrop=0.0,
)
DEFAULT_STEPS = 1500
CARD = """---
language: et
---
# A toy network, not XLSR

A network with XLSR's architecture made tiny ({millions:.2f} million parameters), made by
`python -m local.demo.make_toy_xlsr` for demonstrations and tests on machines where the real
checkpoint is not at hand. Word error rates reached with it say nothing about XLSR.

Weights: {origin}
"""


def random_network(config: XlsrConfig, seed: int) -> Wav2Vec2:
    """The network as it starts: convolutions as Hugging Face draws them, the rest PyTorch's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Wav2Vec2(config)
        for layer in network.feature_extractor.conv_layers:
            nn.init.kaiming_normal_(layer.conv.weight)
        pos_conv = network.encoder.pos_conv_embed.conv
        std = 2 / math.sqrt(config.num_conv_pos_embeddings * config.hidden_size)
        nn.init.normal_(pos_conv.weight, std=std)
        nn.init.zeros_(pos_conv.bias)
    return network


def write_checkpoint(out_dir: Path, config: XlsrConfig, network: Wav2Vec2, origin: str) -> None:
    """Writes the folder, with a card that names the ``origin`` of the weights."""
    millions = sum(w.numel() for w in hugging_face_weights(network).values()) / 1e6
    write_folder(out_dir, config, network, CARD.format(millions=millions, origin=origin))


def make_random(
    out_dir: str | Path, seed: int = 1, config_overrides: Mapping[str, Any] | None = None
) -> Path:
    """Writes a toy network with random weights and returns its folder.

    Args:
      config_overrides: fields of ``XlsrConfig`` to set otherwise than in ``SHAPE``, for
        something tinier still.
    """
    config = XlsrConfig.from_dict({**SHAPE.to_dict(), **(config_overrides or {})})
    network = random_network(config, seed)
    write_checkpoint(Path(out_dir), config, network, f"random, drawn with seed {seed}.")
    return Path(out_dir)


def make_pretrained(
    out_dir: str | Path,
    seed: int,
    steps: int,
    config_overrides: Mapping[str, Any] | None = None,
) -> Outcome:
    """Pre-trains a toy network for ``steps`` steps, writes it and returns how that went."""
    config = XlsrConfig.from_dict({**SHAPE.to_dict(), **(config_overrides or {})})
    network = random_network(config.without_dropout(), seed)
    outcome = pretrain(network, steps, seed)
    origin = (
        f"pre-trained for {steps} steps (seed {seed}) on {outcome.hours:.1f} hours of Estonian\n"
        "that espeak-ng synthesized: random strings of words, none of which the demo uses. With\n"
        f"full context it classifies {100 * outcome.accuracy:.1f} % of the frames of strings of\n"
        "yet other words by their phoneme."
    )
    write_checkpoint(Path(out_dir), config, network, origin)
    return outcome


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--steps",
        type=Number(int, at_least=0),
        default=DEFAULT_STEPS,
        help=f"of pre-training (default: {DEFAULT_STEPS}); 0: random weights",
    )
    parser.add_argument("--seed", type=Number(int, at_least=0), default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.info("making a toy network: a tiny one of XLSR's architecture. It is not XLSR.")
    if args.steps == 0:
        make_random(args.out, args.seed)
    else:
        make_pretrained(args.out, args.seed, args.steps)
    logging.info("the toy network lies in %s", args.out)


if __name__ == "__main__":
    run_command(main)
