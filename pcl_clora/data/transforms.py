"""Batched transforms of clouds, each split in two: a function of explicit numbers, and one that draws them.

Random functions take a CPU `torch.Generator` and draw there, so results do not depend on the device. Points
are (B, N, 3) float32 in the unit sphere, y up; nothing is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pcl_clora.config import unknown_name
from pcl_clora.errors import UserValueError

Augment = Callable[[Tensor, torch.Generator], Tensor]
Compat = Literal["none", "pointnet2"]

POOL_SIZES = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}
"""Points kept by FPS before the random choice, by the number of points wanted (published table)."""


def _check(points: Tensor) -> Tensor:
    if points.ndim != 3 or points.shape[-1] != 3:
        raise UserValueError(f"points must be (B, N, 3), not {tuple(points.shape)}; add or drop dimensions.")
    return points


def _uniform(
    points: Tensor, shape: tuple[int, ...], low: float, high: float, generator: torch.Generator
) -> Tensor:
    drawn = torch.rand(shape, generator=generator, dtype=torch.float32) * (high - low) + low
    return drawn.to(device=points.device, dtype=points.dtype)


def normalize_unit_sphere(points: Tensor) -> Tensor:
    """Move the mean of every cloud to the origin and its farthest point to distance 1.

    Args:
        points: (B, N, 3) or (N, 3), float, any unit.

    Returns:
        Same shape; a cloud whose points all coincide becomes all zeros.
    """
    if not _is_plain(points):
        points = points * _power_of_two(points)
    centered = points - points.mean(dim=-2, keepdim=True)
    radius = centered.square().sum(dim=-1, keepdim=True).amax(dim=-2, keepdim=True).sqrt()
    return centered / torch.where(radius > 0, radius, torch.ones_like(radius))


def _is_plain(points: Tensor) -> bool:
    """Tell, where that costs no wait for a device, that a cloud is neither huge nor tiny."""
    if points.ndim != 2 or not points.is_cpu or torch.compiler.is_compiling():
        return False
    return 1e-15 <= float(points.abs().max()) <= 1e15


def _power_of_two(points: Tensor) -> Tensor:
    """Choose the factor that keeps squares of a cloud in range: 1 for all but huge and tiny ones, exact."""
    peak = points.abs().amax(dim=(-2, -1), keepdim=True)
    odd = ((peak > 1e15) | (peak < 1e-15)) & (peak > 0) & peak.isfinite()
    power = torch.exp2(-peak.log2().floor().clamp(-120, 120))
    return torch.where(odd, power, torch.ones_like(peak))


def apply_scale_shift(points: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Multiply by a factor and add an offset: points * scale + shift.

    Args:
        points: (B, N, 3).
        scale: (B, 3) one factor an axis, or (B, 1) one for all.
        shift: (B, 3), in the unit of points.

    Returns:
        (B, N, 3).
    """
    return _check(points) * scale[:, None, :] + shift[:, None, :]


def scale_shift(
    points: Tensor,
    generator: torch.Generator,
    *,
    scale_low: float = 2 / 3,
    scale_high: float = 3 / 2,
    shift_range: float = 0.2,
) -> Tensor:
    """Scale every cloud along each axis by its own factor, then shift it.

    Args:
        points: (B, N, 3).
        generator: CPU generator.
        scale_low: smallest factor.
        scale_high: largest factor.
        shift_range: shifts are uniform in -shift_range..shift_range along each axis.

    Returns:
        (B, N, 3).

    Source: published Point-MAE fine-tuning recipe (per cloud, anisotropic).
    """
    num_clouds = _check(points).shape[0]
    scale = _uniform(points, (num_clouds, 3), scale_low, scale_high, generator)
    shift = _uniform(points, (num_clouds, 3), -shift_range, shift_range, generator)
    return apply_scale_shift(points, scale, shift)


def isotropic(
    points: Tensor,
    generator: torch.Generator,
    *,
    scale_low: float = 0.8,
    scale_high: float = 1.25,
    shift_range: float = 0.1,
) -> Tensor:
    """Scale every cloud by one factor for all axes, then shift it; FPS order and neighbours stay as they are.

    Args:
        points: (B, N, 3).
        generator: CPU generator.
        scale_low: smallest factor.
        scale_high: largest factor.
        shift_range: shifts are uniform in -shift_range..shift_range along each axis.

    Returns:
        (B, N, 3).

    Source: published part segmentation recipe (all factors drawn before all shifts).
    """
    num_clouds = _check(points).shape[0]
    scale = _uniform(points, (num_clouds, 1), scale_low, scale_high, generator)
    shift = _uniform(points, (num_clouds, 3), -shift_range, shift_range, generator)
    return apply_scale_shift(points, scale, shift)


def apply_rotation_y(points: Tensor, angle: Tensor) -> Tensor:
    """Turn clouds about the vertical axis: p @ [[c, 0, s], [0, 1, 0], [-s, 0, c]].

    Args:
        points: (B, N, 3), y up.
        angle: (B,), radians.

    Returns:
        (B, N, 3).
    """
    cos, sin = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, zero, sin, zero, one, zero, -sin, zero, cos]
    return apply_rotation(points, torch.stack(rows, dim=-1).reshape(-1, 3, 3))


def apply_rotation(points: Tensor, matrix: Tensor) -> Tensor:
    """Multiply rows by a matrix a cloud: points (B, N, 3) @ matrix (B, 3, 3) -> (B, N, 3)."""
    return torch.bmm(_check(points), matrix.to(points.dtype))


def rotate_y(points: Tensor, generator: torch.Generator) -> Tensor:
    """Turn every cloud about the vertical axis by an angle uniform in 0..2 pi.

    Args:
        points: (B, N, 3), y up.
        generator: CPU generator.

    Returns:
        (B, N, 3).

    Source: published ReCon and ACT recipes for ScanObjectNN.
    """
    angle = _uniform(points, (_check(points).shape[0],), 0.0, 2 * math.pi, generator)
    return apply_rotation_y(points, angle)


def rotate_so3(points: Tensor, generator: torch.Generator) -> Tensor:
    """Turn every cloud by a rotation that is uniform over all rotations of space.

    Args:
        points: (B, N, 3).
        generator: CPU generator.

    Returns:
        (B, N, 3).

    Source: our choice of drawing: a normalised quaternion of four normal numbers.
    """
    drawn = torch.randn((_check(points).shape[0], 4), generator=generator, dtype=torch.float64)
    return apply_rotation(points, quaternion_matrix(drawn).to(device=points.device, dtype=points.dtype))


def quaternion_matrix(quaternion: Tensor) -> Tensor:
    """Turn quaternions (B, 4) in the order w, x, y, z, of any length but zero, into rotations (B, 3, 3)."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def pool_size(num_points: int, available: int) -> int:
    """Say how many points FPS keeps before num_points of them are drawn.

    The published table for 1,024 to 8,192; other sizes get a sixth more, rounded (our choice). Never more
    than available.
    """
    return min(POOL_SIZES.get(num_points, round(num_points * 7 / 6)), available)


def pool_index(points: Tensor, num_pool: int, choice: Tensor, *, compat: Compat = "none") -> Tensor:
    """Say which points `take_pool` keeps, so that labels can go with them.

    Args:
        points: (B, N, 3).
        num_pool: points that FPS keeps; with num_pool == N FPS is skipped and choice indexes the points as
            they stand.
        choice: (M,), int64, positions below num_pool.
        compat: see `ops.farthest_point_sample`.

    Returns:
        (B, M), int64, indices into N.
    """
    choice = choice.to(points.device)
    if num_pool == _check(points).shape[1]:
        return choice.expand(points.shape[0], -1)
    from pcl_clora.ops import farthest_point_sample

    return farthest_point_sample(points, num_pool, compat=compat)[:, choice]


def take_points(points: Tensor, index: Tensor) -> Tensor:
    """Gather points (B, N, 3) by index (B, M) -> (B, M, 3)."""
    return torch.gather(points, 1, index[..., None].expand(-1, -1, 3))


def take_pool(points: Tensor, num_pool: int, choice: Tensor, *, compat: Compat = "none") -> Tensor:
    """Keep num_pool points by FPS, then those at the positions in choice, the same for the whole batch.

    Args:
        points: (B, N, 3).
        num_pool: points that FPS keeps; with num_pool == N FPS is skipped and choice indexes the points as
            they stand.
        choice: (M,), int64, positions below num_pool.
        compat: see `ops.farthest_point_sample`.

    Returns:
        (B, M, 3).
    """
    return take_points(points, pool_index(points, num_pool, choice, compat=compat))


def resample_index(
    points: Tensor,
    num_points: int,
    generator: torch.Generator,
    *,
    num_pool: int | None = None,
    compat: Compat = "none",
) -> Tensor:
    """Say which points `resample` draws, so that labels can go with them: (B, num_points), int64."""
    available = _check(points).shape[1]
    _check_enough(num_points, available)
    num_pool = pool_size(num_points, available) if num_pool is None else num_pool
    if not num_points <= num_pool <= available:
        raise UserValueError(f"num_pool={num_pool} must lie between {num_points} and {available}.")
    choice = torch.randperm(num_pool, generator=generator)[:num_points]
    return pool_index(points, num_pool, choice, compat=compat)


def resample(
    points: Tensor,
    num_points: int,
    generator: torch.Generator,
    *,
    num_pool: int | None = None,
    compat: Compat = "none",
) -> Tensor:
    """Draw the points of a training step: FPS to a few more than wanted, then a random choice of those.

    One choice is made for the whole batch, as published. Where FPS would keep every point it is skipped (the
    published code runs it, for a costly permutation that also replaces points near the origin); the random
    choice stays, and is then a shuffle of the points when N == num_points. The shuffle matters: the first
    point is where the grouping of a backbone starts.

    Args:
        points: (B, N, 3), N >= num_points.
        num_points: points wanted.
        generator: CPU generator.
        num_pool: points that FPS keeps; None for `pool_size(num_points, N)`.
        compat: see `ops.farthest_point_sample`.

    Returns:
        (B, num_points, 3).

    Raises:
        ValueError: if the clouds have too few points, or num_pool does not lie between num_points and N.

    Source: published Point-MAE fine-tuning loop.
    """
    index = resample_index(points, num_points, generator, num_pool=num_pool, compat=compat)
    return take_points(points, index)


def fps_resample(points: Tensor, num_points: int, *, compat: Compat = "none") -> Tensor:
    """Take the points of a test step: FPS from the first point, no randomness.

    With N == num_points the clouds come back as they are: FPS would only change the order, and a grouping
    that starts with FPS from point 0 gives the same groups for both.

    Args:
        points: (B, N, 3), N >= num_points.
        num_points: points wanted.
        compat: see `ops.farthest_point_sample`.

    Returns:
        (B, num_points, 3).

    Raises:
        ValueError: if the clouds have too few points.
    """
    if num_points == _check(points).shape[1]:
        return points
    return take_points(points, fps_index(points, num_points, compat=compat))


def fps_index(points: Tensor, num_points: int, *, compat: Compat = "none") -> Tensor:
    """Say which points `fps_resample` takes, so that labels can go with them: (B, num_points), int64."""
    _check_enough(num_points, _check(points).shape[1])
    return pool_index(points, num_points, torch.arange(num_points), compat=compat)


def _check_enough(num_points: int, available: int) -> None:
    if not 1 <= num_points <= available:
        raise UserValueError(
            f"num_points={num_points} cannot be taken from clouds of {available} points; lower "
            "data.num_points or raise data.pool_points."
        )


def _none(points: Tensor, generator: torch.Generator) -> Tensor:
    return points


_PRESETS: dict[str, Augment] = {
    "none": _none,
    "scale_shift": scale_shift,
    "rotate_y": rotate_y,
    "so3": rotate_so3,
    "isotropic": isotropic,
}
AUGMENTATIONS: tuple[str, ...] = tuple(_PRESETS)
"""Names that `make_augment` knows."""


_RIGID = {"none", "rotate_y", "so3", "isotropic"}


def keeps_neighbours(preset_name: str) -> bool:
    """Tell whether an augmentation is made of rotations, one factor for all axes, and shifts alone."""
    return set(preset_name.split("+")) <= _RIGID


def make_augment(preset_name: str) -> Augment:
    """Look up a training augmentation.

    Args:
        preset_name: one of AUGMENTATIONS, or several joined by "+", applied from left to right.

    Returns:
        A function of points (B, N, 3) and a CPU generator that gives new points (B, N, 3).

    Raises:
        ValueError: if a name is not known; the message names the nearest one.
    """
    steps = []
    for name in preset_name.split("+"):
        if name not in _PRESETS:
            raise UserValueError(unknown_name(name, AUGMENTATIONS, what="augmentation"))
        steps.append(_PRESETS[name])
    if len(steps) == 1:
        return steps[0]

    def augment(points: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            points = step(points, generator)
        return points

    return augment
