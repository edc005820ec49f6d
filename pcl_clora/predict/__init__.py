"""Classify and segment point files with a finished run."""

from pcl_clora.predict.prediction import Prediction, nearest_kept
from pcl_clora.predict.predictor import Predictor
from pcl_clora.predict.writing import part_colours, result_names, write_prediction

__all__ = ["Prediction", "Predictor", "nearest_kept", "part_colours", "result_names", "write_prediction"]
