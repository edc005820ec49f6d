import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pcl_clora.data import build_dataset, normalize_unit_sphere, parse_data_config
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.norms import Norms, NormsMeter, measure
from pcl_clora.io import DataError

RULE = InputRule(num_points=32, read_points=32)
MET = Norms(radius_min=0.9, radius_max=1.0, offset_min=0.0, offset_max=0.1)


def cloud(num_points=32, seed=0):
    return np.random.default_rng(seed).normal(size=(num_points, 3))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e25, 1e290])
@pytest.mark.parametrize("offset", [0.0, 5e3, 1e9])
def test_the_unit_sphere_forgets_size_and_place(scale, offset):
    points = cloud()
    expected = RULE.place(points)

    found = RULE.place((points + offset) * scale)

    # Adding the offset in float64 costs 1e-16 of it.
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_ordinary_clouds_are_normalised_in_float32_to_the_bit():
    points = cloud(500) * 3 + 20

    assert torch.equal(RULE.place(points), normalize_unit_sphere(torch.from_numpy(points.astype(np.float32))))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_whole_numbers_keep_their_shape(dtype):
    points = np.random.default_rng(0).integers(0, 1000, (32, 3))
    offset = 2**30 if dtype == np.int32 else 2**60

    found = RULE.place((points + offset).astype(dtype))

    torch.testing.assert_close(found, RULE.place(points.astype(np.float64)), atol=1e-6, rtol=0)


def test_one_cloud_of_a_batch_does_not_change_the_others():
    clouds = np.stack([cloud(seed=seed) for seed in range(3)])
    far = clouds.copy()
    far[1] += 1e7

    found, expected = RULE.place(far), RULE.place(clouds)

    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_normalising_tensors_of_any_size_gives_the_unit_sphere(scale):
    points = torch.from_numpy(cloud()).float()

    found = normalize_unit_sphere(points[None] * scale)

    torch.testing.assert_close(found, normalize_unit_sphere(points[None]), atol=1e-6, rtol=0)


def test_clouds_beyond_float32_are_refused_in_the_frame_of_the_file():
    with pytest.raises(ValueError, match=r"up to 1e\+39 are beyond float32.*data.normalize=true"):
        InputRule(frame="file").place(np.full((4, 3), 1e39))


@pytest.mark.parametrize("stored", [np.float64, np.float32])
def test_clouds_that_float32_blurs_in_the_frame_of_the_file_are_warned_about_once(
    stored, monkeypatch, caplog
):
    monkeypatch.setattr("pcl_clora.errors._said", set())
    rule = InputRule(frame="file", num_points=32, read_points=32)
    points = (cloud() + np.array([4e6, 0, 0])).astype(stored)

    rule.place(np.stack([cloud(), points, points]))
    doubts = rule.see(points).doubts
    rule.place(points)

    assert [("4e+06 from the origin" in text, "normalize=true" in text) for text in caplog.messages] == [
        (True, True)
    ]
    assert len(doubts) == 1
    assert "steps for its longest side, and is taken as it is stored" in doubts[0]
    assert rule.see(cloud()).doubts == ()
    assert RULE.see(points.astype(np.float64)).doubts == ()


@pytest.mark.parametrize(
    ("up", "axis"),
    [
        ("x", [1, 0, 0]),
        ("y", [0, 1, 0]),
        ("z", [0, 0, 1]),
        ("-x", [-1, 0, 0]),
        ("-y", [0, -1, 0]),
        ("-z", [0, 0, -1]),
    ],
)
def test_a_turn_brings_the_axis_up_and_is_a_rotation(up, axis):
    rule = InputRule(up=up)
    matrix = rule.turn(torch.eye(3)).numpy()

    assert rule.turn(torch.tensor([axis], dtype=torch.float32)).tolist() == [[0.0, 1.0, 0.0]]
    np.testing.assert_allclose(Rotation.from_matrix(matrix).as_matrix(), matrix, atol=1e-7)


@pytest.mark.parametrize("name", ["folder", "modelnet40_hdf5", "scanobjectnn", "shapenetpart_txt"])
def test_the_axis_that_points_up_is_a_setting_that_old_hashes_do_not_know(name):
    settings = {"name": name, "root": "there"}

    assert "up" not in parse_data_config(settings).model_dump()
    assert parse_data_config({**settings, "up": "z"}).model_dump()["up"] == "z"
    assert parse_data_config({**settings, "up": "z"}).input_rule().up == "z"


@pytest.mark.parametrize("name", ["procedural", "procedural_corpus", "digits", "packed"])
def test_data_that_stand_upright_are_not_turned(name):
    with pytest.raises(ValueError, match=f"up=z turns the clouds of files, but {name} has y up already"):
        parse_data_config({"name": name, "root": "there", "up": "z"})


def test_readers_turn_what_they_read(tmp_path):
    points = cloud(40)
    for number in range(2):
        file = tmp_path / "a" / f"{number}.txt"
        file.parent.mkdir(exist_ok=True)
        np.savetxt(file, points, fmt="%.9g")
    settings = {"name": "folder", "root": str(tmp_path), "num_points": 40}

    straight, turned = (build_dataset({**settings, "up": up}, "train")[0].points for up in "yz")

    torch.testing.assert_close(
        turned, straight[:, [0, 2, 1]] * torch.tensor([1.0, 1.0, -1.0]), atol=1e-6, rtol=0
    )


def test_a_scan_line_is_not_taken_for_the_whole_cloud():
    points = cloud(4000)
    scan = points[points[:, 0].argsort()]

    first, drawn = (RULE.see(given, name="a.ply") for given in (points, scan))

    assert first.kept.tolist() == list(range(32))
    assert drawn.kept.max() > 2000
    assert RULE.see(scan, name="a.ply").kept.tolist() == drawn.kept.tolist()
    assert RULE.see(scan, name="file.h5#3").kept.tolist() == list(range(32))


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (np.full((300, 3), 5.1), "all points coincide"),
        (np.concatenate([cloud(255) * 1e-9, [[9.0, 0, 0]]]), "99.6 % of the points lie within a thousandth"),
        (cloud(7), "the cloud has 7 points, the model sees 32: filled up with copies"),
        (np.tile(cloud(5), (20, 1)), "only 5 of the 32 points that the model sees are distinct"),
    ],
)
def test_a_degenerate_cloud_is_doubted(points, said):
    found = RULE.see(points).doubts

    assert any(said in one for one in found)
    assert RULE.see(cloud(64)).doubts == ()


def test_norms_say_what_was_met_and_both_numbers():
    meter = NormsMeter()
    batch = torch.from_numpy(np.stack([cloud(seed=seed) * (1 + seed) for seed in range(3)])).float()
    for part in (batch[:2], batch[2:]):
        meter.update(part)
    radius, offset = measure(batch)

    found = meter.norms()

    assert found.radius_max == pytest.approx(float(radius.max()))
    assert found.radius_min == pytest.approx(float(radius.min()))
    assert found.offset_max == pytest.approx(float(offset.max()))
    assert MET.doubt(1.5, 0.5) == ""
    assert "858" in MET.doubt(858, 0.1)
    assert "0.9 to 1" in MET.doubt(858, 0.1)
    assert "its mean is 3 from the origin" in MET.doubt(1.0, 3.0)


def test_stored_clouds_stay_where_training_met_them_and_others_are_moved():
    rule = RULE.model_copy(update={"framed_by": "file", "norms": MET})
    stored = normalize_unit_sphere(torch.from_numpy(cloud()).float()) * 0.97 + 0.02

    assert torch.equal(rule.see(stored).points, stored)
    torch.testing.assert_close(
        rule.see(stored * 1000 + 50).points, normalize_unit_sphere(stored), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((0, 3)), r"expected \(N, 3\), N >= 1"),
        (np.zeros((4, 2)), r"points are \(4, 2\)"),
        (np.full((4, 3), np.inf), "not all finite"),
        (np.array([["a", "b", "c"]]), "expected numbers"),
    ],
)
def test_what_is_no_cloud_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        RULE.see(points)


def test_a_rule_of_images_sees_no_clouds():
    rule = parse_data_config({"name": "digits", "channels": 3}).input_rule()

    assert (rule.kind, rule.image_size, rule.image_mean) == ("images", 8, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="trained on images"):
        rule.see(cloud())


def test_a_reader_refuses_what_a_prediction_fills_up():
    with pytest.raises(DataError, match="has 7 points, but 32 were asked for"):
        RULE.read(cloud(7), name="a", file="a.xyz")


def test_a_mesh_gives_points_of_its_surface_not_its_corners():
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    faces = np.array([[0, 1, 2], [1, 3, 2]])

    found = RULE.see(corners, name="a.off", faces=faces)

    assert found.kept is None
    assert len(torch.unique(found.points, dim=0)) == 32
    assert found.whole.shape == (4, 3)
    assert found.doubts == ()
