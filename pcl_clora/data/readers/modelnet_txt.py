"""Read modelnet40_normal_resampled: text files, or the `.dat` pickles that the published code makes of them.

The two sources hold different points of the same shapes: a text file's first rows are a random sample of the
surface, a `.dat` file holds 8,192 points chosen by farthest point sampling.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import ArrayDataset, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.readers.cache import cached_array, fingerprint, user_cache_folder
from pcl_clora.data.readers.modelnet import GET_AGAIN, MODELNET40_CLASSES, read_list
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, load_pickled_arrays, read_points

logger = logging.getLogger(__name__)

MAX_ROWS = 8192  # the published code uses no more, though the text files have 10,000

_REPORT_EVERY = 1000  # files between two progress messages


class ModelNet40TxtConfig(DataConfig):
    """ModelNet40 as text files with normals; only the coordinates are used.

    Published fine-tuning reads 8,192 points and resamples them: pool_points=8192, source="dat".
    """

    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "order"

    name: Literal["modelnet40_txt"] = "modelnet40_txt"
    source: Literal["text", "dat"] = (
        "text"  # "dat" = modelnet40_<split>_8192pts_fps.dat, points chosen by FPS
    )
    variant: Literal["modelnet40", "modelnet10"] = "modelnet40"  # whose lists to use
    normalize: bool = True  # subtract the mean, divide by the largest norm, as published
    cache: str = ""  # folder of parsed arrays; empty = the user's cache folder, "none" = parse every time

    def input_rule(self) -> InputRule:
        """Return the rule: the first rows, moved and scaled unless `normalize` is off."""
        return self.make_rule(frame="unit_sphere" if self.normalize else "file", centre_on="cut")

    @model_validator(mode="after")
    def _check(self) -> ModelNet40TxtConfig:
        if self.read_points > MAX_ROWS:
            raise UserValueError(
                f"{self.read_points} points are asked for; this data set gives at most {MAX_ROWS}."
            )
        if self.source == "dat" and self.variant != "modelnet40":
            raise UserValueError("source=dat exists for variant=modelnet40 only; use source=text.")
        return self


@dataclass(frozen=True)
class TextEntry:
    """One shape of a split list.

    Attributes:
        id: for example night_stand_0001.
        class_name: its id without the number, for example night_stand.
        file: where its points are.
    """

    id: str
    class_name: str
    file: Path


def read_lines(file: Path) -> list[str]:
    """Read a list file, one entry a line, without empty lines.

    Raises:
        DataError: if it is missing, empty or not text.
    """
    if not file.is_file():
        raise DataError(
            file,
            "the list is missing",
            "set data.root to the folder modelnet40_normal_resampled, with its lists, see data/README.md",
        )
    lines = read_list(file)
    if not lines:
        raise DataError(file, "the list is empty", GET_AGAIN)
    return lines


def read_text_classes(root: str | Path, variant: str = "modelnet40") -> tuple[str, ...]:
    """Read `<variant>_shape_names.txt`; where ModelNet40 lacks it, the official names are taken."""
    file = Path(root) / f"{variant}_shape_names.txt"
    if not file.is_file() and variant == "modelnet40":
        return MODELNET40_CLASSES
    return tuple(read_lines(file))


def read_entries(root: str | Path, split: str, variant: str = "modelnet40") -> list[TextEntry]:
    """Read `<variant>_<split>.txt`: ids, with their classes and the files that should be there."""
    root = Path(root)
    entries = []
    for identity in read_lines(root / f"{variant}_{check_split(split)}.txt"):
        class_name = identity.rpartition("_")[0]
        entries.append(TextEntry(identity, class_name, root / class_name / f"{identity}.txt"))
    return entries


class ModelNet40Txt(ArrayDataset):
    """All clouds of one split: the first `read_points` rows of every shape, mapped from a cache on disk.

    Raises:
        DataError: if a list or file is missing, torn, has too few rows or columns, values that are not
            finite, or a class that the names do not have.
    """

    def __init__(self, config: ModelNet40TxtConfig, split: str) -> None:
        names = read_text_classes(config.root, config.variant)
        entries = read_entries(config.root, split, config.variant)
        label_of = {name: label for label, name in enumerate(names)}
        listing = Path(config.root) / f"{config.variant}_{split}.txt"
        for entry in entries:
            if entry.class_name not in label_of:
                raise DataError(
                    listing,
                    f"{entry.id!r} is of class {entry.class_name!r}, which {config.variant}_shape_names.txt "
                    "lacks",
                    "mend the list or complete the names",
                )
        labels = np.array([label_of[entry.class_name] for entry in entries], dtype=np.int64)
        if config.source == "dat":
            files = [Path(config.root) / f"modelnet40_{split}_8192pts_fps.dat"]
        else:
            files = [entry.file for entry in entries]
        points = _points(config, split, files, labels)
        paths = list(map(str, files))
        if config.source == "dat":
            paths = [f"{files[0]}#{row}" for row in range(len(entries))]
        super().__init__(points, torch.from_numpy(labels), names, paths)


def _points(config: ModelNet40TxtConfig, split: str, files: list[Path], labels: np.ndarray) -> np.ndarray:
    for file in files:
        if not file.is_file():
            raise DataError(file, f"the file is missing, the {split} split needs it", GET_AGAIN)
    shape, rule = (len(labels), config.read_points, 3), config.input_rule()

    def fill(out: np.ndarray) -> None:
        if config.source == "dat":
            _fill_from_dat(files[0], labels, out, rule)
        else:
            _fill_from_text(files, out, rule)
        for start in range(0, len(out), 64):
            out[start : start + 64] = rule.place(out[start : start + 64]).numpy()

    if config.cache == "none":
        points = np.zeros(shape, dtype=np.float32)
        fill(points)
        return points
    settings = (
        config.source,
        config.variant,
        split,
        config.read_points,
        config.normalize,
        labels.tolist(),
        *(() if config.up == "y" else (config.up,)),
    )
    root = Path(config.root).resolve()
    key = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    base = Path(config.cache).expanduser() if config.cache else user_cache_folder()
    kind = "unit" if config.normalize else "raw"
    return cached_array(
        base / "modelnet40_txt" / f"{root.name}-{key}",
        f"{config.variant}-{config.source}-{split}-{config.read_points}-{kind}",
        fingerprint(files, settings),
        shape,
        fill,
    )


def _fill_from_text(files: Sequence[Path], out: np.ndarray, rule: InputRule) -> None:
    rows = out.shape[1]
    for number, file in enumerate(files):
        if number and number % _REPORT_EVERY == 0:
            logger.info("read %d of %d text files", number, len(files))
        points = read_points(file, max_points=rows, dtype="float64").points
        if len(points) < rows:
            raise DataError(
                file,
                f"has {len(points)} rows, but {rows} points were asked for",
                "lower data.num_points (and data.pool_points), or get the file again",
            )
        out[number] = rule.hold(points)


def _fill_from_dat(file: Path, labels: np.ndarray, out: np.ndarray, rule: InputRule) -> None:
    content = load_pickled_arrays(file)
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise DataError(file, "does not hold a list of clouds and a list of labels", GET_AGAIN)
    clouds, stored = content
    if len(clouds) != len(labels) or len(stored) != len(labels):
        raise DataError(
            file,
            f"holds {len(clouds)} clouds and {len(stored)} labels, the list {len(labels)} ids",
            GET_AGAIN,
        )
    for row, (cloud, label) in enumerate(zip(clouds, stored, strict=True)):
        cloud = np.asarray(cloud)
        if cloud.ndim != 2 or cloud.shape[1] < 3 or cloud.shape[0] < out.shape[1] or cloud.dtype.kind != "f":
            raise DataError(
                file,
                f"cloud {row} is {cloud.dtype} {cloud.shape}, expected {out.shape[1]} rows of 3 numbers",
                "lower data.num_points (and data.pool_points), or get the file again",
            )
        if np.asarray(label).reshape(-1).tolist() != [labels[row]]:
            found = np.asarray(label).tolist()
            raise DataError(file, f"label of cloud {row} is {found}, the list says {labels[row]}", GET_AGAIN)
        cloud = cloud[: out.shape[1], :3]
        if not np.isfinite(cloud).all():
            raise DataError(file, f"cloud {row} has values that are not finite", GET_AGAIN)
        out[row] = rule.hold(cloud)
