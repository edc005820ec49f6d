"""A window of Open3D, for a machine with a display."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pcl_clora.errors import PclCloraError
from pcl_clora.vis.panel import Panel, check_panels
from pcl_clora.vis.png import import_open3d, open3d_cloud

NO_DISPLAY = "Open3D could not open a window: is there a display? Without one, write a page or a picture."
GAP = 2.4  # between the middles of clouds that reach 1


class NoDisplayError(PclCloraError, OSError):
    """There is no display to open a window on."""


def show_window(panels: Sequence[Panel], *, title: str = "Point clouds", up: str = "y") -> None:
    """Show the clouds side by side in a window, and wait until it is closed.

    Args:
        panels: what to show, with the colours that each shows first.
        title: of the window.
        up: which axis points up, "y" or "z".

    Raises:
        ImportError: if Open3D is not installed, or its system libraries are missing.
        NoDisplayError: if there is no display.
    """
    panels = check_panels(panels)
    open3d = import_open3d()
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # newer versions of Open3D would draw where nobody sees it, and wait for ever
        raise NoDisplayError(NO_DISPLAY)
    clouds = []
    for number, panel in enumerate(panels):
        clouds.append(open3d_cloud(open3d, panel, up).translate((GAP * number, 0.0, 0.0)))
    window = open3d.visualization.Visualizer()
    if not window.create_window(window_name=title):
        raise NoDisplayError(NO_DISPLAY)
    for cloud in clouds:
        window.add_geometry(cloud)
    window.run()
    window.destroy_window()
