"""Which data a run is trained on, in a few values: other data must not go on from its checkpoint."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcl_clora.config import ConfigError
from pcl_clora.data import DataConfig, PointDataset
from pcl_clora.io import POINT_SUFFIXES, explained

if TYPE_CHECKING:
    from pcl_clora.engine.setup import RunData

SUFFIXES = (*POINT_SUFFIXES, ".h5", ".hdf5", ".dat", ".pkl", ".seg", ".json", ".safetensors")
NO_CLOUDS = ("", "readme", "license", "licence", "copying", "notes", "changelog", "citation")  # "" is hidden


def data_identity(config: DataConfig, data: RunData) -> dict[str, Any]:
    """Name the data of a run: classes, clouds with their labels, and files by path and size.

    Args:
        config: settings of the data.
        data: the opened splits.

    Returns:
        A flat mapping of plain values; clouds and files are counted, and told apart by a digest.

    Raises:
        FileAccessError: if a folder of the data cannot be read.
    """
    below = getattr(config, "source", None)  # of a fold; other data sets mean something else by this name
    configs = [part for part in (config, below) if isinstance(part, DataConfig) and part.root]
    return {
        "classes": list(data.class_names),
        "train": _clouds(data.train.dataset),
        "test": _clouds(data.test.dataset),
        "files": [_files(part.root, in_folders=part.name == "folder") for part in configs],
    }


def refuse_run_in_data(folder: Path, config: DataConfig) -> None:
    """Refuse a run folder that is the folder of its clouds, or lies in it where every file there is a cloud.

    Raises:
        ConfigError: naming both.
    """
    if config.claims(folder):
        raise ConfigError(
            f"The run folder {folder} lies in data.root={config.root}, where its files would be taken for "
            "clouds; set output to a folder outside it."
        )


def _clouds(dataset: PointDataset) -> str:
    digest = hashlib.sha256(repr(dataset.labels.tolist()).encode()).hexdigest()[:8]
    return f"{len(dataset)} clouds (labels {digest})"


def _files(root: str, *, in_folders: bool) -> str:
    """Count the files below a folder that a reader may read; hidden ones and documents are left out.

    Args:
        root: the folder.
        in_folders: whether its reader reads what lies in its folders only.
    """
    found: list[tuple[str, int]] = []
    with explained(root, "read"):
        for folder, folders, files in os.walk(root):
            if {"config.yaml", "plan.json"} <= set(files):  # a run, whose files come as it goes
                folders.clear()
                continue
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if in_folders and os.path.samefile(folder, root):
                    continue
                if name.lower().endswith(SUFFIXES) and name.lower().partition(".")[0] not in NO_CLOUDS:
                    path = os.path.join(folder, name)
                    found.append((os.path.relpath(path, root), os.stat(path).st_size))
    digest = hashlib.sha256(repr(sorted(found)).encode()).hexdigest()[:8]
    return f"{len(found)} files of {sum(size for _, size in found):,} bytes (paths and sizes {digest})"
