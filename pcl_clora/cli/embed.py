"""`pcl-clora embed`, `search` and `features`: clouds as vectors, the nearest ones, a map of all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcl_clora.cli.common import AsJson, interruptible, print_json, show

if TYPE_CHECKING:
    from pcl_clora.predict import ShapeIndex

Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Point files, folders, patterns, h5 files, rows."),
]
Model = Annotated[
    str,
    typer.Option(
        help="What describes the clouds: builtin, the folder of a run, an adapter file, hub:user/name."
    ),
]
Dim = Annotated[int, typer.Option(min=0, help="Numbers of a vector; 0 for all that the model gives.")]
Jobs = Annotated[int, typer.Option(min=1, help="Threads that read files ahead.")]
Up = Annotated[str, typer.Option(help="Axis that points up in the files; by default y, or as in training.")]


def embed(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="Index to write, a safetensors file.")] = Path(
        "index.safetensors"
    ),
    model: Model = "builtin",
    dim: Dim = 128,
    jobs: Jobs = 1,
    up: Up = "",
) -> None:
    """Describe every cloud by a vector, and write them as an index that `search` and `features` look into.

    Example: pcl-clora embed shapes/ --out shapes.safetensors
    """
    index = _index(paths, model, dim, jobs, up, out)
    index.save(out)
    show(
        f"{out}: {len(index.files)} clouds, vectors of {index.vectors.shape[1]} numbers, "
        f"{out.stat().st_size / 2**20:.1f} MiB"
    )


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A point file, or a row of an h5 file.")],
    where: Annotated[Path, typer.Option("--in", help="Index that `pcl-clora embed` wrote.")],
    top: Annotated[int, typer.Option(min=1, help="How many of the nearest clouds.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Page with pictures to write: one html file.")] = None,
    up: Up = "",
    as_json: AsJson = False,
) -> None:
    """Find the clouds of an index that look most like one; all are compared, nothing is approximated.

    Example: pcl-clora search chair.ply --in shapes.safetensors --out found.html
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.io.safe import refuse_overwriting_inputs
    from pcl_clora.predict import load_index

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: a page ends in .html.")
    refuse_overwriting_inputs([out] if out is not None else [], [query, where])
    index = load_index(where)
    embedder = index.embedder(up=up)
    seen = embedder.see(query)
    found = index.nearest(embedder.vectors([seen])[0], top)
    if out is not None:
        from pcl_clora.vis.found import render_found

        render_found(out, query, seen.points.numpy(), index, found)
    if as_json:
        print_json([{"file": index.files[k], "distance": round(d, 6)} for k, d in found])
        return
    for rank, (place, distance) in enumerate(found, 1):
        show(f"{rank:3d}  {distance:.4f}  {index.files[place]}")
    if out is not None:
        show(str(out))


def features(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Point files, folders; or --in INDEX."),
    ] = None,
    where: Annotated[Path | None, typer.Option("--in", help="Index that `pcl-clora embed` wrote.")] = None,
    plot: Annotated[Path, typer.Option(help="Page to write: one html file.")] = Path("features.html"),
    layout: Annotated[
        str, typer.Option(help="tsne keeps neighbours together; pca the largest differences.")
    ] = "tsne",
    labels: Annotated[
        Path | None,
        typer.Option(help="csv with the columns file and label, for the colours; by default folders."),
    ] = None,
    model: Model = "builtin",
    dim: Dim = 128,
    jobs: Jobs = 1,
    up: Up = "",
) -> None:
    """Write a map of clouds: near points look alike, a picture shows on hover, the legend picks out a group.

    Example: pcl-clora features shapes/ --plot map.html
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.predict import load_index
    from pcl_clora.vis.map import lay_out, picture, render_map

    if (where is None) == (not paths):
        raise ConfigError("Give point files, or an index with --in; one of them.")
    if plot.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--plot {plot}: a page ends in .html.")
    index = load_index(where) if where is not None else _index(paths or [], model, dim, jobs, up, plot)
    groups = _groups(index.files, labels)
    places = lay_out(index.vectors, layout)
    pictures = [picture(points) for points in index.points]
    how = {"tsne": "t-SNE", "pca": "the two largest principal components"}[layout]
    render_map(
        plot,
        places,
        index.files,
        groups=groups,
        pictures=pictures,
        title=f"{len(index.files)} clouds",
        note=f"Vectors of {Path(index.model).name}, laid out by {how}: near points look alike.",
    )
    show(f"{plot}: {len(index.files)} clouds, {plot.stat().st_size / 2**20:.1f} MiB, opens in any browser")


def _index(paths: Sequence[str], model: str, dim: int, jobs: int, up: str, out: Path) -> ShapeIndex:
    """Describe what is meant by paths."""
    from pcl_clora.cli.counter import FileCounter
    from pcl_clora.cli.predict import tell_left_out
    from pcl_clora.io.safe import refuse_overwriting_inputs
    from pcl_clora.predict import Embedder, build_index, find_clouds

    clouds = find_clouds(paths)
    refuse_overwriting_inputs([out], clouds.files)
    embedder = Embedder(model, dim=dim, up=up)
    found = []
    with interruptible(), FileCounter(len(clouds.files)) as counter:
        for one in embedder.embed_files(clouds.files, jobs=jobs):
            found.append(one)
            counter.add(1, bool(one.error))
    tell_left_out(clouds.left_out)
    for one in found:
        if one.error:
            print(f"error: {one.error}", file=sys.stderr)
    return build_index(embedder, found, model)


def _groups(files: Sequence[str], labels: Path | None) -> list[str]:
    """Say what every cloud belongs to: a table says it, or its folder."""
    if labels is None:
        folders = [Path(file.partition("#")[0]).parent.name for file in files]
        return folders if len(set(folders)) > 1 else []
    import csv

    from pcl_clora.io import DataError, explained

    try:
        with explained(labels, "read"), labels.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            labels, f"is no csv file ({error})", "give one with the columns file and label"
        ) from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise DataError(labels, "has no columns file and label", "name them so in its first line")
    told = {row["file"]: row["label"] or "" for row in rows}
    return [told.get(file, "") for file in files]
