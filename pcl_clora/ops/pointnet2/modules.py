"""The module `pointnet2_ops.pointnet2_modules`: set abstraction and feature propagation of PointNet++.

Names of parameters are those of the original, so that its checkpoints load. Source: Qi et al., PointNet++,
NeurIPS 2017, sections 3.2 to 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.ops.pointnet2 import utils

__all__ = ["PointnetFPModule", "PointnetSAModule", "PointnetSAModuleMSG", "build_shared_mlp"]


def build_shared_mlp(mlp_spec: Sequence[int], bn: bool = True) -> nn.Sequential:
    """Stack 1x1 convolutions, each followed by batch normalisation, if wanted, and ReLU.

    Args:
        mlp_spec: widths, that of the input first.
        bn: whether to normalise; convolutions have a bias only without it.

    Returns:
        A network from (B, mlp_spec[0], H, W) to (B, mlp_spec[-1], H, W).
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(mlp_spec):
        layers.append(nn.Conv2d(width_in, width_out, kernel_size=1, bias=not bn))
        if bn:
            layers.append(nn.BatchNorm2d(width_out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class PointnetSAModuleMSG(nn.Module):
    """Set abstraction with groups of several sizes: sample, group, an MLP and the maximum of each group.

    Args:
        npoint: how many centres; None makes one group of all points.
        radii: of the balls, one per size.
        nsamples: points in a group, one per size.
        mlps: widths of the MLP of every size, without the three coordinates.
        bn: whether the MLPs normalise.
        use_xyz: whether relative coordinates stand before the features.
        sample_uniformly: as in `QueryAndGroup`.
    """

    def __init__(
        self,
        npoint: int | None,
        radii: Sequence[float | None],
        nsamples: Sequence[int | None],
        mlps: Sequence[Sequence[int]],
        bn: bool = True,
        use_xyz: bool = True,
        sample_uniformly: bool = False,
    ) -> None:
        super().__init__()
        if not len(radii) == len(nsamples) == len(mlps):
            raise utils.AssertedError(
                f"{len(radii)} radii, {len(nsamples)} nsamples, {len(mlps)} mlps; pass one of each per size."
            )
        self.npoint = npoint
        self.groupers, self.mlps = nn.ModuleList(), nn.ModuleList()
        for radius, nsample, mlp in zip(radii, nsamples, mlps, strict=True):
            if npoint is None:
                self.groupers.append(utils.GroupAll(use_xyz))
            elif radius is None or nsample is None:
                raise UserValueError(
                    f"radius={radius} and nsample={nsample}; with npoint={npoint} pass both."
                )
            else:
                grouper = utils.QueryAndGroup(
                    radius, nsample, use_xyz=use_xyz, sample_uniformly=sample_uniformly
                )
                self.groupers.append(grouper)
            first = mlp[0] + 3 if use_xyz else mlp[0]
            self.mlps.append(build_shared_mlp([first, *mlp[1:]], bn))

    def forward(self, xyz: Tensor, features: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Describe the neighbourhoods of centres.

        Args:
            xyz: (B, N, 3).
            features: (B, C, N), or None.

        Returns:
            The centres (B, npoint, 3), None for one group of all, and (B, sum of last widths, npoint or 1).
        """
        new_xyz = None
        if self.npoint is not None:
            chosen = utils.furthest_point_sample(xyz, self.npoint)
            new_xyz = utils.gather_operation(xyz.transpose(1, 2), chosen).transpose(1, 2).contiguous()
        described = [
            mlp(grouper(xyz, new_xyz, features)).max(-1).values
            for grouper, mlp in zip(self.groupers, self.mlps, strict=True)
        ]
        return new_xyz, torch.cat(described, 1)


class PointnetSAModule(PointnetSAModuleMSG):
    """Set abstraction with groups of one size.

    Args:
        mlp: widths, without the three coordinates.
        npoint: how many centres; None makes one group of all points.
        radius: of the ball.
        nsample: points in a group.
        bn: whether the MLP normalises.
        use_xyz: whether relative coordinates stand before the features.
    """

    def __init__(
        self,
        mlp: Sequence[int],
        npoint: int | None = None,
        radius: float | None = None,
        nsample: int | None = None,
        bn: bool = True,
        use_xyz: bool = True,
    ) -> None:
        super().__init__(npoint, [radius], [nsample], [mlp], bn=bn, use_xyz=use_xyz)


class PointnetFPModule(nn.Module):
    """Feature propagation: features of few points, interpolated to many, and an MLP.

    Args:
        mlp: widths; the first is that of both features together.
        bn: whether the MLP normalises.
    """

    def __init__(self, mlp: Sequence[int], bn: bool = True) -> None:
        super().__init__()
        self.mlp = build_shared_mlp(mlp, bn=bn)

    def forward(
        self, unknown: Tensor, known: Tensor | None, unknow_feats: Tensor | None, known_feats: Tensor
    ) -> Tensor:
        """Carry features to the unknown points.

        Args:
            unknown: (B, n, 3).
            known: (B, m, 3); None where known_feats (B, C2, 1) hold for all points.
            unknow_feats: (B, C1, n), or None.
            known_feats: (B, C2, m).

        Returns:
            (B, mlp[-1], n).
        """
        if known is None:
            carried = known_feats.expand(-1, -1, unknown.shape[1])
        else:
            dist, idx = utils.three_nn(unknown, known)
            closeness = 1.0 / (dist + 1e-8)
            weight = closeness / closeness.sum(2, keepdim=True)
            carried = utils.three_interpolate(known_feats, idx, weight)
        joined = carried if unknow_feats is None else torch.cat([carried, unknow_feats], 1)
        described: Tensor = self.mlp(joined.unsqueeze(-1))
        return described.squeeze(-1)
