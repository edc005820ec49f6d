"""What a folder of files holds, and what about it will spoil a training: said before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_clora.data import Batch, InputRule, PointLoader, build_dataset
from pcl_clora.data.input_rule import Up
from pcl_clora.data.readers.folder import FolderConfig
from pcl_clora.data.readers.folder_index import FolderIndex, index_folder
from pcl_clora.engine.probes.features import BATCH_SIZE, extract_features
from pcl_clora.errors import UserValueError
from pcl_clora.io import sha256_file
from pcl_clora.models import create_model

MIN_CLASS = 5  # clouds of a class below which a split says little
MAX_RATIO = 10.0  # largest class / smallest class
FEW_TEST = 50  # test clouds below which an accuracy is uncertain by more than about 10 points
POSE_CLOUDS = 300  # clouds that the pose is chosen by
DUPLICATE = 0.1  # of the median distance to the nearest neighbour: closer clouds are nearly the same
LEVELS = 33  # quantiles of an outline
POSES: tuple[Up, ...] = ("y", "z", "x")


@dataclass(frozen=True)
class Look:
    """What a folder holds.

    Attributes:
        index: classes and files.
        counts: clouds of every class, by name.
        test: clouds of the split test; 0 where the folder has no splits.
        up: the axis that is taken to point up.
        poses: axis -> accuracy of the nearest neighbour among frozen features; empty where `up` was given.
        warnings: what may spoil the training, each a sentence with a remedy.
    """

    index: FolderIndex
    counts: dict[str, int]
    test: int
    up: Up
    poses: dict[str, float]
    warnings: tuple[str, ...]


def look(config: FolderConfig, *, up: Up | None, model: str, weights: str) -> Look:
    """Read a folder, choose its pose, and find what is wrong with it.

    Frozen features of the backbone decide the pose: the axis under which the nearest neighbour of most clouds
    is of their own class. Clouds of train and test are nearly the same where the distributions of their
    coordinates are.

    Args:
        config: the folder.
        up: axis that points up; None finds out.
        model: name of the backbone.
        weights: its weights.

    Raises:
        DataError: if there are no classes or files are broken; the message lists them.
        UserValueError: if there is one class only.
    """
    index = index_folder(config.root)
    if len(index.class_names) < 2:
        raise UserValueError(
            f"{config.root} holds one class ({index.class_names[0]}); put the files of each class into a "
            "folder of its own, two or more."
        )
    everything = [entry for entries in index.files.values() for entry in entries]
    counts = {name: 0 for name in index.class_names}
    for _, label in everything:
        counts[index.class_names[label]] += 1
    clouds, labels, files, in_test = _read(config)
    backbone = create_model(model, weights=weights)
    chosen = torch.linspace(0, len(clouds) - 1, min(POSE_CLOUDS, len(clouds))).long()
    poses: dict[str, float] = {}
    if up is None:
        for axis in POSES:
            features = _features(backbone, clouds[chosen], axis)
            poses[axis] = _neighbour_accuracy(features, labels[chosen])
    pose: Up = max(POSES, key=lambda axis: poses[axis]) if up is None else up  # the first of equals
    found = [
        *_small(counts),
        *_few_test(index, config),
        *_twins(files, labels, in_test, index),
        *_near(_outline(clouds), files, in_test),
    ]
    return Look(index, counts, len(index.files.get("test", ())), pose, poses, tuple(found))


def _read(config: FolderConfig) -> tuple[Tensor, Tensor, list[Path], Tensor]:
    """Read all clouds of both splits, as they lie in the files, thinned to what the model sees."""
    points, labels, files, in_test = [], [], [], []
    for split in ("train", "test"):
        dataset = build_dataset(config, split)
        for number in range(len(dataset)):
            sample = dataset[number]
            points.append(sample.points)
            labels.append(sample.label)
            files.append(Path(sample.path))
            in_test.append(split == "test")
    return torch.stack(points), torch.tensor(labels), files, torch.tensor(in_test)


@dataclass(frozen=True)
class _Turned:
    """Clouds in memory, turned, as a loader gives them."""

    points: Tensor

    def batches(self, _: int) -> Iterator[Batch]:
        for start in range(0, len(self.points), BATCH_SIZE):
            piece = self.points[start : start + BATCH_SIZE]
            place = torch.arange(start, start + len(piece))
            yield Batch(piece, torch.zeros(len(piece), dtype=torch.int64), place)


def _features(backbone: torch.nn.Module, clouds: Tensor, up: Up) -> Tensor:
    turned = _Turned(InputRule(up=up).turn(clouds))
    features, _ = extract_features(backbone, cast(PointLoader, turned), clouds.shape[1])
    return F.normalize(features - features.mean(dim=0), dim=1)


def _neighbour_accuracy(features: Tensor, labels: Tensor) -> float:
    likeness = features @ features.t()
    likeness.fill_diagonal_(-torch.inf)
    return float((labels[likeness.argmax(dim=1)] == labels).double().mean())


def _small(counts: dict[str, int]) -> Iterator[str]:
    small = {name: count for name, count in counts.items() if count < MIN_CLASS}
    if small:
        listed = ", ".join(f"{name} ({count})" for name, count in small.items())
        yield f"classes with fewer than {MIN_CLASS} clouds: {listed}; add some, or leave the class out."
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[most] > MAX_RATIO * counts[least]:
        yield (
            f"{most} has {counts[most]} clouds and {least} {counts[least]}: overall accuracy will be that of "
            f"{most}; look at the mean class accuracy."
        )


def _few_test(index: FolderIndex, config: FolderConfig) -> Iterator[str]:
    test = len(index.files.get("test", ()))
    if index.layout != "class" and test < FEW_TEST:
        yield f"the test split has {test} clouds: one more or less right is {100 / max(test, 1):.0f} %."


def _twins(files: Sequence[Path], labels: Tensor, in_test: Tensor, index: FolderIndex) -> Iterator[str]:
    """Find files of the same bytes under two classes, or in both splits."""
    sizes: dict[int, list[int]] = {}
    for number, file in enumerate(files):
        if file.is_file():
            sizes.setdefault(file.stat().st_size, []).append(number)
    seen: dict[str, int] = {}
    for numbers in sizes.values():
        for number in numbers if len(numbers) > 1 else ():
            first = seen.setdefault(sha256_file(files[number]), number)
            pair = f"{files[first]} and {files[number]} are the same file"
            if labels[first] != labels[number]:
                names = ", ".join(index.class_names[int(labels[at])] for at in (first, number))
                yield f"{pair} under two classes ({names}); remove one."
            elif bool(in_test[first]) != bool(in_test[number]):
                yield f"{pair}, in train and in test: the accuracy will be too good; remove one."


def _outline(clouds: Tensor) -> Tensor:
    """Describe clouds (n, N, 3) by quantiles of x, y, z and the radius, whatever the order of the points."""
    levels = torch.linspace(0, 1, LEVELS, dtype=clouds.dtype)
    values = torch.cat([clouds, clouds.norm(dim=-1, keepdim=True)], dim=-1)
    return torch.quantile(values, levels, dim=1).permute(1, 0, 2).flatten(1)


def _near(outlines: Tensor, files: Sequence[Path], in_test: Tensor) -> Iterator[str]:
    """Find test clouds that are nearly a training cloud."""
    if not in_test.any() or in_test.all():
        return
    distance = torch.cdist(outlines, outlines)
    distance.fill_diagonal_(torch.inf)
    limit = DUPLICATE * distance.min(dim=1).values.median()
    across = distance[in_test][:, ~in_test]
    near, partner = across.min(dim=1)
    pairs = torch.nonzero(near <= limit).flatten().tolist()
    if pairs:
        tests, trains = in_test.nonzero().flatten(), (~in_test).nonzero().flatten()
        first = pairs[0]
        yield (
            f"{len(pairs)} test clouds are nearly the same as a training cloud, for example "
            f"{files[int(tests[first])]} and {files[int(trains[partner[first]])]}: the accuracy will be too "
            "good; put copies and parts of one scan into the same split."
        )
