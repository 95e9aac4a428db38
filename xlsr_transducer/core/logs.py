"""Log lines with date and level, on the terminal and in a file of the run."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from xlsr_transducer.core.files import write_text


class LogFile(logging.FileHandler):
    """A log file that is given up, with a warning, when the disk takes no more."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Logs on without the file."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):
            self.close()
        logging.warning(
            f"{self.baseFilename}: cannot be written any more ({error.strerror or error}); what "
            "follows is on the terminal alone"
        )


def set_up_logging(folder: Path | None = None, name: str = "", rank: int = 0) -> None:
    """Logs to stderr and, given a folder, to ``folder/log/log-NAME-DATE.txt``.

    Of several processes, all but the first log to files of their own, and only warnings to stderr.
    """
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING if rank else logging.INFO)
    handlers: list[logging.Handler] = [terminal]
    if folder:
        name += f"-{rank}" if rank else ""
        path = folder / "log" / f"log-{name}-{time.strftime('%Y-%m-%d-%H-%M-%S')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(LogFile(path, encoding="utf-8"))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        handlers=handlers,
        force=folder is not None,  # another folder than that of an earlier call
    )


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes all settings of a run to ``folder/settings.json``, which the log names."""
    path = folder / "settings.json"
    write_text(path, json.dumps(settings, indent=2, default=str) + "\n")
    logging.info(f"settings: {path}")
