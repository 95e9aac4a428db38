"""Settings of the whole suite."""

from __future__ import annotations

import os
import signal

import pytest

# Before torch is imported, and for the programs that tests start: on a shared machine threads
# that wait for each other make small computations many times slower, and one thread adds up
# in the same order every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where tests run in the background or on several cores, Ctrl-C is ignored, and would be by the
# programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.support.label_corpus import label_data, label_exp  # noqa: E402, F401  fixtures, after
from tests.support.tiny_recipe import corpus, streaming_exp  # noqa: E402, F401  the setting above

# What a module of slow tests imports.
SLOW = {"subprocess", "make_pretrained", "train", "serving", "evaluate"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: starts programs or trains; not in ./test.sh --fast")
    config.addinivalue_line("markers", "long: takes minutes; in ./test.sh --long only")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what uses the miniature recipe, and modules that start programs or train."""
    for item in items:
        if "corpus" in item.fixturenames or SLOW & vars(item.module).keys():
            item.add_marker("slow")
