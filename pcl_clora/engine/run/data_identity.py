"""Which data a run is trained on, in a few values: other data must not go on from its checkpoint."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcl_clora.config import ConfigError
from pcl_clora.data import DataConfig, PointDataset
from pcl_clora.data.dataset import SPLITS
from pcl_clora.data.packed.format import INDEX
from pcl_clora.data.readers.folder_index import SPLIT_NAMES
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.io import POINT_SUFFIXES, explained

if TYPE_CHECKING:
    from pcl_clora.engine.setup import RunData

SUFFIXES = (*POINT_SUFFIXES, ".h5", ".hdf5", ".dat", ".pkl", ".seg", ".json", ".safetensors")
CLOUD_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in (".json", ".safetensors"))
TEXT_SUFFIXES = (".txt", ".csv", ".tsv")  # of which many are notes, logs and tables
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
        "files": [_files_of(part) for part in configs],
    }


def refuse_run_in_data(folder: Path, config: DataConfig) -> None:
    """Refuse a run folder among clouds: its own, or those of another data set.

    A folder of clouds of another data set is one that holds files of clouds and no run, or that lies in a
    folder with a `train` and a `test` that have such folders.

    Raises:
        ConfigError: naming both.
    """
    if config.claims(folder):
        raise ConfigError(
            f"The run folder {folder} lies in data.root={config.root}, where its files would be taken for "
            "clouds; set output to a folder outside it."
        )
    with explained(folder, "read"):
        found = None if RunFolder(folder).config.exists() else _first_cloud(folder, levels=3)
        root = next((above for above in folder.absolute().parents[:3] if _has_splits(above)), None)
    if found is not None:
        raise ConfigError(
            f"The run folder {folder} holds data and no run: {found.relative_to(folder)}. A run would be "
            "written among them; set name or output to another folder."
        )
    if root is not None:
        raise ConfigError(
            f"The run folder {folder} lies in {root}, a folder of clouds by split; set output to a folder "
            "outside it."
        )


def _has_splits(folder: Path) -> bool:
    """Tell whether a folder has the splits of a data set, with clouds in folders of classes."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return False
    splits = [
        [folder / name for name in os.listdir(folder) if name.lower() in SPLIT_NAMES[split]]
        for split in SPLITS
    ]
    return all(any(_first_cloud(each, levels=2) for each in found) for found in splits)


def _first_cloud(folder: Path, *, levels: int) -> Path | None:
    """Find a file of points in a folder or the folders below it; those of runs are left out."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK) or RunFolder(folder).config.exists():
        return None
    if (folder / INDEX).is_file():  # of a pack
        return folder / INDEX
    below = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            below.append(entry)
        elif entry.name.lower().endswith(CLOUD_SUFFIXES) and _may_be_cloud(entry):
            return entry
    found = (_first_cloud(each, levels=levels - 1) for each in below if levels > 1)
    return next((each for each in found if each is not None), None)


def _may_be_cloud(file: Path) -> bool:
    """Tell whether a file may hold points; text does if its first line has three numbers."""
    if not file.name.lower().endswith(TEXT_SUFFIXES):
        return True
    with file.open("rb") as handle:
        words = handle.readline(1000).replace(b",", b" ").replace(b";", b" ").split()
    try:
        return len([float(word) for word in words]) >= 3
    except ValueError:
        return False


def _clouds(dataset: PointDataset) -> str:
    digest = hashlib.sha256(repr(dataset.labels.tolist()).encode()).hexdigest()[:8]
    return f"{len(dataset)} clouds (labels {digest})"


def _files_of(config: DataConfig) -> str:
    """Name the files of a data set."""
    listed = config.listed_files()
    if listed is None:
        return _files(config.root, in_folders=config.name == "folder")
    above = config.file_root()
    with explained(config.root, "read"):
        return _digest([(os.path.relpath(file, above), file.stat().st_size) for file in listed])


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
    return _digest(found)


def _digest(found: list[tuple[str, int]]) -> str:
    digest = hashlib.sha256(repr(sorted(found)).encode()).hexdigest()[:8]
    return f"{len(found)} files of {sum(size for _, size in found):,} bytes (paths and sizes {digest})"
