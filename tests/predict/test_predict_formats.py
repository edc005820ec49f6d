"""One real shape gets one class, whatever the format of its file."""

import numpy as np
import pytest

from pcl_clora.config import build
from pcl_clora.data import build_dataset, parse_data_config
from pcl_clora.engine import RunConfig, Trainer
from pcl_clora.io import FORMATS, POINT_SUFFIXES, read_points, write_points
from pcl_clora.predict import Predictor
from tests.conftest import SHARED
from tests.support.copc import write_copc

CLASSES = ("airplane", "bottle", "chair", "guitar")
BY_SUFFIX = {suffix: one for one in FORMATS for suffix in one.suffixes}


@pytest.fixture(scope="module")
def shapes():
    """Real clouds of four classes of ModelNet40 as (points, class): twelve of each, and another to test."""
    root = str(SHARED / "data" / "modelnet40_ply_hdf5_1024")
    dataset = build_dataset(parse_data_config({"name": "modelnet40_hdf5", "root": root}), "test")
    found = {"train": [], "test": []}
    for name in CLASSES:
        rows = np.flatnonzero(dataset.labels == dataset.class_names.index(name))
        for split, few in (("train", rows[1:13]), ("test", rows[:1])):
            found[split] += [(dataset[int(row)].points.numpy(), name) for row in few]
    return found


@pytest.fixture(scope="module")
def predictor(shapes, tmp_path_factory):
    """A run on a folder of these clouds, from the weights in the package."""
    folder = tmp_path_factory.mktemp("formats")
    for split, clouds in shapes.items():
        for number, (points, name) in enumerate(clouds):
            write_points(folder / "data" / split / name / f"{number}.npy", points)
    values = {
        "name": "formats",
        "model": {"name": "point_mae_tiny", "num_classes": len(CLASSES)},
        "weights": {"path": "builtin"},
        "adapter": {"method": "clora"},
        "data": {"name": "folder", "root": str(folder / "data"), "num_points": 512},
        "optim": {"epochs": 6, "batch_size": 16, "lr": 2e-3, "warmup_epochs": 0},
        "train": {"progress": "off"},
        "output": str(folder / "runs"),
    }
    return Predictor(Trainer(build(RunConfig, values)).fit().run_dir)


def soup(points):
    """A mesh that has the shape of a cloud: a small triangle about every point."""
    corners = 1e-3 * np.array([[1, 0, 0], [0, 1, 0], [-1, -1, 0]], np.float32)
    vertices = (points[:, None] + corners).reshape(-1, 3)
    return vertices, np.arange(len(vertices)).reshape(-1, 3)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("suffix", [*POINT_SUFFIXES, ".copc.laz"])
def test_a_real_shape_gets_its_class_in_every_format(shapes, predictor, tmp_path, suffix):
    kind = BY_SUFFIX[".laz" if suffix == ".copc.laz" else suffix]
    if kind.package:
        pytest.importorskip(kind.package.partition("[")[0].partition(",")[0])
    for points, name in shapes["test"]:
        colors = np.full((len(points), 3), 128, np.uint8)
        fields = {"colors": colors} if "colors" in kind.fields or kind.fields == ("any",) else None
        if suffix == ".copc.laz":
            write_copc(tmp_path / f"{name}{suffix}", points.astype(np.float64), chunk=100)
        elif kind.faces != "only":
            write_points(tmp_path / f"{name}{suffix}", points, fields)
        if kind.faces != "no":
            write_points(tmp_path / f"{name}_mesh{suffix}", soup(points)[0], None, soup(points)[1])
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(CLASSES) * (2 if kind.faces == "yes" else 1)
    assert all(len(read_points(file).points) for file in files)
    said = predictor.predict(files)
    names = [file.name.partition(".")[0] for file in files]
    assert [one.name for one in said] == [name.removesuffix("_mesh") for name in names]
