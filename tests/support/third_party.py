"""Code as repositories of the field have it: it imports the published packages and knows nothing of ours."""

import sys

import pytest

CHAMFER_DIST = """
import torch
import chamfer

class ChamferFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first, second):
        d1, d2, i1, i2 = chamfer.forward(first, second)
        ctx.save_for_backward(first, second, i1, i2)
        return d1, d2

    @staticmethod
    def backward(ctx, g1, g2):
        first, second, i1, i2 = ctx.saved_tensors
        return tuple(chamfer.backward(first, second, i1, i2, g1, g2))

class ChamferDistanceL1(torch.nn.Module):
    def forward(self, first, second):
        d1, d2 = ChamferFunction.apply(first, second)
        return (torch.mean(torch.sqrt(d1)) + torch.mean(torch.sqrt(d2))) / 2
"""
MODEL = """
import torch
from torch import nn
import pointnet2_ops
from pointnet2_ops import pointnet2_utils
from pointnet2_ops.pointnet2_modules import PointnetFPModule, PointnetSAModule, PointnetSAModuleMSG
import pointnet2_ops.pointnet2_utils as utils
from knn_cuda import KNN
from extensions.chamfer_dist import ChamferDistanceL1

def fps(data, number):
    idx = pointnet2_utils.furthest_point_sample(data, number)
    data = pointnet2_utils.gather_operation(data.transpose(1, 2).contiguous(), idx)
    return data.transpose(1, 2).contiguous()

class Group(nn.Module):
    def __init__(self, num_group, group_size):
        super().__init__()
        self.num_group, self.group_size = num_group, group_size
        self.knn = KNN(k=self.group_size, transpose_mode=True)

    def forward(self, xyz):
        b, n, _ = xyz.shape
        center = fps(xyz, self.num_group)
        _, idx = self.knn(xyz, center)
        idx = idx + torch.arange(b).view(-1, 1, 1) * n
        patches = xyz.reshape(b * n, -1)[idx.view(-1), :].view(b, self.num_group, self.group_size, 3)
        return patches - center.unsqueeze(2), center

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.SA_modules = nn.ModuleList([
            PointnetSAModuleMSG(npoint=16, radii=[0.4, 0.8], nsamples=[8, 16], mlps=[[4, 8], [4, 8, 12]]),
            PointnetSAModule(npoint=4, radius=0.9, nsample=8, mlp=[20, 16], use_xyz=True),
            PointnetSAModule(mlp=[16, 24], bn=False),
        ])
        self.FP_module = PointnetFPModule(mlp=[20 + 4, 10])

    def forward(self, xyz, features):
        xyz1, f1 = self.SA_modules[0](xyz, features)
        xyz2, f2 = self.SA_modules[1](xyz1, f1)
        _, whole = self.SA_modules[2](xyz2, f2)
        return whole.squeeze(-1), self.FP_module(xyz, xyz1, features, f1)

def three(unknown, known, features):
    dist, idx = utils.ThreeNN.apply(unknown, known)
    weight = 1.0 / (dist + 1e-8)
    weight = weight / torch.sum(weight, dim=2, keepdim=True)
    return utils.ThreeInterpolate.apply(features, idx, weight)
"""


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """A repository of the field on the path, as it is when its own scripts run in it."""
    package = tmp_path / "extensions" / "chamfer_dist"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CHAMFER_DIST)
    (tmp_path / "field_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("field_model", "extensions", "extensions.chamfer_dist"):
        sys.modules.pop(name, None)
