"""The files of a packed data set: what is in a shard, and the index beside the shards.

A shard is a safetensors file with the points of some clouds, one after another, so that clouds may have any
number of points:

    points          (P, 3) float32
    offsets         (n + 1,) int64: cloud i has the rows offsets[i] .. offsets[i + 1] - 1
    label           (n,) int64
    path, path_offsets      text in utf-8 as bytes, cut like the points
    part_labels     (P,) of the smallest integers that hold them   } only where every
    category        (n,) int64                                     } sample of the split
    mask            (P,) bool                                      } has them

`index.json` is written last; a folder without it is an unfinished pack.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from pcl_clora.config import Config, ConfigError, build
from pcl_clora.data.part_taxonomy import PartTaxonomy
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, parse_json, read_json

INDEX = "index.json"
NOTE = "pack"  # the only key of the metadata: with several, safetensors writes them in a random order
OPTIONAL_FIELDS = ("part_labels", "category", "mask")
AGAIN = "pack the data again, or get this file again"

_DTYPES = {
    "F32": np.float32,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_EXPECTED = {
    "points": ("F32",),
    "offsets": ("I64",),
    "label": ("I64",),
    "path": ("U8",),
    "path_offsets": ("I64",),
    "part_labels": ("I8", "I16", "I32", "I64"),
    "category": ("I64",),
    "mask": ("BOOL",),
}


class ShardEntry(Config):
    """One shard."""

    file: str = Field(pattern=r"^[A-Za-z0-9_-]+\.safetensors$")  # its name, in the folder of the index
    num_clouds: PositiveInt
    num_points: NonNegativeInt  # of all its clouds
    bytes: PositiveInt  # size of the file
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SplitEntry(Config):
    """One split."""

    num_clouds: PositiveInt
    num_points: NonNegativeInt  # of all its clouds
    min_points: NonNegativeInt  # of the smallest cloud
    max_points: NonNegativeInt  # of the largest cloud
    class_counts: tuple[NonNegativeInt, ...]  # clouds of every class
    fields: tuple[Literal["part_labels", "category", "mask"], ...]  # what every sample has besides the rest
    identity: str  # digest of settings, classes and labels, by which a pack that goes on knows its shards
    shards: tuple[ShardEntry, ...]


class TaxonomyEntry(Config):
    """Categories and parts, see `PartTaxonomy`."""

    categories: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    part_names: tuple[str, ...]


class PackIndex(Config):
    """The index of a packed data set."""

    format: Literal["pcl_clora.packed"] = "pcl_clora.packed"
    version: Literal[1] = 1  # of the format
    made_with: str  # version of pcl_clora
    source: dict[str, Any]  # settings of the data set that was packed
    class_names: tuple[str, ...]
    taxonomy: TaxonomyEntry | None = None
    splits: dict[str, SplitEntry]

    def part_taxonomy(self) -> PartTaxonomy | None:
        """Return the categories and parts, if the data set has them."""
        if self.taxonomy is None:
            return None
        return PartTaxonomy(self.taxonomy.categories, self.taxonomy.ids, self.taxonomy.part_names)


def read_index(root: str | Path) -> PackIndex:
    """Read the index of a folder.

    Raises:
        DataError: if it is missing or damaged, or of a format that this version does not know.
    """
    file = Path(root) / INDEX
    if not file.is_file():
        unfinished = any(Path(root).glob("*.safetensors"))
        raise DataError(
            file,
            "is missing" + (", but shards are there: this pack was not finished" if unfinished else ""),
            "run the command that packs again, it goes on"
            if unfinished
            else "set data.root to a packed folder",
        )
    content = read_json(file)
    try:
        index = build(PackIndex, content, source=str(file))
        index.part_taxonomy()
    except ConfigError as error:
        raise DataError(file, f"is not an index of packed data ({error})", AGAIN) from error
    except (ValueError, TypeError) as error:  # a taxonomy that is none
        raise DataError(file, f"is damaged ({error})", AGAIN) from error
    return index


def map_shard(file: Path, fields: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Map the arrays of a shard into memory; nothing is read before it is used.

    Args:
        file: the shard.
        fields: which optional arrays must be there.

    Returns:
        Name -> read-only array.

    Raises:
        DataError: if the file is missing, truncated, or its arrays are not those of a shard.
    """
    header, start = _read_header(file)
    size = file.stat().st_size
    whole = np.memmap(file, dtype=np.uint8, mode="r")
    arrays: dict[str, np.ndarray] = {}
    needed = {name for name in _EXPECTED if name not in OPTIONAL_FIELDS or name in fields}
    if header.keys() != needed:
        raise DataError(
            file, f"holds {', '.join(sorted(header))}; expected {', '.join(sorted(needed))}", AGAIN
        )
    for name, entry in header.items():
        try:
            kind, shape, (low, high) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            fits = kind in _EXPECTED[name] and start + high <= size
            array = whole[start + low : start + high].view(_DTYPES[kind]).reshape(shape) if fits else None
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(file, f"the header of {name!r} is damaged ({error})", AGAIN) from error
        if array is None:
            raise DataError(file, f"{name!r} is {kind} and ends beyond the file or has the wrong type", AGAIN)
        arrays[name] = array
    _check_shapes(file, arrays)
    return arrays


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Read the head of a safetensors file: its length in 8 bytes, then json."""
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > file.stat().st_size:
                raise UserValueError(f"its header would have {length} bytes")
            header = parse_json(file, handle.read(length))
    except DataError:
        raise
    except OSError as error:
        raise DataError(file, f"cannot be read ({error})", AGAIN) from error
    except (struct.error, ValueError) as error:
        raise DataError(file, f"is not a complete safetensors file ({error})", AGAIN) from error
    header.pop("__metadata__", None)
    return header, 8 + length


def read_note(file: Path) -> str:
    """Read what the metadata of a shard say: to which pack it belongs, and its number."""
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            note = parse_json(file, handle.read(min(length, file.stat().st_size)))
            note = note.get("__metadata__", {}).get(NOTE, "")
    except (OSError, struct.error, ValueError, AttributeError) as error:
        raise DataError(file, f"is not a complete safetensors file ({error})", AGAIN) from error
    return str(note)


def _check_shapes(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    clouds, points = arrays["label"].shape[0], arrays["points"].shape[0]
    expected = {
        "points": (points, 3),
        "offsets": (clouds + 1,),
        "label": (clouds,),
        "path": (arrays["path"].size,),
        "path_offsets": (clouds + 1,),
        "part_labels": (points,),
        "category": (clouds,),
        "mask": (points,),
    }
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise DataError(file, f"{name!r} has shape {array.shape}, expected {expected[name]}", AGAIN)
    for name, total in (("offsets", points), ("path_offsets", arrays["path"].size)):
        steps = arrays[name]
        if steps[0] != 0 or steps[-1] != total or (np.diff(steps) < 0).any():
            raise DataError(file, f"{name!r} do not rise from 0 to {total}", AGAIN)
