"""`pcl-clora tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, ConfigPath, Overrides, interruptible, print_json, show


def tune(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search; by default runs/tune/NAME of the config.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the space, the budget and the settings; train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search settings under a budget of parameters or file size; judged on held-out clouds of train.

    Trials over the budget are refused before they train, bad ones are stopped early. The same command goes
    on where it was interrupted or killed, and may run in several shells at once. best.yaml in the folder is
    a config for `pcl-clora train`, tune.html a page with what mattered.
    """
    from pcl_clora.config import dump_yaml
    from pcl_clora.tune import load_search
    from pcl_clora.tune import tune as run

    search = load_search(config, overrides or [])
    folder = out or Path("runs") / "tune" / search.name
    if dry_run:
        show("Search\n" + dump_yaml(search.cfg), "Settings of a trial\n" + dump_yaml(search.trial({})))
        return
    tell = (lambda line: None) if as_json else show
    with interruptible(f"Interrupted; the same command goes on ({folder})."):
        found = run(search, folder, tell=tell)
    if as_json:
        print_json({"folder": str(folder), "trials": found.trials, "best": found.best})
        return
    if found.best is None:
        show("No trial is complete.")
        return
    settings = ", ".join(f"{key}={value}" for key, value in found.best["params"].items())
    show(
        f"Best: {found.best['value']:.4f} on validation clouds, trial {found.best['number']} ({settings})",
        f"Settings: {folder / 'best.yaml'}; page: {folder / 'tune.html'}",
    )
