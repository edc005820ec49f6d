"""Classify and segment point files with a finished run or an adapter file."""

from pcl_clora.predict.embedding import Embedded, Embedder, embed
from pcl_clora.predict.files import Clouds, find_clouds
from pcl_clora.predict.journal import Journal
from pcl_clora.predict.prediction import Prediction, nearest_kept
from pcl_clora.predict.predictor import Predictor, load, load_several
from pcl_clora.predict.search import ShapeIndex, build_index, load_index
from pcl_clora.predict.several import answer_several
from pcl_clora.predict.stream import Answered, Times, predict_files
from pcl_clora.predict.table import COLUMNS, Row, check_table, make_row, read_table, write_table
from pcl_clora.predict.writing import check_kinds, is_written, part_colours, result_names, write_prediction

__all__ = [
    "COLUMNS",
    "Answered",
    "Clouds",
    "Embedded",
    "Embedder",
    "Journal",
    "Prediction",
    "Predictor",
    "Row",
    "ShapeIndex",
    "Times",
    "answer_several",
    "build_index",
    "check_kinds",
    "check_table",
    "embed",
    "find_clouds",
    "is_written",
    "load",
    "load_index",
    "load_several",
    "make_row",
    "nearest_kept",
    "part_colours",
    "predict_files",
    "read_table",
    "result_names",
    "write_prediction",
    "write_table",
]
