"""`pcl-clora view`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcl_clora.cli.common import show

if TYPE_CHECKING:
    from pcl_clora.vis import Panel
    from pcl_clora.vis.segmentation import Answer


def view(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Point files. npz, h5, ply and csv may hold labels and predictions; without files, --run "
            "shows its test set.",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="True labels of the one FILE: npy, npz or txt, an integer a point.")
    ] = None,
    label_column: Annotated[
        int | None,
        typer.Option(help="Column of true labels in a txt or npy FILE, from 0; -1 is the last one."),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a finished segmentation run; several stand side by side."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data, where it is not where the run found it.")
    ] = None,
    category: Annotated[
        str, typer.Option(help="What FILE shows, or which category of the test set is wanted.")
    ] = "",
    index: Annotated[
        str,
        typer.Option(
            help="Clouds of the test set to show whole, for example 3 or 3,17; empty for a gallery."
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Clouds of a gallery at most; 0 for all.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Page to write: one html file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
    renderer: Annotated[
        str, typer.Option(help="What draws the picture: matplotlib or open3d.")
    ] = "matplotlib",
    ply: Annotated[Path | None, typer.Option(help="Coloured ply file of the first cloud to write.")] = None,
    window: Annotated[
        bool, typer.Option("--window", help="Open a window of Open3D; needs a display.")
    ] = False,
    up: Annotated[str, typer.Option(help="The axis that points up: y or z.")] = "y",
    quantise: Annotated[
        bool | None, typer.Option(help="16 bits an axis for positions; by default above 200,000 points.")
    ] = None,
) -> None:
    """Show point clouds, segmentations and errors, in a browser, as a picture or in a window.

    Examples: pcl-clora view scan.ply --out page.html
    pcl-clora view chair.npz --labels truth.txt --run runs/shapenetpart --category Chair --out page.html
    pcl-clora view --run runs/shapenetpart --out gallery.html
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.engine import RunFolder
    from pcl_clora.io import refuse_overwriting_inputs
    from pcl_clora.vis.files import read_cloud

    if not files and not run:
        raise ConfigError("There is nothing to show: give point files, or --run for the test set of a run.")
    if label_column is not None and not files:
        raise ConfigError("--label-column belongs to a FILE.")
    if files and index:
        raise ConfigError("--index chooses clouds of the test set of a run; leave it or FILE out.")
    if len({one.name for one in run or []}) < len(run or []):
        raise ConfigError("Two runs have the same name; give every --run a folder name of its own.")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: a page ends in .html; --png and --ply write other files.")
    if labels is not None and len(files or []) != 1:
        raise ConfigError("--labels belongs to exactly one FILE.")
    shown = Shown(out, png, renderer, ply, window, up, quantise)
    if not (shown.written or window):
        shown = replace(shown, page=Path("page.html"))
    runs = list(run or [])
    read: list[str | Path] = [*(files or []), *(f for one in runs for f in RunFolder(one).files)]
    read += [labels] if labels else []
    refuse_overwriting_inputs(
        shown.written, [*read, *(file for one in runs for file in RunFolder(one).files)]
    )
    if files:
        clouds = [read_cloud(file, labels, label_column) for file in files]
        panels = _file_panels(list(zip(files, clouds, strict=True)), runs, data, category, shown.up)
        title = ", ".join(Path(file).name for file in files)
    elif index:
        panels, title = _sample_panels(runs, data, index)
    else:
        if png is not None or ply is not None or window:
            raise ConfigError("A whole test set is shown as a page; choose clouds with --index for the rest.")
        _gallery(runs, data, category, limit, shown)
        return
    shown.show(panels, title)


@dataclass(frozen=True)
class Shown:
    """What is written and shown, and how: the options of the command of the same names."""

    page: Path | None
    png: Path | None
    renderer: str
    ply: Path | None
    window: bool
    up: str
    quantise: bool | None

    @property
    def written(self) -> list[Path]:
        """The files."""
        return [path for path in (self.page, self.png, self.ply) if path is not None]

    def show(self, panels: Sequence[Panel], title: str) -> None:
        """Write and show panels."""
        from pcl_clora.vis import render_html, render_png, show_window, write_ply

        if self.page is not None:
            render_html(self.page, panels, title=title, up=self.up, quantise=self.quantise)
            show(f"{self.page}: {self.page.stat().st_size / 2**20:.1f} MiB, opens in any browser")
        if self.png is not None:
            show(str(render_png(self.png, panels, up=self.up, renderer=self.renderer)))
        if self.ply is not None:
            show(str(write_ply(self.ply, panels[0])))
        if self.window:
            show_window(panels, title=title, up=self.up)


def _file_panels(
    clouds: Sequence[tuple[str, Answer]], runs: Sequence[Path], data: Path | None, category: str, up: str
) -> list[Panel]:
    from pcl_clora.data.frame import parse_axis
    from pcl_clora.predict import Predictor

    if not runs:
        return [panel for _, cloud in clouds for panel in cloud.panels(named=len(clouds) > 1)]
    from pcl_clora.vis.segmentation import segment_points, side_by_side

    axis = None if up == "y" else parse_axis(up)  # y is what a page shows; a run may know its data better
    predictors = {run.name: Predictor(run, data=data, up=axis) for run in runs}
    found: list[Panel] = []
    for file, cloud in clouds:
        several = [
            segment_points(
                predictor,
                cloud.name,
                cloud.points,
                category=category,
                truth=cloud.truth,
                method=name if len(runs) > 1 else "",
                path=file,
            )
            for name, predictor in predictors.items()
        ]
        found += side_by_side(several)
    return found


def _sample_panels(runs: Sequence[Path], data: Path | None, index: str) -> tuple[list[Panel], str]:
    from pcl_clora.config import ConfigError
    from pcl_clora.predict import Predictor
    from pcl_clora.vis.segmentation import segment_test_set, side_by_side

    try:
        indices = [int(word) for word in index.split(",")]
    except ValueError:
        raise ConfigError(f"--index {index!r}: expected numbers such as 3 or 3,17.") from None
    predictors = {run.name: Predictor(run, data=data) for run in runs}
    found: list[Panel] = []
    names = []
    for number in indices:
        several = [
            next(segment_test_set(predictor, [number], method=name if len(runs) > 1 else ""))
            for name, predictor in predictors.items()
        ]
        names.append(f"{several[0].category} {several[0].name}".strip())
        found += side_by_side(several)
    return found, ", ".join(names)


def _gallery(runs: Sequence[Path], data: Path | None, category: str, limit: int, shown: Shown) -> None:
    from pcl_clora.config import ConfigError
    from pcl_clora.predict import Predictor
    from pcl_clora.vis import render_gallery
    from pcl_clora.vis.segmentation import segment_test_set

    if len(runs) != 1:
        raise ConfigError("A gallery shows one run; choose clouds with --index to compare several.")
    predictor = Predictor(runs[0], data=data)
    labels = predictor.dataset().labels.tolist()
    wanted = None if not category else predictor.category(category)
    indices = [number for number, label in enumerate(labels) if wanted is None or label == wanted]
    items = [found.item(shown.up) for found in segment_test_set(predictor, indices[: limit or None])]
    out = shown.page
    assert out is not None
    render_gallery(out, items, title=f"{runs[0].name}: test set, worst first", up=shown.up)
    show(f"{out}: {len(items)} clouds, {out.stat().st_size / 2**20:.1f} MiB, opens in any browser")
