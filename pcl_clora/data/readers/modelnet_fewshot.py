"""The official few-shot pickles of ModelNet40."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import ArrayDataset, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, load_pickled_arrays

GET_AGAIN = "get the file again, see data/README.md"


class ModelNetFewshotConfig(DataConfig):
    """One fold of the official few-shot pickles of ModelNet40."""

    shots_in_reader: ClassVar[bool] = True
    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "order"

    name: Literal["modelnet_fewshot"] = "modelnet_fewshot"
    ways: PositiveInt = 5  # classes a fold, 5 or 10 officially
    shots: PositiveInt = 10  # training clouds a class, 10 or 20 officially
    fold: NonNegativeInt = 0  # which fold, 0..9 officially
    num_classes: NonNegativeInt = 0  # outputs of the head; 0 = ways; published code keeps all 40
    normalize: bool = True  # subtract the mean, divide by the largest norm, over all points, as published

    def input_rule(self) -> InputRule:
        """Return the rule: the first points of a cloud that is moved and scaled as a whole."""
        return self.make_rule(frame="unit_sphere" if self.normalize else "file")

    def left_out(self) -> frozenset[str]:
        """Always write the shots, which name a file."""
        return super().left_out() - {"shots"}

    @model_validator(mode="after")
    def _check_head(self) -> ModelNetFewshotConfig:
        if 0 < self.num_classes < self.ways:
            raise UserValueError(
                f"num_classes={self.num_classes} is less than ways={self.ways}; set it to 0 or 40."
            )
        return self


def fewshot_file(config: ModelNetFewshotConfig) -> Path:
    """Name the pickle of a fold: <ways>way_<shots>shot/<fold>.pkl, or the same without the underscore.

    Raises:
        DataError: if it is missing.
    """
    root = Path(config.root)
    names = (f"{config.ways}way_{config.shots}shot", f"{config.ways}way{config.shots}shot")
    for name in names:
        if (root / name / f"{config.fold}.pkl").is_file():
            return root / name / f"{config.fold}.pkl"
    raise DataError(
        root / names[0] / f"{config.fold}.pkl",
        "the file is missing",
        "set data.root to the folder ModelNetFewshot; data.ways, data.shots and data.fold name what it holds",
    )


@dataclass(frozen=True)
class FewshotClouds:
    """One split of a pickle.

    Attributes:
        points: (n, N, C), as stored, C >= 3; float.
        labels: (n,), int64, 0..ways-1.
    """

    points: np.ndarray
    labels: np.ndarray


def read_fewshot(file: Path, split: str, ways: int) -> FewshotClouds:
    """Read and check one split of a pickle: a dict of lists of (points, label, something ignored).

    Raises:
        DataError: if it is torn, has another content, clouds of different sizes, a label that is not in
            0..ways-1, values that are not finite, or a class without clouds.
    """
    content = load_pickled_arrays(file)
    if not isinstance(content, dict) or not isinstance(content.get(check_split(split)), list | tuple):
        raise DataError(file, "is not a dict with lists 'train' and 'test'", GET_AGAIN)
    clouds: list[np.ndarray] = []
    labels: list[int] = []
    for number, item in enumerate(content[split]):
        cloud = np.asarray(item[0]) if isinstance(item, list | tuple) and len(item) >= 2 else np.empty(0)
        if cloud.ndim != 2 or cloud.shape[1] < 3 or cloud.dtype.kind != "f":
            raise DataError(
                file,
                f"{split} item {number} is not (points, label, ...), with points (n, 3 or more), but has "
                f"{cloud.dtype} {cloud.shape}",
                GET_AGAIN,
            )
        label = np.asarray(item[1]).reshape(-1)
        if label.size != 1 or label.dtype.kind not in "iu" or not 0 <= int(label[0]) < ways:
            raise DataError(
                file, f"{split} item {number} has label {item[1]!r}, expected 0..{ways - 1}", GET_AGAIN
            )
        if clouds and cloud.shape != clouds[0].shape:
            raise DataError(
                file, f"{split} item {number} is {cloud.shape}, the first {clouds[0].shape}", GET_AGAIN
            )
        if not np.isfinite(cloud[:, :3]).all():
            raise DataError(file, f"{split} item {number} has values that are not finite", GET_AGAIN)
        clouds.append(cloud)
        labels.append(int(label[0]))
    empty = sorted(set(range(ways)) - set(labels))
    if empty:
        raise DataError(
            file, f"{split} has no clouds of the classes {empty}, expected 0..{ways - 1}", GET_AGAIN
        )
    return FewshotClouds(np.stack(clouds), np.array(labels, dtype=np.int64))


class ModelNetFewshot(ArrayDataset):
    """One split of one official fold: the first `read_points` points of every cloud.

    Raises:
        DataError: see `read_fewshot`; also if clouds have fewer points than asked for.
    """

    def __init__(self, config: ModelNetFewshotConfig, split: str) -> None:
        file = fewshot_file(config)
        read = read_fewshot(file, split, config.ways)
        if read.points.shape[1] < config.read_points:
            raise DataError(
                file,
                f"has {read.points.shape[1]} points a cloud, but {config.read_points} were asked for",
                "lower data.num_points and data.pool_points",
            )
        super().__init__(
            config.input_rule().place(read.points[..., :3])[:, : config.read_points].numpy(),
            torch.from_numpy(read.labels),
            [f"class_{number}" for number in range(config.num_classes or config.ways)],
            [f"{file}#{split}/{number}" for number in range(len(read.labels))],
        )
