"""Points in hdf5 files. Nothing outside the file is read: no link, storage or view that leads elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.arrays import MOST_EXPANSION
from pcl_clora.io.errors import DataError, as_data_error, check_is_file, explained
from pcl_clora.io.fields import (
    AGAIN,
    FACE_KEYS,
    POINT_KEYS,
    Array,
    Read,
    check_triangles,
    names_of_axes,
    point_key,
    split_columns,
    triangles_of,
    warn_of_other_rows,
)

_TORN = ("cannot be read as hdf5, it may be truncated", "get it again")
_HOPS = 16  # soft links in a row
_LISTED = 12  # data sets in a message
_LOOKED_AT = 200  # groups that are searched for an example


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an hdf5 file to be read; whatever h5py says of a broken one is a `DataError`.

    Yields:
        The h5py.File. Take data sets from it by `find` and read them by `read`.
    """
    import h5py

    check_is_file(path)
    with explained(path, "read"), path.open("rb"):
        pass  # what the system refuses is told apart from what is broken
    with as_data_error(path, *_TORN), h5py.File(path, "r") as file:
        yield file


def find(path: Path, group: Any, name: str) -> Any:
    """Find a group or data set inside the file, along hard and soft links.

    Args:
        path: for messages.
        group: h5py.File or group where the search begins.
        name: its name, with "/" between groups.

    Returns:
        The h5py object; None if there is nothing of the name.

    Raises:
        DataError: if a link leads to another file or in a circle, or data are kept outside the file.
    """
    import h5py

    here, todo, hops = group, [part for part in name.split("/") if part], 0
    while todo:
        part = todo.pop(0)
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) and part in here else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise DataError(
                path, f"{part!r} is a link to another file ({link.filename!r}), which is not followed",
                "copy its data into this file",
            )  # fmt: skip
        if isinstance(link, h5py.SoftLink):
            hops += 1
            if hops > _HOPS:
                raise DataError(path, f"the links behind {name!r} lead in a circle", AGAIN)
            here = here.file if link.path.startswith("/") else here
            todo = [step for step in link.path.split("/") if step and step != "."] + todo
        else:
            here = here[part]
    if isinstance(here, h5py.Dataset) and (here.is_virtual or here.external):
        raise DataError(
            path, f"{name!r} keeps its data in another file, which is not read", "copy them into this file"
        )
    return here


def find_array(path: Path, group: Any, name: str) -> Any:
    """Find a data set inside the file, as `find` does; None if there is none of the name, or a group."""
    import h5py

    found = find(path, group, name)
    return found if isinstance(found, h5py.Dataset) else None


def read(path: Path, dataset: Any, place: tuple[Any, ...] = ()) -> Array:
    """Read a part of a data set, which is not larger than packing can make the file's bytes.

    Args:
        path: for messages.
        dataset: of h5py, from `find`.
        place: what numpy's brackets would hold; everything by default.
    """
    shape = dataset.shape
    if shape is None or dataset.dtype.hasobject:
        raise DataError(
            path,
            f"{dataset.name!r} holds {'nothing' if shape is None else 'objects'}, expected numbers",
            "convert it",
        )
    whole = int(np.prod([int(length) for length in shape], dtype=object) or 0) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    plain = dataset.chunks is None and whole != stored
    if plain or (whole > MOST_EXPANSION * max(stored, 1) and whole > 1 << 20):
        raise DataError(
            path,
            f"{dataset.name!r} announces {whole} bytes ({dataset.dtype} {shape}), the file holds {stored}",
            AGAIN,
        )
    with as_data_error(path, *_TORN):
        return np.asarray(dataset[place])


def read_hdf5(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read one cloud from hdf5: (N, C), or (n, N, C) with a row; other numbers of its points are fields."""
    import h5py

    with open_hdf5(path) as file:
        chosen = find(path, file, part)
        if chosen is None:
            raise DataError(
                path, f"has no {part!r}, it holds {_listing(file)}", "name one of these after '#'"
            )
        group = chosen.parent if isinstance(chosen, h5py.Dataset) else chosen
        sets = _datasets(path, group)
        axes = [] if isinstance(chosen, h5py.Dataset) else names_of_axes(_shapes(sets))
        if axes:
            key, data = "", sets[axes[0]]
        elif isinstance(chosen, h5py.Dataset):
            key, data = next((name for name, one in sets.items() if one == chosen), ""), chosen
        elif not any(name.lower() in POINT_KEYS for name in sets) and (len(sets) != 1 or _has_groups(group)):
            raise DataError(
                path,
                f"holds {_listing(group)}, expected a data set named {' or '.join(POINT_KEYS[:4])}",
                f"name the data set, as in {path.name}#{_example(file)}, or rename it",
            )
        else:
            key = point_key(path, list(sets))
            data = find(path, group, key)  # once more, for a link that leads elsewhere
        if data.ndim == 3 and (row is None or not 0 <= row < len(data)):
            asked = "none" if row is None else f"row {row}"
            where = f"{path.name}#{part}#" if part else f"{path.name}#"
            raise DataError(
                path,
                f"holds {len(data)} clouds, and {asked} was asked for",
                f"name one as {where}0 to {where}{len(data) - 1}, or read the data set",
            )
        place: tuple[Any, ...] = (slice(max_points),) if data.ndim < 3 else (row, slice(max_points))
        if axes:
            table = np.stack([read(path, sets.pop(name), place) for name in axes], axis=1)
        else:
            table = read(path, data, place if data.ndim else ())
        points, fields, _ = split_columns(path, table)
        rows = data.shape if axes else data.shape[:-1]
        faces = None
        if len(rows) == 1:
            named = {name: read(path, sets[name]) for name in sets if name.lower() in FACE_KEYS}
            faces = triangles_of(path, named)
            if faces is not None:
                check_triangles(path, faces, rows[0])
                sets = {name: one for name, one in sets.items() if name.lower() not in FACE_KEYS}
        for name, one in sets.items():
            if name == key or one.dtype.kind not in "biuf" or not one.shape:
                continue
            if one.shape[: len(rows)] == rows:
                fields[name] = read(path, one, place)
            elif len(rows) == 1:
                warn_of_other_rows(path, name, one.shape[0], rows[0])
        return points, fields, faces if max_points is None else None


def write_hdf5(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write the data sets "points", "faces" and one for every field."""
    import h5py

    taken = [name for name in fields if name in ("points", "faces") or "/" in name or name == "."]
    if taken:
        raise UserValueError(f"fields {taken} have names that hdf5 needs for itself; rename them.")
    with h5py.File(path, "w") as file:
        file["points"] = points
        if faces is not None:
            file["faces"] = faces
        for name, values in fields.items():
            file[name] = values


def _datasets(path: Path, group: Any) -> dict[str, Any]:
    """Find the data sets of a group; links that lead nowhere or elsewhere are no data sets."""
    import h5py

    sets = {}
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.HardLink):
            one = group[name]
            if isinstance(one, h5py.Dataset) and not one.is_virtual and not one.external:
                sets[name] = one
    return sets


def _shapes(sets: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: one.shape or () for name, one in sets.items()}


def _has_groups(group: Any) -> bool:
    import h5py

    return any(group.get(name, getclass=True, getlink=True) is not h5py.HardLink for name in group) or any(
        isinstance(group[name], h5py.Group) for name in group
    )


def _listing(group: Any) -> str:
    """Say what a group holds, two floors deep."""
    import h5py

    words = []
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            words.append(f"the link {name}")
        elif isinstance(group[name], h5py.Group):
            words.append(f"the group {name} ({', '.join(list(group[name])[:_LISTED]) or 'empty'})")
        else:
            words.append(f"the data set {name} {group[name].shape}")
    more = [f"and {len(words) - _LISTED} more"] if len(words) > _LISTED else []
    return ", ".join(words[:_LISTED] + more) or "nothing"


def _example(file: Any) -> str:
    """Name a data set that may be the points: of a usual name, else the first."""
    import h5py

    found: list[str] = []
    todo = [(file, "")]
    for _ in range(_LOOKED_AT):  # a group may hold itself
        if not todo:
            break
        group, prefix = todo.pop(0)
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.HardLink):
                if isinstance(group[name], h5py.Group):
                    todo.append((group[name], f"{prefix}{name}/"))
                else:
                    found.append(f"{prefix}{name}")
    usual = [name for name in found if name.rpartition("/")[2].lower() in POINT_KEYS]
    tables = [name for name in found if len(file[name].shape or ()) > 1]
    return (usual or tables or found or ["group/points"])[0]
