"""Serves a streaming model: live transcription over websockets and HTTP, and a page to speak to.

``python -m xlsr_transducer.serve --exp-dir exp``, or with ``--onnx FILE``.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.recognition.live import LiveModel, add_live_options
from xlsr_transducer.serving.options import ServeOptions


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    add_options(parser, ServeOptions)
    add_live_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    options = from_args(ServeOptions, args)
    set_up_logging(None, "serve")
    try:
        from xlsr_transducer.serving.server import run_server
    except ModuleNotFoundError as e:
        raise UserError(f"the server needs {e.name}: pip install -r requirements.txt") from e
    run_server(lambda: LiveModel.from_args(args), options)
    return 0


if __name__ == "__main__":
    run_command(main)
