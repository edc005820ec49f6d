"""What is wrong with the values of a tensor: checks that must look at the data, and their texts.

On the CPU the kernels do these checks before anything else, under every backend. A native kernel cannot raise
a ValueError, so it raises a RuntimeError whose text is `MARKER` and the text below; `translated` turns it
back. On an accelerator a check would wait for the device and break the capture of a graph, so it is made
only where `check_values(True)` asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from pcl_clora.errors import UserValueError

MARKER = "ValueError: "
ENVIRONMENT = "PCL_CLORA_CHECK_VALUES"
CHECKED_BY_KERNELS = ("cpu", "meta")  # kinds of device; a meta tensor has no values


def _asked_by_environment() -> bool:
    return os.environ.get(ENVIRONMENT, "0") not in ("", "0")


_on_accelerators = _asked_by_environment()


def check_values(enabled: bool) -> None:
    """Choose whether values are checked on accelerators too; on the CPU they always are.

    A check looks at the data: the host waits for the device, once or twice per op, and a CUDA graph cannot be
    captured. So it is off unless it is asked for, here or by the environment variable
    PCL_CLORA_CHECK_VALUES=1; use it to find out where bad coordinates or indices come from. A graph made by
    torch.compile or torch.export holds no such check.

    Args:
        enabled: True to check on every device, False to check on the CPU only.
    """
    global _on_accelerators
    _on_accelerators = enabled


def are_checked_here(tensor: Tensor) -> bool:
    """Tell whether a public function must check values before an op, because the kernel does not."""
    if not _on_accelerators or tensor.device.type in CHECKED_BY_KERNELS:
        return False
    return not torch.compiler.is_compiling()


def existing(points: Tensor, lengths: Tensor | None) -> Tensor:
    """Put zeros behind the end of every cloud, so that nothing there is ever seen."""
    if lengths is None:
        return points
    return points.masked_fill(behind(lengths, points.shape[1]).unsqueeze(2), 0.0)


def behind(lengths: Tensor, num_points: int) -> Tensor:
    """(B,) -> (B, N), True where a row lies behind the end of its cloud."""
    return torch.arange(num_points, device=lengths.device) >= lengths.unsqueeze(1)


def refuse_non_finite(points: Tensor, name: str, lengths: Tensor | None = None) -> None:
    """Refuse NaN and infinity within the clouds, naming the first."""
    points = existing(points, lengths)
    if points.numel() == 0 or torch.isfinite(points.abs().amax()):
        return
    cloud, row, axis = (~torch.isfinite(points)).nonzero()[0].tolist()
    raise UserValueError(
        f"{name}[{cloud}, {row}, {axis}] is {points[cloud, row, axis].item()}; distances to it mean nothing. "
        "Remove non-finite points when reading the cloud."
    )


def refuse_out_of_range(idx: Tensor, num_points: int) -> None:
    """Refuse indices that no cloud of `num_points` points has."""
    if idx.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(idx))
    if low < 0 or high >= num_points:
        raise UserValueError(
            f"idx holds {low if low < 0 else high}, which is not an index into {num_points} points; "
            "indices go from 0 to the number of points - 1 within each cloud."
        )


def refuse_lengths(
    lengths: Tensor | None, num_points: int, counts: dict[str, int], start_index: int = 0
) -> None:
    """Refuse lengths that the tensor of points does not hold, and what the shortest cloud cannot serve."""
    if lengths is None or lengths.numel() == 0:
        return
    shortest, longest = (int(row) for row in (lengths.argmin(), lengths.argmax()))
    low, high = int(lengths[shortest]), int(lengths[longest])
    if low < 1 or high > num_points:
        row, value = (shortest, low) if low < 1 else (longest, high)
        raise UserValueError(
            f"lengths[{row}] is {value}; points holds 1 to {num_points} points of a cloud. "
            "Leave out clouds without points."
        )
    for name, value in counts.items():
        if value > low:
            raise UserValueError(
                f"{name}={value} is more than the shortest cloud has (lengths[{shortest}] is {low}); "
                f"lower {name}, or leave that cloud out."
            )
    if start_index >= low:
        raise UserValueError(
            f"start_index={start_index} is not an index into the shortest cloud (lengths[{shortest}] "
            f"is {low}); lower it, or leave that cloud out."
        )


def check_farthest_point_sample(
    points: Tensor,
    num_samples: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> None:
    refuse_lengths(lengths, points.shape[1], {"num_samples": num_samples}, start_index)
    refuse_non_finite(points, "points", lengths)


def check_knn(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> None:
    refuse_lengths(lengths, points.shape[1], {"k": k})
    refuse_non_finite(points, "points", lengths)
    refuse_non_finite(queries, "queries")


def check_ball_query(points: Tensor, queries: Tensor, radius: float, num_samples: int) -> None:
    refuse_non_finite(points, "points")
    refuse_non_finite(queries, "queries")


def check_gather_points(points: Tensor, idx: Tensor) -> None:
    refuse_out_of_range(idx, points.shape[1])


def check_gather_points_backward(grad: Tensor, idx: Tensor, num_points: int) -> None:
    refuse_out_of_range(idx, num_points)


def check_group_points(
    points: Tensor,
    num_groups: int,
    group_size: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> None:
    counts = {"num_groups": num_groups, "group_size": group_size}
    refuse_lengths(lengths, points.shape[1], counts, start_index)
    refuse_non_finite(points, "points", lengths)


def check_three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> None:
    refuse_out_of_range(idx, features.shape[1])


def check_three_interpolate_backward(grad: Tensor, idx: Tensor, weight: Tensor, num_points: int) -> None:
    refuse_out_of_range(idx, num_points)


def check_chamfer_distance(a: Tensor, b: Tensor) -> None:
    refuse_non_finite(a, "a")
    refuse_non_finite(b, "b")


CHECKS: dict[str, Callable[..., None]] = {  # op -> the check of its values; arguments as in its schema
    "farthest_point_sample": check_farthest_point_sample,
    "knn": check_knn,
    "ball_query": check_ball_query,
    "gather_points": check_gather_points,
    "gather_points_backward": check_gather_points_backward,
    "group_points": check_group_points,
    "three_interpolate": check_three_interpolate,
    "three_interpolate_backward": check_three_interpolate_backward,
    "chamfer_distance": check_chamfer_distance,
}


def translated(error: RuntimeError | ValueError) -> Exception:
    """Return the ValueError that a native kernel meant, or the error itself."""
    text = str(error)
    if MARKER not in text:
        return error
    return UserValueError(text.partition(MARKER)[2].partition("\nException raised from")[0].rstrip())
