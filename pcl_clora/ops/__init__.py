"""Geometry of point clouds: sampling, neighbours, patches, interpolation, chamfer distance.

Every function takes (B, N, 3) points in float32 or float64 on any device and means the same everywhere: ties
go to the lowest index, indices are int64, distances are squared. The functions are PyTorch ops
(`torch.ops.pcl_clora`) with gradients, so they compile, export and count FLOPs. `use_backend()` chooses what
implements them, `report()` says what does. Code written for pointnet2_ops or KNN_CUDA finds their functions
in `pcl_clora.ops.pointnet2`.
"""

from pcl_clora.ops._backends import report, use_backend
from pcl_clora.ops._native import describe_native
from pcl_clora.ops._values import check_values
from pcl_clora.ops.grouping import PointGroups, group_points
from pcl_clora.ops.interpolation import three_interpolate
from pcl_clora.ops.neighbors import KNN, Chamfer, ball_query, chamfer_distance, knn, three_nn
from pcl_clora.ops.sampling import Compat, farthest_point_sample, gather_points

__all__ = [
    "KNN",
    "Chamfer",
    "Compat",
    "PointGroups",
    "ball_query",
    "chamfer_distance",
    "check_values",
    "describe_native",
    "farthest_point_sample",
    "gather_points",
    "group_points",
    "knn",
    "report",
    "three_interpolate",
    "three_nn",
    "use_backend",
]
