"""Samples of one batch that run with different adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pcl_clora.errors import UserValueError


def group_samples(
    route: Sequence[str | None], count: int, known: Sequence[str]
) -> dict[str | None, list[int]]:
    """Collect the samples of each adapter: name (None for the bare backbone) -> indices, ascending.

    Args:
        route: one name, or None, for each sample.
        count: number of samples.
        known: the adapters there are.

    Raises:
        ValueError: if the route is no list of that length, or names an adapter that does not exist.
    """
    if isinstance(route, str) or len(route) != count:
        raise UserValueError(
            f"adapters={route!r} must be a list with one name (or None) for each of {count} samples."
        )
    groups: dict[str | None, list[int]] = {}
    for index, name in enumerate(route):
        if name is not None and name not in known:
            raise UserValueError(
                f"Sample {index} asks for adapter {name!r}; attached are: {', '.join(known) or 'none'}."
            )
        groups.setdefault(name, []).append(index)
    return groups


def take_rows(value: Any, rows: Tensor, count: int) -> Any:
    """Take samples out of one input of a batch: tensors and lists have one entry a sample, the rest has none.

    Raises:
        ValueError: if a tensor or list has another number of entries, so that it is not clear whose they are.
    """
    if isinstance(value, dict):
        return {key: take_rows(item, rows, count) for key, item in value.items()}
    if not isinstance(value, list | tuple) and not (isinstance(value, Tensor) and value.dim()):
        return value
    if len(value) != count:
        raise UserValueError(
            f"An input has {len(value)} entries in its first dimension, but the batch has {count} samples, "
            "so it cannot be taken apart by adapter; give one entry a sample, or run one adapter at a time."
        )
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    return type(value)(value[row] for row in rows.tolist())


def put_in_order(results: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Join the outputs of sub-batches in the order of their samples; narrower ones are filled up with -inf.

    Args:
        results: pairs of (rows (b,), outputs (b, ..., C)); all rows together are 0 ... count - 1.
        count: number of samples B.

    Returns:
        (B, ..., C of the widest).
    """
    if len(results) == 1:
        return results[0][1]
    widest = max((output for _, output in results), key=lambda output: output.shape[-1])
    joined = widest.new_full((count, *widest.shape[1:]), float("-inf"))
    for rows, output in results:
        joined[rows, ..., : output.shape[-1]] = output
    return joined
