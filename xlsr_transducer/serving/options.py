"""Options of the server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from xlsr_transducer.core.options import Options, option


@dataclasses.dataclass(frozen=True)
class ServeOptions(Options):
    """Server."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: all of this machine's")
    port: int = option(6006, "port; 0: a free one", at_least=0, at_most=65535)
    max_sessions: int = option(500, "sessions at once; more are refused", at_least=1)
    max_wait_ms: float = option(
        0.0, "how long a chunk may wait for those of others", at_least=0, at_most=10000
    )
    max_backlog: float = option(
        30.0, "seconds of a session's audio that may wait to be computed", above=0
    )
    max_message_bytes: int = option(2**22, "largest websocket message", at_least=1024)
    max_upload_bytes: int = option(2**30, "largest file to transcribe", at_least=1024)
    idle_timeout: float = option(60.0, "seconds without a message that end a session", above=0)
    drain_timeout: float = option(
        60.0, "seconds that open sessions have after SIGTERM, before they are ended", at_least=0
    )
    api_key_file: Path | None = option(None, "file with one accepted API key a line")
    certificate: Path | None = option(
        None, "certificate and private key in one PEM file: serves https and wss"
    )
    allow_origin: str = option(
        "", "other sites whose pages may use the server, such as https://a.org,https://b.org; or *"
    )
