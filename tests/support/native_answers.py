"""Prints one line per op and kind of cloud: a digest of the bits of all results. Run with PCL_CLORA_ISA set.

With `memory` as argument: prints how many MiB ops on a million points needed above their input.
"""

import hashlib
import sys
from pathlib import Path

import torch

import pcl_clora.ops  # noqa: F401  (loads the kernels)
from tests.support.ops_oracles import KINDS, make_cloud

OPS = torch.ops.pcl_clora


def answers(kind, num_points, dtype):
    """Results of every op on a cloud of one kind; sizes reach every way in which a kernel may search."""
    points, queries = make_cloud(kind, 2, num_points, 1, dtype), make_cloud(kind, 2, 150, 2, dtype)
    lengths = torch.tensor([num_points, max(1, num_points // 2)])
    few = max(1, num_points // 40)
    yield "fps", OPS.farthest_point_sample(points, few, 0, False, lengths)
    yield "fps_pointnet2", OPS.farthest_point_sample(points, few, 0, True)
    for k in (1, 3, 32, 70):
        if 2 * k <= num_points:
            yield f"knn_{k}", OPS.knn(points, queries, k, lengths)
    yield "group", OPS.group_points(points, few, min(9, num_points // 2 + 1), 0, False)
    yield "chamfer", OPS.chamfer_distance(points, queries)
    yield "ball", OPS.ball_query(points, queries, 0.3, 7)
    dist2, idx = OPS.knn(points, queries, 3) if num_points >= 3 else OPS.knn(points, queries, 1)
    weight = dist2[..., -1:].expand(2, 150, 3).contiguous()
    idx = idx[..., -1:].expand(2, 150, 3)
    yield "interpolate", OPS.three_interpolate(points, idx, weight)
    yield "interpolate_backward", OPS.three_interpolate_backward(queries, idx, weight, num_points)
    yield "gather_backward", OPS.gather_points_backward(OPS.gather_points(points, idx), idx, num_points)


def digest(result):
    parts = result if isinstance(result, tuple) else (result,)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def print_digests():
    for kind in KINDS:
        for num_points in (1, 17, 700, 3500, 9001):
            for dtype in (torch.float32, torch.float64):
                for name, result in answers(kind, num_points, dtype):
                    print(name, kind, num_points, dtype, digest(result))


def peak_mib():
    """Return the peak of this program alone; that of getrusage begins with the peak of who started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def print_memory():
    points = torch.rand(1, 1_000_000, 3, generator=torch.Generator().manual_seed(0))
    queries = points[:, :1000].contiguous()
    before = peak_mib()  # a peak never falls, so the last one is that of the hungriest op
    OPS.farthest_point_sample(points, 256)
    OPS.knn(points, queries, 32)
    OPS.group_points(points, 256, 32)
    OPS.ball_query(points, queries, 0.1, 32)
    OPS.chamfer_distance(points, queries)
    print(peak_mib() - before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_memory() if sys.argv[1:] == ["memory"] else print_digests()
