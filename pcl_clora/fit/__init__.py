"""From a folder of your own files to a trained model, in one line: `pcl-clora fit`."""

from pcl_clora.fit.run import FitResult, fit

__all__ = ["FitResult", "fit"]
