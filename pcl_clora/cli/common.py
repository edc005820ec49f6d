"""What the commands share: their common options, printing, and stopping politely."""

from __future__ import annotations

import json
import logging
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


def complain(text: str) -> None:
    """Print a message on standard error, whatever names stand in it."""
    from pcl_clora.io.text import visible

    print(visible(text, keep="\n"), file=sys.stderr)


class WarningFormatter(logging.Formatter):
    """Shows what is logged as the command line shows all texts."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the message, with hidden characters as escapes."""
        from pcl_clora.io.text import visible

        return visible(super().format(record), keep="\n")


@contextmanager
def interruptible(message: str = "") -> Iterator[None]:
    """Turn Ctrl-C into a message, by default its own, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as stop:
        complain(message or str(stop) or "Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
