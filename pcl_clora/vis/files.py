"""Point files with the labels that they hold, for the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, as_data_error, check_is_file, read_arrays, read_points
from pcl_clora.io.text import line_of
from pcl_clora.vis.segmentation import Answer

TRUTH_NAMES = ("labels", "label", "truth", "part_labels", "seg", "pid")
PREDICTION_NAMES = ("prediction", "predictions", "pred")
_SUFFIXES = (".npy", ".npz", ".txt")


def read_cloud(path: str | Path, labels: str | Path | None = None, label_column: int | None = None) -> Answer:
    """Read points with what the file says of them.

    True labels are the field "labels" (or label, truth, part_labels, seg, pid), predicted ones "prediction"
    (or predictions, pred), probabilities "confidence"; npz, h5, ply and csv files name their fields.

    Args:
        path: a file that `read_points` knows; `file.h5#7` is one cloud of several.
        labels: a file of true labels, which come before those in the file.
        label_column: column of true labels in a file whose columns have no names, from 0 or, negative, from
            the end.

    Raises:
        DataError: if a file is missing or torn, or the labels are not integers, one for every point.
        ValueError: if labels are given twice.
    """
    if labels is not None and label_column is not None:
        raise UserValueError("Labels are given twice, by a file and by a column; leave one out.")
    content = read_points(path)
    fields, count = content.fields, len(content.points)
    if Path(path).suffix.lower() == ".npz":
        _check_lengths(path, count)
    truth = (
        _integers(path, fields, TRUTH_NAMES) if label_column is None else _column(path, fields, label_column)
    )
    if labels is not None:
        truth = read_labels(labels)
        if len(truth) != count:
            raise DataError(
                labels, f"holds {len(truth)} labels, {path} has {count} points", "give one label a point"
            )
    confidence = fields.get("confidence")
    return Answer(
        name=Path(path).name,
        points=content.points,
        truth=truth,
        prediction=_integers(path, fields, PREDICTION_NAMES),
        confidence=confidence if confidence is not None and confidence.ndim == 1 else None,
    )


def read_labels(path: str | Path) -> np.ndarray:
    """Read integers, one for every point: npy, npz (the array "labels", or the only one) or txt, (N,), int64.

    Raises:
        DataError: if the file is missing, of another kind, or holds something else.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(path, f"labels cannot be read from {path.suffix!r}", f"use {', '.join(_SUFFIXES)}")
    check_is_file(path)
    if path.suffix.lower() == ".txt":
        with as_data_error(path, "is no complete file of numbers", "write it again"):
            values = np.loadtxt(path, dtype=np.float64, ndmin=1)
    else:
        found = read_arrays(path)
        names = [key for key in TRUTH_NAMES if key in found] or (list(found) if len(found) == 1 else [])
        if not names:
            raise DataError(path, f"holds {line_of(found) or 'nothing'}", "name one array 'labels'")
        values = found[names[0]]
    return _as_integers(path, "labels", values)


def _integers(
    path: str | Path, fields: Mapping[str, np.ndarray], names: tuple[str, ...]
) -> np.ndarray | None:
    for name in names:
        if name in fields:
            return _as_integers(path, name, fields[name])
    return None


def _check_lengths(path: str | Path, count: int) -> None:
    """Refuse labels of another length, which `read_points` takes for something that is not of the points."""
    for name, values in read_arrays(path).items():
        if name in (*TRUTH_NAMES, *PREDICTION_NAMES, "confidence") and values.shape[:1] != (count,):
            raise DataError(path, f"{name!r} is {values.shape}, there are {count} points", "give one a point")


def _column(path: str | Path, fields: Mapping[str, np.ndarray], column: int) -> np.ndarray:
    extra = fields.get("extra")
    width = 3 if extra is None else 3 + extra.shape[1]
    place = column + width if column < 0 else column
    if extra is None or not 3 <= place < width:
        what = "no column without a name besides x, y, z" if extra is None else f"columns 0 to {width - 1}"
        raise DataError(
            path, f"has {what}, and labels in column {column} were asked for", "choose one after x, y, z"
        )
    return _as_integers(path, f"column {column}", extra[:, place - 3])


def _as_integers(path: str | Path, name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iufb" or not np.array_equal(values, np.floor(values)):
        raise DataError(
            path, f"{name!r} is {values.dtype} {values.shape}, expected whole numbers (N,)", "convert it"
        )
    return values.astype(np.int64)
