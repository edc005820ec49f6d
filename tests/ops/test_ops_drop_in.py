"""Published code runs as it is: what `install()` serves, against naive answers in float64."""

import importlib
import sys

import numpy as np
import pytest
import torch

from pcl_clora import ops
from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.ops import pointnet2
from tests.support import fake_pointnet2
from tests.support.third_party import third_party  # noqa: F401  (a fixture)

PACKAGES = ("pointnet2_ops", "knn_cuda", "chamfer")


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pairwise(a, b):
    """(B, M, C) and (B, N, C) -> (B, M, N), squared, float64."""
    return (a.double().unsqueeze(2) - b.double().unsqueeze(1)).square().sum(-1)


@pytest.fixture
def served():
    with pointnet2.install() as stand_ins:
        yield stand_ins


@pytest.fixture
def model(third_party, served):  # noqa: F811
    return importlib.import_module("field_model")


# Unedited code


def test_patches_of_unedited_code_are_those_of_naive_search(model):
    xyz = rand(2, 200, 3) + 1
    patches, center = model.Group(16, 8)(xyz)
    nearest = pairwise(center, xyz).sort(dim=2, stable=True).indices[..., :8]
    clouds = torch.arange(2)[:, None, None]
    assert torch.equal(patches, xyz[clouds, nearest] - center.unsqueeze(2))
    assert torch.equal(center, ops.gather_points(xyz, ops.farthest_point_sample(xyz, 16, compat="pointnet2")))


def test_an_unedited_network_trains_and_names_its_parameters_as_published(model):
    net = model.Net()
    names = set(net.state_dict())
    assert {"SA_modules.0.mlps.1.3.weight", "SA_modules.1.mlps.0.1.running_mean"} <= names
    assert {"SA_modules.2.mlps.0.0.bias", "FP_module.mlp.0.weight"} <= names
    assert net.state_dict()["SA_modules.0.mlps.0.0.weight"].shape == (8, 7, 1, 1)
    whole, points = net(rand(2, 64, 3), rand(2, 4, 64))
    assert whole.shape == (2, 24)
    assert points.shape == (2, 10, 64)
    (whole.sum() + points.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_set_abstraction_is_the_maximum_over_naive_balls(served):
    module = pointnet2.PointnetSAModule(mlp=[2, 5], npoint=7, radius=0.5, nsample=6).eval()
    xyz, features = rand(2, 40, 3) + 1, rand(2, 2, 40, seed=1)
    new_xyz, found = module(xyz, features)
    inside = pairwise(new_xyz, xyz) < 0.25
    for cloud in range(2):
        for center in range(7):
            idx = inside[cloud, center].nonzero().view(-1)[:6]
            relative = (xyz[cloud, idx] - new_xyz[cloud, center]).t()
            rows = torch.cat([relative, features[cloud][:, idx]])[None, :, None]
            expected = module.mlps[0](rows).amax((2, 3))[0]
            torch.testing.assert_close(found[cloud, :, center], expected)


def test_features_are_propagated_by_inverse_distances(model):
    unknown, known, features = rand(2, 30, 3), rand(2, 9, 3, seed=1), rand(2, 5, 9, seed=2).requires_grad_()
    found = model.three(unknown, known, features)
    dist, idx = pairwise(unknown, known).sqrt().topk(3, largest=False)
    weight = 1 / (dist + 1e-8)
    weight = weight / weight.sum(2, keepdim=True)
    clouds = torch.arange(2)[:, None, None]
    expected = (features.double().transpose(1, 2)[clouds, idx] * weight.unsqueeze(3)).sum(2).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)  # three products in float32
    found.sum().backward()
    assert features.grad.shape == features.shape


def test_one_feature_for_all_points_is_propagated_without_known_points():
    module = pointnet2.PointnetFPModule(mlp=[3, 4], bn=False)
    found = module(rand(2, 6, 3), None, None, rand(2, 3, 1))
    assert torch.equal(found, found[..., :1].expand(-1, -1, 6))


def test_the_copied_chamfer_module_has_the_loss_and_gradient_of_naive_distances(model):
    first, second = rand(2, 30, 3).requires_grad_(), rand(2, 20, 3, seed=1).requires_grad_()
    loss = model.ChamferDistanceL1()(first, second)
    loss.backward()
    a, b = (cloud.detach().double().requires_grad_() for cloud in (first, second))
    dist2 = pairwise(a, b)
    expected = (dist2.amin(2).sqrt().mean() + dist2.amin(1).sqrt().mean()) / 2
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(first.grad.double(), a.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(second.grad.double(), b.grad, rtol=1e-4, atol=1e-7)


def test_the_extension_chamfer_gives_int32_indices(served):
    import chamfer

    dist1, dist2, idx1, idx2 = chamfer.forward(rand(1, 5, 3).requires_grad_(), rand(1, 4, 3))
    assert (idx1.dtype, idx2.dtype) == (torch.int32, torch.int32)
    assert not dist1.requires_grad
    assert dist2.shape == (1, 4)


# What is served, and what is left alone


def test_a_package_brings_its_modules(served):
    import knn_cuda
    import pointnet2_ops

    assert served.names == ("chamfer", "knn_cuda", "pointnet2_ops")
    assert pointnet2_ops.pointnet2_utils.FurthestPointSampling.apply(rand(1, 9, 3), 3).dtype == torch.int32
    assert pointnet2_ops.pointnet2_modules.PointnetSAModule is pointnet2.PointnetSAModule
    assert (pointnet2_ops.__version__, knn_cuda.__version__) == ("3.0.0", "0.2")


def test_what_is_not_there_is_a_module_not_found(served):
    for name in ("pointnet2_ops._ext", "chamfer.x"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_served_before_and_after(package):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(package)
    with pointnet2.install():
        importlib.import_module(package)
        with pointnet2.install():
            importlib.import_module(package)
        importlib.import_module(package)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(package)


def test_installing_holds_until_it_is_removed():
    stand_ins = pointnet2.install()
    import knn_cuda

    stand_ins.remove()
    stand_ins.remove()
    assert knn_cuda.KNN is pointnet2.KNN
    assert "knn_cuda" not in sys.modules


def test_the_order_in_which_two_are_removed_does_not_matter():
    first = pointnet2.install()
    importlib.import_module("knn_cuda")
    second = pointnet2.install()
    first.remove()
    assert importlib.import_module("knn_cuda").KNN is pointnet2.KNN
    second.remove()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("knn_cuda")


def test_a_package_that_is_kept_from_being_imported_is_served(monkeypatch):
    monkeypatch.setitem(sys.modules, "knn_cuda", None)
    with pointnet2.install():
        assert importlib.import_module("knn_cuda").KNN is pointnet2.KNN
    assert sys.modules["knn_cuda"] is None


def test_an_installed_package_is_left_alone_unless_asked(tmp_path, monkeypatch, caplog):
    (tmp_path / "knn_cuda.py").write_text("KNN = 'theirs'")
    (tmp_path / "chamfer").mkdir()  # a folder of data is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    with pointnet2.install() as stand_ins:
        assert stand_ins.left == ("knn_cuda",)
        assert stand_ins.names == ("chamfer", "pointnet2_ops")
        assert importlib.import_module("knn_cuda").KNN == "theirs"
        assert importlib.import_module("chamfer").forward
    assert "knn_cuda: installed, so not served; pass shadow=True" in caplog.text
    theirs = sys.modules["knn_cuda"]
    with pointnet2.install(shadow=True) as stand_ins:
        assert importlib.import_module("knn_cuda").KNN is pointnet2.KNN
        assert stand_ins.left == ()
    assert importlib.import_module("knn_cuda") is theirs
    sys.modules.pop("knn_cuda"), sys.modules.pop("chamfer", None)


def test_the_backend_pointnet2_is_not_made_of_what_is_served(served):
    with pytest.raises(
        ImportError, match=r"install\(\) serves our own kernels .*; remove\(\) what it serves"
    ):
        ops.use_backend("pointnet2")


def test_packages_that_are_there_serve_the_backend(monkeypatch):
    with fake_pointnet2.installed(monkeypatch), pointnet2.install() as stand_ins:
        assert stand_ins.left == ("knn_cuda", "pointnet2_ops")
        with ops.use_backend("pointnet2"):
            assert ops.farthest_point_sample(rand(1, 9, 3), 3, compat="pointnet2").shape == (1, 3)


# knn_cuda


@pytest.mark.parametrize("transpose_mode", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 17, 64])
def test_neighbours_in_feature_space(channels, transpose_mode):
    ref, query = torch.randn(2, 300, channels), torch.randn(2, 70, channels)
    arguments = (ref, query) if transpose_mode else (ref.transpose(1, 2), query.transpose(1, 2))
    dist, idx = pointnet2.KNN(9, transpose_mode=transpose_mode)(*arguments)
    if not transpose_mode:
        assert dist.is_contiguous()
        dist, idx = dist.transpose(1, 2), idx.transpose(1, 2)
    expected, order = pairwise(query, ref).sqrt().sort(dim=2, stable=True)
    torch.testing.assert_close(dist.double(), expected[..., :9], rtol=1e-5, atol=1e-6)
    assert (idx == order[..., :9]).float().mean() > 0.999  # float32 may swap neighbours that nearly tie
    assert idx.dtype == torch.int64


@pytest.mark.parametrize("channels", [2, 5])
def test_ties_in_feature_space_go_to_the_lowest_index(channels):
    ref = torch.randint(0, 2, (2, 500, channels), generator=torch.Generator().manual_seed(0))
    query = ref[:, :40]
    dist, idx = pointnet2.KNN(30, transpose_mode=True)(ref, query)  # integers, as floats
    expected, order = pairwise(query, ref).sort(dim=2, stable=True)
    assert torch.equal(idx, order[..., :30])
    torch.testing.assert_close(dist.double().square(), expected[..., :30], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.float64])
def test_any_real_dtype_is_computed_in_float32(dtype):
    ref, query = (100 * rand(1, 50, 6)).to(dtype), (100 * rand(1, 8, 6, seed=1)).to(dtype)
    dist, idx = pointnet2.KNN(4, True)(ref, query)
    expected = pointnet2.KNN(4, True)(ref.float(), query.float())
    assert dist.dtype == torch.float32
    assert torch.equal(dist, expected[0])
    assert torch.equal(idx, expected[1])


def test_the_function_knn_takes_one_cloud_channels_first():
    ref, query = rand(7, 60), rand(7, 11, seed=1)
    dist, idx = pointnet2.knn(ref, query, 5)
    expected, order = pairwise(query.t()[None], ref.t()[None])[0].sqrt().sort(dim=1, stable=True)
    torch.testing.assert_close(dist.t().double(), expected[:, :5], rtol=1e-5, atol=1e-6)
    assert torch.equal(idx.t(), order[:, :5])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_distances():
    from torch.profiler import ProfilerActivity, profile

    ref = rand(1, 20_000, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        pointnet2.KNN(3, True)(ref, ref[:, :500])
    largest = max(event.cpu_memory_usage for event in profiled.events())
    assert largest < 16 * 2**20  # the distances alone are 38 MiB


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pointnet2.KNN(3, True)(rand(1, 9, 4), rand(1, 9, 5)), "ref has 4 channels and query 5"),
        (lambda: pointnet2.KNN(3, True)(rand(1, 9, 4), rand(2, 9, 4)), "ref holds 1 clouds and query 2"),
        (lambda: pointnet2.KNN(10, True)(rand(1, 9, 4), rand(1, 9, 4)), r"k=10 .* \(9 points\)"),
        (lambda: pointnet2.KNN(3, True)(rand(9, 4), rand(1, 9, 4)), r"ref has shape \(9, 4\)"),
        (lambda: pointnet2.knn(rand(1, 9, 4), rand(9, 4), 1), r"ref has shape \(1, 9, 4\); knn takes one"),
        (
            lambda: pointnet2.KNN(1, True)(rand(1, 9, 4) * torch.nan, rand(1, 9, 4)),
            r"points\[0, 0, 0\] is nan",
        ),
        (lambda: pointnet2.KNN(1)(np.zeros((1, 3, 9)), rand(1, 3, 9)), "ref is a ndarray; pass a tensor"),
        (lambda: pointnet2.KNN(1.5)(rand(1, 3, 9), rand(1, 3, 9)), "k=1.5 is a float; pass a whole number"),
    ],
)
def test_impossible_searches_are_refused_by_name(call, message):
    with pytest.raises((UserValueError, UserTypeError), match=message):
        call()


# pointnet2_utils


@pytest.mark.parametrize("name", ["ball_query", "BallQuery"])
@pytest.mark.parametrize(
    "radius",
    [
        0.3,
        torch.tensor(0.3),
        torch.tensor([0.3], dtype=torch.float64),
        np.float32(0.3),
        np.float64(0.3),
        np.array(0.3),
        np.array([0.3]),
    ],
    ids=repr,
)
def test_a_radius_may_be_a_number_a_tensor_or_an_array(name, radius):
    xyz, new_xyz = rand(2, 60, 3), rand(2, 9, 3, seed=1)
    call = pointnet2.ball_query if name == "ball_query" else pointnet2.BallQuery.apply
    assert torch.equal(call(radius, 5, xyz, new_xyz), call(0.3, 5, xyz, new_xyz))
    assert pointnet2.QueryAndGroup(radius, 5)(xyz, new_xyz).shape == (2, 3, 9, 5)


@pytest.mark.parametrize("radius", [0, 0.0, torch.tensor(0.0), np.zeros(1)], ids=repr)
def test_within_a_radius_of_zero_there_is_no_point(radius):
    xyz = rand(2, 60, 3) + 1
    found = pointnet2.ball_query(radius, 5, xyz, xyz[:, 3:6])
    assert torch.equal(found, torch.zeros(2, 3, 5, dtype=torch.int32))


def test_within_an_infinite_radius_are_the_first_points():
    found = pointnet2.ball_query(float("inf"), 4, rand(2, 60, 3), rand(2, 3, 3))
    assert torch.equal(found, torch.arange(4, dtype=torch.int32).expand(2, 3, 4))


@pytest.mark.parametrize(
    ("radius", "message"),
    [
        (-0.1, "radius=-0.1 is neither positive nor 0"),
        (float("nan"), "radius=nan is neither positive nor 0"),
        (torch.ones(2), r"radius=tensor\(\[1., 1.\]\) is not one number"),
        (np.ones(2), r"radius=array\(\[1., 1.\]\) is not one number"),
        ("0.1", "radius is a str; pass a number"),
        (None, "radius is a NoneType; pass a number"),
    ],
)
def test_a_radius_that_is_none_is_refused(radius, message):
    with pytest.raises((UserValueError, UserTypeError), match=message):
        pointnet2.ball_query(radius, 4, rand(1, 9, 3), rand(1, 9, 3))


def test_no_points_are_chosen_where_none_are_asked_for():
    xyz = rand(2, 9, 3)
    idx = pointnet2.furthest_point_sample(xyz, 0)
    assert (idx.shape, idx.dtype) == ((2, 0), torch.int32)
    new_xyz = pointnet2.gather_operation(xyz.transpose(1, 2), idx).transpose(1, 2)
    assert new_xyz.shape == (2, 0, 3)
    grouped = pointnet2.QueryAndGroup(0.3, 4)(xyz, new_xyz, rand(2, 5, 9))
    assert grouped.shape == (2, 8, 0, 4)


@pytest.mark.parametrize("number", [np.int64(3), torch.tensor(3)], ids=repr)
def test_counts_may_come_from_numpy_and_torch(number):
    xyz = rand(2, 9, 3)
    assert torch.equal(pointnet2.furthest_point_sample(xyz, number), pointnet2.furthest_point_sample(xyz, 3))
    assert pointnet2.ball_query(0.2, number, xyz, xyz).shape == (2, 9, 3)
    assert pointnet2.KNN(number, True)(xyz, xyz)[0].shape == (2, 9, 3)


@pytest.mark.parametrize("cls", ["FurthestPointSampling", "GatherOperation", "ThreeNN", "GroupingOperation"])
def test_the_function_classes_are_called_by_apply(cls):
    xyz, features, idx = (
        rand(2, 9, 3),
        rand(2, 4, 9).requires_grad_(),
        torch.zeros(2, 5, 2, dtype=torch.int32),
    )
    arguments = {
        "FurthestPointSampling": (pointnet2.furthest_point_sample, (xyz, 4)),
        "GatherOperation": (pointnet2.gather_operation, (features, idx[..., 0])),
        "ThreeNN": (pointnet2.three_nn, (xyz, xyz)),
        "GroupingOperation": (pointnet2.grouping_operation, (features, idx)),
    }
    function, given = arguments[cls]
    for found, expected in zip(getattr(pointnet2, cls).apply(*given), function(*given), strict=True):
        assert torch.equal(found, expected)


# The arguments of votenet


def test_relative_coordinates_are_returned_and_normalised_on_request():
    xyz, new_xyz, features = rand(2, 40, 3), rand(2, 6, 3, seed=1), rand(2, 4, 40, seed=2)
    plain = pointnet2.QueryAndGroup(0.5, 8)(xyz, new_xyz, features)
    group = pointnet2.QueryAndGroup(0.5, 8, use_xyz=True, ret_grouped_xyz=True, normalize_xyz=True)
    found, relative = group(xyz, new_xyz, features)
    torch.testing.assert_close(relative, plain[:, :3] / 0.5)
    assert torch.equal(found, torch.cat([relative, plain[:, 3:]], 1))
    without, relative = pointnet2.QueryAndGroup(0.5, 8, use_xyz=False, ret_grouped_xyz=True)(
        xyz, new_xyz, features
    )
    assert torch.equal(without, plain[:, 3:])
    assert torch.equal(relative, plain[:, :3])


def test_group_all_returns_coordinates_on_request():
    xyz, features = rand(2, 5, 3), rand(2, 4, 5)
    grouped, coordinates = pointnet2.GroupAll(False, ret_grouped_xyz=True)(xyz, None, features)
    assert torch.equal(grouped, features.unsqueeze(2))
    assert torch.equal(coordinates, xyz.transpose(1, 2).unsqueeze(2))


def test_balls_are_filled_with_random_points_of_the_ball_and_counted():
    xyz, new_xyz = rand(2, 60, 3), rand(2, 9, 3, seed=1)
    group = pointnet2.QueryAndGroup(
        0.4,
        16,
        sample_uniformly=True,
        ret_unique_cnt=True,
        generator=torch.Generator().manual_seed(3),
    )
    grouped, counts = group(xyz, new_xyz)
    inside = (pairwise(new_xyz, xyz) < 0.16).sum(2)
    assert torch.equal(counts, inside.clamp(1, 16).float())
    first = pointnet2.ball_query(0.4, 16, xyz, new_xyz)
    for cloud in range(2):
        for ball in range(9):
            in_ball = xyz[cloud, first[cloud, ball].unique().long()] - new_xyz[cloud, ball]
            found = grouped[cloud, :, ball].t()
            count = len(in_ball)
            assert torch.equal(found[:count], in_ball)
            assert all((row == in_ball).all(1).any() for row in found[count:])


def test_random_points_follow_the_seed_as_in_votenet():
    xyz, new_xyz = rand(1, 60, 3), rand(1, 2, 3, seed=1)
    group = pointnet2.QueryAndGroup(0.5, 32, sample_uniformly=True)
    torch.manual_seed(5)
    found = group(xyz, new_xyz)
    torch.manual_seed(5)
    for ball, idx in enumerate(pointnet2.ball_query(0.5, 32, xyz, new_xyz)[0]):
        inside = torch.unique(idx)
        drawn = torch.randint(0, len(inside), (32 - len(inside),), dtype=torch.long)
        expected = xyz[0, torch.cat([inside, inside[drawn]]).long()] - new_xyz[0, ball]
        assert torch.equal(found[0, :, ball].t(), expected)


def test_counting_without_uniform_sampling_is_refused():
    with pytest.raises(AssertionError, match="ret_unique_cnt=True counts what is sampled"):
        pointnet2.QueryAndGroup(0.5, 8, ret_unique_cnt=True)


@pytest.mark.slow
def test_published_calls_compile_into_one_graph():
    def calls(xyz, features):
        idx = pointnet2.furthest_point_sample(xyz, 8)
        center = pointnet2.gather_operation(xyz.transpose(1, 2), idx).transpose(1, 2).contiguous()
        grouped = pointnet2.QueryAndGroup(0.4, 8)(xyz, center, features)
        near = pointnet2.KNN(4, True)(xyz, center)
        alike = pointnet2.KNN(4)(features, features)
        return grouped, *near, *alike, *pointnet2.ThreeNN.apply(xyz, center)

    arguments = rand(2, 60, 3) + 1, rand(2, 6, 60, seed=1)
    compiled = torch.compile(calls, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(*arguments), calls(*arguments), strict=True):
        assert torch.equal(found, expected)
