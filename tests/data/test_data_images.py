"""The digits data set, and images on their way through training."""

import numpy as np
import pytest
import torch

from pcl_clora.data import Batch, PointLoader, build_dataset, parse_data_config
from pcl_clora.data.readers.digits import ImageArray
from pcl_clora.io import DataError

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def digits(split="train", **settings):
    return build_dataset({"name": "digits", **settings}, split)


def test_splits_are_the_images_of_scikit_learn_in_order():
    read = sklearn_datasets.load_digits()
    train, test = digits(), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    images = torch.cat([data.read_batch(range(len(data))).points for data in (train, test)])
    np.testing.assert_array_equal(images[:, 0], read.images.astype(np.float32) / 8 - 1)
    np.testing.assert_array_equal(torch.cat([train.labels, test.labels]), read.target)
    assert (images.min(), images.max()) == (-1, 1)


def test_chosen_classes_are_labelled_in_their_order():
    data = digits(classes=[7, 3])
    read = sklearn_datasets.load_digits()
    assert data.class_names == ("7", "3")
    expected = [int(digit == 3) for digit in read.target[:1437] if digit in (3, 7)]
    assert data.labels.tolist() == expected


def test_images_are_enlarged_and_repeated():
    small, large = digits("test"), digits("test", image_size=16, channels=3)
    batch = large.read_batch([0, 1])
    assert batch.points.shape == (2, 3, 16, 16)
    assert torch.equal(batch.points[:, 0], batch.points[:, 2])
    expected = torch.nn.functional.interpolate(
        small.read_batch([0, 1]).points, size=(16, 16), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(batch.points[:, :1], expected)


def test_batches_hold_images_that_are_copies():
    data = digits()
    batch = next(PointLoader(data, 8, shuffle=True, drop_last=True).batches(0))
    assert batch.holds_images
    assert batch.points.shape == (8, 1, 8, 8)
    batch.points.zero_()
    data[0].points.zero_()
    assert data.read_batch([0]).points.any()
    assert not Batch(torch.zeros(2, 4, 3), torch.zeros(2), torch.zeros(2)).holds_images


def test_a_data_set_of_images_ends_as_lists_do():
    data = digits("test")
    assert torch.equal(data[-1].points, data[359].points)
    with pytest.raises(IndexError, match="has 360 samples"):
        data[360]


def test_settings_of_clouds_are_refused_and_not_written():
    config = parse_data_config({"name": "digits", "image_size": 16})
    assert config.num_points == config.read_points == 256
    written = config.model_dump(mode="json")
    assert "num_points" not in written
    assert parse_data_config(written) == config
    with pytest.raises(ValueError, match="are for clouds; set image_size only"):
        parse_data_config({"name": "digits", "num_points": 512})


@pytest.mark.parametrize("classes", [[], [1, 1], [10]])
def test_wrong_classes_are_named(classes):
    with pytest.raises(ValueError, match="must name digits from 0 to 9"):
        parse_data_config({"name": "digits", "classes": classes})


@pytest.mark.parametrize("images", [torch.zeros(2, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.float64)])
def test_images_of_another_form_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be \(n, C, H, W\) float32"):
        ImageArray(images, torch.zeros(2), ["a"])


def test_without_scikit_learn_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pcl-clora\[images\]"):
        digits()
