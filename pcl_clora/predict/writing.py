"""Write what was predicted for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcl_clora.data import PartTaxonomy
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, write_json, write_points
from pcl_clora.io.pictures import part_colour, rgb
from pcl_clora.io.safe import read_json, refuse_overwriting_inputs
from pcl_clora.predict.prediction import Prediction
from pcl_clora.predict.predictor import Predictor

LABEL_KINDS = ("npz", "ply")
"""Endings of the files of labelled points that are written unless told otherwise."""


def part_colours(taxonomy: PartTaxonomy) -> Mapping[int, str]:
    """Choose the colour "#rrggbb" of every part: those of a category start from the first colour."""
    return {part: part_colour(place) for ids in taxonomy.ids for place, part in enumerate(ids)}


def write_prediction(
    folder: str | Path,
    name: str,
    points: NDArray[Any],
    prediction: Prediction,
    predictor: Predictor,
    *,
    source: str | Path = "",
    kinds: Sequence[str] = LABEL_KINDS,
    topk: int = 5,
) -> dict[str, str]:
    """Write what was predicted for one file.

    NAME.json always, last; in part segmentation also NAME.npz (points, prediction, confidence), which
    `pcl-clora view` shows, and NAME.ply with colours, for other programs; or NAME.las.

    Args:
        folder: where to; made if it is missing.
        name: of the files.
        points: (N, 3), as they were read.
        prediction: what the predictor said.
        predictor: knows the parts.
        source: the file that the points are from; results of another one are not written over.
        kinds: of files of labelled points, see `LABEL_KINDS`, and "las", which needs laspy.
        topk: classes that the json lists.

    Returns:
        ending -> path of what was written.

    Raises:
        UserValueError: if an output is the source, or holds something else than an older result of it.
    """
    folder = Path(folder)
    endings = ("json", *check_kinds(kinds)) if prediction.is_segmentation else ("json",)
    written = {kind: folder / f"{name}.{kind}" for kind in endings}
    content = {**prediction.as_json(topk), **_signature(predictor)}
    if str(source):
        refuse_overwriting_inputs(written.values(), [source])
        content["file"] = _place(source)
        _refuse_another(written, content["file"])
    if prediction.is_segmentation:
        label, confidence = prediction.label, prediction.confidence
        palette = part_colours(predictor.taxonomy)
        table = np.array([rgb(palette[part]) for part in range(len(palette))], dtype=np.uint8)
        marked: dict[str, NDArray[Any]] = {
            "colors": table[label],
            "labels": label.astype(np.int32),
            "confidence": confidence,
        }
        plain: dict[str, NDArray[Any]] = {"prediction": label, "confidence": confidence}
        for kind in endings[1:]:
            write_points(written[kind], points, plain if kind == "npz" else marked)
    write_json(written["json"], content)
    return {kind: str(path) for kind, path in written.items()}


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Refuse kinds of label files that are not known.

    Raises:
        UserValueError: listing those that are.
    """
    known = (*LABEL_KINDS, "las")
    wrong = [kind for kind in kinds if kind not in known]
    if wrong:
        raise UserValueError(
            f"labels cannot be written as {', '.join(wrong)}; choose from {', '.join(known)}."
        )
    return tuple(kinds)


def is_written(folder: str | Path, name: str, predictor: Predictor, source: str | Path) -> bool:
    """Tell whether `write_prediction` has finished with a file, by this very model."""
    file = Path(folder) / f"{name}.json"
    try:
        content = read_json(file) if file.is_file() else {}
    except DataError:
        return False
    wanted = {"file": _place(source), **_signature(predictor)}
    return all(content.get(key) == value for key, value in wanted.items())


def _signature(predictor: Predictor) -> dict[str, str]:
    """Name the model, so that results of another one are told apart."""
    return {"model": predictor.name, "adapter_sha256": predictor.digest}


def _place(source: str | Path) -> str:
    """Name a file, or a row of it, so that it is known again from any folder."""
    path = Path(source)
    return (path.parent.resolve() / path.name).as_posix()


def _refuse_another(written: Mapping[str, Path], source: str) -> None:
    """Refuse to write over anything but an older result of the same file."""
    there = [path for path in written.values() if path.exists()]
    if not there:
        return
    try:
        before = read_json(written["json"]).get("file") if written["json"].exists() else None
    except DataError:
        before = None
    if before != source:
        what = f"the result of {before}" if isinstance(before, str) else "something else"
        raise UserValueError(
            f"{there[0]} holds {what}, and would be written over by that of {source}; give another folder "
            "with --out."
        )


def result_names(files: Sequence[str]) -> list[str]:
    """Name the results of files, each another way: scan.ply -> scan, test0.h5#7 -> test0_row7.

    Where several would be called the same, folders are put before the names, and then endings behind them.
    """
    parts = [_parts(file) for file in files]
    names = [words[-1] for words in parts]
    for depth in range(2, 1 + max((len(words) for words in parts), default=0)):
        shared = {name for name in names if names.count(name) > 1}
        if not shared:
            return names
        names = [
            "_".join(words[-depth:]) if name in shared else name
            for words, name in zip(parts, names, strict=True)
        ]
    shared = {name for name in names if names.count(name) > 1}
    names = [
        f"{name}_{Path(file.partition('#')[0]).suffix.lstrip('.')}" if name in shared else name
        for file, name in zip(files, names, strict=True)
    ]
    twice = sorted({file for file, name in zip(files, names, strict=True) if names.count(name) > 1})
    if twice:
        raise UserValueError(
            f"These files are given twice, or their results would have one name: {', '.join(twice)}. Name "
            "each once, or predict them into folders of their own (--out)."
        )
    return names


def _parts(file: str) -> list[str]:
    """Cut a path into its folders and the name of its results."""
    place, mark, row = file.rpartition("#")
    path = Path(place if mark else file)
    stem = f"{path.stem}_row{row.replace('/', '_')}" if mark else path.stem
    folders = [word.strip(":\\") for word in path.parent.parts if word not in (path.anchor, ".", "..")]
    return [*folders, stem]
