"""Writes what is spoken into the microphone: ``python -m xlsr_transducer.microphone``.

With ``--exp-dir exp`` it is recognised here, with ``--server ws://localhost:6006`` by a server.
Ctrl-C ends it, with the final text.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.options import Options, Parser, add_options, from_args, option
from xlsr_transducer.data.microphone import Microphone, microphones
from xlsr_transducer.recognition.dictation import dictate, recognise
from xlsr_transducer.recognition.live import LiveModel, add_live_options
from xlsr_transducer.serving.keys import read_keys

KEY_VARIABLE = "XLSR_API_KEY"


@dataclasses.dataclass(frozen=True)
class MicrophoneOptions(Options):
    """Microphone."""

    server: str | None = option(None, "address of a server that recognises, instead of a model")
    api_key_file: Path | None = option(
        None, f"file with the server's API key; or set {KEY_VARIABLE}"
    )
    ca_file: Path | None = option(None, "certificates of wss:// servers to trust, in PEM")
    device: int | None = option(None, "number of a recording device", at_least=0)

    def api_key(self) -> str:
        """Returns the key for the server; none is an empty one.

        Raises:
          UserError: there is no key in the file.
        """
        if self.api_key_file is None:
            return os.environ.get(KEY_VARIABLE, "").strip()
        return read_keys(self.api_key_file)[0]


def get_parser() -> Parser:
    parser = Parser(description=__doc__.split(":")[0])
    parser.add_argument("--list-devices", action="store_true", help="list recording devices")
    add_options(parser, MicrophoneOptions)
    add_live_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.list_devices:
        for number, name in enumerate(microphones()):
            print(f"{number}\t{name}")
        return 0
    options = from_args(MicrophoneOptions, args)
    if options.server:
        from xlsr_transducer.serving.client import recognise_remotely

        settings = options.server, options.api_key(), options.ca_file
        recogniser = functools.partial(recognise_remotely, *settings)
    else:
        recogniser = functools.partial(recognise, LiveModel.from_args(args))
    with Microphone(options.device) as microphone:
        if sys.stderr.isatty():
            print("speak; Ctrl-C ends it", file=sys.stderr)
        dictate(microphone, recogniser(microphone), sys.stdout)
    return 0


if __name__ == "__main__":
    run_command(main)
