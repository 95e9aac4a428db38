"""What the routes of a server share."""

from __future__ import annotations

import dataclasses

from starlette.requests import HTTPConnection

from xlsr_transducer.serving.access import Access
from xlsr_transducer.serving.metrics import Metrics
from xlsr_transducer.serving.options import ServeOptions
from xlsr_transducer.serving.session import Sessions


@dataclasses.dataclass(frozen=True)
class Server:
    """What the routes share."""

    sessions: Sessions
    access: Access
    metrics: Metrics
    options: ServeOptions


def server_of(connection: HTTPConnection) -> Server:
    """Returns the server that a request or websocket came to."""
    return connection.app.state.server
