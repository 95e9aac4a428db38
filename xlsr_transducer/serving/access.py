"""Who may use the server: API keys, and browsers' pages by their Origin."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import HTTPConnection

from xlsr_transducer.core.errors import UserError

# A browser cannot set headers of a websocket: it may send the key as a subprotocol. OpenAI's name.
KEY_PROTOCOL = "openai-insecure-api-key."


def read_keys(path: Path | None) -> list[str]:
    """Returns the keys of a file, one a line; none without a file.

    Raises:
      UserError: no such file, or no key in it.
    """
    if path is None:
        return []
    if not path.is_file():
        raise UserError(f"--api-key-file {path}: no such file")
    keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {path}: no key in it; write one a line")
    return keys


def accepted_protocol(connection: HTTPConnection) -> str | None:
    """Returns which of the offered subprotocols to accept: a browser that offers some wants one.

    The first that is no key, so that keys are not sent back.
    """
    offered = connection.scope.get("subprotocols", [])
    return next((name for name in offered if not name.startswith(KEY_PROTOCOL)), None)


class Access:
    """Decides which requests are let in."""

    def __init__(self, keys: Sequence[str] = (), origins: Sequence[str] = ()):
        """
        Args:
          keys: those accepted; without any, everybody may come.
          origins: of other sites whose pages may come, or ``*``.
        """
        self._keys = [key.encode() for key in keys]
        self.origins = tuple(origins)

    @property
    def needs_key(self) -> bool:
        """Whether callers need a key."""
        return bool(self._keys)

    def has_key(self, connection: HTTPConnection) -> bool:
        """Returns whether a request carries an accepted key.

        It may be a bearer token, ``?api_key=``, or a websocket's subprotocol.
        """
        if not self.needs_key:
            return True
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        given = [token.strip()] if scheme.lower() == "bearer" else []
        given.append(connection.query_params.get("api_key", ""))
        for protocol in connection.scope.get("subprotocols", []):
            if protocol.startswith(KEY_PROTOCOL):
                given.append(protocol.removeprefix(KEY_PROTOCOL))
        pairs = [(g.encode(), key) for g in given for key in self._keys]
        return any([hmac.compare_digest(*pair) for pair in pairs])

    def may_come_from(self, connection: HTTPConnection) -> bool:
        """Returns whether the page that sent a request may: one of this server or of a listed
        site. Programs that are no browsers send no Origin."""
        origin = connection.headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return True
        return origin.partition("://")[2] == connection.headers.get("host")
