"""Few-shot folds, generated from a seed out of any data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, NonNegativeInt, PositiveInt, SerializeAsAny, model_validator
from torch import Tensor

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import PointDataset, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.loader import derive_seed
from pcl_clora.data.registry import build_dataset, parse_data_config
from pcl_clora.data.subset import SubsetDataset
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError


def _parse_source(values: Any) -> DataConfig:
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
        for key in ("num_points", "pool_points", "root", "up"):
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

    def input_rule(self) -> InputRule:
        """Return the rule of the source."""
        return self.source.input_rule()

    def file_root(self) -> str:
        """Name that of the source."""
        return self.source.file_root()

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
