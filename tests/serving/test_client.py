"""The microphone's client: the server's final texts, clear words when it refuses or goes away."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from tests.core.test_rooms import PACKAGE, ROOT, graph
from tests.support.live_capture import LiveCapture
from tests.support.live_server import ENDPOINT, expected, load_live, serving, waves
from xlsr_transducer import microphone
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.dictation import dictate
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving.client import recognise_remotely


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, "--enable-endpoint", "1", *ENDPOINT)


@pytest.fixture(scope="module")
def wave(checkpoint: Path) -> np.ndarray:
    found = waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 6)
    return max(found, key=len).numpy()


@pytest.fixture(scope="module")
def texts(model: LiveModel, wave: np.ndarray) -> list[str]:
    return [segment.text for segment in expected(model, torch.from_numpy(wave))]


def received(address: str, capture: LiveCapture, key: str = "") -> list[str]:
    """Returns the final texts, without the empty one that ends a session."""
    found = recognise_remotely(f"ws://{address}", key, None, capture)
    return [h.text for h in found if h.is_final and h.text]


@pytest.mark.parametrize("size", [1600, 50000])
def test_final_texts_are_those_of_the_stream_alone(
    model: LiveModel, wave: np.ndarray, texts: list[str], size: int
) -> None:
    with serving(model) as address:
        assert received(address, LiveCapture(wave, size)) == texts
    assert len(texts) > 1


def test_ctrl_c_ends_with_the_final_text(
    model: LiveModel, wave: np.ndarray, texts: list[str]
) -> None:
    capture = LiveCapture(wave, 1600, at_end=lambda: os.kill(os.getpid(), signal.SIGINT))
    out = io.StringIO()
    with serving(model) as address:
        dictate(capture, recognise_remotely(f"ws://{address}", "", None, capture), out)
    assert capture.is_stopped and out.getvalue().splitlines() == texts


@pytest.mark.parametrize("source", ["file", "variable"])
def test_the_key_comes_from_a_file_or_the_environment(
    model: LiveModel,
    wave: np.ndarray,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    source: str,
) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text("secret\n")
    monkeypatch.setattr(microphone, "Microphone", lambda device: LiveCapture(wave, 1600))
    with serving(model, api_key_file=keys) as address:
        given = ["--server", f"ws://{address}"]
        with pytest.raises(UserError, match="refused with status 401: no valid API key"):
            microphone.main(given)
        if source == "file":
            key.write_text("# of the server\n\nsecret\n")
            given += ["--api-key-file", str(key)]
        else:
            monkeypatch.setenv(microphone.KEY_VARIABLE, "secret")
        assert microphone.main(given) == 0
    assert capsys.readouterr().out.splitlines() == texts


def test_a_full_server_is_named_with_its_reason(model: LiveModel, wave: np.ndarray) -> None:
    going_on = threading.Event()
    first = LiveCapture(wave, 1600, at_end=going_on.set)
    with serving(model, max_sessions=1) as address:
        thread = threading.Thread(target=received, args=(address, first))
        thread.start()
        assert going_on.wait(60)
        with pytest.raises(UserError, match="status 503: the server is full: 1 sessions"):
            received(address, LiveCapture(wave, 1600))
        first.stop()
        thread.join()


@pytest.mark.parametrize(
    "server, reason",
    [
        ("localhost:6006", "must begin with ws:// or wss://"),
        ("ws://", "cannot be reached"),
        ("ws://localhost:port", "cannot be reached"),
        ("ws://localhost:99999", "cannot be reached"),
        ("ws://[::1", "cannot be reached"),
        ("ws://a..b", "cannot be reached"),
        ("ws://localhost:1", "cannot be reached"),
        ("wss://localhost:1", "cannot be reached"),
    ],
)
def test_a_server_that_is_not_there_is_an_error(server: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        list(recognise_remotely(server, "", None, LiveCapture(np.zeros(0), 1)))
    assert server in str(caught.value)


def stub(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    """Runs a websocket server that does what ``handler`` does."""
    with serve_websockets(handler, "localhost", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"localhost:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


RESULT = '{"text": "one", "is_final": true, "final": false}'


def leave(connection: ServerConnection) -> None:
    connection.recv()
    connection.send(RESULT)
    connection.close(1001, "shutting down")


def vanish(connection: ServerConnection) -> None:
    connection.recv()
    connection.socket.close()


def babble(connection: ServerConnection) -> None:
    connection.send("hello")
    connection.recv()


@pytest.mark.parametrize(
    "handler, reason",
    [
        (leave, "shutting down; what was not final yet is lost"),
        (vanish, "the connection was lost; what was not final yet is lost"),
        (babble, "does not speak sherpa's protocol"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_server_that_goes_away_is_an_error_that_says_so(
    handler: Callable[[ServerConnection], None], reason: str
) -> None:
    found, capture = [], LiveCapture(np.zeros(16000, np.float32), 1600, at_end=lambda: None)
    for address in stub(handler):
        with pytest.raises(UserError, match=reason):
            for h in recognise_remotely(f"ws://{address}", "", None, capture):
                found.append(h.text)
    assert capture.is_stopped
    assert found == (["one"] if handler is leave else [])


def test_a_microphone_that_fails_does_not_lose_the_text(
    model: LiveModel, wave: np.ndarray, texts: list[str]
) -> None:
    def fail() -> None:
        raise UserError("the microphone is gone")

    found = []
    with serving(model) as address, pytest.raises(UserError, match="the microphone is gone"):
        capture = LiveCapture(wave, 1600, at_end=fail)
        for h in recognise_remotely(f"ws://{address}", "", None, capture):
            found += [h.text] if h.is_final and h.text else []
    assert found == texts


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_a_certificate_of_ones_own_is_trusted_if_it_is_given(
    model: LiveModel, wave: np.ndarray, texts: list[str], tmp_path: Path
) -> None:
    key, certificate, both = (tmp_path / name for name in ("key", "certificate", "both"))
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    command = [*request.split(), "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(key.read_text() + certificate.read_text())
    with serving(model, certificate=both) as address:
        server = f"wss://{address}"
        with pytest.raises(UserError, match="cannot be reached .*certificate"):
            list(recognise_remotely(server, "", None, LiveCapture(wave, 1600)))
        found = list(recognise_remotely(server, "", certificate, LiveCapture(wave, 1600)))
    assert [h.text for h in found if h.is_final and h.text] == texts
    with pytest.raises(UserError, match="--ca-file .*none: No such file"):
        list(recognise_remotely("wss://localhost", "", tmp_path / "none", LiveCapture(wave, 1)))


def test_the_client_imports_nothing_of_the_server() -> None:
    client = f"{PACKAGE}.serving.client"
    imported, found = graph(ROOT / PACKAGE), {client}
    while more := set().union(*(imported[name] for name in found)) - found:
        found |= more
    assert {name for name in found if f"{PACKAGE}.serving." in name} == {client}
