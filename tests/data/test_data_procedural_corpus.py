"""The pre-training corpus: the same shapes everywhere, on the surface that the cuts leave, fast enough."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.data import PointLoader, build_dataset
from pcl_clora.data.shapes import Draw
from pcl_clora.data.shapes.programs import build_program, sample_program


def corpus(split="train", **changed):
    return build_dataset(
        {"name": "procedural_corpus", "num_points": 256, "train_size": 200, "test_size": 50, **changed}, split
    )


def test_a_shape_depends_on_seed_split_and_index_only():
    whole, larger = corpus(), corpus(train_size=300)
    assert torch.equal(whole[7].points, larger[7].points)
    assert torch.equal(whole[7].points, whole.read_batch([3, 7]).points[1])
    assert not torch.equal(whole[7].points, whole[8].points)
    assert not torch.equal(whole[7].points, corpus("test")[7].points)
    assert not torch.equal(whole[7].points, corpus(seed=1)[7].points)


@pytest.mark.parametrize(("objects", "expected"), [(0.0, 0), (0.5, 100), (1.0, 200)])
def test_the_share_of_objects_is_kept(objects, expected):
    dataset = corpus(objects=objects)
    count = int((dataset.labels < len(dataset.class_names) - 1).sum())
    assert abs(count - expected) <= (25 if objects == 0.5 else 0)


def test_clouds_lie_in_the_unit_sphere():
    points = corpus().read_batch(range(100)).points
    torch.testing.assert_close(points.norm(dim=-1).amax(1), torch.ones(100))
    torch.testing.assert_close(points.mean(1), torch.zeros(100, 3), atol=1e-5, rtol=0)


def test_shapes_are_never_alike():
    points = corpus(objects=0.0, noise=0.0).read_batch(range(60)).points
    spread = torch.linalg.svdvals(points)  # rotations do not change it
    spread = spread / spread.norm(dim=1, keepdim=True)
    apart = torch.cdist(spread, spread) + torch.eye(60)
    assert apart.min() > 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_every_program_has_a_surface_whose_points_no_cut_takes(seed):
    draw = Draw("test", seed)
    mesh, cuts = build_program(draw)
    points = sample_program(mesh, cuts, 200, draw)
    assert points.shape == (200, 3)
    assert np.isfinite(points).all()
    assert mesh.areas().sum() > 0
    untouched = [cut for cut in cuts if not cut(points).any()]
    refused = [cut for cut in cuts if cut(points).any()]
    assert len(untouched) + len(refused) == len(cuts) <= 2
    if refused:  # a cut that is not made would have left less than a quarter
        whole, _ = mesh.sample(2000, Draw("whole", seed))
        for cut in untouched:
            whole = whole[~cut(whole)]
        assert all(np.mean(~cut(whole)) < 0.35 for cut in refused)


def test_workers_give_the_same_shapes():
    def batches(num_workers):
        loader = PointLoader(corpus(), 16, shuffle=True, seed=3, num_workers=num_workers)
        return torch.cat([batch.points for batch in loader.batches(0)])

    assert torch.equal(batches(0), batches(2))
