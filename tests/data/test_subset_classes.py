"""`data.leave_out`: a data set without some of its classes."""

import pytest
import torch

from pcl_clora.data import build_dataset
from pcl_clora.io import DataError
from tests.support.data_layouts import make_hdf5


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Settings of a small data set, and the names of its classes."""
    root = make_hdf5(tmp_path_factory.mktemp("shapes"))
    names = (root / "shape_names.txt").read_text().split()
    data = {"name": "modelnet40_hdf5", "root": str(root), "num_points": 32, "allow_empty_classes": True}
    return data, names


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_other_classes_keep_their_clouds_and_are_numbered_anew(shapes, split):
    data, names = shapes
    whole, part = build_dataset(data, split), build_dataset({**data, "leave_out": names[:1]}, split)

    assert part.class_names == tuple(names[1:])
    kept = [k for k in range(len(whole)) if whole[k].label > 0]
    assert 0 < len(part) == len(kept) < len(whole)
    for sample, place in zip((part[k] for k in range(len(part))), kept, strict=True):
        assert torch.equal(sample.points, whole[place].points)
        assert sample.label == whole[place].label - 1


def test_names_that_cannot_be_left_out_are_refused(shapes):
    data, names = shapes
    with pytest.raises(DataError, match="names sofa9; the classes are"):
        build_dataset({**data, "leave_out": ["sofa9"]}, "train")
    with pytest.raises(DataError, match=r"names so\\nfa; the classes are"):  # one line, as all messages
        build_dataset({**data, "leave_out": ["so\nfa"]}, "train")
    with pytest.raises(DataError, match="leaves 1 classes, expected two or more"):
        build_dataset({**data, "leave_out": names[1:]}, "train")


def test_categories_of_parts_stay():
    data = {
        "name": "procedural",
        "classes": ["chair", "mug"],
        "train_size": 4,
        "test_size": 2,
        "num_points": 32,
    }

    with pytest.raises(DataError, match="these are categories of parts"):
        build_dataset({**data, "leave_out": ["mug"]}, "train")
