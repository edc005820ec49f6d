"""Classify and segment point files with a finished run or an adapter file."""

from pcl_clora.predict.prediction import Prediction, nearest_kept
from pcl_clora.predict.predictor import Predictor, load, load_several, parse_up
from pcl_clora.predict.several import answer_several
from pcl_clora.predict.writing import part_colours, result_names, write_prediction

__all__ = [
    "Prediction",
    "Predictor",
    "answer_several",
    "load",
    "load_several",
    "nearest_kept",
    "parse_up",
    "part_colours",
    "result_names",
    "write_prediction",
]
