"""What a folder of files holds, and what about it will spoil a training: said before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pcl_clora.data import PartTaxonomy, build_dataset
from pcl_clora.data.input_rule import Up
from pcl_clora.data.readers.file_list import FileListConfig
from pcl_clora.data.readers.files import raise_all
from pcl_clora.data.readers.folder_index import FolderIndex
from pcl_clora.data.readers.labelled_folder import LabelledFolderConfig
from pcl_clora.data.readers.sorted_files import SortedFilesConfig
from pcl_clora.errors import UserValueError
from pcl_clora.fit.pose import Pose, find_pose
from pcl_clora.io import DataError, sha256_file
from pcl_clora.io.text import line_of
from pcl_clora.models import create_model

MIN_CLASS = 5  # clouds of a class, or with a part, below which a split says little
MAX_RATIO = 10.0  # largest class / smallest class
RARE_PART = 0.01  # share of the points below which a part is rare
FEW_TEST = 50  # test clouds below which an accuracy is uncertain by more than about 10 points
DUPLICATE = 0.1  # of the median distance to the nearest neighbour: closer clouds are nearly the same
LEVELS = 33  # quantiles of an outline


@dataclass(frozen=True)
class Look:
    """What a folder holds.

    Attributes:
        index: classes and files.
        counts: clouds of every class, or category, by name.
        test: clouds of the split test; 0 where the folder has no splits.
        pose: the axis that is taken to point up, and why.
        parts: points of every part, by name; empty where clouds have classes.
        warnings: what may spoil the training, each a sentence with a remedy.
    """

    index: FolderIndex
    counts: dict[str, int]
    test: int
    pose: Pose
    parts: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def up(self) -> Up:
        """Axis that is taken to point up."""
        return self.pose.up


@dataclass(frozen=True)
class _Clouds:
    """All clouds of a folder, as they lie in the files, thinned to what the model sees."""

    points: Tensor  # (n, N, 3)
    labels: Tensor  # (n,)
    parts: Tensor | None  # (n, N)
    files: list[Path]
    in_test: Tensor  # (n,)


def look(config: SortedFilesConfig, *, up: Up | None, model: str, weights: str) -> Look:
    """Read all files, find their pose, and what is wrong with them.

    Clouds of train and test are nearly the same where the distributions of their coordinates are.

    Args:
        config: the folder or list.
        up: axis that points up; None finds out, see `find_pose`.
        model: name of the backbone.
        weights: its weights.

    Raises:
        DataError: if there are no classes or files are broken; the message lists them.
        UserValueError: if there is one class only, or nothing to judge by.
    """
    index, segments = config.index(), isinstance(config, LabelledFolderConfig)
    everything = [entry for entries in index.files.values() for entry in entries]
    counts = {name: 0 for name in index.class_names}
    for _, label in everything:
        counts[index.class_names[label]] += 1
    _refuse(config, index, counts)
    clouds = _read(config)
    pose = Pose("y" if up is None else up, False, "as told")
    if up is None:
        backbone = create_model(model, weights=weights)
        pose = find_pose(clouds.points, clouds.labels, clouds.files, backbone, classes=not segments)
    found = [*_small(counts, index), *_few_test(index)]
    parts: dict[str, int] = {}
    if isinstance(config, LabelledFolderConfig) and clouds.parts is not None:
        taxonomy = config.part_names().taxonomy
        parts = _count_points(clouds.parts, taxonomy)
        found += _rare(parts, clouds.parts, taxonomy)
    found += [*_twins(clouds, index), *_near(clouds, drawn=index.layout == "class")]
    return Look(index, counts, len(index.files.get("test", ())), pose, parts, tuple(found))


def _refuse(config: SortedFilesConfig, index: FolderIndex, counts: Mapping[str, int]) -> None:
    """Refuse what nothing can be learnt from, or judged by."""
    if not isinstance(config, LabelledFolderConfig) and len(index.class_names) < 2:
        where = "label them" if isinstance(config, FileListConfig) else "put them into a folder of its own"
        raise UserValueError(
            f"{config.root} holds one class ({index.class_names[0]}); give the files of each class, two or "
            f"more, and {where}."
        )
    if index.layout == "class" and max(counts.values()) < 2:
        what = "One file" if isinstance(config, LabelledFolderConfig) else "One file a class"
        raise UserValueError(
            f"{what} ({config.root}) leaves none that judges the model; give five or more, of which some "
            "are held out."
        )
    for split in ("train", "test") if index.layout != "class" else ():
        if split not in index.files:
            raise DataError(config.root, f"holds no files of the split {split!r}", "add them")


def _read(config: SortedFilesConfig) -> _Clouds:
    """Read all clouds of both splits; what is broken is one error."""
    points, labels, parts, files, in_test = [], [], [], [], []
    problems: list[DataError] = []
    for split in ("train", "test"):
        dataset = build_dataset(config, split)
        for number in range(len(dataset)):
            try:
                sample = dataset[number]
            except DataError as error:
                problems.append(error)
                continue
            points.append(sample.points)
            labels.append(sample.label)
            files.append(Path(sample.path))
            in_test.append(split == "test")
            if sample.part_labels is not None:
                parts.append(sample.part_labels)
    raise_all(config.root, problems)
    labelled = torch.stack(parts) if len(parts) == len(points) else None
    return _Clouds(torch.stack(points), torch.tensor(labels), labelled, files, torch.tensor(in_test))


def _small(counts: Mapping[str, int], index: FolderIndex) -> Iterator[str]:
    small = {name: count for name, count in counts.items() if count < MIN_CLASS}
    single = [name for name, count in counts.items() if count < 2] if index.layout == "class" else []
    if small:
        listed = line_of(f"{name} ({count})" for name, count in small.items())
        yield f"classes with fewer than {MIN_CLASS} clouds: {listed}; add some, or leave the class out."
    if single:
        yield f"classes of one cloud are trained on and never judged: {line_of(single)}; add clouds."
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[most] > MAX_RATIO * counts[least]:
        yield (
            f"{most} has {counts[most]} clouds and {least} {counts[least]}: overall accuracy will be that of "
            f"{most}; look at the mean class accuracy."
        )


def _few_test(index: FolderIndex) -> Iterator[str]:
    test = len(index.files.get("test", ()))
    if index.layout != "class" and test < FEW_TEST:
        yield f"the test split has {test} clouds: one more or less right is {100 / max(test, 1):.0f} %."


def _count_points(parts: Tensor, taxonomy: PartTaxonomy) -> dict[str, int]:
    counts = torch.bincount(parts.flatten(), minlength=taxonomy.num_parts).tolist()
    return dict(zip(taxonomy.part_names, counts, strict=True))


def _rare(counts: Mapping[str, int], parts: Tensor, taxonomy: PartTaxonomy) -> Iterator[str]:
    """Find parts that few points or few clouds have."""
    clouds = {name: int((parts == label).any(dim=1).sum()) for label, name in enumerate(taxonomy.part_names)}
    never = [name for name, count in clouds.items() if not count]
    few = [f"{name} ({count})" for name, count in clouds.items() if 0 < count < MIN_CLASS]
    total = max(sum(counts.values()), 1)
    rare = [
        f"{name} ({100 * count / total:.2f} %)"
        for name, count in counts.items()
        if 0 < count < RARE_PART * total
    ]
    if never:
        yield f"no point is labelled {line_of(never)}, so it cannot be learnt; take it out of the yaml."
    if few:
        yield f"parts that fewer than {MIN_CLASS} clouds have: {line_of(few)}; add clouds that have them."
    if rare:
        yield (
            f"parts with less than {100 * RARE_PART:.0f} % of the points: {line_of(rare)}; look at their "
            "own IoU, and raise data.num_points if a cloud shows too few of them."
        )


def _twins(clouds: _Clouds, index: FolderIndex) -> Iterator[str]:
    """Find files of the same bytes under two classes, or in both splits."""
    files, labels = clouds.files, clouds.labels
    sizes: dict[int, list[int]] = {}
    for number, file in enumerate(files):
        if file.is_file():
            sizes.setdefault(file.stat().st_size, []).append(number)
    seen: dict[str, int] = {}
    for numbers in sizes.values():
        for number in numbers if len(numbers) > 1 else ():
            first = seen.setdefault(sha256_file(files[number]), number)
            pair = f"{files[first]} and {files[number]} are the same file"
            if first == number:
                continue
            if labels[first] != labels[number]:
                names = line_of(index.class_names[int(labels[at])] for at in (first, number))
                yield f"{pair} under two classes ({names}); remove one."
            elif index.layout == "class":
                yield f"{pair}: the accuracy will be too good where they are parted; remove one."
            elif bool(clouds.in_test[first]) != bool(clouds.in_test[number]):
                yield f"{pair}, in train and in test: the accuracy will be too good; remove one."


def _outline(clouds: Tensor) -> Tensor:
    """Describe clouds (n, N, 3) by quantiles of x, y, z and the radius, whatever the order of the points."""
    levels = torch.linspace(0, 1, LEVELS, dtype=clouds.dtype)
    values = torch.cat([clouds, clouds.norm(dim=-1, keepdim=True)], dim=-1)
    return torch.quantile(values, levels, dim=1).permute(1, 0, 2).flatten(1)


def _near(clouds: _Clouds, *, drawn: bool) -> Iterator[str]:
    """Find clouds that are nearly the same: one of test and one of train; any two where a seed splits."""
    files, in_test, outlines = clouds.files, clouds.in_test, _outline(clouds.points)
    if len(files) < 2 or not (drawn or (in_test.any() and not in_test.all())):
        return
    distance = torch.cdist(outlines, outlines)
    distance.fill_diagonal_(torch.inf)
    limit = DUPLICATE * distance.min(dim=1).values.median()
    rows = torch.arange(len(files)) if drawn else in_test.nonzero().flatten()
    others = rows if drawn else (~in_test).nonzero().flatten()
    near, partner = distance[rows][:, others].min(dim=1)
    pairs = torch.nonzero(near <= limit).flatten().tolist()
    if pairs:
        first, second = files[int(rows[pairs[0]])], files[int(others[partner[pairs[0]]])]
        what = (
            "clouds are nearly the same as another one" if drawn else "test clouds are nearly the same as a "
        )
        yield (
            f"{len(pairs)} {what}{'' if drawn else 'training cloud'}, for example {first} and {second}: the "
            "accuracy will be too good; put copies and parts of one scan into the same split, in folders "
            "train and test."
        )


def listed(names: Sequence[str], counts: Mapping[str, int]) -> str:
    """Write counts as "a 3, b 4"."""
    return line_of(f"{name} {counts[name]}" for name in names)
