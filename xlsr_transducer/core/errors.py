"""Ends a command that fails or is interrupted: one clear line on stderr and no traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

# Errors of the system about files and disks, not about the program.
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

INTERRUPTED = 130  # exit status after Ctrl-C, as of a shell


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
    is_program = signal.getsignal(signal.SIGINT) is _end_import
    try:
        if is_program:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Forked workers get Ctrl-C too, and leave it to this process, which ends them.
            os.register_at_fork(after_in_child=_ignore_interrupts)
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
        file = e.filename2 or e.filename  # of two, such as in a copy, the one that is written
        status = complain(f"{e.strerror}: {file}" if file else str(e))
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        status = complain(f"out of memory ({reason}); give it shorter audio or smaller batches")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    if is_program:  # the outcome is settled, and Python only tidies up
        _ignore_interrupts()
    sys.exit(status or 0)


def answer_interrupts() -> None:
    """From now until ``run_command``, while a command is imported, Ctrl-C ends it in one line.

    The shell scripts hold Ctrl-C back until here, as Python would answer with a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it is ignored
        signal.signal(signal.SIGINT, _end_import)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_import(signum: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Inside, Ctrl-C waits for the end of the block. Processes that start inside never get it.

    For foreign code that calls Python and would lose the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # which is never interrupted
        return
    noted: list[tuple] = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: noted.append(arguments))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if noted and callable(handler):
        handler(*noted[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out, in the words of PyTorch, of CUDA's libraries or of
    onnxruntime."""
    signs = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")
    signs += ("Failed to allocate memory", "bad_alloc", "bad allocation")
    if isinstance(error, ValueError):  # such as a UserError about it
        return False
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def complain(message: str) -> int:
    """Prints ``message`` as one line on stderr, as every error of input is; returns 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
