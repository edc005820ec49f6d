"""The tiny runs that the tests of the viewer look at, too."""

from tests.vis.conftest import classification_run, segmentation_run

__all__ = ["classification_run", "segmentation_run"]
