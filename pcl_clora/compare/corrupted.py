"""Which test clouds a run had right under every corruption: one bit a cloud, for paired tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pcl_clora.data import Batch
from pcl_clora.engine.tasks import Output, as_logits
from pcl_clora.io import DataError, load_tensors, save_tensors


class RightClouds:
    """Collects whether the clouds of an evaluation are right."""

    def __init__(self) -> None:
        self._right: dict[int, bool] = {}

    def __call__(self, output: Output, batch: Batch) -> None:
        """Take a batch."""
        right = as_logits(output).argmax(-1) == batch.label
        self._right |= dict(zip(batch.index.tolist(), right.tolist(), strict=True))

    def in_order(self) -> np.ndarray:
        """Return them in the order of the indices of the clouds: (n,), bool."""
        return np.array([self._right[index] for index in sorted(self._right)])


def add_right(path: str | Path, run: str, seed: int, name: str, right: np.ndarray) -> None:
    """Write one corruption beside those that a file holds; of another seed than theirs, in their place.

    Args:
        path: the file; made where it is not there.
        run: whose.
        seed: that decided the corruption.
        name: "corruption, severity".
        right: (n,), of every cloud, in the order of their indices.
    """
    tensors, header = load_tensors(path) if Path(path).is_file() else ({}, {})
    told = {"run": run, "seed": seed, "clouds": len(right)}
    kept = tensors if header == told else {}
    save_tensors(path, {**kept, name: torch.from_numpy(np.packbits(right))}, told)


def read_right(path: str | Path, run: str, seed: int) -> dict[str, np.ndarray]:
    """Read what `add_right` wrote: "corruption, severity" -> (n,), bool.

    Returns:
        Nothing where the file is not there, as beside a run of an older version, or is of another seed.

    Raises:
        DataError: if the file is damaged or of another run.
    """
    if not Path(path).is_file():
        return {}
    tensors, header = load_tensors(path)
    clouds = header.get("clouds")
    bits = {name: tensor.numpy() for name, tensor in tensors.items()}
    whole = isinstance(clouds, int) and all(
        one.dtype == np.uint8 and one.shape == (-(-clouds // 8),) for one in bits.values()
    )
    if header.get("run") != run or not whole:
        raise DataError(path, f"is not of {run}", "copy it again from where the study was made")
    if header.get("seed") != seed:
        return {}
    return {name: np.unpackbits(one, count=clouds).astype(bool) for name, one in bits.items()}
