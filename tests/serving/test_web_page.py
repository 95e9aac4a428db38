"""What the server tells a page: its files' headers, and why a session would be refused."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from websockets.sync.client import connect

from tests.support.live_server import load_live, serving
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving import web_page
from xlsr_transducer.serving.session import MOST_HOTWORDS


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint, "--decoding-method", "modified_beam_search")


def config(address: str, hotwords: str = "", key: str = "") -> dict:
    request = Request(f"http://{address}/config?hotwords={quote(hotwords)}")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urlopen(request) as answer:
        return json.load(answer)


def test_every_file_forbids_what_is_not_of_this_server(model: LiveModel) -> None:
    with serving(model) as address:
        for name in ("", *(file.name for file in web_page.FOLDER.iterdir())):
            with urlopen(f"http://{address}/{name}") as answer:
                policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';"), name
            assert "unsafe" not in policy and "http" not in policy and "*" not in policy


def test_the_page_is_told_why_a_session_would_be_refused(model: LiveModel, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("s3cret\n")
    with serving(model, api_key_file=tmp_path / "keys", max_sessions=1) as address:
        assert config(address)["needs_key"]
        assert config(address)["refusal"] == "it does not accept this API key"
        assert config(address, "Ω")["refusal"] == "it does not accept this API key"
        assert config(address, "kala/moon :2", key="s3cret")["refusal"] == ""
        assert config(address, "Ω", key="s3cret")["refusal"].startswith("hotword 1")
        many = config(address, "/".join(["kala"] * (MOST_HOTWORDS + 1)), key="s3cret")["refusal"]
        assert f"a session may have {MOST_HOTWORDS}" in many
        with connect(f"ws://{address}/?api_key=s3cret"):
            refusal = config(address, key="s3cret")["refusal"]
        assert refusal == "the server is full: 1 sessions are open"


def test_a_browsers_key_is_not_sent_back(model: LiveModel, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("s3cret\n")
    offered = ["openai-insecure-api-key.s3cret", "sherpa"]
    with serving(model, api_key_file=tmp_path / "keys") as address:
        with connect(f"ws://{address}/", subprotocols=offered) as websocket:
            assert websocket.subprotocol == "sherpa"
