"""How a command fails: one clear line on stderr, exit status 2, no traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

# Errors of the system that say something about files and disks, not about the program.
_OF_FILES = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ESTALE,
}


class UserError(ValueError):
    """Bad input or contradictory options: what was wrong, where, and what to do.

    Anything else that escapes a command is a defect and keeps its traceback.
    """


def run_command(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> None:
    """Runs ``main(argv)`` as a program and exits with its status.

    Exit status: what ``main`` returns (None counts as 0); 2 for bad input; 130 for Ctrl-C.
    """
    try:
        status = main(argv)
    except UserError as e:
        status = complain(str(e))
    except BrokenPipeError:
        # The reader of our output, such as head, has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as e:
        if e.errno not in _OF_FILES:
            raise
        status = complain(f"{e.strerror}: {e.filename}" if e.filename else str(e))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)


def complain(message: str) -> int:
    """Prints ``message`` as one line on stderr, as every error of input is; returns 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
