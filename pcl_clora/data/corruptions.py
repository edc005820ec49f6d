"""Corruptions of clouds for robustness tests: by name, with a severity from 1 to 5, drawn from a generator.

Three families: "modelnet40_c" (fifteen corruptions of ModelNet40-C), "pointcloud_c" (seven of PointCloud-C)
and "sweep" (rotations and dropped points, to see where a model breaks). All act on one cloud in the unit
sphere, y up, draw from a CPU generator, and give the same number of points for every cloud of N points.

Sources: Sun et al., Benchmarking Robustness of 3D Point Cloud Recognition against Common Corruptions, 2022
(arXiv 2201.12296); Ren et al., Benchmarking and Analyzing Point Cloud Classification under Corruptions, ICML
2022. Severities are those of the released generators. Our choice: occlusion and lidar start from the cloud,
where the released generator starts from the mesh, and counts that were given for 1,024 points grow with N.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pcl_clora.config import unknown_name
from pcl_clora.data.transforms import apply_rotation, normalize_unit_sphere, quaternion_matrix
from pcl_clora.errors import UserValueError

SEVERITIES = (1, 2, 3, 4, 5)
_PUBLISHED_POINTS = 1024  # the size for which the released generators give counts

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]


def corrupt(points: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt one cloud.

    Args:
        points: (N, 3), float, in the unit sphere, on the CPU.
        name: one of `list_corruptions()`.
        severity: 1 (weak) to 5 (strong).
        generator: CPU generator; the same state gives the same cloud.

    Returns:
        (M, 3), same dtype. M depends on name, severity and N only. As released, the corruptions of
        ModelNet40-C that move points end by fitting the cloud into the cube -1..1, and "pointcloud_c.scale"
        into the unit sphere.

    Raises:
        ValueError: if the name or the severity is not known, or the cloud has fewer than 64 points.
    """
    if name not in _CORRUPTIONS:
        raise UserValueError(unknown_name(name, _CORRUPTIONS, what="corruption"))
    if severity not in SEVERITIES:
        raise UserValueError(f"severity={severity!r}; corruptions have severities 1 to 5.")
    if points.dim() != 2 or points.shape[1] != 3 or points.shape[0] < 64:
        raise UserValueError(
            f"points is {tuple(points.shape)}; corruptions need (N, 3) with at least 64 points."
        )
    return _CORRUPTIONS[name](points, severity, generator).to(points.dtype)


def list_corruptions(family: str = "") -> tuple[str, ...]:
    """List the corruptions, or those of one family, as "family.name".

    Raises:
        ValueError: if the family is not known.
    """
    if family and family not in FAMILIES:
        raise UserValueError(unknown_name(family, FAMILIES, what="family of corruptions"))
    return tuple(name for name in _CORRUPTIONS if not family or name.startswith(f"{family}."))


def _step(values: tuple[float, ...], severity: int) -> float:
    return values[severity - 1]


def _count(published: int, num_points: int) -> int:
    """Scale a count that was given for clouds of 1,024 points."""
    return max(1, round(published * num_points / _PUBLISHED_POINTS))


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0


def _choose(num_points: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(num_points, generator=generator)[:count]


def _fit_cube(points: Tensor) -> Tensor:
    """Move the middle of the bounding box to the origin and scale its longest side to 2."""
    low, high = points.amin(0), points.amax(0)
    return (points - (low + high) / 2) * (2 / (high - low).max().clamp_min(1e-12))


def _axis_rotations(angles: Tensor) -> Tensor:
    """(3,) angles about x, y, z -> (3, 3, 3), one rotation of space an axis."""
    matrices = torch.eye(3).repeat(3, 1, 1)
    for axis, (cos, sin) in enumerate(zip(torch.cos(angles), torch.sin(angles), strict=True)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        matrices[axis, first, first] = matrices[axis, second, second] = cos
        matrices[axis, first, second], matrices[axis, second, first] = -sin, sin
    return matrices


def _nearest_first(points: Tensor, generator: torch.Generator) -> Tensor:
    """Pick a point and order all points by their distance to it."""
    picked = points[int(torch.randint(len(points), (1,), generator=generator))]
    return (points - picked).square().sum(1).argsort(stable=True)


# ModelNet40-C: transformations


def _rotation(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    middle = _step((2.5, 5, 7.5, 10, 15), severity)
    degrees = _uniform((3,), middle - 2.5, middle + 2.5, generator) * _signs((3,), generator)
    x, y, z = _axis_rotations(torch.deg2rad(degrees)).to(points.dtype)
    return _fit_cube(points @ x @ y @ z)


def _shear(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    middle = _step((0.05, 0.1, 0.15, 0.2, 0.25), severity)
    b, d, e, f = (_uniform((4,), middle - 0.05, middle + 0.05, generator) * _signs((4,), generator)).tolist()
    matrix = torch.tensor([[1, 0, b], [d, 1, e], [f, 0, 1]], dtype=points.dtype)
    return _fit_cube(points @ matrix)


def _free_form(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Move 5 x 5 x 5 control points of a Bezier volume over the cube -1..1; shifts are shares of its side."""
    size = 5
    shift = _uniform((size, size, size, 3), -1, 1, generator) * _step((0.1, 0.2, 0.3, 0.4, 0.5), severity)
    place = ((points + 1) / 2).unsqueeze(-1)  # (N, 3, 1)
    power = torch.arange(size)
    binomial = torch.tensor([math.comb(size - 1, int(k)) for k in power], dtype=points.dtype)
    basis = binomial * place**power * (1 - place) ** (size - 1 - power)  # (N, 3, size)
    moved = torch.einsum("ni,nj,nk,ijkc->nc", *basis.unbind(1), shift.to(points.dtype))
    return _fit_cube(points + 2 * moved)


@functools.cache
def _spline_system(inverse: bool) -> tuple[Tensor, Tensor]:
    """Return 5 x 5 x 5 control points and the inverse of the system that interpolates at them, in float64."""
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    control = torch.cartesian_prod(axis, axis, axis)
    ones = torch.ones(len(control), 1, dtype=torch.float64)
    linear = torch.cat([ones, control], dim=1)
    top = torch.cat([_spline_kernel(control, control, inverse), linear], dim=1)
    bottom = torch.cat([linear.T, torch.zeros(4, 4, dtype=torch.float64)], dim=1)
    return control, torch.linalg.inv(torch.cat([top, bottom]))


def _spline_kernel(points: Tensor, control: Tensor, inverse: bool) -> Tensor:
    """Multiquadric sqrt(d^2 + r^2), or one over it, with radius r = 0.5."""
    value = torch.sqrt(torch.cdist(points, control).square() + 0.25)
    return 1 / value if inverse else value


def _spline(points: Tensor, severity: int, generator: torch.Generator, *, inverse: bool) -> Tensor:
    """Move 125 control points by one distance in random directions and interpolate by radial functions."""
    control, solve = _spline_system(inverse)
    alpha, gamma = _uniform((2, len(control)), -math.pi, math.pi, generator).double()
    direction = torch.stack([alpha.cos() * gamma.sin(), alpha.sin() * gamma.sin(), gamma.cos()], dim=1)
    moved = control + _step((0.025, 0.05, 0.075, 0.1, 0.125), severity) * direction
    weight = solve @ torch.cat([moved, torch.zeros(4, 3, dtype=torch.float64)])
    exact = points.double()
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    return _fit_cube(torch.cat([_spline_kernel(exact, control, inverse), ones, exact], dim=1) @ weight)


# ModelNet40-C: noise


def _uniform_noise(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    bound = _step((0.01, 0.02, 0.03, 0.04, 0.05), severity)
    return _fit_cube(points + _uniform((len(points), 3), -bound, bound, generator))


def _gaussian_noise(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    sigma = _step((0.01, 0.015, 0.02, 0.025, 0.03), severity)
    return (points + sigma * torch.randn(len(points), 3, generator=generator)).clamp(-1, 1)


def _impulse_noise(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    count = len(points) // int(_step((30, 25, 20, 15, 10), severity))
    moved = points.clone()
    moved[_choose(len(points), count, generator)] += 0.1 * _signs((count, 3), generator).to(points.dtype)
    return _fit_cube(moved)


def _upsampling(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    count = len(points) // int(_step((5, 4, 3, 2, 1), severity))
    more = points[_choose(len(points), count, generator)] + _uniform((count, 3), -0.05, 0.05, generator)
    return _fit_cube(torch.cat([points, more.to(points.dtype)]))


def _background(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    count = len(points) // int(_step((45, 40, 35, 30, 20), severity))
    return _fit_cube(torch.cat([points, _uniform((count, 3), -1, 1, generator).to(points.dtype)]))


# ModelNet40-C: density


def _cutout(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    size = _count(30, len(points))
    for _ in range(int(_step((2, 3, 5, 7, 10), severity))):
        points = points[_nearest_first(points, generator)[size:]]
    return points


def _density_down(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    size = _count(100, len(points))
    for _ in range(severity):
        order = _nearest_first(points, generator)
        kept = order[:size][_choose(size, size - int(0.75 * size), generator)]
        points = points[torch.cat([kept, order[size:]])]
    return points


def _density_up(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Keep some neighbourhoods whole and half of all points in total, so that these become denser."""
    total = len(points) // 2
    size = min(_count(50, len(points)), total // severity)
    whole = []
    for _ in range(severity):
        order = _nearest_first(points, generator)
        whole.append(points[order[:size]])
        points = points[order[size:]]
    rest = points[_choose(len(points), total - severity * size, generator)]
    return torch.cat([*whole, rest])


def _visible(points: Tensor, viewpoint: Tensor) -> Tensor:
    """Tell which points are seen from a viewpoint: nearest in their cell of a 48 x 48 picture, or close.

    Source: our choice, a depth buffer; the released generator casts rays at the mesh.
    """
    forward = torch.nn.functional.normalize(-viewpoint, dim=0)
    helper = torch.eye(3, dtype=points.dtype)[int(forward.abs().argmin())]
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, helper), dim=0)
    up = torch.linalg.cross(right, forward)
    seen = points - viewpoint
    depth = seen @ forward
    cells = 48
    plane = torch.stack([seen @ right, seen @ up], dim=1) / depth.unsqueeze(1)
    plane = (plane - plane.amin(0)) / (plane.amax(0) - plane.amin(0)).clamp_min(1e-12)
    cell = (plane * (cells - 1)).round().long()
    index = cell[:, 0] * cells + cell[:, 1]
    front = torch.full((cells * cells,), torch.inf, dtype=points.dtype)
    front.scatter_reduce_(0, index, depth, "amin")
    # a hole between the points of the front surface is closed by the cells around it
    front = -torch.nn.functional.max_pool2d(-front.view(1, 1, cells, cells), 3, 1, 1).view(-1)
    return depth <= front[index] + 0.1


def _viewpoint(severity: int, generator: torch.Generator) -> Tensor:
    """Look from outside, all around; the stronger, the lower: less of the object is seen."""
    around = float(_uniform((1,), 0, 2 * math.pi, generator))
    height = math.radians(_step((60, 45, 30, 15, 0), severity))
    place = [math.cos(height) * math.cos(around), math.sin(height), math.cos(height) * math.sin(around)]
    return 2.5 * torch.tensor(place)


def _seen_points(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    seen = points[_visible(points, _viewpoint(severity, generator).to(points.dtype))]
    total = len(points) * 3 // 4
    again = torch.randint(len(seen), (max(0, total - len(seen)),), generator=generator)
    return torch.cat([seen[_choose(len(seen), total, generator)], seen[again]])


def _occlusion(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Keep what one viewpoint sees, three quarters of N points; where fewer are seen, some occur twice."""
    return _fit_cube(_seen_points(points, severity, generator))


def _lidar(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Keep what one viewpoint sees and move every point to the middle of its scan line, 1 degree wide."""
    viewpoint = _viewpoint(severity, generator).to(points.dtype)
    seen = _seen_points(points, severity, generator) - viewpoint
    level = seen[:, ::2].norm(dim=1)
    radius = seen.norm(dim=1)
    elevation = torch.atan2(seen[:, 1], level)
    line = math.radians(1.0)
    elevation = ((elevation / line).floor() + 0.5) * line
    flat = seen[:, ::2] / level.clamp_min(1e-12).unsqueeze(1) * (radius * elevation.cos()).unsqueeze(1)
    moved = torch.stack([flat[:, 0], radius * elevation.sin(), flat[:, 1]], dim=1)
    return _fit_cube(moved + viewpoint)


# PointCloud-C


def _scale(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    bound = _step((1.6, 1.7, 1.8, 1.9, 2.0), severity)
    return normalize_unit_sphere(points * _uniform((3,), 1 / bound, bound, generator).to(points.dtype))


def _jitter(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    return points + 0.01 * severity * torch.randn(len(points), 3, generator=generator).to(points.dtype)


def _rotate(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    bound = math.pi / 30 * severity
    x, y, z = _axis_rotations(_uniform((3,), -bound, bound, generator)).to(points.dtype)
    rotated: Tensor = points @ (z @ y @ x)
    return rotated


def _drop_global(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    share = _step((0.25, 0.375, 0.5, 0.625, 0.75), severity)
    return points[_choose(len(points), int(len(points) * (1 - share)), generator)]


def _cluster_sizes(total: int, generator: torch.Generator) -> list[int]:
    number = int(torch.randint(1, 8, (1,), generator=generator))
    owner = torch.randint(number, (total,), generator=generator)
    return torch.bincount(owner, minlength=number).tolist()


def _drop_local(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    for size in _cluster_sizes(_count(100 * severity, len(points)), generator):
        points = points[_nearest_first(points, generator)[size:]]
    return points


def _add_global(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    count = _count(10 * severity, len(points))
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    radius = torch.rand(count, 1, generator=generator) ** (1 / 3)
    return torch.cat([points, (radius * direction).to(points.dtype)])


def _add_local(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    sizes = _cluster_sizes(_count(100 * severity, len(points)), generator)
    middles = points[_choose(len(points), len(sizes), generator)]
    sigma = _uniform((len(sizes), 1), 0.075, 0.125, generator)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    added = middles[owner] + (sigma[owner] * torch.randn(len(owner), 3, generator=generator)).to(points.dtype)
    dist2 = added.square().sum(1, keepdim=True)
    return torch.cat([points, torch.where(dist2 > 1, added / dist2, added)])  # as released: by the square


# Sweeps


def _sweep_rotate_y(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    bound = math.pi * severity / 5
    angle = float(_uniform((1,), -bound, bound, generator))
    turn = _axis_rotations(torch.tensor([0.0, angle, 0.0]))[1]
    return points @ turn.to(points.dtype)


def _sweep_rotate_so3(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Turn about a random axis of space; at severity 5 the rotation is uniform over all rotations."""
    if severity == SEVERITIES[-1]:
        quaternion = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    else:
        bound = math.pi * severity / 5
        half = _uniform((1, 1), 0, bound, generator).double() / 2
        axis = torch.nn.functional.normalize(torch.randn(1, 3, generator=generator).double(), dim=1)
        quaternion = torch.cat([half.cos(), half.sin() * axis], dim=1)
    return apply_rotation(points[None], quaternion_matrix(quaternion).to(points.dtype))[0]


def _sweep_drop(points: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    kept = _step((0.8, 0.6, 0.4, 0.2, 0.1), severity)
    return points[_choose(len(points), max(1, round(kept * len(points))), generator)]


_CORRUPTIONS: dict[str, Corruption] = {
    "modelnet40_c.uniform": _uniform_noise,
    "modelnet40_c.gaussian": _gaussian_noise,
    "modelnet40_c.impulse": _impulse_noise,
    "modelnet40_c.upsampling": _upsampling,
    "modelnet40_c.background": _background,
    "modelnet40_c.rotation": _rotation,
    "modelnet40_c.shear": _shear,
    "modelnet40_c.distortion": _free_form,
    "modelnet40_c.distortion_rbf": functools.partial(_spline, inverse=False),
    "modelnet40_c.distortion_rbf_inv": functools.partial(_spline, inverse=True),
    "modelnet40_c.density": _density_down,
    "modelnet40_c.density_inc": _density_up,
    "modelnet40_c.cutout": _cutout,
    "modelnet40_c.occlusion": _occlusion,
    "modelnet40_c.lidar": _lidar,
    "pointcloud_c.scale": _scale,
    "pointcloud_c.jitter": _jitter,
    "pointcloud_c.rotate": _rotate,
    "pointcloud_c.drop_global": _drop_global,
    "pointcloud_c.drop_local": _drop_local,
    "pointcloud_c.add_global": _add_global,
    "pointcloud_c.add_local": _add_local,
    "sweep.rotate_y": _sweep_rotate_y,
    "sweep.rotate_so3": _sweep_rotate_so3,
    "sweep.drop": _sweep_drop,
}
FAMILIES: tuple[str, ...] = ("modelnet40_c", "pointcloud_c", "sweep")
