"""`pcl-clora fit`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, Overrides, interruptible, print_json, show


class Pose(str, Enum):
    """Where up is in the files."""

    auto = "auto"
    mixed = "mixed"
    x = "x"
    y = "y"
    z = "z"
    minus_x = "-x"
    minus_y = "-y"
    minus_z = "-z"


def fit(
    folder: Annotated[Path, typer.Argument(help="One folder a class, with files of any mix of formats.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/NAME of the folder by default.")
    ] = None,
    method: Annotated[str, typer.Option(help="How it is adapted, see `pcl-clora methods`.")] = "clora",
    weights: Annotated[
        str, typer.Option(help="Weights to start from; those in the package by default.")
    ] = "builtin",
    up: Annotated[
        Pose, typer.Option(help="Axis that points up; auto finds out, mixed trains on all rotations.")
    ] = Pose.auto,
    steps: Annotated[int, typer.Option(help="Optimiser steps at least.")] = 400,
    points: Annotated[int, typer.Option(help="Points of a cloud that the model sees.")] = 1024,
    folds: Annotated[
        int | None,
        typer.Option(help="Of the cross-validation; 0 for none. By default 5 for up to 150 clouds."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of splits, folds and training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train on a folder of your own files, from the weights in the package; ends with a page.

    Splits by the seed where the folder has no splits, cross-validates where it has few clouds, warns of what
    may spoil the result, and finds which axis points up. The run folder is what predict, view, export and
    pcl_clora.load take.
    """
    from pcl_clora.fit import fit as run

    target = out or Path("runs") / (folder.resolve().name or "fit")
    with interruptible("Interrupted; the same command goes on."):
        found = run(
            folder,
            target,
            method=method,
            weights=weights,
            up=up.value,
            steps=steps,
            num_points=points,
            folds=folds,
            seed=seed,
            overrides=tuple(overrides or ()),
            tell=(lambda line: None) if as_json else show,
        )
    if as_json:
        told = {"run": str(found.run_dir), "accuracy": found.accuracy, "interval": list(found.interval)}
        print_json(
            {**told, "judged": found.judged, "up": found.looked.up, "warnings": list(found.looked.warnings)}
        )
        return
    show(f"Page: {found.page}", f"Use it: pcl-clora predict FILES --run {found.run_dir}")
