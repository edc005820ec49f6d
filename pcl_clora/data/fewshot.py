"""Few-shot folds: the official pickles, or folds generated from a seed out of any data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, NonNegativeInt, PositiveInt, SerializeAsAny, model_validator
from torch import Tensor

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import ArrayDataset, PointDataset, check_split
from pcl_clora.data.loader import derive_seed
from pcl_clora.data.subset import SubsetDataset
from pcl_clora.data.transforms import normalize_unit_sphere
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
    clouds, labels = [], []
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
        points = torch.from_numpy(read.points[..., :3].astype(np.float32))
        if config.normalize:
            points = normalize_unit_sphere(points)
        super().__init__(
            points[:, : config.read_points].numpy(),
            torch.from_numpy(read.labels),
            [f"class_{number}" for number in range(config.num_classes or config.ways)],
            [f"{file}#{split}/{number}" for number in range(len(read.labels))],
        )


def _parse_source(values: Any) -> DataConfig:
    from pcl_clora.data.registry import parse_data_config  # the registry knows this module

    if not isinstance(values, Mapping | DataConfig):
        raise UserValueError(f"expected the settings of a data set, not {values!r}.")
    return parse_data_config(values)


class FewshotConfig(DataConfig):
    """One fold made from a seed out of any data set; `num_points`, `pool_points` and `root` go to the source.

    The classes of a fold depend on (seed, fold, ways) only, and more shots contain fewer.
    """

    reads_files: ClassVar[bool] = False
    shots_in_reader: ClassVar[bool] = True
    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "order"

    name: Literal["fewshot"] = "fewshot"
    source: Annotated[
        SerializeAsAny[DataConfig], BeforeValidator(_parse_source)
    ]  # where the clouds come from
    ways: PositiveInt = 5  # classes a fold
    shots: PositiveInt = 10  # training clouds a class
    fold: NonNegativeInt = 0  # which fold
    test_per_class: PositiveInt = 20  # test clouds a class
    test_from: Literal["test", "train"] = (
        "test"  # split of the test clouds; "train" takes those that are no shots
    )
    skip_small: bool = False  # leave out classes with too few clouds; else they are an error
    seed: NonNegativeInt = 0  # decides all folds

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, values: Any) -> Any:
        """Give the source what both have, so that it is said once."""
        if not isinstance(values, Mapping) or not isinstance(values.get("source"), Mapping | DataConfig):
            return values
        source = values["source"]
        source = source.model_dump() if isinstance(source, DataConfig) else dict(source)
        for key in ("num_points", "pool_points", "root"):
            if values.get(key):
                source[key] = values[key]
        below = {key: source[key] for key in ("num_points", "pool_points") if key in source}
        return {**below, **values, "source": source}

    @model_validator(mode="after")
    def _check_source(self) -> FewshotConfig:
        for key, plain in (("shots", 0), ("sampling", "stored")):
            if getattr(self.source, key) != plain:
                raise UserValueError(f"source.{key} has no place below a fold; set {key} of the fold itself.")
        if (self.source.num_points, self.source.read_points) != (self.num_points, self.read_points):
            raise UserValueError(
                f"source.num_points={self.source.num_points} and num_points={self.num_points} differ (or "
                "pool_points do); set those of the fold only."
            )
        return self

    def left_out(self) -> frozenset[str]:
        """Always write the shots, which name a fold; leave out what came later."""
        return (super().left_out() - {"shots"}) | self.at_default("skip_small")

    def for_one_pass(self) -> DataConfig:
        """Return these settings without keeping clouds of the source in memory."""
        return self.model_copy(update={"source": self.source.for_one_pass()})


@dataclass(frozen=True)
class Fold:
    """What a fold consists of.

    Attributes:
        classes: labels of the source, ascending; the position is the label in the fold.
        train: indices into the source's training split, ascending.
        test: indices into the split that the test clouds come from, ascending.
    """

    classes: tuple[int, ...]
    train: Tensor
    test: Tensor


def choose_fold(
    train_labels: Tensor, test_labels: Tensor | None, class_names: tuple[str, ...], config: FewshotConfig
) -> Fold:
    """Choose classes, shots and test clouds.

    Args:
        train_labels: (n,), of the source's training split.
        test_labels: (m,), of its test split; None takes the test clouds from the training split.
        class_names: of the source.
        config: ways, shots, fold, test_per_class and seed.

    Returns:
        The fold; depends on nothing but the arguments.

    Raises:
        DataError: if there are fewer classes than ways, or classes have too few clouds; names all of them.
    """
    if len(class_names) < config.ways:
        raise DataError(
            "data.ways", f"{config.ways} classes are asked for, the source has {len(class_names)}", "lower it"
        )
    usable = _usable_classes(train_labels, test_labels, class_names, config)
    generator = torch.Generator().manual_seed(derive_seed("fewshot", config.seed, config.ways, config.fold))
    order = torch.randperm(len(usable), generator=generator)
    classes = tuple(sorted(usable[int(at)] for at in order[: config.ways]))
    train, test = [], []
    for label in classes:
        members = torch.nonzero(train_labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        train.append(members[: config.shots])
        if test_labels is None:  # from the other end, so that more shots leave the test clouds as they are
            test.append(members[-config.test_per_class :])
            continue
        others = torch.nonzero(test_labels == label).flatten()
        test.append(others[torch.randperm(len(others), generator=generator)][: config.test_per_class])
    return Fold(classes, torch.cat(train).sort().values, torch.cat(test).sort().values)


def _usable_classes(
    train_labels: Tensor, test_labels: Tensor | None, class_names: tuple[str, ...], config: FewshotConfig
) -> list[int]:
    """List the classes with enough clouds; an error where some have too few, unless they are left out."""
    count = len(class_names)
    have = torch.bincount(train_labels, minlength=count)
    per_train = config.shots + (config.test_per_class if test_labels is None else 0)
    remedy = "lower data.shots or data.test_per_class, or set data.skip_small=true to leave these classes out"
    usable = list(range(count))
    wants = [("train", have, per_train)]
    if test_labels is not None:
        wants.append(("test", torch.bincount(test_labels, minlength=count), config.test_per_class))
        remedy += "; data.test_from=train takes test clouds from the training split"
    for split, sizes, wanted in wants:
        short = [f"{class_names[c]} ({int(sizes[c])})" for c in range(count) if sizes[c] < wanted]
        usable = [c for c in usable if sizes[c] >= wanted]
        if short and not (config.skip_small and len(usable) >= config.ways):
            listed = ", ".join(short[:8]) + (", ..." if len(short) > 8 else "")
            raise DataError(
                f"data.source ({split})",
                f"{wanted} clouds of every class are needed, {len(short)} of {count} have fewer: {listed}",
                remedy,
            )
    return usable


class FewshotFold(SubsetDataset):
    """One split of one generated fold."""

    def __init__(self, config: FewshotConfig, split: str) -> None:
        from pcl_clora.data.registry import build_dataset

        check_split(split)
        train = build_dataset(config.source, "train")
        test: PointDataset | None = None
        if config.test_from == "test":
            test = build_dataset(config.source, "test")
        names = tuple(train.class_names)
        fold = choose_fold(train.labels, None if test is None else test.labels, names, config)
        dataset = train if split == "train" or test is None else test
        super().__init__(
            dataset,
            fold.train if split == "train" else fold.test,
            classes={label: number for number, label in enumerate(fold.classes)},
            class_names=[names[label] for label in fold.classes],
        )
