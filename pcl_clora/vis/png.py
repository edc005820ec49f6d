"""Pictures without a display: matplotlib, or Open3D's renderer where it works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.io import atomic_write
from pcl_clora.io.pictures import draw_cloud, scalar_colours, up_is_y, view_axes
from pcl_clora.io.text import visible
from pcl_clora.vis.panel import LabelLayer, Panel, ScalarLayer, check_panels

PIXELS = 480  # sides of one panel
DPI = 120
MAX_LEGEND = 12  # names below a panel
OPEN3D_LIBRARIES = "libusb-1.0-0 libgl1 libgomp1 libx11-6 libegl1"  # Debian's packages, to load it
OPEN3D_DRAWING = "libvulkan1 mesa-vulkan-drivers libgl1-mesa-dri"  # and to draw without a display


def render_png(
    path: str | Path,
    panels: Sequence[Panel],
    *,
    up: str = "y",
    renderer: str = "matplotlib",
    columns: int = 0,
) -> Path:
    """Draw panels side by side, with titles and legends.

    Args:
        path: where to, ending in ".png".
        panels: what to draw.
        up: which axis points up, "y" or "z".
        renderer: what draws the points: "matplotlib", which puts our raster together, or "open3d", its
            off-screen renderer.
        columns: panels in a row; 0 for at most three.

    Returns:
        The path.

    Raises:
        ValueError: if there are no panels, or an option is not known.
        ImportError: if the package that is needed is not installed, or its system libraries are missing; the
            message names them.
    """
    panels, path = check_panels(panels), Path(path)
    if path.suffix.lower() != ".png":
        raise UserValueError(f"{path} does not end in .png; name the file so.")
    if renderer not in ("matplotlib", "open3d"):
        raise UserValueError(f"renderer={renderer!r}; use 'matplotlib' or 'open3d'.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError('Pictures need matplotlib: pip install "pcl-clora[viewer]".') from None
    columns = columns or min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    draw = _open3d_pixels if renderer == "open3d" else _raster_pixels
    figure = Figure(figsize=(columns * 4.0, rows * 4.7), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(cells, panels, strict=False):
        axes.imshow(draw(panel, up))
        axes.set_title(_plain(panel.title), fontsize=11)
        _legend(figure, axes, panel)
    for axes in cells:
        axes.set_axis_off()
    atomic_write(path, lambda aside: figure.savefig(aside, format="png"))
    return path


def _plain(text: str) -> str:
    return visible(text).replace("$", r"\$")  # matplotlib would read it as a formula


def _legend(figure: Any, axes: Any, panel: Panel) -> None:
    """Say what the colours mean."""
    layer = panel.shown()
    if isinstance(layer, LabelLayer) and len(layer.labels) <= MAX_LEGEND:
        from matplotlib.patches import Patch

        handles = []
        for name, colour, iou in zip(layer.names, layer.colours, layer.ious, strict=True):
            score = "" if iou is None else f"  IoU {100 * iou:.1f} %"
            handles.append(Patch(color=colour, label=_plain(name) + score))
        axes.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8, frameon=False
        )
    elif isinstance(layer, ScalarLayer):
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize

        colours = ListedColormap(scalar_colours(np.linspace(0, 1, 256)) / 255)
        mapped = ScalarMappable(Normalize(layer.low, layer.high), colours)
        bar = figure.colorbar(mapped, ax=axes, location="bottom", shrink=0.6, pad=0.02, aspect=30)
        bar.ax.tick_params(labelsize=8)
        bar.set_label(_plain(layer.name), fontsize=8)


def _raster_pixels(panel: Panel, up: str) -> np.ndarray:
    return draw_cloud(panel.points, panel.rgb(), size=PIXELS, up=up)


def import_open3d() -> Any:
    """Import Open3D.

    Raises:
        ImportError: saying how to install it, or which system libraries it needs.
    """
    try:
        import open3d
    except ModuleNotFoundError:
        raise MissingPackageError('Open3D is not installed: pip install "pcl-clora[viewer]".') from None
    except (ImportError, OSError) as error:
        raise MissingPackageError(
            f"Open3D is installed but does not load ({error}). Its system libraries on Debian and Ubuntu: "
            f"apt-get install {OPEN3D_LIBRARIES}. Pictures also come without it: renderer='matplotlib'."
        ) from None
    return open3d


def open3d_cloud(open3d: Any, panel: Panel, up: str) -> Any:
    """Make an Open3D cloud of a panel, centred, scaled to reach 1, y up."""
    xyz = up_is_y(panel.points.astype(np.float64), up)
    xyz = xyz - (xyz.min(axis=0) + xyz.max(axis=0)) / 2
    xyz /= np.sqrt((xyz**2).sum(axis=1).max()) or 1.0
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz))
    cloud.colors = open3d.utility.Vector3dVector(panel.rgb() / 255.0)
    return cloud


def _open3d_pixels(panel: Panel, up: str) -> np.ndarray:
    open3d = import_open3d()
    try:
        renderer = open3d.visualization.rendering.OffscreenRenderer(PIXELS, PIXELS)
    except (AttributeError, RuntimeError) as error:
        raise MissingPackageError(
            f"Open3D cannot draw without a display here ({error}). On Debian and Ubuntu: apt-get install "
            f"{OPEN3D_LIBRARIES} {OPEN3D_DRAWING}; or use renderer='matplotlib'."
        ) from None
    material = open3d.visualization.rendering.MaterialRecord()
    material.shader = "defaultUnlit"
    material.point_size = float(np.clip(300 / np.sqrt(len(panel.points)), 2, 12))
    renderer.scene.set_background([1.0, 1.0, 1.0, 1.0])
    renderer.scene.view.set_post_processing(False)  # tone mapping would change the colours of the legend
    renderer.scene.add_geometry("cloud", open3d_cloud(open3d, panel, up), material)
    eye = (3.4 * view_axes()[1]).tolist()
    renderer.setup_camera(35.0, [0.0, 0.0, 0.0], eye, [0.0, 1.0, 0.0])
    return np.asarray(renderer.render_to_image())[:, :, :3]
