"""See clouds: pages, pictures, coloured files and windows."""

from pcl_clora.vis.html import HtmlPage, Item, render_gallery, render_html
from pcl_clora.vis.panel import Legend, Panel
from pcl_clora.vis.ply import write_ply
from pcl_clora.vis.png import render_png
from pcl_clora.vis.window import show_window

__all__ = [
    "HtmlPage",
    "Item",
    "Legend",
    "Panel",
    "render_gallery",
    "render_html",
    "render_png",
    "show_window",
    "write_ply",
]
