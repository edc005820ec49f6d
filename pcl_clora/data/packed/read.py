"""Read packed data sets: shards mapped into memory, so that their size does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import Batch, Sample
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.packed.format import AGAIN, map_shard, read_index
from pcl_clora.data.part_taxonomy import PartTaxonomy
from pcl_clora.data.registry import parse_data_config
from pcl_clora.errors import UserIndexError
from pcl_clora.io import DataError


class PackedConfig(DataConfig):
    """A folder that `pcl-clora data pack` has made out of any data set.

    A cloud gives its first stored points, as many as are asked for.
    """

    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "order"
    may_turn: ClassVar[bool] = False

    name: Literal["packed"] = "packed"
    validation: bool = False  # select=validation uses the split val of the folder

    def file_root(self) -> str:
        """Name that of the data that were packed."""
        return parse_data_config(read_index(Path(self.root)).source).file_root()

    def input_rule(self) -> InputRule:
        """Return the rule of the data that were packed, and the first points of what they gave.

        Raises:
            DataError: if the folder is not there.
            ConfigError: if the data set that was packed is not known here.
        """
        source = parse_data_config(read_index(Path(self.root)).source).input_rule()
        sizes = {"num_points": self.num_points, "read_points": self.read_points}
        return source.model_copy(
            update={**sizes, "stored_points": source.stored_points or source.read_points}
        )

    @property
    def has_validation(self) -> bool:
        """Whether the data set has a validation split of its own that is not trained on."""
        return self.validation


class PackedDataset:
    """One split of a packed data set. Only labels are in memory; the system keeps or drops the rest.

    Raises:
        DataError: if the index or a shard is missing, truncated or damaged, the split is not there, or a
            cloud has fewer points than are asked for. Digests are compared by `pcl-clora data check`.
    """

    def __init__(self, config: PackedConfig, split: str) -> None:
        root = Path(config.root)
        index = read_index(root)
        entry = index.splits.get(split)
        if entry is None:
            raise DataError(
                root, f"has no split {split!r}, only {', '.join(index.splits)}", "pack it as well"
            )
        if entry.min_points < config.read_points:
            raise DataError(
                root,
                f"its smallest cloud of {split} has {entry.min_points} points, but {config.read_points} were "
                "asked for",
                f"set data.num_points (and data.pool_points) to at most {entry.min_points}",
            )
        for shard in entry.shards:
            file = root / shard.file
            size = file.stat().st_size if file.is_file() else 0
            if size != shard.bytes:
                raise DataError(file, f"has {size} bytes, the index says {shard.bytes}", AGAIN)
        self.class_names = index.class_names
        taxonomy = index.part_taxonomy()
        if taxonomy is not None:
            self.taxonomy = taxonomy
        self._num_points = config.read_points
        self._fields = entry.fields
        self._files = [root / shard.file for shard in entry.shards]
        self._ends = np.cumsum([shard.num_clouds for shard in entry.shards])
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self._allowed = None if taxonomy is None else _allowed_parts(taxonomy)
        self.labels = torch.from_numpy(self._read_labels(int(entry.num_clouds)))

    def _read_labels(self, count: int) -> np.ndarray:
        labels = np.concatenate([self._map(number)["label"] for number in range(len(self._files))])
        if len(labels) != count or labels.min() < 0 or labels.max() >= len(self.class_names):
            raise DataError(
                self._files[0].parent,
                f"holds {len(labels)} labels from {labels.min()} to {labels.max()}, expected {count} below "
                f"{len(self.class_names)}",
                AGAIN,
            )
        return labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a worker process maps the files itself

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, self._num_points)

    def whole_sample(self, index: int) -> Sample:
        """Read a sample with all its stored points."""
        return self._sample(index, None)

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Copy the clouds of several samples into one batch, in the order given."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        num_points, fields = self._num_points, self._fields
        points = np.empty((len(index), num_points, 3), dtype=np.float32)
        parts = np.empty((len(index), num_points), dtype=np.int64) if "part_labels" in fields else None
        masks = np.empty((len(index), num_points), dtype=np.bool_) if "mask" in fields else None
        category = np.empty(len(index), dtype=np.int64) if "category" in fields else None
        for row, one in enumerate(index.tolist()):
            arrays, at = self._find(one)
            start = arrays["offsets"][at]
            points[row] = arrays["points"][start : start + num_points]
            if parts is not None:
                parts[row] = arrays["part_labels"][start : start + num_points]
            if masks is not None:
                masks[row] = arrays["mask"][start : start + num_points]
            if category is not None:
                category[row] = arrays["category"][at]
        self._refuse_damage(index, points, category, parts)
        return Batch(
            points=torch.from_numpy(points),
            label=self.labels[index],
            index=index % len(self),
            part_labels=None if parts is None else torch.from_numpy(parts),
            category=None if category is None else torch.from_numpy(category),
            mask=None if masks is None else torch.from_numpy(masks),
        )

    def _refuse_damage(
        self, index: Tensor | int, points: np.ndarray, category: Any = None, parts: np.ndarray | None = None
    ) -> None:
        """Refuse clouds whose bytes are not those that were written, where that shows."""
        problem = "" if np.isfinite(points).all() else "points that are not finite"
        if self._allowed is not None and category is not None:
            known = (np.asarray(category) >= 0) & (np.asarray(category) < len(self._allowed))
            if not known.all():
                problem = f"a category that is none of {len(self._allowed)}"
            elif parts is not None and parts.size:
                inside = (parts.min() >= 0) & (parts.max() < self._allowed.shape[1])
                rows = np.broadcast_to(np.asarray(category)[..., None], parts.shape)
                if not inside or not self._allowed[rows, parts].all():
                    problem = "part labels that are no parts of its category"
        if problem:
            which = f"sample {index}" if isinstance(index, int) else f"one of the samples {index.tolist()}"
            raise DataError(self._files[0].parent, f"{which} has {problem}", AGAIN)

    def _map(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._maps:
            self._maps[number] = map_shard(self._files[number], self._fields)
        return self._maps[number]

    def _find(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        """Return the arrays of a sample's shard, and its place in them."""
        if not -len(self) <= index < len(self):
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._map(number), index - (int(self._ends[number - 1]) if number else 0)

    def _sample(self, index: int, num_points: int | None) -> Sample:
        arrays, at = self._find(index)
        start, end = arrays["offsets"][at : at + 2]
        rows = slice(int(start), int(end if num_points is None else start + num_points))
        low, high = arrays["path_offsets"][at : at + 2]
        fields = self._fields
        points = np.array(arrays["points"][rows])
        parts = arrays["part_labels"][rows].astype(np.int64) if "part_labels" in fields else None
        category = int(arrays["category"][at]) if "category" in fields else None
        self._refuse_damage(index, points, category, parts)
        return Sample(
            points=torch.from_numpy(points),
            label=int(arrays["label"][at]),
            index=index % len(self),
            path=arrays["path"][low:high].tobytes().decode("utf-8", errors="backslashreplace"),
            part_labels=None if parts is None else torch.from_numpy(parts),
            category=category,
            mask=torch.from_numpy(np.array(arrays["mask"][rows])) if "mask" in fields else None,
        )


def _allowed_parts(taxonomy: PartTaxonomy) -> np.ndarray:
    """Say which part labels a category has: (categories, labels), bool."""
    allowed = np.zeros((len(taxonomy.ids), 1 + max(max(ids) for ids in taxonomy.ids)), dtype=np.bool_)
    for category, ids in enumerate(taxonomy.ids):
        allowed[category, list(ids)] = True
    return allowed
