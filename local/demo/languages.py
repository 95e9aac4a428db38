"""What the experiments on synthetic languages share: options, folders, commands of the recipe."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.options import Number, Parser

ROOT = Path(__file__).resolve().parents[2]
DONE = "done"  # a file: the step that leaves it need not be taken again


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an experiment's files lie: data, and what is trained. ``seed`` made the corpus."""

    data: Path
    exp: Path
    seed: int

    @property
    def audio(self) -> Path:
        """The folder of the corpus and its lists."""
        return self.data / "audio"

    @property
    def toy_xlsr(self) -> Path:
        """The toy network, which does not depend on the seed."""
        return self.exp.parent / "toy_xlsr"

    def make_corpus(self) -> None:
        """Makes the corpus and the toy network, unless they are there."""
        module = (sys.executable, "-m")
        once(
            self.audio,
            (*module, "local.demo.make_languages", "--out-dir", self.audio, "--seed", self.seed),
        )
        if not (self.toy_xlsr / "config.json").exists():
            once(self.toy_xlsr, (*module, "local.demo.make_toy_xlsr", "--out", self.toy_xlsr))


def add_place_options(parser: Parser) -> None:
    """Adds the options of ``place_of``."""
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo_languages"))
    parser.add_argument("--exp-dir", type=Path, default=Path("exp/languages"))
    parser.add_argument(
        "--seed",
        type=Number(int, at_least=0),
        default=1,
        help="of corpus and trainings: another one repeats the experiment with all else new, "
        "but for the toy network",
    )


def place_of(args: argparse.Namespace) -> Place:
    """Returns the folders of the seed that was asked for."""
    folder = f"seed-{args.seed}"
    return Place(args.data_dir.resolve() / folder, args.exp_dir.resolve() / folder, args.seed)


def once(folder: Path, *commands: Sequence[object]) -> str:
    """Runs commands that fill ``folder``, one thread each, unless they did so before.

    Returns:
      What they printed. It is kept in ``output.txt``, and their messages in ``commands.log``.
    Raises:
      UserError: one of them failed; it names the log.
    """
    printed, log = folder / "output.txt", folder / "commands.log"
    if not (folder / DONE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with printed.open("w") as output, log.open("w") as messages:
            for command in commands:
                words = [str(word) for word in command]
                line = shlex.join(words)
                logging.info(line)
                print(line, file=messages, flush=True)
                done = subprocess.run(
                    words, stdout=output, stderr=messages, cwd=ROOT, env=environment
                )
                if done.returncode:
                    raise UserError(f"{line}: exit status {done.returncode}; see {log}")
        write_text(folder / DONE, "")
    return printed.read_text(encoding="utf-8")
