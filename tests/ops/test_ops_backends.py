"""Backends are chosen openly: by name, for a while or for good, and what cannot be had is refused."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch

import pcl_clora
from pcl_clora import ops
from pcl_clora.ops import _backends, _native, _values, reference
from pcl_clora.ops._library import NAMESPACE, SCHEMAS
from tests.support import fake_pointnet2
from tests.support.ops_backends import NATIVE, POINTNET2
from tests.support.ops_cases import make_case
from tests.support.ops_oracles import make_cloud

P = make_cloud("random", 2, 12)


def lowest_last(points, queries, k, lengths=None):
    """A kernel that breaks ties the wrong way round."""
    dist2, idx = reference.knn(points.flip(1), queries, k)
    return dist2, points.shape[1] - 1 - idx


@pytest.fixture
def wrong_ties():
    _backends._register_for_tests("wrong_ties", {"knn": lowest_last})
    yield
    del _backends._BACKENDS["wrong_ties"]


@pytest.fixture
def without_native(monkeypatch):
    """The library as it is where pcl-clora-ops is not installed."""
    monkeypatch.setattr(
        _native, "problem", lambda: f"the package pcl-clora-ops is not installed; {_native.REMEDY}"
    )


def test_report_names_what_serves_every_op(backend):
    if backend is POINTNET2:
        served = {op: "pointnet2" for op in SCHEMAS if "backward" not in op and op != "chamfer_distance"}
    else:
        served = dict.fromkeys(SCHEMAS, backend.name)
    found = ops.report(backend.device)
    assert {op: found[op] for op in served} == served


def test_a_context_restores_what_was_in_use_before():
    before = ops.report()
    with ops.use_backend("reference"):
        with ops.use_backend("auto"):
            assert ops.report() == before
        assert set(ops.report().values()) == {"reference"}
    assert ops.report() == before


def test_an_error_inside_a_context_restores_too():
    before = ops.report()
    with pytest.raises(ZeroDivisionError), ops.use_backend("reference"):
        raise ZeroDivisionError
    assert ops.report() == before


def test_the_matrix_would_notice_ties_broken_the_other_way(wrong_ties):
    case = make_case("nearest", make_cloud("lattice", 2, 30), make_cloud("lattice", 2, 5, 1))
    with ops.use_backend("wrong_ties"):
        found = case.function(*case.arguments, **case.named)
    assert torch.equal(found.dist2, case.expected[0])
    assert not torch.equal(found.idx, case.expected[1])


def test_a_function_call_holds_until_the_next(wrong_ties):
    ops.use_backend("wrong_ties")
    try:
        assert ops.report()["knn"] == "wrong_ties"
        assert ops.report()["chamfer_distance"] in ("native", "reference")
        assert ops.report("cuda")["knn"] in ("native", "reference")
    finally:
        ops.use_backend("auto")
    assert ops.report()["knn"] in ("native", "reference")


def test_threads_may_choose_at_the_same_time():
    def choose_often(name):
        for _ in range(20):
            with ops.use_backend(name):
                pass

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(choose_often, ["reference", "auto"] * 2))
    finally:
        ops.use_backend("auto")
    points = make_cloud("random", 1, 30)
    expected = reference.farthest_point_sample(points, 5)
    assert torch.equal(ops.farthest_point_sample(points, 5), expected)


def test_an_unknown_name_is_refused_with_the_known_ones():
    before = ops.report()
    with pytest.raises(
        ValueError, match="backend 'cuda' is not known; pass one of 'auto', 'reference', 'native'"
    ):
        ops.use_backend("cuda")
    assert ops.report() == before


def test_native_where_it_is_not_installed_is_refused_with_the_remedy(without_native):
    with pytest.raises(ImportError, match=r"backend 'native' is not available: .* pip install \./extensions"):
        ops.use_backend("native")


def test_pointnet2_where_it_is_not_installed_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pointnet2_ops", None)
    before = ops.report()
    with pytest.raises(
        ImportError, match=r"needs the packages pointnet2_ops and knn_cuda.*pcl_clora\.ops\.pointnet2"
    ):
        ops.use_backend("pointnet2")
    assert ops.report() == before


def fake_build(monkeypatch, **build):
    package = ModuleType("pcl_clora_ops")
    package.BUILD, package.LIBRARY = {"version": pcl_clora.__version__, **build}, "/nowhere/none.so"
    monkeypatch.setitem(sys.modules, "pcl_clora_ops", package)
    return _native.problem.__wrapped__()


def test_a_build_for_another_release_is_not_loaded(monkeypatch, caplog):
    problem = fake_build(monkeypatch, version="99.1.0")
    assert "pcl-clora-ops 99.1.0 was built for another release" in problem
    assert "pip install ./extensions" in caplog.text


def test_a_build_that_cannot_be_loaded_is_a_warning_with_the_remedy(monkeypatch, caplog):
    problem = fake_build(monkeypatch)
    assert "/nowhere/none.so cannot be loaded" in problem
    assert "pip install ./extensions" in caplog.text


def test_native_without_kernels_for_a_device_refuses_that_device(monkeypatch):
    monkeypatch.setattr(_native, "problem", lambda: None)
    monkeypatch.setattr(_backends, "_compiled", {("knn", "CUDA")})
    with ops.use_backend("native"):
        assert set(ops.report().values()) == {"missing"}
        with pytest.raises(
            ValueError, match=r"'native' was built without kernels for CPU.*use_backend\('auto'\)"
        ):
            ops.knn(P, P, 1)


def test_the_environment_gives_the_first_choice(monkeypatch):
    monkeypatch.setenv("PCL_CLORA_OPS", "reference")
    _backends._start()
    try:
        assert set(ops.report().values()) == {"reference"}
    finally:
        ops.use_backend("auto")


@pytest.mark.parametrize(
    ("name", "error"),
    [("no", "backend 'no' is not known"), ("pointnet2", "backend 'pointnet2' needs the packages")],
)
def test_a_wrong_choice_of_the_environment_is_named(monkeypatch, name, error):
    monkeypatch.setitem(sys.modules, "pointnet2_ops", None)
    monkeypatch.setenv("PCL_CLORA_OPS", name)
    with pytest.raises((ValueError, ImportError), match=f"^PCL_CLORA_OPS={name}: {error}"):
        _backends._start()


def test_native_is_described_by_version_and_instruction_set():
    with NATIVE.in_use():
        described = ops.describe_native()
    assert described["version"] == pcl_clora.__version__
    assert described["isa"]


def test_nothing_is_described_where_native_is_missing(without_native):
    assert ops.describe_native() is None


# The packages pointnet2_ops and knn_cuda: what they cannot do is refused by name. They are stand-ins here.

REFUSED = {
    "rule": (lambda: ops.farthest_point_sample(P, 3), r"by its own rule only: pass compat='pointnet2'"),
    "start": (
        lambda: ops.farthest_point_sample(P, 3, compat="pointnet2", start_index=2),
        "starts at index 0, start_index=2 was asked",
    ),
    "double": (lambda: ops.knn(P.double(), P.double(), 3), "takes float32 only, not float64"),
    "lengths": (lambda: ops.knn(P, P, 3, lengths=torch.tensor([12, 4])), "has no knn with lengths"),
    "patches": (
        lambda: ops.group_points(P, 3, 3, lengths=torch.tensor([12, 4])),
        "has no group_points with lengths",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pointnet2_cannot_do_is_refused_by_name(name):
    call, message = REFUSED[name]
    with POINTNET2.in_use(), pytest.raises(ValueError, match=message):
        call()


def test_pointnet2_refuses_the_cpu(monkeypatch):
    with fake_pointnet2.installed(monkeypatch):
        monkeypatch.setattr("pcl_clora.ops._pointnet2.DEVICE_TYPE", "cuda")
        with (
            ops.use_backend("pointnet2"),
            pytest.raises(
                ValueError, match=r"runs knn on CUDA only, the tensor is on cpu; move it, or choose"
            ),
        ):
            ops.knn(P, P, 1)


@pytest.mark.parametrize("num_groups", [5, 12])
def test_patches_of_pointnet2_are_made_of_its_three_calls(num_groups):
    with POINTNET2.in_use():
        found = ops.group_points(P, num_groups, 4, compat="pointnet2")
    expected = ops.group_points(P, num_groups, 4, compat="pointnet2")  # no ties among random points
    assert all(map(torch.equal, found, expected))


def test_gradients_pass_through_pointnet2():
    def gradient():
        points = P.clone().requires_grad_()
        groups = ops.group_points(points, 5, 4, compat="pointnet2")
        weight = ops.three_nn(groups.center, points)
        blended = ops.three_interpolate(groups.center, weight.idx, 1 / (1 + weight.dist2))
        (blended.square().sum() + groups.neighborhood.square().sum()).backward()
        return points.grad

    expected = gradient()
    with POINTNET2.in_use():
        found = gradient()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # sums in another order


# Values on an accelerator are checked only on demand. A kernel without checks stands for one here.

UNCHECKED = {
    "farthest_point_sample": (lambda p: ops.farthest_point_sample(p, 2), "points[1, 3, 0] is nan"),
    "knn": (lambda p: ops.knn(p, P, 2), "points[1, 3, 0] is nan"),
    "knn_queries": (lambda p: ops.knn(P, p, 2), "queries[1, 3, 0] is nan"),
    "knn_lengths": (
        lambda p: ops.knn(P, P, 5, lengths=torch.tensor([9, 4])),
        "k=5 is more than the shortest",
    ),
    "ball_query": (lambda p: ops.ball_query(p, P, 1.0, 2), "points[1, 3, 0] is nan"),
    "group_points": (lambda p: ops.group_points(p, 2, 2), "points[1, 3, 0] is nan"),
    "chamfer_distance": (lambda p: ops.chamfer_distance(P, p), "b[1, 3, 0] is nan"),
    "gather_points": (lambda p: ops.gather_points(P, torch.tensor([[0], [12]])), "idx holds 12"),
    "three_interpolate": (
        lambda p: ops.three_interpolate(P, torch.full((2, 1, 3), -1), torch.ones(2, 1, 3)),
        "idx holds -1",
    ),
}


@pytest.fixture
def unchecked(monkeypatch):
    """An accelerator, as far as checks of values are concerned: kernels that check nothing."""

    def empty_handed(op):
        fake = getattr(pcl_clora.ops._library, f"_fake_{op}")
        return lambda *arguments, **named: fake(*arguments, **named)

    monkeypatch.setattr(_values, "CHECKED_BY_KERNELS", ("meta",))
    _backends._register_for_tests("unchecked", {op: empty_handed(op) for op in SCHEMAS})
    with ops.use_backend("unchecked"):
        yield
    ops.check_values(False)
    del _backends._BACKENDS["unchecked"]


@pytest.mark.parametrize("name", UNCHECKED)
def test_values_on_an_accelerator_are_checked_on_demand(unchecked, name):
    call, message = UNCHECKED[name]
    points = P.clone()
    points[1, 3, 0] = torch.nan
    call(points)  # not looked at
    ops.check_values(True)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the text is compared below)
        call(points)
    assert message in str(refused.value)


@pytest.mark.parametrize(("value", "looks"), [("1", True), ("0", False), ("", False)])
def test_the_environment_may_ask_for_checks(monkeypatch, value, looks):
    monkeypatch.setenv("PCL_CLORA_CHECK_VALUES", value)
    monkeypatch.setattr(_values, "CHECKED_BY_KERNELS", ())
    monkeypatch.setattr(_values, "_on_accelerators", _values._asked_by_environment())
    assert _values.are_checked_here(P) == looks


def test_a_compiled_graph_holds_no_check(unchecked):
    ops.check_values(True)
    compiled = torch.compile(lambda p: ops.knn(p, p, 2).idx, fullgraph=True, backend="eager")
    assert compiled(P * torch.nan).shape == (2, 12, 2)


def test_errors_of_compiled_kernels_that_mean_a_value_become_value_errors():
    def refuse(points, queries, k, lengths=None):
        raise RuntimeError("ValueError: k=3 is odd; take another.\nException raised from knn at knn.cpp:7")

    with torch.library._scoped_library(NAMESPACE, "IMPL") as library:
        library.impl("knn", refuse, "CPU", allow_override=True)
        with pytest.raises(ValueError, match=r"^k=3 is odd; take another\.$"):
            ops.knn(P, P, 3)


def test_other_errors_of_compiled_kernels_stay_what_they_are():
    def fail(points, queries, k, lengths=None):
        raise RuntimeError("out of memory")

    with torch.library._scoped_library(NAMESPACE, "IMPL") as library:
        library.impl("knn", fail, "CPU", allow_override=True)
        with pytest.raises(RuntimeError, match=r"^out of memory$"):
            ops.knn(P, P, 3)
