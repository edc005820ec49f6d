"""Which data sets exist, and how to make one from settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pcl_clora.config import Registry
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import PointDataset, check_split
from pcl_clora.data.paper_sampling import PaperOrder
from pcl_clora.data.subset import SubsetDataset, choose_per_class, without_classes
from pcl_clora.io import DataError, explained

Maker = Callable[[Any, str], PointDataset]
_datasets: Registry[DataConfig, Maker] = Registry("data set", "name", DataConfig)


def register_dataset(name: str, config: type[DataConfig], make: Maker) -> None:
    """Make a data set known by name.

    Args:
        name: what `data.name` says in a config.
        config: its settings.
        make: called with (config, split), gives the data set.

    Raises:
        ValueError: if the name is taken.
    """
    _datasets.register(name, config, make)


def list_datasets() -> list[str]:
    """List the names of all data sets, sorted."""
    return _datasets.names()


def parse_data_config(values: Mapping[str, Any] | DataConfig) -> DataConfig:
    """Turn a mapping with a `name` into that data set's settings.

    Raises:
        ValueError: if the name is not known or a setting is wrong; the message names the nearest valid one.
    """
    return _datasets.parse(values)


def build_dataset(config: DataConfig | Mapping[str, Any], split: str) -> PointDataset:
    """Read one split of the data set that a config describes.

    Args:
        config: settings, or a mapping with a `name`.
        split: "train" or "test".

    Returns:
        A data set whose clouds have `config.read_points` points; of train only `config.shots` clouds a class,
        if that is set.

    Raises:
        ValueError: if the split or the name is not known.
        DataError: if no folder is named, files are missing or not what they should be, or classes have fewer
            clouds than shots; names file, expectation and remedy.

    Example:
        >>> config = {"name": "modelnet40_hdf5", "root": "data/modelnet40_ply_hdf5_2048"}
        >>> train = build_dataset(config, "train")
    """
    parsed = parse_data_config(config)
    if parsed.reads_files and not parsed.root:
        raise DataError(
            "data.root", f"is empty, but the data set {parsed.name} reads files", "set it to their folder"
        )
    with explained(parsed.root or parsed.name, "read"):
        dataset = _read(parsed, check_split(split))
    if split == "train" and parsed.shots and not parsed.shots_in_reader:
        dataset = SubsetDataset(dataset, _choose_shots(dataset, parsed, parsed.shots, "data.shots"))
    if split == "train" and parsed.sampling == "paper" and parsed.paper_draws == "order":
        dataset = PaperOrder(dataset, parsed.sampling_seed)
    return dataset


def build_validation(config: DataConfig | Mapping[str, Any]) -> PointDataset | None:
    """Read the validation split of a data set that has one of its own, see `DataConfig.has_validation`.

    With `val_shots` it is that many training clouds a class, none of which is among the shots.

    Returns:
        The data set; None where validation clouds have to be held out of the training split.

    Raises:
        DataError: as `build_dataset`.
    """
    parsed = parse_data_config(config)
    with explained(parsed.root or parsed.name, "read"):
        if parsed.val_shots:
            whole = _read(parsed, "train")
            few = _choose_shots(whole, parsed, parsed.shots, "data.shots")
            more = _choose_shots(whole, parsed, parsed.shots + parsed.val_shots, "data.val_shots")
            return SubsetDataset(whole, more[~torch.isin(more, few)])
        return _read(parsed, "val") if parsed.has_validation else None


def _read(config: DataConfig, split: str) -> PointDataset:
    """Read a split whole, without the classes that are left out."""
    dataset = _datasets.maker(config)(config, split)
    return without_classes(dataset, config.leave_out) if config.leave_out else dataset


def _choose_shots(train: PointDataset, config: DataConfig, count: int, place: str) -> torch.Tensor:
    """Choose training clouds, equally many of every class."""
    return choose_per_class(
        train.labels,
        train.class_names,
        count,
        config.shots_seed,
        place=place,
        allow_empty=config.allow_empty_classes,
    )
