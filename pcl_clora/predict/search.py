"""An index of clouds in a file, and the exact nearest ones in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pcl_clora.adapters.share import HUB_PREFIX
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, load_tensors, save_tensors
from pcl_clora.models.builtin import BUILTIN
from pcl_clora.predict.embedding import Embedded, Embedder
from pcl_clora.predict.opened import adapter_file

FORMAT = "pcl_clora.index"
VERSION = 1
SHOWN_POINTS = 512  # points of a cloud that the index keeps for pictures


@dataclass(frozen=True)
class ShapeIndex:
    """Clouds with their vectors.

    Attributes:
        files: of the clouds.
        vectors: (n, dim), float32.
        points: (n, 512, 3), float16, what a picture of each shows, in the frame of the model.
        model: "builtin", a name of the hub, or the path of the adapter file that made the vectors.
        digest: of the model.
    """

    files: tuple[str, ...]
    vectors: NDArray[np.float32]
    points: NDArray[np.float16]
    model: str
    digest: str

    def nearest(self, vector: NDArray[Any], count: int = 10) -> list[tuple[int, float]]:
        """Find the clouds with the nearest vectors.

        Vectors are compared by the cosine of what they differ from the mean of the index, since all share a
        large part. Every cloud is looked at; of equal ones the first comes first.

        Args:
            vector: (dim,).
            count: how many at most.

        Returns:
            (place, distance) from the nearest; the distance is 1 - cosine, in [0, 2].

        Raises:
            ValueError: if the vector has another length.
        """
        if vector.shape != self.vectors.shape[1:]:
            raise UserValueError(
                f"the vector is {vector.shape}, those of the index {self.vectors.shape[1:]}."
            )
        mean = self.vectors.mean(axis=0, dtype=np.float64)
        known, asked = _unit(self.vectors - mean), _unit(np.asarray(vector) - mean)
        distance = np.clip(1.0 - known @ asked, 0.0, 2.0)
        order = np.argsort(distance, kind="stable")[:count]
        return [(int(place), float(distance[place])) for place in order]

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, whole or not at all."""
        if Path(path).suffix.lower() != ".safetensors":
            raise UserValueError(
                f"--out {path}: an index is a safetensors file; end its name in .safetensors."
            )
        header = {"format": FORMAT, "version": VERSION, "model": self.model, "digest": self.digest}
        tensors = {"vectors": torch.from_numpy(self.vectors), "points": torch.from_numpy(self.points)}
        save_tensors(path, tensors, {**header, "files": list(self.files)})

    def embedder(self, *, up: str = "") -> Embedder:
        """Make what gives vectors like these.

        Args:
            up: axis that points up in the clouds to come.

        Raises:
            DataError: if the model is not there or another one.
        """
        found = Embedder(self.model, dim=self.vectors.shape[1], up=up)
        if found.digest != self.digest or found.dim != self.vectors.shape[1]:
            raise DataError(
                self.model,
                "is not the model that made the index",
                "make the index again: pcl-clora embed PATH... --out INDEX",
            )
        return found


def _unit(values: NDArray[Any]) -> NDArray[np.float64]:
    """Bring vectors (..., dim) to length 1; those of length 0 stay."""
    length = np.linalg.norm(values.astype(np.float64), axis=-1, keepdims=True)
    return np.asarray(values / np.where(length > 0, length, 1.0))


def load_index(path: str | Path) -> ShapeIndex:
    """Read an index.

    Raises:
        DataError: if the file is missing, damaged, or something else.
    """
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise DataError(
            path, "is no index of clouds", "make one: pcl-clora embed PATH... --out INDEX.safetensors"
        )
    vectors, points = tensors.get("vectors"), tensors.get("points")
    files = tuple(map(str, header.get("files", ())))
    fits = vectors is not None and points is not None and vectors.dim() == 2 and len(vectors) == len(files)
    if not fits or vectors is None or points is None or points.shape[:1] != (len(files),):
        raise DataError(path, "is a damaged index: its parts do not fit together", "make it again")
    model, digest = str(header.get("model")), str(header.get("digest"))
    return ShapeIndex(files, vectors.numpy(), points.numpy(), model, digest)


def build_index(embedder: Embedder, found: Iterable[Embedded], model: str | Path) -> ShapeIndex:
    """Put clouds into an index; those with an error are left out.

    Args:
        embedder: that described them.
        found: what became of the files.
        model: what the embedder was made of.

    Raises:
        UserValueError: if no cloud could be read.
    """
    files, vectors, points = list[str](), [], []
    for one in found:
        if one.vector is not None and one.seen is not None:
            files.append(one.file)
            vectors.append(one.vector)
            seen = one.seen.points.numpy()
            points.append(np.resize(seen, (SHOWN_POINTS, 3)).astype(np.float16))
    if not files:
        raise UserValueError("No cloud could be read; there is nothing to put into an index.")
    elsewhere = str(model) == BUILTIN or str(model).startswith(HUB_PREFIX)
    place = str(model) if elsewhere else str(adapter_file(model).resolve())
    return ShapeIndex(tuple(files), np.stack(vectors), np.stack(points), place, embedder.digest)
