"""What the commands share: their common options, printing, and stopping politely."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigPath = Annotated[
    Path, typer.Option("--config", "-c", help="Settings: a yaml file, for example of the folder cfgs.")
]
RunFolderPath = Annotated[Path, typer.Option("--run", help="Folder of a finished run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that come last, named as in the yaml file: section.setting=value.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print json and nothing else on standard output.")]

INTERRUPTED = 130  # what shells report after Ctrl-C


def print_json(content: Any) -> None:
    """Print json on standard output."""
    print(json.dumps(content, indent=2))


def show(*renderables: Any) -> None:
    """Print rich tables or text on standard output, at least 160 columns wide where it is no terminal."""
    from rich.console import Console

    from pcl_clora.io.text import visible

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160))
    for item in renderables:
        console.print(visible(item, keep="\n") if isinstance(item, str) else item, markup=False)


@contextmanager
def interruptible(message: str = "") -> Iterator[None]:
    """Turn Ctrl-C into a message, by default its own, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print(message or str(stop) or "Interrupted.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
