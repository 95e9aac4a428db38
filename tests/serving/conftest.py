"""The model that the tests of the server share."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob: list[str] = []
try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError:  # the environment of the real k2 has no server
    collect_ignore_glob = ["test_*.py"]

if find_spec("playwright") is None:
    collect_ignore_glob.append("test_page*.py")
elif find_spec("starlette") is not None:
    from tests.support.page_driver import browser, site, visit  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a random streaming model."""
    from tests.support.live_server import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("live"))
