"""What a caller can get wrong, checked before any kernel runs and without looking at the data."""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex

import torch
from torch import Tensor

from pcl_clora.errors import UserTypeError, UserValueError

DTYPES = (torch.float32, torch.float64)


def check_points(points: Tensor, name: str, *, channels: int | None = 3) -> None:
    """Require a (B, N, channels) tensor in float32 or float64; `channels=None` leaves C open."""
    if not isinstance(points, Tensor):
        raise UserTypeError(
            f"{name} is a {type(points).__name__}; pass a tensor, for example torch.from_numpy(...)."
        )
    if points.dim() != 3 or (channels is not None and points.shape[2] != channels):
        expected = "C" if channels is None else channels
        raise UserValueError(
            f"{name} has shape {_text(points.shape)}; expected (B, N, {expected}). "
            "Add a batch axis with x[None], or swap channels-first axes with x.transpose(1, 2)."
        )
    if points.shape[2] == 0:
        raise UserValueError(f"{name} has shape {_text(points.shape)}; it needs at least one channel.")
    if points.dtype not in DTYPES:
        raise UserValueError(
            f"{name} is {_text(points.dtype)}; only float32 and float64 are exact enough for distances. "
            "Convert with .float(), inside autocast too."
        )


def check_index(idx: Tensor, name: str) -> None:
    """Require an int64 tensor with a batch axis."""
    if not isinstance(idx, Tensor):
        raise UserTypeError(f"{name} is a {type(idx).__name__}; pass an int64 tensor.")
    if idx.dtype != torch.int64:
        raise UserValueError(f"{name} is {_text(idx.dtype)}; indices are int64, convert with .long().")
    if idx.dim() == 0:
        raise UserValueError(f"{name} has no axes; its first axis must be the batch.")


def check_pair(
    first: Tensor, first_name: str, second: Tensor, second_name: str, *, dtype: bool = True
) -> None:
    """Require two tensors of one batch, on one device and, unless `dtype` is False, of one dtype."""
    if first.shape[0] != second.shape[0]:
        raise UserValueError(
            f"{first_name} holds {first.shape[0]} clouds and {second_name} {second.shape[0]}; "
            "both need the same batch size."
        )
    if first.device != second.device:
        raise UserValueError(
            f"{first_name} is on {first.device} and {second_name} on {second.device}; move one with .to()."
        )
    if dtype and first.dtype != second.dtype:
        raise UserValueError(
            f"{first_name} is {_text(first.dtype)} and {second_name} {_text(second.dtype)}; "
            "convert one of them."
        )


def check_lengths(lengths: Tensor | None, points: Tensor) -> None:
    """Require None or one int64 number per cloud, on the device of the points."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        raise UserTypeError(
            f"lengths is a {type(lengths).__name__}; pass an int64 tensor, for example torch.tensor([...])."
        )
    if lengths.dtype != torch.int64:
        raise UserValueError(f"lengths is {_text(lengths.dtype)}; numbers of points are int64, use .long().")
    if lengths.shape != points.shape[:1]:
        raise UserValueError(
            f"lengths has shape {_text(lengths.shape)}; expected ({points.shape[0]},), one number per cloud."
        )
    if lengths.device != points.device:
        raise UserValueError(
            f"points is on {points.device} and lengths on {lengths.device}; move one with .to()."
        )


def check_radius(radius: float) -> None:
    """Require a positive, finite radius."""
    if not (isinstance(radius, float | int) and 0 < radius < math.inf):
        raise UserValueError(
            f"radius={radius!r} is not a positive number; pass it in the unit of the points."
        )


def as_count(value: SupportsIndex, name: str) -> int:
    """Return a whole number, which may come as a tensor or numpy array of one."""
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise UserTypeError(f"{name}={value!r} is a {type(value).__name__}; pass a whole number.") from None


def check_count(value: int, name: str, num_points: int | None = None, remedy: str = "") -> None:
    """Require 1 <= value, and value <= num_points unless that is None."""
    if value < 1:
        raise UserValueError(f"{name}={value} must be at least 1.")
    if num_points is not None and value > num_points:
        raise UserValueError(f"{name}={value} is more than the cloud has ({num_points} points); {remedy}")


def check_start_index(start_index: int, num_points: int) -> None:
    """Require 0 <= start_index < num_points."""
    if not 0 <= start_index < num_points:
        raise UserValueError(
            f"start_index={start_index} is not an index into {num_points} points; pass 0 to {num_points - 1}."
        )


def check_compat(compat: str) -> bool:
    """Tell whether the rule of pointnet2_ops applies; refuse unknown names."""
    if compat not in ("none", "pointnet2"):
        raise UserValueError(f"compat={compat!r} is not known; pass 'none' or 'pointnet2'.")
    return compat == "pointnet2"


def _text(value: object) -> str:
    if isinstance(value, torch.Size):
        return str(tuple(value))
    return str(value).removeprefix("torch.")
