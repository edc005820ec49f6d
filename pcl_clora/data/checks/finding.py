"""What a check reports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pcl_clora.io import DataError
from pcl_clora.io.text import line_of

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        level: "error" = cannot be used as it is; "warning" = usable, but numbers may mislead; "info" = good
            to know.
        file: the file or folder.
        message: what was found and expected, and the remedy.
    """

    level: Level
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.file}: {self.message}"


@dataclass(frozen=True)
class RootInfo:
    """What a data folder holds, found from names and headers.

    Attributes:
        root: the folder.
        layout: name of the data set that reads it, for `data.name`.
        class_names: in label order.
        num_samples: split -> number of clouds.
        num_points: points that every cloud has; 0 where that is not known without reading them all.
        variants: what the folder holds side by side, such as variants of a data set; empty if only one thing.
        settings: settings besides name and root that read what is counted here.
    """

    root: str
    layout: str
    class_names: tuple[str, ...]
    num_samples: Mapping[str, int] = field(default_factory=dict)
    num_points: int = 0
    variants: tuple[str, ...] = ()
    settings: Mapping[str, str | int] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.num_samples.items())
        points = f", {self.num_points} points a cloud" if self.num_points else ""
        variants = f" ({', '.join(self.variants)})" if self.variants else ""
        return f"{self.root}: {self.layout}, {len(self.class_names)} classes, {counts}{points}{variants}"


def problem(error: DataError) -> Finding:
    """Turn an error of a reader into a finding."""
    return Finding("error", error.file, f"{error.problem}; {error.remedy}.")


def duplicates(digests: Mapping[str, Sequence[tuple[str, bytes]]]) -> Iterator[Finding]:
    """Find clouds that occur in more than one split.

    Args:
        digests: split -> (place, digest of the content) of every cloud.
    """
    train = {digest: place for place, digest in digests.get("train", ())}
    twice = [(place, train[digest]) for place, digest in digests.get("test", ()) if digest in train]
    if twice:
        place, other = twice[0]
        yield Finding(
            "warning",
            place,
            f"this test cloud is the same as {other} of train ({len(twice)} such in all), expected none; "
            "test scores are too good by as much, leave these out where that matters.",
        )


def class_balance(
    place: str, class_names: Sequence[str], labels: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    """Find classes that no cloud has, and classes of test that train lacks."""
    seen = {split: set(np.unique(values).tolist()) for split, values in labels.items()}
    everywhere = set().union(*seen.values()) if seen else set()
    absent = [name for label, name in enumerate(class_names) if label not in everywhere]
    if absent:
        yield Finding("info", place, f"{len(absent)} classes have no clouds: {_some(absent)}.")
    if "train" in seen and "test" in seen and (only := sorted(seen["test"] - seen["train"])):
        names = _some([class_names[label] for label in only])
        yield Finding(
            "warning",
            place,
            f"{len(only)} classes of test have no clouds in train: {names}; expected every class in both, "
            "add clouds or leave these classes out.",
        )


def digest_of(points: np.ndarray) -> bytes:
    """Name the content of an array by 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(points).tobytes(), digest_size=16).digest()


def digest_of_file(file: Path) -> bytes:
    """Name the content of a file by 16 bytes."""
    return hashlib.blake2b(file.read_bytes(), digest_size=16).digest()


def _some(names: Sequence[str]) -> str:
    return line_of(names, 8)
