"""Start a server: what is wrong is said before a model is opened."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pcl_clora.errors import MissingPackageError, UserValueError, warn_once
from pcl_clora.predict import Predictor, load_several
from pcl_clora.serve.settings import ServeSettings

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn
    from fastapi import FastAPI

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
INSTALL = "pip install 'pcl-clora[serve]'"


def need_packages(*names: str) -> None:
    """Check that the packages of the extra `serve` are there.

    Raises:
        MissingPackageError: with the command that installs them.
    """
    missing = [name for name in (*NEEDED, *names) if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"A server needs {', '.join(missing)}: {INSTALL}.")


def make_app(predictors: Sequence[Predictor], settings: ServeSettings | None = None) -> FastAPI:
    """Make the application of a server, for uvicorn or another one of its kind.

    Args:
        predictors: of `load_several`.
        settings: limits; `app` puts the page for people at /app.

    Raises:
        MissingPackageError: if a package of the extra is not installed.
    """
    settings = settings or ServeSettings()
    need_packages(*(("gradio",) if settings.app else ()))
    from pcl_clora.serve.http import make_api
    from pcl_clora.serve.service import Service

    return make_api(Service(predictors, settings))


def serve(
    sources: Sequence[str | Path],
    settings: ServeSettings | None = None,
    *,
    weights: str | Path = "",
    device: str = "auto",
    up: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Open models and answer until a signal ends it; requests that were taken are answered first.

    Args:
        sources: run folders or adapter files.
        settings: address and limits.
        weights: what adapter files stand on, if they do not say so.
        device: "auto", "cpu" or "cuda".
        up: axis that points up in the clouds to come.
        tell: called with the address.

    Raises:
        UserValueError: if the port is in use or may not be opened.
        MissingPackageError: if a package of the extra is not installed.
    """
    settings = settings or ServeSettings()
    need_packages(*(("gradio",) if settings.app else ()))
    import uvicorn

    with listen(settings.host, settings.port) as listening:
        settings = settings.model_copy(update={"port": listening.getsockname()[1]})
        if not settings.is_local and not settings.token:
            warn_once(
                f"Everyone who reaches {settings.host} may ask this server; --token TOKEN lets in those who "
                "know it, --host 127.0.0.1 this machine only."
            )
        predictors = load_several(sources, weights=weights, device=device, up=up)
        app = make_app(predictors, settings)
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        tell(f"http://{shown}:{settings.port} answers with {', '.join(one.name for one in predictors)}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=int(settings.timeout_s) + 1,
        )
        _server(config, app).run(sockets=[listening])


def _server(config: uvicorn.Config, app: FastAPI) -> uvicorn.Server:
    """Make a server that tells open pages when a signal ends it; it would wait for them."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            for stop in app.state.stop:
                stop()

    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    Raises:
        UserValueError: if it is in use, may not be opened, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserValueError(f"host={host!r} is no address ({error}); use 127.0.0.1 or 0.0.0.0.") from error
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserValueError(
                f"Port {port} of {host} is in use; choose another with --port, or 0 for any that is free."
            ) from error
        raise UserValueError(
            f"Port {port} of {host} cannot be opened ({error.strerror}); choose another with --port, --host."
        ) from error
    return listening
