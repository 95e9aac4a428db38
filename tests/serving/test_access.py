"""Keys, Origin and TLS: who may come in, and what the others are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.live_client import connect
from tests.support.live_server import load_live, serving
from xlsr_transducer import serve
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving import server
from xlsr_transducer.serving.options import ServeOptions

KEY = "a-secret-of-the-tests"
WRONG = "a-wrong-key-of-the-tests"
FRIEND, STRANGER = "https://friend.example", "https://stranger.example"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# of the tests\n\nanother-key\n{KEY}\n")
    return path


@pytest.fixture(scope="module")
def locked(model: LiveModel, keys: Path) -> Iterator[str]:
    with serving(model, api_key_file=keys) as address:
        yield address


async def handshake(url: str, **settings: Any) -> tuple[int, str]:
    """Returns the status of a websocket's handshake; the chosen subprotocol, or why not."""
    try:
        async with connect(url, **settings) as websocket:
            with contextlib.suppress(ConnectionClosed):
                await websocket.send("Done")
                await websocket.recv()
            return 101, websocket.subprotocol or ""
    except InvalidStatus as e:
        return e.response.status_code, json.loads(e.response.body)["error"]["message"]


def http(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict, str]:
    """Returns status, headers and body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{address}{path}", method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, dict(e.headers), e.read().decode()


@pytest.mark.parametrize(
    "path, settings",
    [
        ("/", {"additional_headers": {"Authorization": f"Bearer {KEY}"}}),
        ("/", {"additional_headers": {"Authorization": f"bearer  {KEY}"}}),
        (f"/?api_key={KEY}", {}),
        ("/", {"subprotocols": [f"openai-insecure-api-key.{KEY}"]}),
    ],
    ids=["bearer", "lower case", "query", "subprotocol"],
)
def test_a_key_opens_a_websocket(locked: str, path: str, settings: dict) -> None:
    assert asyncio.run(handshake(f"ws://{locked}{path}", **settings))[0] == 101


@pytest.mark.parametrize(
    "path, settings",
    [
        ("/", {}),
        ("/v1/realtime", {}),
        ("/", {"additional_headers": {"Authorization": f"Bearer {WRONG}"}}),
        ("/", {"additional_headers": {"Authorization": f"Basic {KEY}"}}),
        (f"/?api_key={WRONG}", {}),
        (f"/?api_key={KEY}x", {}),
        ("/?api_key=%ff%00", {}),
        ("/", {"subprotocols": [f"openai-insecure-api-key.{WRONG}", "realtime"]}),
        ("/?api_key=%23%20of%20the%20tests", {}),
    ],
)
def test_without_a_key_there_is_no_websocket(locked: str, path: str, settings: dict) -> None:
    status, reason = asyncio.run(handshake(f"ws://{locked}{path}", **settings))
    assert status == 401 and "API key" in reason


def test_of_a_browsers_subprotocols_one_is_taken_which_is_not_the_key(locked: str) -> None:
    offered = [f"openai-insecure-api-key.{KEY}", "realtime", "other"]
    answer = asyncio.run(handshake(f"ws://{locked}/", subprotocols=offered))
    assert answer == (101, "realtime")


def test_http_needs_a_key_but_for_the_page_and_the_state_of_the_server(locked: str) -> None:
    for path in ("/", "/health", "/ready", "/metrics"):
        assert http(locked, path)[0] == 200
    assert http(locked, "/v1/models")[0] == 401
    assert "WWW-Authenticate".lower() in map(str.lower, http(locked, "/v1/models")[1])
    assert http(locked, "/v1/models", Authorization=f"Bearer {WRONG}")[0] == 401
    assert http(locked, "/v1/models", Authorization=f"Bearer {KEY}")[0] == 200
    assert http(locked, f"/v1/models?api_key={KEY}")[0] == 200


def test_no_key_is_logged_or_told(
    model: LiveModel, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(model, api_key_file=keys) as address:
        for key in (KEY, WRONG):
            subprotocols = [f"openai-insecure-api-key.{key}"]
            for path in ("/", f"/?api_key={key}", f"/?api_key={key}&rate=x"):
                answer = asyncio.run(handshake(f"ws://{address}{path}", subprotocols=subprotocols))
                assert WRONG not in answer[1]
            answer = http(address, f"/v1/models?api_key={key}", Authorization=f"Bearer {key}")
            assert key not in answer[2]
    # The client of this test logs what it sends.
    lines = [r.getMessage() for r in caplog.records if r.name != "websockets.client"]
    assert any("rate 'x'" in line for line in lines)
    assert not any(KEY in line or WRONG in line for line in lines)


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "no such file"),
        ("", "no key in it"),
        ("# nothing\n\n", "no key in it"),
        ("clé", "other characters"),
        (b"\xff\xfe", "other characters"),
        ("a\x07b", "other characters"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_told_before_the_model_is_read(
    tmp_path: Path, content: str | bytes | None, reason: str
) -> None:
    path = tmp_path / "keys.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"--api-key-file {path}: .*{reason}"):
        serve.main(["--checkpoint", "/nothing", "--port", "0", "--api-key-file", str(path)])


@pytest.fixture(scope="module")
def guarded(model: LiveModel) -> Iterator[str]:
    with serving(model, allow_origin=f"{FRIEND}/, https://b.example") as address:
        yield address


def test_pages_of_this_server_and_of_allowed_sites_may_open_a_websocket(guarded: str) -> None:
    for origin in (None, f"http://{guarded}", FRIEND, "https://b.example"):
        assert asyncio.run(handshake(f"ws://{guarded}/", origin=origin))[0] == 101
    for origin in (STRANGER, "null", f"{FRIEND}.evil.example", "http://localhost:1"):
        status, reason = asyncio.run(handshake(f"ws://{guarded}/", origin=origin))
        assert status == 403 and origin in reason


@pytest.mark.parametrize("origin", ["a.org", "https://a.org/path", "ftp://a.org", "https://"])
def test_a_site_that_is_none_is_told_before_the_model_is_read(origin: str) -> None:
    with pytest.raises(UserError, match=f"--allow-origin {origin.rstrip('/')}: must be like"):
        serve.main(["--checkpoint", "/nothing", "--port", "0", "--allow-origin", origin])


def test_any_site_may_come_where_all_are_allowed(model: LiveModel) -> None:
    with serving(model, allow_origin="*") as address:
        assert asyncio.run(handshake(f"ws://{address}/", origin=STRANGER))[0] == 101
        assert http(address, "/v1/models", Origin=STRANGER)[0] == 200


def test_pages_of_allowed_sites_may_use_http_and_read_its_errors(guarded: str) -> None:
    asked = {"Access_Control_Request_Method": "POST"}
    asked["Access_Control_Request_Headers"] = "authorization,content-type"
    status, headers, _ = http(
        guarded, "/v1/audio/transcriptions", "OPTIONS", Origin=FRIEND, **asked
    )
    allowed = {name.lower(): value for name, value in headers.items()}
    assert status == 200 and allowed["access-control-allow-origin"] == FRIEND
    assert "POST" in allowed["access-control-allow-methods"]
    assert "authorization" in allowed["access-control-allow-headers"].lower()
    for path, wanted in (("/v1/models", 200), ("/v1/nothing", 404)):
        status, headers, _ = http(guarded, path, Origin=FRIEND)
        assert status == wanted
        named = {name.lower(): value for name, value in headers.items()}
        assert named["access-control-allow-origin"] == FRIEND


def test_pages_of_other_sites_may_not(guarded: str) -> None:
    status, headers, body = http(guarded, "/v1/models", Origin=STRANGER)
    assert status == 403 and STRANGER in body
    assert "access-control-allow-origin" not in map(str.lower, headers)
    preflight = {"Origin": STRANGER, "Access_Control_Request_Method": "POST"}
    assert http(guarded, "/v1/audio/transcriptions", "OPTIONS", **preflight)[0] == 400


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and its key in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", *kind, *subject, *files], check=True, capture_output=True
    )
    both = folder / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return both


def test_with_a_certificate_the_server_speaks_https_and_wss(model: LiveModel, pem: Path) -> None:
    trust = ssl.create_default_context(cafile=str(pem))

    async def speak(address: str) -> int:
        async with connect(f"wss://{address}/", ssl=trust) as websocket:
            await websocket.send(torch.zeros(16000).numpy().tobytes())
            await websocket.send("Done")
            async for _ in websocket:
                pass
        return websocket.close_code

    with serving(model, certificate=pem) as address:
        assert asyncio.run(speak(address)) == 1000
        with urllib.request.urlopen(f"https://{address}/health", context=trust) as answer:
            assert answer.status == 200
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://{address}/health", timeout=60)


def test_a_certificate_that_cannot_be_used_is_told_before_the_model_is_read(
    tmp_path: Path, pem: Path
) -> None:
    encrypted = tmp_path / "encrypted.pem"
    change = ["openssl", "ec", "-in", str(pem), "-aes256", "-passout", "pass:word"]
    subprocess.run([*change, "-out", str(encrypted)], check=True, capture_output=True)
    text = pem.read_text()
    certificate, _, _ = text.partition("-----BEGIN PRIVATE")
    wrong = {
        "no-key.pem": certificate,
        "nothing.pem": "",
        "text.pem": "this is no PEM",
        "cut.pem": text[: len(text) // 3],
        "password.pem": certificate + encrypted.read_text(),
    }
    for name, content in wrong.items():
        (tmp_path / name).write_text(content)
    for name in [*wrong, "missing.pem"]:
        path = tmp_path / name
        with pytest.raises(UserError, match=f"--certificate {path}: "):
            serve.main(["--checkpoint", "/nothing", "--port", "0", "--certificate", str(path)])


@pytest.mark.parametrize(
    "host, shown",
    [("::", "localhost"), ("2001:db8::1", "[2001:db8::1]"), ("10.0.0.1", "10.0.0.1")],
)
def test_the_address_that_is_printed_can_be_opened(
    capsys: pytest.CaptureFixture, host: str, shown: str
) -> None:
    listener = SimpleNamespace(getsockname=lambda: (host, 6006, 0, 0))
    server._announce(listener, ServeOptions())
    assert capsys.readouterr().out == f"open http://{shown}:6006 in a browser\n"


def test_a_port_that_is_taken_is_told_before_the_model_is_read(model: LiveModel) -> None:
    with serving(model) as address:
        port = address.partition(":")[2]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
            serve.main(["--checkpoint", "/nothing", "--port", port])
