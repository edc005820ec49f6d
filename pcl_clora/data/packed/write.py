"""Turn any data set into shards: bounded memory, whole files only, and a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcl_clora.config import ConfigError
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS, PointDataset, Sample
from pcl_clora.data.packed.format import (
    INDEX,
    NOTE,
    OPTIONAL_FIELDS,
    PackIndex,
    ShardEntry,
    SplitEntry,
    TaxonomyEntry,
    map_shard,
    read_index,
    read_note,
)
from pcl_clora.data.packed.read import PackedConfig
from pcl_clora.data.registry import build_dataset, build_validation
from pcl_clora.io import DataError, atomic_write, sha256_file, write_json

SHARD_BYTES = 64 * 2**20
"""Points that a shard holds, in bytes, unless its number of clouds is given. Our choice."""
SHARD_CLOUDS = 2**14
"""Most clouds of such a shard: while it is put together, a small cloud needs far more than its points."""


@dataclass(frozen=True)
class ShardDone:
    """What is told after every shard.

    Attributes:
        split: "train", "test" or "val".
        number: of the shard, from 0.
        num_shards: of the split.
        kept: whether an earlier run had written it.
    """

    split: str
    number: int
    num_shards: int
    kept: bool


def pack_dataset(
    config: DataConfig,
    folder: str | Path,
    *,
    clouds_per_shard: int = 0,
    on_shard: Callable[[ShardDone], None] | None = None,
) -> PackIndex:
    """Write all splits of a data set as shards and an index, see `packed_format`.

    Memory for the clouds of one shard is needed, beside what the data set itself keeps. Shards are written
    aside and renamed; an interrupted pack goes on with the same call, and a finished one is left as it is.

    Args:
        config: which data set; its clouds are stored as they are read.
        folder: where to; made if it is missing.
        clouds_per_shard: 0 takes as many as have about 64 MiB of points, at most 16,384.
        on_shard: called after every shard.

    Returns:
        The index that is in the folder.

    Raises:
        ConfigError: if the data set holds images, or is itself packed, or draws as published code does.
        DataError: if it cannot be read, or the folder holds another pack.
    """
    _check_source(config)
    folder = Path(folder)
    if config.claims(folder):
        raise ConfigError(
            f"{folder} lies in {config.root}, whose clouds are to be packed, and shards would be taken for a "
            "part of them; choose a folder outside it."
        )
    config = config.for_one_pass()
    finished = read_index(folder) if (folder / INDEX).is_file() else None
    splits: dict[str, SplitEntry] = {}
    dataset: PointDataset
    for split in splits_of(config):
        dataset = _open(config, split)
        plan = _Plan.make(config, dataset, split, clouds_per_shard)
        if finished is not None:
            known = finished.splits.get(split)
            if known is None or known.identity != plan.identity:
                raise DataError(
                    folder / INDEX,
                    f"belongs to other data or settings than the {split} split that is to be packed",
                    "choose another folder, or remove this one",
                )
            continue
        splits[split] = _write_split(folder, dataset, plan, on_shard)
    if finished is not None:
        return finished
    index = _make_index(config, dataset, splits)
    write_json(folder / INDEX, index.model_dump(mode="json"))
    return index


def splits_of(config: DataConfig) -> tuple[str, ...]:
    """List the splits of a data set: train, test, and val where it has one of its own."""
    return (*SPLITS, "val") if config.has_validation else SPLITS


def _check_source(config: DataConfig) -> None:
    if config.kind != "points":
        raise ConfigError(f"{config.name} holds images; only point clouds can be packed.")
    if isinstance(config, PackedConfig):
        raise ConfigError("the data are packed already; pack the data set that they were made of.")
    if config.sampling != "stored":
        raise ConfigError(
            f"data.sampling={config.sampling} draws anew in every epoch; pack with sampling=stored, and set "
            "it where the packed data are read."
        )


def _open(config: DataConfig, split: str) -> PointDataset:
    dataset = build_validation(config) if split == "val" else build_dataset(config, split)
    assert dataset is not None  # splits_of names val only where there is one
    if not len(dataset):
        raise DataError(config.root or config.name, f"the split {split} has no clouds", "add some")
    return dataset


@dataclass(frozen=True)
class _Plan:
    """How a split is cut, decided by the data set alone, so that every run decides the same."""

    split: str
    num_clouds: int
    clouds_per_shard: int
    fields: tuple[str, ...]
    identity: str

    @classmethod
    def make(cls, config: DataConfig, dataset: PointDataset, split: str, clouds_per_shard: int) -> _Plan:
        first = dataset[0]
        fitting = max(SHARD_BYTES // max(12 * len(first.points), 1), 1)
        per_shard = clouds_per_shard or min(fitting, SHARD_CLOUDS)
        fields = tuple(name for name in OPTIONAL_FIELDS if getattr(first, name) is not None)
        settings = {key: value for key, value in config.model_dump(mode="json").items() if key != "root"}
        told = json.dumps([split, per_shard, fields, settings, dataset.class_names], sort_keys=True)
        digest = hashlib.sha256(told.encode() + dataset.labels.numpy().tobytes()).hexdigest()
        return cls(split, len(dataset), per_shard, fields, digest)

    @property
    def num_shards(self) -> int:
        return -(-self.num_clouds // self.clouds_per_shard)

    def file(self, number: int) -> str:
        return f"{self.split}-{number:05d}.safetensors"

    def clouds(self, number: int) -> range:
        start = number * self.clouds_per_shard
        return range(start, min(start + self.clouds_per_shard, self.num_clouds))


def _write_split(
    folder: Path, dataset: PointDataset, plan: _Plan, on_shard: Callable[[ShardDone], None] | None
) -> SplitEntry:
    entries, smallest, largest = [], [], []
    for number in range(plan.num_shards):
        file, clouds = folder / plan.file(number), plan.clouds(number)
        note = f"{plan.identity} {number}"
        kept = file.is_file()
        if kept:
            _check_kept(file, note, plan, dataset[clouds.start])
        else:
            tensors = _collect(dataset, clouds, plan.fields)
            atomic_write(file, _saver(tensors, note))
        sizes, total = _sizes(file, plan.fields)
        smallest.append(int(sizes.min()))
        largest.append(int(sizes.max()))
        entries.append(
            ShardEntry(
                file=file.name,
                num_clouds=len(clouds),
                num_points=total,
                bytes=file.stat().st_size,
                sha256=sha256_file(file),
            )
        )
        if on_shard is not None:
            on_shard(ShardDone(plan.split, number, plan.num_shards, kept))
    counts = torch.bincount(dataset.labels, minlength=len(dataset.class_names))
    return SplitEntry(
        num_clouds=plan.num_clouds,
        num_points=sum(entry.num_points for entry in entries),
        min_points=min(smallest),
        max_points=max(largest),
        class_counts=tuple(counts.tolist()),
        fields=plan.fields,
        identity=plan.identity,
        shards=tuple(entries),
    )


def _sizes(file: Path, fields: tuple[str, ...]) -> tuple[Tensor, int]:
    arrays = map_shard(file, fields)
    return torch.from_numpy(arrays["offsets"].copy()).diff(), len(arrays["points"])


def _check_kept(file: Path, note: str, plan: _Plan, first: Sample) -> None:
    """Make sure that a shard which is already there is the one that would be written."""
    same = read_note(file) == note
    if same:
        arrays = map_shard(file, plan.fields)
        stored = torch.from_numpy(arrays["points"][: len(first.points)].copy())
        same = torch.equal(stored, first.points)
    if not same:
        raise DataError(
            file,
            "was left by a pack of other data or settings",
            "choose another folder, or remove this one",
        )


def _saver(tensors: dict[str, Tensor], note: str) -> Callable[[Path], None]:
    from safetensors.torch import save_file

    return lambda aside: save_file(tensors, aside, metadata={NOTE: note})


def _collect(dataset: PointDataset, clouds: range, fields: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the clouds of a shard and join them."""
    samples = list(_read(dataset, clouds, fields))
    paths = [sample.path.encode("utf-8") for sample in samples]
    tensors = {
        "points": torch.cat([sample.points for sample in samples]),
        "offsets": _offsets([len(sample.points) for sample in samples]),
        "label": torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        "path": torch.frombuffer(bytearray(b"".join(paths) or b"\0"), dtype=torch.uint8)[
            : sum(map(len, paths))
        ],
        "path_offsets": _offsets([len(path) for path in paths]),
    }
    if "part_labels" in fields:
        tensors["part_labels"] = _narrow(torch.cat([_given(sample.part_labels) for sample in samples]))
    if "category" in fields:
        tensors["category"] = torch.tensor([sample.category for sample in samples], dtype=torch.int64)
    if "mask" in fields:
        tensors["mask"] = torch.cat([_given(sample.mask) for sample in samples])
    return tensors


def _read(dataset: PointDataset, clouds: range, fields: tuple[str, ...]) -> Iterator[Sample]:
    for index in clouds:
        sample = dataset[index]
        has = tuple(name for name in OPTIONAL_FIELDS if getattr(sample, name) is not None)
        if has != fields:
            raise DataError(
                sample.path or f"sample {index}",
                f"has {', '.join(has) or 'nothing'} besides points and label, the first sample "
                f"{', '.join(fields) or 'nothing'}",
                "give all clouds of a split the same",
            )
        yield sample


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _offsets(sizes: Sequence[int]) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(sizes, dtype=torch.int64).cumsum(0)])


def _narrow(labels: Tensor) -> Tensor:
    """Store integers in the smallest type that holds them."""
    low, high = int(labels.min()), int(labels.max())
    for kind in (torch.int8, torch.int16, torch.int32):
        if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max:
            return labels.to(kind)
    return labels


def _make_index(config: DataConfig, dataset: PointDataset, splits: dict[str, SplitEntry]) -> PackIndex:
    import pcl_clora

    taxonomy: Any = getattr(dataset, "taxonomy", None)
    entry = None
    if taxonomy is not None:
        entry = TaxonomyEntry(
            categories=taxonomy.categories, ids=taxonomy.ids, part_names=taxonomy.part_names
        )
    return PackIndex(
        made_with=pcl_clora.__version__,
        source=config.model_dump(mode="json"),
        class_names=dataset.class_names,
        taxonomy=entry,
        splits=splits,
    )
