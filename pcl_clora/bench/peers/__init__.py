"""Other people's exact farthest point sampling, nearest neighbours and grouping on the CPU, at their best.

Every function gets a task and returns what is timed. Options that decide over speed are chosen per size by a
trial, so that nobody loses by a bad default. This folder is no part of the wheel.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcl_clora.bench.harness import Contender

Run = Callable[[], Any]


def _heights(task: Any) -> list[int]:
    """Heights of the bucket tree worth a trial; the authors suggest 3 to 9, by size."""
    return [height for height in (3, 5, 6, 7, 8, 9) if 8 << height <= task.points.shape[1]]


def _best(runs: Sequence[Run]) -> Run:
    """Keep the variant that is fastest in one trial."""

    def trial(run: Run) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return min(runs, key=trial)


def _torch_fps(task: Any, call: Callable[[Any, Tensor, Tensor], Any]) -> Run:
    import torch_fps

    valid = torch.ones(task.points.shape[:2], dtype=torch.bool)
    start = torch.zeros(len(task.points), dtype=torch.int64)
    return lambda: call(torch_fps, valid, start)


# Farthest point sampling: (B, S) indices, or (B, S, 3) points where a library returns no indices.


def _quickfps_sampling(task: Any) -> Run:
    import torch_quickfps

    def run(height: int) -> Tensor:
        found: Tensor = torch_quickfps.sample_idx(task.points, task.samples, height, 0)
        return found

    return _best([partial(run, height) for height in _heights(task)])


def _fpsample_sampling(task: Any) -> Run:
    import fpsample

    clouds = task.points.numpy()

    def run(height: int) -> Tensor:
        chosen = [fpsample.bucket_fps_kdline_sampling(c, task.samples, height, 0) for c in clouds]
        return torch.from_numpy(np.stack(chosen).astype(np.int64))

    return _best([partial(run, height) for height in _heights(task)])


def _torch_fps_sampling(task: Any) -> Run:
    return _torch_fps(
        task,
        lambda library, valid, start: library.farthest_point_sampling(
            task.points, valid, task.samples, start_idx=start, validate=False, assume_finite=True
        ),
    )


def _open3d_sampling(task: Any) -> Run:
    import open3d

    clouds = [
        open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud.double().numpy()))
        for cloud in task.points
    ]

    def run() -> Tensor:
        chosen = [np.asarray(c.farthest_point_down_sample(task.samples).points) for c in clouds]
        return torch.from_numpy(np.stack(chosen))

    return run


# Nearest neighbours: distances (squared or not) and indices, (B, M, K) each.


def _per_cloud(task: Any, search: Callable[[Any, Any], Any]) -> Run:
    pairs = list(zip(task.points.numpy(), task.queries.numpy(), strict=True))
    return lambda: tuple(np.stack(part) for part in zip(*(search(p, q) for p, q in pairs), strict=True))


def _pykdtree_neighbors(task: Any) -> Run:
    from pykdtree.kdtree import KDTree

    return _per_cloud(task, lambda points, queries: KDTree(points).query(queries, k=task.neighbors))


def _scipy_neighbors(task: Any) -> Run:
    from scipy.spatial import cKDTree

    workers = torch.get_num_threads()
    return _per_cloud(
        task, lambda points, queries: cKDTree(points).query(queries, k=task.neighbors, workers=workers)
    )


def _open3d_neighbors(task: Any) -> Run:
    core: Any = importlib.import_module("open3d").core

    def search(points: Any, queries: Any) -> Any:
        tree = core.nns.NearestNeighborSearch(core.Tensor(points))
        tree.knn_index()
        idx, dist2 = tree.knn_search(core.Tensor(queries), task.neighbors)
        return np.sqrt(dist2.numpy()), idx.numpy()

    return _per_cloud(task, search)


def _cdist_neighbors(task: Any) -> Run:
    step = max(1, (1 << 28) // (4 * task.points.shape[1]))  # 256 MiB of distances at once

    def run() -> Any:
        parts = []
        for queries in task.queries.split(step, 1):
            distances = torch.cdist(queries, task.points)
            parts.append(torch.topk(distances, task.neighbors, largest=False, sorted=True))
        return torch.cat([p.values for p in parts], 1), torch.cat([p.indices for p in parts], 1)

    return run


# Whole grouping: centre indices (B, G), relative neighbourhoods (B, G, K, 3).


def _torch_fps_grouping(task: Any) -> Run:
    clouds = torch.arange(len(task.points))

    def group(library: Any, valid: Tensor, start: Tensor) -> Any:
        chosen, near = library.farthest_point_sampling_with_knn(
            task.points,
            valid,
            task.samples,
            task.neighbors,
            start_idx=start,
            validate=False,
            assume_finite=True,
        )
        center = task.points[clouds[:, None], chosen]
        return center, task.points[clouds[:, None, None], near] - center.unsqueeze(2)

    return _torch_fps(task, group)


PEERS: dict[str, list[Contender]] = {
    "fps": [
        Contender("torch-quickfps", _quickfps_sampling, "torch-quickfps"),
        Contender("fpsample", _fpsample_sampling, "fpsample"),
        Contender("torch-fps", _torch_fps_sampling, "torch-fps"),
        Contender("open3d", _open3d_sampling, "open3d"),
    ],
    "knn": [
        Contender("pykdtree", _pykdtree_neighbors, "pykdtree"),
        Contender("scipy cKDTree", _scipy_neighbors, "scipy"),
        Contender("open3d", _open3d_neighbors, "open3d"),
        Contender("torch cdist + topk", _cdist_neighbors),
    ],
    "group": [
        Contender("torch-fps + gather", _torch_fps_grouping, "torch-fps"),
    ],
}
