"""What PyTorch must be able to do with the ops: check, compile, export, count, replace."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pcl_clora import ops
from pcl_clora.ops._library import SCHEMAS
from tests.support.ops_backends import NATIVE, REFERENCE
from tests.support.ops_oracles import make_cloud


def arguments(op):
    generator = torch.Generator().manual_seed(0)
    batch = 2
    points, queries = make_cloud("random", batch, 20, 0), make_cloud("random", batch, 7, 1)
    idx = torch.randint(0, 20, (batch, 7, 3), generator=generator)
    weight = torch.rand(batch, 7, 3, generator=generator)
    picked = torch.rand(batch, 7, 3, 5, generator=generator)
    return {
        "farthest_point_sample": (points, 4, 0, True),
        "knn": (points, queries, 3),
        "ball_query": (points, queries, 0.7, 4),
        "gather_points": (points, idx),
        "gather_points_backward": (picked, idx, 20),
        "group_points": (points, 4, 5, 0, True),
        "three_interpolate": (points, idx, weight),
        "three_interpolate_backward": (picked[:, :, 0].contiguous(), idx, weight, 20),
        "chamfer_distance": (points, queries),
    }[op]


class Everything(torch.nn.Module):
    """A function that goes through every public op."""

    def forward(self, points):
        groups = ops.group_points(points, 4, 5, compat="pointnet2")
        features = ops.gather_points(points, ops.farthest_point_sample(points, 6))
        near = ops.three_nn(features, points)
        blended = ops.three_interpolate(features, near.idx, 1 / (near.dist2 + 1))
        chamfer = ops.chamfer_distance(blended, groups.center)
        lengths = torch.full((points.shape[0],), 17, device=points.device)
        found = ops.knn(points, groups.center, 3, lengths=lengths)
        ball = ops.gather_points(points, ops.ball_query(points, groups.center, 0.8, 4))
        total = groups.neighborhood.sum((1, 2)) + ball.sum((1, 2)) + chamfer.dist_a.sum(1, True)
        return total + found.dist2.sum((1, 2))[:, None]


FULL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("op", SCHEMAS)
def test_every_op_passes_opcheck(backend, op):
    given = [
        a.to(backend.device).requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a
        for a in arguments(op)
    ]
    # how autograd and graphs are set up does not depend on who serves: two backends show it
    checks = FULL if backend in (REFERENCE, NATIVE) else ("test_schema", "test_faketensor")
    results = torch.library.opcheck(getattr(torch.ops.pcl_clora, op), given, test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.parametrize("op", ["farthest_point_sample", "knn", "group_points"])
@pytest.mark.parametrize("name", ["reference", "native"])
def test_ops_with_lengths_pass_opcheck(name, op):
    lengths = torch.tensor([20, 9])
    with {"reference": REFERENCE, "native": NATIVE}[name].in_use():
        results = torch.library.opcheck(
            getattr(torch.ops.pcl_clora, op), arguments(op), {"lengths": lengths}, test_utils=FULL[:3]
        )
    assert set(results.values()) == {"SUCCESS"}


@pytest.fixture(scope="module")
def compiled():
    """A graph that was compiled once; it must follow the choice of the backend."""
    return torch.compile(Everything(), fullgraph=True, backend="aot_eager")


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """A graph that was exported for batches of any size, saved and loaded again."""
    file = tmp_path_factory.mktemp("export") / "ops.pt2"
    dynamic = {"points": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(Everything(), (make_cloud("random", 2, 20),), dynamic_shapes=dynamic)
    torch.export.save(program, file)
    return torch.export.load(file).module()


def expected_and_gradient(points):
    with ops.use_backend("reference"):
        expected = Everything()(points)
        return expected.detach(), torch.autograd.grad(expected.sum(), points)[0]


@pytest.mark.slow
def test_a_compiled_graph_gives_the_same_values_and_gradients(backend, compiled):
    if backend.own_ties or backend.device != "cpu":
        pytest.skip("samples by one rule only, and the graph uses both")
    points = make_cloud("random", 2, 20).requires_grad_()
    expected, expected_grad = expected_and_gradient(points)
    found = compiled(points)
    (grad,) = torch.autograd.grad(found.sum(), points)
    torch.testing.assert_close(found, expected)  # blending adds three products in an order of its own
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.slow
def test_an_exported_graph_takes_any_batch_after_a_reload(backend, reloaded):
    if backend.own_ties or backend.device != "cpu":
        pytest.skip("samples by one rule only, and the graph uses both")
    points = make_cloud("random", 5, 20, seed=1).requires_grad_()
    torch.testing.assert_close(reloaded(points).detach(), expected_and_gradient(points)[0])


# one FLOP each subtraction, multiplication, addition: 8 a distance
FLOPS = {
    "farthest_point_sample": 2 * 20 * (4 - 1) * 8,
    "knn": 2 * 20 * 7 * 8,
    "ball_query": 2 * 20 * 7 * 8,
    "gather_points": 0,
    "gather_points_backward": 2 * 7 * 3 * 5,
    "group_points": 2 * 20 * (4 - 1) * 8 + 2 * 20 * 4 * 8 + 2 * 4 * 5 * 3,
    "three_interpolate": 2 * 7 * 3 * 5,
    "three_interpolate_backward": 2 * 7 * 5 * 6,
    "chamfer_distance": 2 * 20 * 7 * 8,
}


@pytest.mark.parametrize("op", SCHEMAS)
def test_flops_are_counted_by_formula(op):
    with FlopCounterMode(display=False) as counter:
        getattr(torch.ops.pcl_clora, op)(*arguments(op))
    assert counter.get_total_flops() == FLOPS[op]


def test_grouping_without_sampling_counts_no_sampling():
    with FlopCounterMode(display=False) as counter:
        ops.group_points(make_cloud("random", 2, 20), 20, 5)
    assert counter.get_total_flops() == 2 * 20 * 20 * 8 + 2 * 20 * 5 * 3


@pytest.mark.parametrize("op", SCHEMAS)
def test_ops_run_on_shapes_alone(op):
    given = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments(op)]
    found = getattr(torch.ops.pcl_clora, op)(*given)
    real = getattr(torch.ops.pcl_clora, op)(*arguments(op))
    pairs = zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (found, real)), strict=True)
    assert [(f.shape, f.dtype) for f, _ in pairs] == [
        (r.shape, r.dtype) for r in ((real,) if isinstance(real, torch.Tensor) else real)
    ]


def test_autocast_does_not_change_the_patches():
    points = make_cloud("random", 2, 40)
    expected = ops.group_points(points, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.group_points(points, 6, 5)
    assert all(map(torch.equal, found, expected))


def test_deterministic_algorithms_are_available_for_forward_and_backward(backend):
    if backend.own_ties or backend.device != "cpu":
        pytest.skip("samples by one rule only, or adds atomically")
    points = make_cloud("random", 2, 40).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        Everything()(points).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert points.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 1500), (1, 140_000)], ids=["many_clouds", "one_cloud"])
def test_two_threads_give_the_same_bits(backend, shape):
    if not backend.large or backend.device != "cpu" or (backend is REFERENCE and shape[0] == 1):
        pytest.skip("does not work in threads, or does so in smaller clouds already")
    points = make_cloud("random", *shape)
    features = torch.randn(*shape, 4, generator=torch.Generator().manual_seed(0))

    def answers():
        groups, near = ops.group_points(points, 10, 8), ops.three_nn(points[:, ::100], points)
        blended = ops.three_interpolate(features[:, ::100], near.idx, near.dist2)
        spread = torch.ops.pcl_clora.gather_points_backward(features, near.idx[..., 0], shape[1])
        chamfer = ops.chamfer_distance(points, points[:, ::100])
        return (*groups, *near, blended, spread, *chamfer, ops.ball_query(points, groups.center, 0.2, 8))

    one = answers()
    torch.set_num_threads(2)
    try:
        two = answers()
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, one, two))
