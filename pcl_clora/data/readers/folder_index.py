"""Classes, splits and files of a folder of point files, by names only; what is left out is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcl_clora.io import POINT_SUFFIXES, DataError, no_folder
from pcl_clora.io.formats import is_of_gltf

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
"""Split -> what a folder of it may be called, in any case."""

# Other kinds of 3D files. A folder of them is a class that cannot be read, not one of notes or pictures.
SCAN_SUFFIXES = (
    *(".dae", ".fbx", ".wrl", ".usd", ".usdz", ".step", ".stp", ".ifc", ".ptx", ".rcp"),
    *(".dat", ".mat", ".pt", ".pth", ".pkl"),
)

Layout = Literal["split/class", "class/split", "class"]


@dataclass(frozen=True)
class FolderIndex:
    """What a folder holds.

    Attributes:
        layout: "split/class", "class/split" or "class".
        class_names: in alphabetical order.
        files: split -> (file, label) in alphabetical order; only the key "all" for the layout "class".
        faults: folders that look like classes but give no clouds; training refuses them.
        left_out: (file or folder, what it is and what to do) of everything else that is not read.
    """

    layout: Layout
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    faults: tuple[DataError, ...] = ()
    left_out: tuple[tuple[Path, str], ...] = ()


def index_folder(root: str | Path) -> FolderIndex:
    """Find classes and files; nothing is opened.

    A folder named like a split is one if it holds folders with point files; with point files directly inside
    it is a class of that name.

    Raises:
        DataError: if the folder is missing or holds no point files in one of the known arrangements.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(root, f"{no_folder(root)}, expected one folder a class", "set data.root to it")
    layout, leaves, outside = _arrange(root)
    files: dict[str, list[tuple[Path, int]]] = {}
    filled = [leaf for leaf in leaves if _holds(leaf.folder)]
    names = tuple(sorted({leaf.name for leaf in filled}))
    faults, left_out = _look_aside(leaves, outside)
    if not names:
        if faults:
            raise faults[0]
        raise DataError(
            root,
            f"no folders with point files ({' '.join(POINT_SUFFIXES)}) here, expected ROOT/<class>/<file>, "
            "ROOT/<split>/<class>/<file> or ROOT/<class>/<split>/<file>",
            "set data.root to the folder above the classes",
        )
    for leaf in filled:
        files.setdefault(leaf.split, []).extend(
            (file, names.index(leaf.name)) for file in _files(leaf.folder)
        )
    ordered = {split: sorted(files[split]) for split in ("all", *SPLIT_NAMES) if split in files}
    return FolderIndex(layout, names, ordered, tuple(faults), tuple(left_out))


@dataclass(frozen=True)
class _Leaf:
    """A folder whose files are clouds of one class and one split ("all" where no folder says it)."""

    split: str
    name: str
    folder: Path


def _arrange(root: Path) -> tuple[Layout, list[_Leaf], list[Path]]:
    """Tell the arrangement: its leaves, and the folders beside it."""
    folders = _folders(root)
    named = {folder: split for folder in folders if (split := split_of(folder))}
    below = {folder: [sub for sub in _folders(folder) if split_of(sub) and _holds(sub)] for folder in folders}
    others = [folder for folder in folders if folder not in named]
    if any(below[folder] for folder in others):  # then a folder called train is a class as well
        leaves = [_Leaf(split_of(sub), folder.name, sub) for folder in folders for sub in below[folder]]
        return "class/split", leaves, [folder for folder in folders if not below[folder]]
    splits = [
        folder for folder in named if not _holds(folder) and any(_holds(sub) for sub in _folders(folder))
    ]
    if splits:
        leaves = [_Leaf(named[folder], sub.name, sub) for folder in splits for sub in _folders(folder)]
        return "split/class", leaves, [folder for folder in folders if folder not in splits]
    filled = [folder for folder in folders if _holds(folder)]
    if len({named.get(folder) for folder in filled} - {None}) > 1 and all(
        folder in named for folder in filled
    ):
        raise DataError(
            root,
            f"{' and '.join(folder.name for folder in filled)} hold files but no folders of classes",
            "put the files into one folder a class below them",
        )
    return "class", [_Leaf("all", folder.name, folder) for folder in folders], []


def _look_aside(leaves: list[_Leaf], outside: list[Path]) -> tuple[list[DataError], list[tuple[Path, str]]]:
    """Name what is not read: folders without point files, files of other kinds, files too deep or beside."""
    faults: list[DataError] = []
    left_out: list[tuple[Path, str]] = []
    for leaf in leaves:
        found = _census(leaf.folder)
        if not found.here:
            fault = _fault(leaf.folder, found)
            if fault is not None:
                faults.append(fault)
            elif found.others or found.deeper:
                left_out.append((leaf.folder, f"holds no point files ({found.kinds}), so it is no class"))
            continue
        if found.scans:
            left_out.append(
                (leaf.folder, f"{len(found.scans)} files are not read ({found.kinds}); convert them")
            )
        if found.deeper:
            left_out.append(
                (leaf.folder, f"{len(found.deeper)} point files lie one folder deeper; move them up")
            )
    for folder in outside:
        clouds = list(_below(folder, (*POINT_SUFFIXES, *SCAN_SUFFIXES)))
        if clouds:
            kinds = ", ".join(sorted({file.suffix.lower() for file in clouds}))
            faults.append(
                DataError(
                    folder,
                    f"holds {len(clouds)} files of clouds ({kinds}) that belong to no split or are not read; "
                    f"known are {' '.join(POINT_SUFFIXES)}",
                    "arrange or convert them like the others, or take the folder out of data.root",
                )
            )
    lower = Counter(name.lower() for name in {leaf.name for leaf in leaves if _holds(leaf.folder)})
    for name in sorted({leaf.name for leaf in leaves}):
        if lower[name.lower()] > 1:
            left_out.append(
                (Path(name), "is the name of a class that differs from another in upper and lower case only")
            )
    return faults, left_out


@dataclass(frozen=True)
class _Census:
    """What lies in a folder: point files, clouds of other kinds, other files; and point files below it."""

    here: list[Path]
    scans: list[Path]
    others: list[Path]
    deeper: list[Path]

    @property
    def kinds(self) -> str:
        counted = Counter(file.suffix.lower() or file.name for file in [*self.scans, *self.others])
        return ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items())[:4]) or "nothing"


def _census(folder: Path) -> _Census:
    found = _Census([], [], [], [file for sub in _folders(folder) for file in _below(sub)])
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        suffix = file.suffix.lower()
        kind = (
            found.here
            if suffix in POINT_SUFFIXES and not is_of_gltf(file)
            else found.scans
            if suffix in SCAN_SUFFIXES
            else found.others
        )
        kind.append(file)
    return found


def _fault(folder: Path, found: _Census) -> DataError | None:
    """Say why a folder that looks like a class gives no clouds; None where it does not look like one."""
    if found.deeper:
        return DataError(
            folder,
            f"holds no point files itself, but {len(found.deeper)} in folders below it, the first is "
            f"{found.deeper[0].relative_to(folder)}; expected them in {folder.name} itself",
            "move the files up, or take the folder out of data.root",
        )
    if found.scans:
        return DataError(
            folder,
            f"holds {len(found.scans)} files that are not read ({found.kinds}), the first is "
            f"{found.scans[0].name}; known are {' '.join(POINT_SUFFIXES)}",
            "convert them to one of these, or take the folder out of data.root",
        )
    return None


def split_of(folder: Path) -> str:
    """Name the split that a folder is called after; "" for none."""
    return next((split for split, names in SPLIT_NAMES.items() if folder.name.lower() in names), "")


def _holds(folder: Path) -> bool:
    return bool(_files(folder))


def point_files_below(folder: Path) -> list[Path]:
    """List the point files in a folder and all folders below it, hidden ones not, in alphabetical order."""
    return [
        file
        for file in _below(folder, depth=16)
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _below(folder: Path, suffixes: tuple[str, ...] = POINT_SUFFIXES, depth: int = 4) -> Iterator[Path]:
    """List files in a folder and below it; links to folders are not followed."""
    yield from _files(folder, suffixes)
    for sub in _folders(folder) if depth else ():
        if not sub.is_symlink():
            yield from _below(sub, suffixes, depth - 1)


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, suffixes: tuple[str, ...] = POINT_SUFFIXES) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes
        and file.is_file()
        and not file.name.startswith(".")
        and not is_of_gltf(file)
    )
