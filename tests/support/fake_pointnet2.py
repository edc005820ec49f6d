"""Stand-ins for pointnet2_ops and knn_cuda, which cannot be installed without a GPU.

They have the signatures, layouts, dtypes, demands (contiguous, float32, int32) and the order of ties of the
published packages, but run on the CPU and are made of the slow answers. They prove what our side of the
bargain does, not what the real packages do; the golden files do that.
"""

import sys
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.ops_oracles import batched, slow_ball, slow_fps, slow_knn


def thread_order(num_points: int) -> np.ndarray:
    """Points in the order in which the threads of the published kernel win a tie."""
    block = min(512, 1 << int(np.log2(num_points)))
    bits = int(np.log2(block))
    thread = np.arange(num_points) % block
    reverse = sum((thread >> bit & 1) << (bits - 1 - bit) for bit in range(bits)) + 0 * thread
    return np.lexsort((np.arange(num_points), reverse))


def _demand(floats: tuple[Tensor, ...] = (), integers: tuple[Tensor, ...] = ()) -> None:
    for tensor, dtype in [(t, torch.float32) for t in floats] + [(t, torch.int32) for t in integers]:
        if not tensor.is_contiguous() or tensor.dtype != dtype:
            raise RuntimeError(f"must be a contiguous {dtype} tensor")


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    _demand((xyz,))
    order = thread_order(xyz.shape[1])
    return batched(slow_fps, xyz, num_samples=npoint, skip_origin=True, order=order)[0].int()


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    _demand((features,), (idx,))
    return features.gather(2, idx.long().unsqueeze(1).expand(-1, features.shape[1], -1))


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    _demand((features, weight), (idx,))
    corners = gather_operation(features, idx.flatten(1)).unflatten(2, idx.shape[1:])
    return (corners * weight.unsqueeze(1)).sum(3)


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    _demand((xyz, new_xyz))
    return batched(slow_ball, xyz, new_xyz, radius=radius, num_samples=nsample)[0].int()


class KNN(nn.Module):
    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        self.k, self._t = k, transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        assert ref.size(0) == query.size(0)
        if not self._t:
            ref, query = ref.transpose(1, 2).contiguous(), query.transpose(1, 2).contiguous()
        _demand((ref, query))
        dist2, idx = batched(slow_knn, ref, query, k=self.k)
        dist = dist2.sqrt()
        return (dist, idx) if self._t else (dist.transpose(1, 2), idx.transpose(1, 2))


@contextmanager
def installed(monkeypatch):
    """Put the stand-ins where the packages would be, and let the backend take CPU tensors."""
    package, utils, knn_cuda = (
        ModuleType(name) for name in ("pointnet2_ops", "pointnet2_ops.pointnet2_utils", "knn_cuda")
    )
    for function in (furthest_point_sample, gather_operation, three_interpolate, ball_query):
        setattr(utils, function.__name__, function)
    package.pointnet2_utils, knn_cuda.KNN = utils, KNN
    for module in (package, utils, knn_cuda):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("pcl_clora.ops._pointnet2.DEVICE_TYPE", "cpu")
    yield
