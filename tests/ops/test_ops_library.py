"""What PyTorch must be able to do with the ops: check, compile, export, count, replace."""

import pytest
import torch
from ops_oracles import make_cloud
from torch.utils.flop_counter import FlopCounterMode

from pcl_clora import ops
from pcl_clora.ops import reference
from pcl_clora.ops._library import SCHEMAS


def arguments(op, batch=2):
    generator = torch.Generator().manual_seed(0)
    points, queries = make_cloud("random", batch, 20, 0), make_cloud("random", batch, 7, 1)
    idx = torch.randint(0, 20, (batch, 7, 3), generator=generator)
    weight = torch.rand(batch, 7, 3, generator=generator)
    picked = torch.rand(batch, 7, 3, 5, generator=generator)
    return {
        "farthest_point_sample": (points, 4, 1, True),
        "knn": (points, queries, 3),
        "ball_query": (points, queries, 0.7, 4),
        "gather_points": (points, idx),
        "gather_points_backward": (picked, idx, 20),
        "group_points": (points, 4, 5, 0, False),
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
        found = ops.knn(points, groups.center, 3)
        return (
            groups.neighborhood.sum((1, 2)) + chamfer.dist_a.sum(1, True) + found.dist2.sum((1, 2))[:, None]
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("op", SCHEMAS)
def test_every_op_passes_opcheck(op, batch):
    given = [
        a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments(op, batch)
    ]
    results = torch.library.opcheck(getattr(torch.ops.pcl_clora, op), given)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.slow
def test_a_compiled_graph_gives_the_same_values_and_gradients():
    points = make_cloud("random", 2, 20).requires_grad_()
    compiled = torch.compile(Everything(), fullgraph=True, backend="aot_eager")
    found, expected = compiled(points), Everything()(points)
    assert torch.equal(found, expected)
    (found_grad,) = torch.autograd.grad(found.sum(), points)
    (expected_grad,) = torch.autograd.grad(expected.sum(), points)
    torch.testing.assert_close(found_grad, expected_grad)


@pytest.mark.slow
def test_an_exported_graph_takes_any_batch_after_a_reload(tmp_path):
    dynamic = {"points": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(Everything(), (make_cloud("random", 2, 20),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "ops.pt2")
    reloaded = torch.export.load(tmp_path / "ops.pt2").module()
    points = make_cloud("random", 5, 20, seed=1)
    assert torch.equal(reloaded(points), Everything()(points))


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_good", [0, 1, 7])
@pytest.mark.parametrize("num_points", [9, 21, 1025])
def test_without_the_check_non_finite_points_still_give_indices_in_range(num_points, num_good, value):
    # what an accelerator does, where nothing may wait for a look at the data
    planes = make_cloud("random", 2, num_points).permute(2, 0, 1).contiguous()
    queries = planes[:, :, :5].clone()
    planes[:, :, : num_points - num_good] = value
    found = (
        reference._farthest_point_sample(planes, 8, 0, False),
        reference._farthest_point_sample(planes, 8, 0, True),
        reference._knn(planes, queries, 2)[1],
    )
    assert all(idx.min() >= 0 and idx.max() < num_points for idx in found)


def test_report_names_the_backend_of_every_op():
    assert ops.report() == dict.fromkeys(SCHEMAS, "reference")
    assert ops.report("cuda") == dict.fromkeys(SCHEMAS, "reference")


def test_a_kernel_for_one_device_replaces_the_plain_one_and_is_reported():
    points = make_cloud("random", 1, 6)

    def first_points(points, num_samples, start_index=0, skip_origin=False, lengths=None):
        return torch.arange(num_samples).repeat(len(points), 1)

    with torch.library._scoped_library("pcl_clora", "IMPL") as library:
        library.impl("farthest_point_sample", first_points, "CPU")
        assert ops.farthest_point_sample(points, 4).tolist() == [[0, 1, 2, 3]]
        assert ops.report()["farthest_point_sample"] == "native"
        assert ops.report("cuda")["farthest_point_sample"] == "reference"
    assert ops.report()["farthest_point_sample"] == "reference"


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


def test_deterministic_algorithms_are_available_for_forward_and_backward():
    points = make_cloud("random", 2, 40).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        Everything()(points).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert points.grad.abs().sum() > 0


@pytest.mark.slow
def test_two_threads_give_the_same_bits():
    points = make_cloud("random", 2, 6000)  # above the size from which torch splits the work
    one = ops.group_points(points, 10, 8)
    torch.set_num_threads(2)
    try:
        two = ops.group_points(points, 10, 8)
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, one, two))
