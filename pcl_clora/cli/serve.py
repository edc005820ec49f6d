"""`pcl-clora serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import show


def serve(
    run: Annotated[list[Path] | None, typer.Option(help="Folder of a finished run; may be repeated.")] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="Adapter file; may be repeated. Those on one backbone share it."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Weights that adapter files stand on, if they do not say so.")
    ] = "",
    space: Annotated[
        Path | None,
        typer.Option(help="Write a folder that can be uploaded as a demo space, and serve nothing."),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the space.")] = "",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 7860,
    token: Annotated[
        str,
        typer.Option(
            envvar="PCL_CLORA_TOKEN", help="What every request has to show; better given by the variable."
        ),
    ] = "",
    hostname: Annotated[
        list[str] | None, typer.Option(help="Name by which the server may be asked; may be repeated.")
    ] = None,
    app: Annotated[bool, typer.Option(help="Whether the page for people is at /app.")] = True,
    types: Annotated[
        str, typer.Option(help="Endings of files that are taken, by commas; all by default.")
    ] = "",
    max_upload: Annotated[float, typer.Option(min=0.001, help="MiB of a request.")] = 64.0,
    max_points: Annotated[int, typer.Option(min=1, help="Points of a cloud.")] = 1_000_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of a request.")] = 30.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests at once; the others get status 429.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Clouds that go through the model together.")] = 16,
    wait: Annotated[float, typer.Option(min=0.0, help="Milliseconds that a cloud waits for others.")] = 2.0,
    readers: Annotated[int, typer.Option(min=1, help="Processes that read files.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    up: Annotated[
        str, typer.Option(help="Axis that points up in the files; by default as in training.")
    ] = "",
) -> None:
    """Answer over HTTP what models say of a cloud, and show it on a page; this machine only, unless told.

    POST /predict and /embed take a file, GET /docs describes them, /health and /metrics watch the server, and
    /app is for people. docs/serve.md has all of it.

    Example: pcl-clora serve --run runs/modelnet40_builtin_clora
    """
    from pcl_clora.config import ConfigError, build
    from pcl_clora.serve import ServeSettings, write_space
    from pcl_clora.serve import serve as run_server

    sources = [*(run or []), *(adapter or [])]
    if not sources:
        raise ConfigError("No model is named: give --run FOLDER or --adapter FILE.")
    given = {"types": tuple(types.split(","))} if types else {}
    settings = build(
        ServeSettings,
        {
            "host": host, "port": port, "token": token, "hostnames": tuple(hostname or ()), "app": app,
            "max_upload_mib": max_upload, "max_points": max_points, "timeout_s": timeout, "queue": queue,
            "batch": batch, "wait_ms": wait, "readers": readers, **given,
        },
        source="the command line",
    )  # fmt: skip
    if space is not None:
        written = write_space(space, sources, settings, weights=weights, title=title)
        show(f"{written}: upload it as it is, or run `python {written / 'app.py'}`.")
        return
    run_server(sources, settings, weights=weights, device=device, up=up, tell=show)
