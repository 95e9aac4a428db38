"""Log lines with date and level, on the terminal and in a file of the run."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from xlsr_transducer.core.files import write_text


def set_up_logging(folder: Path, name: str, rank: int = 0) -> Path:
    """Logs to stderr and to ``folder/log/log-NAME-DATE.txt``; returns that path.

    Of several processes, all but the first log to files of their own, and only warnings to stderr.
    """
    name += f"-{rank}" if rank else ""
    path = folder / "log" / f"log-{name}-{time.strftime('%Y-%m-%d-%H-%M-%S')}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING if rank else logging.INFO)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        handlers=[terminal, logging.FileHandler(path, encoding="utf-8")],
        force=True,
    )
    return path


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes all settings of a run to ``folder/settings.json``, which the log names."""
    path = folder / "settings.json"
    write_text(path, json.dumps(settings, indent=2, default=str) + "\n")
    logging.info(f"settings: {path}")
