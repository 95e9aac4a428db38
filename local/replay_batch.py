"""Repeats a batch that failed in training: ``python -m local.replay_batch exp/failed/FILE.pt``.

Prints why it was kept, the losses of each utterance and the norm of the gradient; on a CPU
these are the numbers of the training, to the bit. ``--inf-check 1`` names the first module
whose output or gradient is not finite.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.options import Parser, str2bool
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.training.failed_batch import objective_of, read_failed_batch, replay


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="exp/.../failed/step-N-rank-R.pt")
    parser.add_argument(
        "--checkpoint", type=Path, help="take its weights (a file of a sharded training has none)"
    )
    parser.add_argument("--inf-check", type=str2bool, default=False)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    content = read_failed_batch(args.file)
    if args.checkpoint:
        content["model"] = read_checkpoint(args.checkpoint)["model"]
    if not content["model"]:
        raise UserError(
            f"{args.file} is of a sharded training and holds no weights: give --checkpoint"
        )
    batch = content["batch"]
    objective = objective_of(content)
    chunk = objective.config.streaming.draw(objective.seed, content["step"])
    print(
        f"epoch {content['epoch']}, step {content['step']}, {chunk.describe()}, "
        f"{len(batch['ids'])} utterances, inputs {tuple(batch['inputs'].shape)}"
    )
    print(f"failed with: {content['reason']}")
    result = replay(content, torch.device(args.device), args.inf_check)
    print("utterance\tlength\ttokens\tsimple\tpruned\tctc")
    rows = zip(batch["ids"], batch["input_lens"].tolist(), batch["token_lens"].tolist())
    losses = torch.stack(result.losses, 1).tolist()
    for (name, length, tokens), row in zip(rows, losses):
        print(f"{name}\t{length}\t{tokens}\t" + "\t".join(f"{x:.6g}" for x in row))
    print(f"loss per token {result.total:.9g}, gradient norm {result.grad_norm:.9g}")


if __name__ == "__main__":
    run_command(main)
