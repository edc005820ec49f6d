"""Parametric shapes: primitives, the classes built of them, and random numbers that never change."""

from pcl_clora.data.shapes.catalog import CATALOG, ShapeClass
from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import Mesh, ShapeBuilder

__all__ = ["CATALOG", "Draw", "Mesh", "ShapeBuilder", "ShapeClass"]
