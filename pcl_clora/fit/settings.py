"""Settings of the run that a fit makes, and of its folds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_clora.config import build, merge, parse_overrides
from pcl_clora.data.readers.file_list import FileListConfig
from pcl_clora.data.readers.folder import FolderConfig
from pcl_clora.data.readers.labelled_folder import LabelledFolderConfig
from pcl_clora.data.readers.labelled_index import PART_FILES
from pcl_clora.data.readers.sorted_files import SortedFilesConfig, entries_of_split
from pcl_clora.engine import RunConfig
from pcl_clora.errors import UserValueError
from pcl_clora.fit.look import Look

BATCH_SIZE = 16


def data_of(source: str | Path, parts: str | Path, labels: str, **common: Any) -> SortedFilesConfig:
    """Say how what was given is read: a list, a folder of labelled files, or one of classes.

    Args:
        source: a folder, or a csv.
        parts: yaml of part names; "" for none, or that in the folder.
        labels: field or column of the labels of points.
        **common: settings that all of them have.

    Raises:
        UserValueError: if labels were named and nothing says that points have any.
    """
    source = Path(source)
    common = {**common, "root": str(source), "repeat": True}
    if str(parts) or any((source / name).is_file() for name in PART_FILES):
        return LabelledFolderConfig(parts=str(parts), labels=labels, **common)
    if labels:
        raise UserValueError(
            f"labels={labels!r} names the labels of points, which {source} has no names for; give them as "
            f"parts=<yaml>, or put {PART_FILES[0]} into the folder."
        )
    if source.is_file():
        return FileListConfig(**common)
    return FolderConfig(**common)


@dataclass(frozen=True)
class SettingsMaker:
    """Makes the settings of the run and of its folds.

    Attributes:
        data: how the files are read.
        out: folder of the run.
        method: of the adapter.
        model: name of the backbone.
        weights: of the backbone.
        looked: what was found.
        steps: at least.
        seed: of the run.
        overrides: key=value, which come last.
        base: settings of the run that is extended, under those made here.
    """

    data: SortedFilesConfig
    out: Path
    method: str
    model: str
    weights: str
    looked: Look
    steps: int
    seed: int
    overrides: tuple[str, ...]
    base: dict[str, Any] | None = None

    def config(self, fold: int = 0, folds: int = 0) -> RunConfig:
        """Return the settings of a fold; of the run itself with folds=0."""
        divided = {"folds": folds, "fold": fold} if folds else {}
        data = self.data.model_copy(update=divided)
        train = len(entries_of_split(data, self.looked.index, "train"))
        batch = max(2, min(BATCH_SIZE, train))
        epochs = math.ceil(self.steps / max(train // batch, 1))
        said = self.data.model_dump(exclude_defaults=True)
        values: dict[str, Any] = {
            "name": self.out.name or "fit",
            "output": str(self.out.parent),
            "seed": self.seed,
            "model": {"name": self.model, **self._head()},
            "weights": {"path": self.weights},
            "adapter": {"method": self.method},
            "data": {**said, "name": data.name, "root": data.root, **self._up(), **divided},
            "optim": {
                **{"epochs": epochs, "batch_size": batch, "lr": 2e-3, "step_unit": "step"},
                **{"warmup_epochs": min(2.0, epochs / 10)},
                "label_smoothing": 0.0 if self.segments else 0.1,
            },
            "augment": "so3+scale_shift" if self.looked.pose.mixed else "scale_shift",
            "train": {"checkpoint_every_steps": 0, "progress": "off", "eval_every_epochs": epochs},
        }
        if folds:
            values["train"]["novelty"] = 0  # nobody predicts by the model of a fold
        values = merge(values, self.base or {})
        return build(RunConfig, merge(values, parse_overrides(list(self.overrides))), source="fit")

    @property
    def segments(self) -> bool:
        """Whether points have labels."""
        return isinstance(self.data, LabelledFolderConfig)

    def _head(self) -> dict[str, Any]:
        if not isinstance(self.data, LabelledFolderConfig):
            return {"num_classes": len(self.looked.counts), "head_dropout": 0.3}
        taxonomy = self.data.part_names().taxonomy
        return {
            **{"task": "part_segmentation", "segmentation_head": "small", "head_dropout": 0.0},
            **{"num_parts": taxonomy.num_parts, "num_categories": taxonomy.num_categories},
        }

    def _up(self) -> dict[str, Any]:
        return {"up": self.looked.up}
