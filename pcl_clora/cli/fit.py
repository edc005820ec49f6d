"""`pcl-clora fit`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, Overrides, interruptible, print_json, show


class UpAxis(str, Enum):
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
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="One folder a class; a csv of path,label; or a folder of labelled files with parts.yaml. "
            "Any mix of formats.",
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/NAME of SOURCE by default.")
    ] = None,
    parts: Annotated[
        str, typer.Option(help="Yaml with the names of the labels of points, where SOURCE has no parts.yaml.")
    ] = "",
    labels: Annotated[
        str, typer.Option(help="Field that holds the labels of points, or its column from 0; -1 is the last.")
    ] = "",
    extend: Annotated[
        Path | None,
        typer.Option(help="Folder of a finished fit that gets the classes of SOURCE besides its own."),
    ] = None,
    method: Annotated[str, typer.Option(help="How it is adapted, see `pcl-clora methods`.")] = "clora",
    weights: Annotated[
        str, typer.Option(help="Weights to start from; those in the package by default.")
    ] = "builtin",
    up: Annotated[
        UpAxis, typer.Option(help="Axis that points up; auto finds out, mixed trains on all rotations.")
    ] = UpAxis.auto,
    steps: Annotated[int, typer.Option(help="Optimiser steps at least.")] = 400,
    points: Annotated[int, typer.Option(help="Points of a cloud that the model sees.")] = 1024,
    folds: Annotated[
        int | None,
        typer.Option(help="Of the cross-validation; 0 for none. By default 5 for up to 150 clouds."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of splits, folds and training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train on your own files, from the weights in the package; ends with a page.

    Splits by the seed where there are no splits, cross-validates where there are few clouds, warns of what
    may spoil the result, and finds which axis points up. The run folder is what predict, view, export and
    pcl_clora.load take.
    """
    from pcl_clora.fit import fit as run

    target = out or Path("runs") / (_name_of(source) + ("" if extend is None else "_extended"))
    with interruptible("Interrupted; the same command goes on."):
        found = run(
            source,
            target,
            parts=parts,
            labels=labels,
            extend_run="" if extend is None else extend,
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
        print_json({"run": str(found.run_dir), **found.content})
        return
    show(f"Page: {found.page}", f"Use it: pcl-clora predict FILES --run {found.run_dir}")


def _name_of(source: Path) -> str:
    """Name the run after the folder or the list."""
    path = source.resolve()
    return (path.stem if path.is_file() else path.name) or "fit"
