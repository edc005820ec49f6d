"""The functions of pointnet2_ops, KNN_CUDA and chamfer under their names, on our kernels, CPU included.

Published code runs as it is after one call, or by changing its imports:

    from pcl_clora.ops import pointnet2
    pointnet2.install()                       # import pointnet2_ops, knn_cuda and chamfer now work

    from pcl_clora.ops import pointnet2 as pointnet2_utils    # was: from pointnet2_ops import pointnet2_utils
    from pcl_clora.ops.pointnet2 import KNN                   # was: from knn_cuda import KNN

Names, signatures, layouts (channels first), dtypes (int32 indices; KNN int64) and gradients are theirs, and
so is the rule of their farthest point sampling. docs/ops.md lists what differs. New code should use
`pcl_clora.ops`.
"""

from pcl_clora.ops import _served
from pcl_clora.ops.pointnet2 import chamfer as _chamfer
from pcl_clora.ops.pointnet2 import modules as _modules
from pcl_clora.ops.pointnet2 import neighbors as _neighbors
from pcl_clora.ops.pointnet2 import utils as _utils
from pcl_clora.ops.pointnet2.modules import (
    PointnetFPModule,
    PointnetSAModule,
    PointnetSAModuleMSG,
    build_shared_mlp,
)
from pcl_clora.ops.pointnet2.neighbors import KNN, knn
from pcl_clora.ops.pointnet2.utils import (
    BallQuery,
    FurthestPointSampling,
    GatherOperation,
    GroupAll,
    GroupingOperation,
    QueryAndGroup,
    ThreeInterpolate,
    ThreeNN,
    ball_query,
    furthest_point_sample,
    gather_operation,
    grouping_operation,
    three_interpolate,
    three_nn,
)

__all__ = [
    "KNN",
    "BallQuery",
    "FurthestPointSampling",
    "GatherOperation",
    "GroupAll",
    "GroupingOperation",
    "PointnetFPModule",
    "PointnetSAModule",
    "PointnetSAModuleMSG",
    "QueryAndGroup",
    "ThreeInterpolate",
    "ThreeNN",
    "ball_query",
    "build_shared_mlp",
    "furthest_point_sample",
    "gather_operation",
    "grouping_operation",
    "install",
    "knn",
    "three_interpolate",
    "three_nn",
]


def install(*, shadow: bool = False) -> _served.Served:
    """Serve `import pointnet2_ops`, `import knn_cuda` and `import chamfer` to code that was not edited.

    As a function, `install()` holds until the process ends or `remove()` of what it returns is called; as a
    context manager, `with install():`, what the names meant before returns at the end of the block. Call it
    before the imports that need it. `pointnet2_ops` has its modules `pointnet2_utils` and
    `pointnet2_modules`; `chamfer` is the extension that the copied `extensions.chamfer_dist` imports.

    Args:
        shadow: True to serve a package even where a real one of that name is installed, for example one that
            cannot run without a GPU. False leaves it alone, and says so.

    Returns:
        A context manager with `names`, the packages that are served, `left`, those that are installed, and
        `remove()`.
    """
    contents: dict[str, dict[str, object]] = {
        "pointnet2_ops": {"__version__": "3.0.0"},
        "knn_cuda": {"__version__": "0.2"},
        "chamfer": {},
    }
    for name, source in (
        ("pointnet2_ops.pointnet2_utils", _utils),
        ("pointnet2_ops.pointnet2_modules", _modules),
        ("knn_cuda", _neighbors),
        ("chamfer", _chamfer),
    ):
        held = contents.setdefault(name, {})
        held.update({public: getattr(source, public) for public in source.__all__})
    return _served.Served(contents, shadow=shadow)
