"""How a command ends: one line and a status for bad input and Ctrl-C, a traceback for defects."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from xlsr_transducer.core.errors import UserError, interrupts_held_back, run_command


@pytest.mark.parametrize(
    "error", [UserError("line one\n  line two"), FileNotFoundError(2, "No", "f")]
)
def test_bad_input_gives_one_line_and_status_2(
    error: Exception, capsys: pytest.CaptureFixture
) -> None:
    def main(argv: object) -> None:
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_defect_keeps_its_traceback() -> None:
    def main(argv: object) -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run_command(main)


@pytest.fixture
def listens_to_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background ignores it from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_ctrl_c_is_one_line_and_status_130(capsys: pytest.CaptureFixture) -> None:
    def main(argv: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.usefixtures("listens_to_ctrl_c")
@pytest.mark.parametrize("receiver", ["main", "other"])
def test_ctrl_c_waits_for_the_end_of_foreign_code(receiver: str) -> None:
    """Whichever thread the system gives the signal to."""

    def interrupt() -> None:  # has arrived when the call returns, however busy the machine is
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    reached = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held_back():
            if receiver == "main":
                interrupt()
            else:
                other = threading.Thread(target=interrupt_unblocked, args=[interrupt])
                other.start()
                other.join()
            reached.append("the end of the block")
        reached.append("further")
    assert reached == ["the end of the block"]


def interrupt_unblocked(interrupt: Callable[[], None]) -> None:
    """Calls ``interrupt`` in a thread that takes signals, as one of a library's may."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    interrupt()
