"""Who may use the server: API keys, and browsers' pages by their Origin."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.requests import HTTPConnection

from xlsr_transducer.serving.refusals import Refused

# A browser cannot set headers of a websocket: it may send the key as a subprotocol. OpenAI's name.
KEY_PROTOCOL = "openai-insecure-api-key."


class Access:
    """Decides which requests are let in. Nothing here is logged, and no reason names a key."""

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

    def require(self, connection: HTTPConnection) -> None:
        """Raises Refused if a request or websocket may not come in."""
        if not self.may_come_from(connection):
            origin = connection.headers.get("origin", "")[:100]
            reason = f"pages of {origin} may not use this server (--allow-origin)"
            raise Refused(403, reason, "origin_not_allowed")
        if not self.has_key(connection):
            reason = "no valid API key: send `Authorization: Bearer KEY` or ?api_key=KEY"
            raise Refused(401, reason, "invalid_api_key", WWW_Authenticate="Bearer")

    def has_key(self, connection: HTTPConnection) -> bool:
        """Returns whether a request carries an accepted key.

        It may be a bearer token, ``?api_key=``, or a websocket's subprotocol.
        """
        if not self._keys:
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
