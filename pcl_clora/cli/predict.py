"""`pcl-clora predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, print_json, show


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Point files or meshes: npy, npz, txt, ply, off, h5#row, ..."),
    ],
    category: Annotated[
        str, typer.Option(help="What the clouds show; part segmentation needs it where there are several.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's data, if it is asked for names and not found.")
    ] = None,
    up: Annotated[
        str,
        typer.Option(
            help="Axis that points up in the files: x, y, z, -x, -y or -z; by default as in training."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Classify or segment point files with a finished run; files may have any number of points.

    A cloud is read as the evaluation of the run reads its test clouds; a mesh gives points of its surface.
    Writes NAME.json for every file; part segmentation also NAME.npz with a part and a confidence for every
    point (`pcl-clora view` shows it), and a coloured NAME.ply. A file that cannot be predicted does not stop
    the others: it is named at the end, and the exit code is 1.
    """
    from pcl_clora.data.readers.whole import read_whole
    from pcl_clora.errors import PclCloraError
    from pcl_clora.io.safe import refuse_overwriting_inputs
    from pcl_clora.predict import Predictor, result_names, write_prediction
    from pcl_clora.predict.predictor import parse_up

    names = result_names(files)
    outputs = [out / f"{name}.{kind}" for name in names for kind in ("json", "npz", "ply")]
    predictor = Predictor(run, data=data, up=parse_up(up))
    if category:
        predictor.category(category)
    if not predictor.segments:
        outputs = outputs[::3]
    refuse_overwriting_inputs(outputs, files)
    results: dict[str, dict[str, Any]] = {}
    for file, name in zip(files, names, strict=True):
        try:
            cloud = read_whole(file)
            prediction = predictor.predict_whole(cloud, predictor.name_of(file), category)
            written = write_prediction(out, name, cloud.points, prediction, predictor, source=file)
            results[file] = {**prediction.as_json(), "files": written}
        except (PclCloraError, OSError) as error:
            results[file] = {"error": str(error)}
    if as_json:
        print_json(results)
    failed = 0
    for file, result in results.items():
        if "error" in result:
            failed += 1
        elif not as_json:
            show(f"{file}: {_say(result)} -> {', '.join(result['files'].values())}")
            for warning in result["warnings"]:
                show(f"  warning: {warning}")
    for file, result in results.items():
        if "error" in result:
            problem = str(result["error"])
            named = problem if problem.startswith(str(file)) else f"{file}: {problem}"
            print(f"error: {named}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(files)} files could not be predicted.", file=sys.stderr)
        raise typer.Exit(1)


def _say(result: dict[str, Any]) -> str:
    if "label" in result:
        return f"{result['label']}, confidence {result['confidence']:.3f}"
    sizes = ", ".join(f"{part} {count:,}" for part, count in result["parts"].items())
    return f"{sizes}; mean confidence {result['confidence']:.3f}"
