"""`pcl-clora convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, complain, print_json, show

if TYPE_CHECKING:
    from pcl_clora.data.convert import Converted


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="A file of points or a mesh (file.h5#row, scan.e57#0), or a folder."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The new file; its ending says the format. Or a folder.")
    ],
    sample: Annotated[
        int, typer.Option(min=0, help="Points drawn from the surface of a mesh, by area; 0 keeps vertices.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Decides these points.")] = 0,
    up: Annotated[str, typer.Option(help="Axis that points up in IN; by default what its format says.")] = "",
    to_up: Annotated[
        str, typer.Option(help="Axis that points up in OUT; by default what its format says.")
    ] = "",
    unit: Annotated[str, typer.Option(help="Unit of IN: mm, cm, m, in, ft, ...")] = "",
    to_unit: Annotated[str, typer.Option(help="Unit of OUT.")] = "",
    labels: Annotated[str, typer.Option(help="Name of the field or column that holds the labels.")] = "",
    dataset: Annotated[
        str, typer.Option(help="Data set of an h5 file that holds the points: group/points.")
    ] = "",
    max_points: Annotated[int | None, typer.Option(min=1, help="Read only the first points.")] = None,
    to: Annotated[str, typer.Option(help="Ending of the new files where IN is a folder: ply, laz, ...")] = "",
    as_json: AsJson = False,
) -> None:
    """Write a file of points or a mesh in another format, with colours, normals, intensity and labels.

    What the new format cannot hold is named. A folder is converted file by file into a folder of the same
    tree; a broken file does not stop the others, and makes the exit code 1.
    """
    from pcl_clora.data.convert import convert_file
    from pcl_clora.data.frame import parse_axis
    from pcl_clora.errors import PclCloraError, UserValueError

    options: dict[str, Any] = {
        "sample": sample, "seed": seed, "max_points": max_points, "up": parse_axis(up),
        "to_up": parse_axis(to_up), "unit": unit, "to_unit": to_unit, "labels": labels, "dataset": dataset,
    }  # fmt: skip
    if not Path(source).is_dir():
        if to:
            raise UserValueError(f"--to {to} is for folders, and {source} is none; name OUT with its ending.")
        done = convert_file(source, target, **options)
        _tell(source, target, done, as_json)
        return
    pairs = _pairs(Path(source), target, to)
    failed = 0
    for file, new in pairs:
        try:
            done = convert_file(file, new, **options)
        except PclCloraError as error:
            failed += 1
            complain(f"error: {error}")
            continue
        _tell(str(file), new, done, as_json)
    if failed:
        complain(f"{failed} of {len(pairs)} files could not be converted.")
        raise typer.Exit(1)


def _pairs(source: Path, target: Path, to: str) -> list[tuple[Path, Path]]:
    """Pair the files of a folder with those that are to be made of them."""
    from pcl_clora.errors import UserValueError
    from pcl_clora.io.formats import POINT_SUFFIXES, WRITE_SUFFIXES, is_of_gltf, listed

    suffix = f".{to.lower().lstrip('.')}"
    if suffix not in WRITE_SUFFIXES:
        raise UserValueError(
            f"{source} is a folder, and --to {to or 'is not given'}: say with it what its files become, "
            f"one of {listed(WRITE_SUFFIXES)}."
        )
    if target.exists() and not target.is_dir():
        raise UserValueError(f"{target} is a file, and a folder of new files was to be there.")
    files = sorted(
        file
        for file in source.rglob("*")
        if file.is_file() and file.suffix.lower() in POINT_SUFFIXES and not is_of_gltf(file)
    )
    pairs = [(file, (target / file.relative_to(source)).with_suffix(suffix)) for file in files]
    made = [new for _, new in pairs]
    twice = sorted({str(new) for new in made if made.count(new) > 1}) if len(set(made)) < len(made) else []
    if twice:
        raise UserValueError(f"Several files would become {twice[0]}; rename them, or convert one by one.")
    if not pairs:
        raise UserValueError(f"{source} holds no files of points; known: {listed()}.")
    return pairs


def _tell(source: str, target: Path, done: Converted, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json({"source": source, "target": str(target), **asdict(done)})
        return
    what = f"{done.num_points:,} points" + (f", {done.num_faces:,} triangles" if done.num_faces else "")
    more = f", {', '.join(done.fields)}" if done.fields else ""
    show(f"{source} -> {target}: {what}{more}", *(f"  note: {note}" for note in done.notes))
