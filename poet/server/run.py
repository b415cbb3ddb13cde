"""Runs a service until it is stopped."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

from poet.server.backend import Backend
from poet.server.settings import ServeSpec
from poet.spec import UserError

_LOG = logging.getLogger(__name__)


def serve(
    backend: Backend,
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    keys: Any = None,
    settings: ServeSpec = ServeSpec(),
    sample_rate_hz: int = 16_000,
    level: int = logging.INFO,
) -> None:
    """Serves a backend; jobs are kept in `folder`.

    Args:
      port: 0 takes a free one; the address is printed.
      keys: `poet.server.access.Keys`; None for everybody.

    Raises UserError: the port is taken, another process serves the folder, or it is damaged.
    """
    try:
        import uvicorn

        from poet.server import api
    except ImportError as error:
        from poet.runs import assets

        raise UserError(f"poet serve needs {error.name}: {assets.install('serve')}") from None
    from poet.server import logs
    from poet.server.service import Service
    from poet.server.store import Store

    with listening(host, port) as listener, Store.opened(folder) as store:
        logs.configure(level)
        service = Service(store, backend, settings, sample_rate_hz=sample_rate_hz, level=level)
        app = api.create(service, keys, host)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.grace_seconds) + 1,
            timeout_keep_alive=30,
            h11_max_incomplete_event_size=65_536,
        )
        server = _Server(config, service)
        print(f"http://{_shown(host)}:{listener.getsockname()[1]}", flush=True)
        server.run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; UserError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"--host={host} --port={port} cannot be listened on ({error}): give another port, or 0 for a free one"
        ) from None
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _Server(config: Any, service: Any) -> Any:
    """A server that ends open streams when it is stopped, so that they do not hold it."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            service.stopping = True
            service.hub.close()
            super().handle_exit(sig, frame)

    return Server(config)
