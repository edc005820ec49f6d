"""Every backend gives the slow answer, bit for bit, in every case."""

from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcl_clora import ops
from tests.support.ops_backends import EMULATED, POINTNET2
from tests.support.ops_cases import CASES, RAGGED, Case, Sizes, is_beyond, make_case
from tests.support.ops_oracles import KINDS, batched, make_cloud, slow_ball

DTYPES = [torch.float32, torch.float64]
SMALL = (1, 2, 3, 4, 5, 6, 7, 8, 9)
LARGE = (1023, 1025, 5000)


def check(backend, case, said=""):
    found = backend.run(case.function, *case.arguments, **case.named)
    for part, expected in zip(found, case.expected, strict=True):
        assert (part.dtype, part.shape) == (expected.dtype, expected.shape), said
        assert torch.equal(part, expected), said


BEYOND = "refused by this backend, or done in its own order of ties"


@cache  # the slow answer is the same for all backends
def made(name, kind, batch, num_points, num_queries, dtype):
    points = make_cloud(kind, batch, num_points, 0, dtype)
    return make_case(name, points, make_cloud(kind, batch, num_queries, 1, dtype))


def make(name, backend, kind, batch, num_points, num_queries=7):
    if is_beyond(name, backend, torch.float32):
        pytest.skip(BEYOND)
    return made(name, kind, batch, num_points, num_queries, torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_cloud(backend, name):
    dtypes = [dtype for dtype in DTYPES if not is_beyond(name, backend, dtype)]
    if not dtypes:
        pytest.skip(BEYOND)
    for kind, dtype in product(KINDS, dtypes):
        check(backend, made(name, kind, 2, 61, 7, dtype), f"{kind} {dtype}")


@pytest.mark.parametrize("name", CASES)
def test_a_handful_of_points(backend, name):
    for num_points in SMALL:
        check(backend, make(name, backend, "lattice", 2, num_points), num_points)


@pytest.fixture
def large(backend):
    """A backend that is fast enough for large clouds, for which some search in another way."""
    if not backend.large:
        pytest.skip("too slow for large clouds")
    return backend


@cache
def made_large(name, kind, num_points):
    points = make_cloud(kind, 2, num_points)
    return make_case(name, points, points[:, ::50], Sizes(60, 37, 33))


@pytest.mark.parametrize("num_points", LARGE)
@pytest.mark.parametrize("name", ["sampling", "sampling_by_rule_of_pointnet2", "nearest", "patches"])
def test_large_clouds(large, name, num_points):
    for kind in KINDS:
        check(large, made_large(name, kind, num_points), kind)


@pytest.mark.parametrize("name", ["sampling", "nearest", "both_ways"])
@pytest.mark.parametrize("kind", ["random", "far_away", "symmetric"])
def test_large_clouds_in_double_precision(large, name, kind):
    points, queries = make_cloud(kind, 2, 5000, 0, torch.float64), make_cloud(kind, 2, 90, 1, torch.float64)
    check(large, make_case(name, points, queries, Sizes(60, 37, 33)))


@pytest.mark.parametrize("kind", KINDS)
def test_large_clouds_both_ways(large, kind):
    points = make_cloud(kind, 2, 3000)
    check(large, make_case("both_ways", points, points[:, 1::41] + 0.01))


@pytest.mark.parametrize("kind", KINDS)
def test_small_balls_in_large_clouds(large, kind):
    points, queries = make_cloud(kind, 1, 9000), make_cloud(kind, 1, 70, 1)
    radius = {"lattice": 1.0, "clustered": 5e-4}.get(kind, 0.05)
    expected = batched(slow_ball, points, queries, radius=radius, num_samples=12)
    check(large, Case(ops.ball_query, (points, queries, radius, 12), {}, expected))


@pytest.mark.parametrize("name", ["sampling", "nearest", "patches"])
def test_large_clouds_of_different_size(large, name):
    points, lengths = make_cloud("random", 3, 5000), torch.tensor([5000, 70, 3500])
    case = make_case(name, points, points[:, :60].clone(), Sizes(60, 37, 33), lengths=lengths)
    for cloud, length in zip(points, lengths, strict=True):
        cloud[length:] = torch.nan
    check(large, case)


@pytest.mark.parametrize("kind", ["random", "lattice", "near_origin"])
@pytest.mark.parametrize("name", RAGGED)
def test_clouds_of_different_size(backend, name, kind):
    if not backend.takes_lengths:
        pytest.skip("has no lengths")
    points, lengths = make_cloud(kind, 4, 40), torch.tensor([40, 9, 23, 9])
    case = make_case(name, points, make_cloud(kind, 4, 5, 1), lengths=lengths)
    for cloud, length in zip(points, lengths, strict=True):
        cloud[length:] = torch.nan  # what lies behind is never read
    check(backend, case)


@pytest.mark.parametrize("layout", ["channels_first", "every_other", "expanded"])
@pytest.mark.parametrize("name", CASES)
def test_memory_layout_does_not_matter(backend, name, layout):
    def laid_out(value):
        if not isinstance(value, torch.Tensor):
            return value
        if layout == "channels_first":
            return value.transpose(1, -1).contiguous().transpose(1, -1)
        if layout == "every_other":
            return value.repeat_interleave(2, 1)[:, ::2]
        return value[:1].expand(2, *value.shape[1:])

    case = make(name, backend, "random", 1 if layout == "expanded" else 2, 20)
    arguments = tuple(map(laid_out, case.arguments))
    expected = tuple(map(laid_out, case.expected))
    check(backend, case._replace(arguments=arguments, expected=expected))


@pytest.mark.parametrize(("batch", "num_queries"), [(0, 4), (2, 0), (0, 0)])
@pytest.mark.parametrize("name", CASES)
def test_no_clouds_or_no_queries_give_empty_results(backend, name, batch, num_queries):
    if num_queries == 0 and name == "both_ways":
        pytest.skip("refused: a cloud without points has no distance")
    case = make(name, backend, "random", 2, 6, num_queries or 1)

    def cut(value):
        if not isinstance(value, torch.Tensor):
            return value
        is_query = num_queries == 0 and value is case.arguments[1] and value.is_floating_point()
        return value[:batch, :0] if is_query else value[:batch]

    arguments = tuple(map(cut, case.arguments))
    found = backend.run(case.function, *arguments, **case.named)
    shapes = case.function(
        *(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments), **case.named
    )
    shapes = (shapes,) if isinstance(shapes, torch.Tensor) else shapes
    assert [(f.shape, f.dtype) for f in found] == [(s.shape, s.dtype) for s in shapes]


@pytest.mark.parametrize("name", CASES)
def test_twenty_repeats_are_identical(backend, name):
    case = make(name, backend, "lattice", 2, 30)
    repeats = [backend.run(case.function, *case.arguments, **case.named) for _ in range(20)]
    assert all(all(map(torch.equal, repeats[0], other)) for other in repeats[1:])


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=15, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape(backend, name, data):
    if backend in (POINTNET2, EMULATED) and name in ("nearest_all", "nearest_one"):
        return  # the shapes of "nearest" hold these
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(DTYPES))
    batch, num_points = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    seed = data.draw(st.integers(0, 99))
    points = make_cloud(kind, batch, num_points, seed, dtype)
    queries = make_cloud(kind, batch, data.draw(st.integers(1, 12)), seed + 1, dtype)
    sizes = Sizes(*(data.draw(st.integers(low, num_points - 1 + low)) for low in (1, 0, 1)))
    if not is_beyond(name, backend, dtype):
        check(backend, make_case(name, points, queries, sizes))


GRADIENTS = {
    "knn": lambda p, q: ops.knn(p, q, 3).dist2,
    "group_points": lambda p, q: ops.group_points(p, 3, 3)[:2],
    "group_points_in_order": lambda p, q: ops.group_points(p, 6, 3)[:2],
    "chamfer_distance": lambda p, q: ops.chamfer_distance(p, q)[:2],
    "gather_points": lambda p, q: ops.gather_points(p, torch.tensor([[[0, 0], [4, 2]]] * 2).to(p.device)),
    "three_interpolate": lambda p, q: ops.three_interpolate(
        p, torch.tensor([[[0, 0, 5], [4, 2, 1], [3, 3, 3], [1, 2, 5]]] * 2).to(p.device), q
    ),
    "ragged": lambda p, q: ops.knn(p, q, 2, lengths=torch.tensor([6, 3]).to(p.device)).dist2,
    "ragged_groups": lambda p, q: ops.group_points(p, 3, 2, lengths=torch.tensor([6, 3]).to(p.device))[:2],
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_agree_with_differences(backend, name):
    if not backend.takes_double:
        pytest.skip("no float64")
    clouds = make_cloud("random", 2, 6, 0, torch.float64), make_cloud("random", 2, 4, 1, torch.float64)
    inputs = [cloud.to(backend.device).requires_grad_() for cloud in clouds]
    assert torch.autograd.gradcheck(GRADIENTS[name], inputs, fast_mode=backend is EMULATED)
