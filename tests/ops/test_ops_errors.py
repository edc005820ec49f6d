import numpy as np
import pytest
import torch

from pcl_clora import ops
from pcl_clora.errors import UserValueError

P = torch.arange(24, dtype=torch.float32).view(2, 4, 3)
IDX = torch.zeros(2, 5, 3, dtype=torch.int64)
WEIGHT = torch.ones(2, 5, 3)


def with_value(value):
    points = P.clone()
    points[1, 2, 0] = value
    return points


TAKES_POINTS = {
    "farthest_point_sample": lambda p: ops.farthest_point_sample(p, 1, compat="pointnet2"),
    "knn_points": lambda p: ops.knn(p, P.to(p.device), 1),
    "knn_queries": lambda p: ops.knn(P.to(p.device), p, 1),
    "three_nn_points": lambda p: ops.three_nn(p, P.to(p.device)),
    "three_nn_queries": lambda p: ops.three_nn(P.to(p.device), p),
    "chamfer_a": lambda p: ops.chamfer_distance(p, P.to(p.device)),
    "chamfer_b": lambda p: ops.chamfer_distance(P.to(p.device), p),
    "group_points": lambda p: ops.group_points(p, 2, 2, compat="pointnet2"),
    "ball_points": lambda p: ops.ball_query(p, P.to(p.device), 1.0, 2),
    "ball_queries": lambda p: ops.ball_query(P.to(p.device), p, 1.0, 2),
}
TAKES_FEATURES = {
    "gather_points": lambda f: ops.gather_points(f, IDX),
    "three_interpolate": lambda f: ops.three_interpolate(f, IDX, WEIGHT),
}
TAKES_INDICES = {
    "gather_points": lambda i: ops.gather_points(P.to(i.device), i),
    "three_interpolate": lambda i: ops.three_interpolate(P.to(i.device), i, WEIGHT.to(i.device)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("op", [*TAKES_POINTS, *TAKES_FEATURES])
def test_other_dtypes_than_float32_and_float64_are_refused_by_name(op, dtype):
    with pytest.raises(ValueError, match=str(dtype).removeprefix("torch.") + r"; only float32 and float64"):
        (TAKES_POINTS | TAKES_FEATURES)[op](P.to(dtype))


@pytest.mark.parametrize("op", [*TAKES_POINTS, *TAKES_FEATURES])
def test_arrays_are_refused_with_the_remedy(op):
    with pytest.raises(TypeError, match=r"is a ndarray; pass a tensor, for example torch\.from_numpy"):
        (TAKES_POINTS | TAKES_FEATURES)[op](np.zeros((2, 4, 3), np.float32))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 4, 6), (1, 2, 4, 3)], ids=str)
@pytest.mark.parametrize("op", TAKES_POINTS)
def test_wrong_shapes_are_named(op, shape):
    with pytest.raises(
        ValueError, match=rf"has shape \({', '.join(map(str, shape))}\); expected \(B, N, 3\)"
    ):
        TAKES_POINTS[op](torch.zeros(shape))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("op", TAKES_POINTS)
def test_non_finite_coordinates_are_named_with_their_place(backend, op, value):
    with pytest.raises(
        ValueError, match=rf"^\w+\[1, 2, 0\] is {value}; distances to it mean nothing\. Remove"
    ):
        backend.run(TAKES_POINTS[op], with_value(value))


@pytest.mark.parametrize(
    ("index", "op"),
    [(4, "gather_points"), (-1, "gather_points"), (4, "three_interpolate"), (-1, "three_interpolate")],
)
def test_indices_out_of_range_are_named(backend, op, index):
    idx = IDX.clone()
    idx[1, 3, 2] = index
    message = f"^idx holds {index}, which is not an index into 4 points; indices go from 0 to"
    with pytest.raises(ValueError, match=message):
        backend.run(TAKES_INDICES[op], idx)


LENGTHS = {
    "none": ([4, 0], {}, r"^lengths\[1\] is 0; points holds 1 to 4 points of a cloud\. Leave out"),
    "negative": ([-1, 3], {}, r"^lengths\[0\] is -1; points holds 1 to 4"),
    "too_long": ([3, 5], {}, r"^lengths\[1\] is 5; points holds 1 to 4"),
    "count": (
        [4, 1],
        {},
        r"^NAME=2 is more than the shortest cloud has \(lengths\[1\] is 1\); lower NAME, or",
    ),
    "start": (
        [3, 4],
        {"start_index": 3},
        r"^start_index=3 is not an index into the shortest cloud \(lengths\[0\]",
    ),
}
RAGGED = {
    "num_samples": lambda p, n, **start: ops.farthest_point_sample(p, 2, lengths=n, **start),
    "num_groups": lambda p, n, **start: ops.group_points(p, 2, 1, lengths=n, **start),
    "group_size": lambda p, n, **start: ops.group_points(p, 1, 2, lengths=n, **start),
    "k": lambda p, n: ops.knn(p, p, 2, lengths=n),
}


@pytest.mark.parametrize("wrong", LENGTHS)
@pytest.mark.parametrize("count", RAGGED)
def test_lengths_that_do_not_fit_are_named(backend, count, wrong):
    lengths, named, message = LENGTHS[wrong]
    if not backend.takes_lengths or (count == "k" and named):
        pytest.skip("has no such argument")
    with pytest.raises(ValueError, match=message.replace("NAME", count)):
        backend.run(RAGGED[count], P, torch.tensor(lengths), **named)


def test_the_first_of_two_faults_is_the_same_on_every_backend(backend):
    if not backend.takes_lengths:
        pytest.skip("has no lengths")
    with pytest.raises(ValueError, match=r"^k=2 is more than the shortest"):
        backend.run(lambda p, n: ops.knn(p, p, 2, lengths=n), with_value(torch.nan), torch.tensor([4, 1]))
    with pytest.raises(ValueError, match=r"^points\[1, 2, 0\] is nan"):
        backend.run(lambda p: ops.knn(p, p, 2), with_value(torch.nan))


WRONG_LENGTHS = {
    "list": ([4, 4], TypeError, r"lengths is a list; pass an int64 tensor"),
    "dtype": (torch.tensor([4, 4], dtype=torch.int32), ValueError, r"lengths is int32; .* use \.long\(\)"),
    "shape": (
        torch.tensor([4]),
        ValueError,
        r"lengths has shape \(1,\); expected \(2,\), one number per cloud",
    ),
    "device": (torch.tensor([4, 4], device="meta"), ValueError, "points is on cpu and lengths on meta"),
}


@pytest.mark.parametrize("wrong", WRONG_LENGTHS)
@pytest.mark.parametrize("count", RAGGED)
def test_lengths_of_another_kind_are_refused(count, wrong):
    lengths, error, message = WRONG_LENGTHS[wrong]
    with pytest.raises(error, match=message):
        RAGGED[count](P, lengths)


@pytest.mark.parametrize("op", TAKES_INDICES)
def test_indices_of_another_dtype_are_refused(op):
    with pytest.raises(ValueError, match=r"idx is int32; indices are int64, convert with \.long\(\)"):
        TAKES_INDICES[op](IDX.int())


CALLS = {
    "too_many_samples": (lambda: ops.farthest_point_sample(P, 5), r"num_samples=5 .* \(4 points\)"),
    "no_samples": (lambda: ops.farthest_point_sample(P, 0), "num_samples=0 must be at least 1"),
    "negative_samples": (lambda: ops.farthest_point_sample(P, -2), "num_samples=-2 must be at least 1"),
    "start_too_high": (
        lambda: ops.farthest_point_sample(P, 1, start_index=4),
        "start_index=4 is not an index into 4 points; pass 0 to 3",
    ),
    "start_negative": (lambda: ops.farthest_point_sample(P, 1, start_index=-1), "start_index=-1"),
    "unknown_compat": (lambda: ops.farthest_point_sample(P, 1, compat="cuda"), "compat='cuda' is not known"),
    "cloud_without_points": (
        lambda: ops.farthest_point_sample(P[:, :0], 1),
        r"num_samples=1 .* \(0 points\)",
    ),
    "k_above_n": (lambda: ops.knn(P, P, 5), r"k=5 .* \(4 points\)"),
    "k_zero": (lambda: ops.knn(P, P, 0), "k=0 must be at least 1"),
    "ball_of_no_radius": (lambda: ops.ball_query(P, P, 0.0, 1), r"radius=0\.0 is not a positive number"),
    "ball_of_nan": (lambda: ops.ball_query(P, P, float("nan"), 1), "radius=nan is not a positive number"),
    "ball_of_tensor": (lambda: ops.ball_query(P, P, torch.ones(1), 1), "radius=tensor"),
    "ball_no_samples": (lambda: ops.ball_query(P, P, 1.0, 0), "num_samples=0 must be at least 1"),
    "ball_of_nothing": (lambda: ops.ball_query(P[:, :0], P, 1.0, 1), "clouds of 0 points"),
    "three_nn_of_nothing": (lambda: ops.three_nn(P[:, :0], P), r"\(0 points\)"),
    "chamfer_of_nothing": (lambda: ops.chamfer_distance(P, P[:, :0]), "a has 4 points and b 0"),
    "too_many_groups": (lambda: ops.group_points(P, 5, 1), r"num_groups=5 .* \(4 points\)"),
    "too_large_groups": (lambda: ops.group_points(P, 1, 5), r"group_size=5 .* \(4 points\)"),
    "group_compat": (lambda: ops.group_points(P, 1, 1, compat="x"), "compat='x' is not known"),
    "group_start": (lambda: ops.group_points(P, 1, 1, start_index=9), "start_index=9"),
    "batch_differs": (lambda: ops.knn(P, P[:1], 1), "points holds 2 clouds and queries 1"),
    "dtype_differs": (lambda: ops.knn(P, P.double(), 1), "points is float32 and queries float64"),
    "device_differs": (lambda: ops.knn(P, P.to("meta"), 1), "points is on cpu and queries on meta"),
    "index_batch": (lambda: ops.gather_points(P, IDX[:1]), "points holds 2 clouds and idx 1"),
    "index_without_axes": (lambda: ops.gather_points(P, torch.tensor(0)), "idx has no axes"),
    "no_channels": (lambda: ops.gather_points(P[..., :0], IDX), "at least one channel"),
    "weight_shape": (
        lambda: ops.three_interpolate(P, IDX[:, :2], WEIGHT),
        r"idx has shape \(2, 2, 3\) and weight \(2, 5, 3\)",
    ),
    "weight_dtype": (
        lambda: ops.three_interpolate(P, IDX, WEIGHT.double()),
        "features is float32 and weight float64",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_an_impossible_request_names_the_value(case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_index_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="idx is a list; pass an int64 tensor"):
        ops.gather_points(P, [[0], [1]])


FAULTS = {
    **{f"{op}_nan": (call, with_value(torch.nan)) for op, call in TAKES_POINTS.items()},
    **{f"{op}_index": (call, IDX + 4) for op, call in TAKES_INDICES.items()},
    "none_left": (RAGGED["k"], P, torch.tensor([4, 0])),
    "too_few": (RAGGED["num_groups"], P, torch.tensor([1, 4])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_backend_says_the_same_with_the_same_kind_of_error(backend, fault):
    call, *arguments = FAULTS[fault]
    if not backend.takes_lengths and fault in ("none_left", "too_few"):
        pytest.skip("has no lengths")
    with ops.use_backend("reference"), pytest.raises(UserValueError) as expected:
        call(*arguments)
    with pytest.raises(UserValueError) as found:
        backend.run(call, *arguments)
    assert str(found.value) == str(expected.value)


RAW = {
    "farthest_point_sample": (with_value(torch.nan), 2),
    "knn": (P, with_value(torch.inf), 2),
    "ball_query": (with_value(torch.nan), P, 1.0, 2),
    "gather_points": (P, IDX + 4),
    "gather_points_backward": (torch.ones(2, 5, 3, 7), IDX - 1, 4),
    "group_points": (with_value(torch.nan), 2, 2),
    "three_interpolate": (P, IDX + 4, WEIGHT),
    "three_interpolate_backward": (torch.ones(2, 5, 7), IDX + 4, WEIGHT, 4),
    "chamfer_distance": (P, with_value(-torch.inf)),
}


@pytest.mark.parametrize("op", RAW)
def test_a_call_past_the_functions_is_refused_with_the_same_text(backend, op):
    if backend.device != "cpu":
        pytest.skip("kernels of an accelerator look at no values")
    with ops.use_backend("reference"), pytest.raises(UserValueError) as expected:
        getattr(torch.ops.pcl_clora, op)(*RAW[op])
    with pytest.raises((UserValueError, RuntimeError)) as found:  # a compiled kernel knows no Python class
        backend.run(getattr(torch.ops.pcl_clora, op), *RAW[op])
    assert str(found.value).removeprefix("ValueError: ").partition("\nException")[0] == str(expected.value)


@pytest.mark.parametrize("op", TAKES_INDICES)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_what_a_gradient_refuses_is_said_as_elsewhere(name, op):
    points = P.clone().requires_grad_()
    idx = IDX.clone()
    calls = {
        "gather_points": lambda: ops.gather_points(points, idx),
        "three_interpolate": lambda: ops.three_interpolate(points, idx, WEIGHT),
    }
    with ops.use_backend(name):
        found = calls[op]()
        idx.numpy()[1, 3, 2] = 9  # behind the back of autograd, as code that shares memory does
        with pytest.raises(UserValueError, match=r"^idx holds 9, which is not an index into 4 points; ind"):
            found.sum().backward()
