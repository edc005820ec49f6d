"""`pcl-clora predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, print_json, show


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Point files: npy, npz, txt, ply, off, h5#row, ...")
    ],
    category: Annotated[
        str, typer.Option(help="What the clouds show; part segmentation needs it where there are several.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's data, if it is asked for names and not found.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classify or segment point files with a finished run; files may have any number of points.

    Writes NAME.json for every file; part segmentation also NAME.npz with a part and a confidence for every
    point (`pcl-clora view` shows it), and a coloured NAME.ply.
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.io import read_points
    from pcl_clora.predict import Predictor, write_prediction

    names = [_name(file) for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"Several files would be written as {', '.join(twice)}; predict them one by one.")
    predictor = Predictor(run, data=data)
    results = {}
    for file, name in zip(files, names, strict=True):
        points = read_points(file).points
        prediction = predictor(points, category)
        written = write_prediction(out, name, points, prediction, predictor)
        results[file] = {**prediction.as_json(), "files": written}
    if as_json:
        print_json(results)
        return
    for file, result in results.items():
        if "label" in result:
            said = f"{result['label']}, confidence {result['confidence']:.3f}"
        else:
            sizes = ", ".join(f"{part} {count:,}" for part, count in result["parts"].items())
            said = f"{sizes}; mean confidence {result['confidence']:.3f}"
        show(f"{file}: {said} -> {', '.join(result['files'].values())}")


def _name(file: str) -> str:
    """Name the results of a file: scan.ply -> scan, test0.h5#7 -> test0_row7."""
    name, _, row = Path(file).name.rpartition("#")
    return f"{Path(name).stem}_row{row}" if name else Path(file).stem
