import struct
import sys

import numpy as np
import pytest

from pcl_clora.io import read_points
from pcl_clora.io.pictures import PART_COLOURS, draw_cloud, encode_png, part_colour, rgb, scalar_colours
from pcl_clora.vis import Panel, render_png, show_window, write_ply
from tests.support.vis_cases import cloud


def test_the_colours_of_numbers_are_those_of_viridis():
    colormap = pytest.importorskip("matplotlib").colormaps["viridis"]
    values = np.linspace(0, 1, 101)

    expected = np.array([colormap(value)[:3] for value in values]) * 255
    assert np.abs(scalar_colours(values) - expected).max() < 6  # 17 of 256 colours, straight between them


def seen_by(colours, kind):
    """Simulate a colour-blind eye: Vienot, Brettel and Mollon 1999, in linear light."""
    linear = (np.array(colours) / 255.0) ** 2.2
    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    lms = linear @ to_lms.T
    if kind == "protan":
        lms[:, 0] = 2.02344 * lms[:, 1] - 2.52581 * lms[:, 2]
    else:
        lms[:, 1] = 0.494207 * lms[:, 0] + 1.24827 * lms[:, 2]
    return np.clip(lms @ np.linalg.inv(to_lms).T, 0, 1) ** (1 / 2.2) * 255


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_colour_blind_people_tell_the_first_eight_colours_apart(kind):
    seen = seen_by([rgb(colour) for colour in PART_COLOURS[:8]], kind)

    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1000 * np.eye(8)
    assert distance.min() > 20
    assert part_colour(len(PART_COLOURS)) == PART_COLOURS[0]


def test_near_points_hide_far_ones():
    towards = np.array([np.sin(0.6) * np.cos(0.35), np.sin(0.35), np.cos(0.6) * np.cos(0.35)])
    points = np.stack([towards, -towards])
    colours = np.array([[200, 0, 0], [0, 0, 200]], dtype=np.uint8)

    for order in ([0, 1], [1, 0]):
        middle = draw_cloud(points[order], colours[order], size=64, radius=3)[32, 32]
        assert middle[0] > 100
        assert middle[2] == 0


def test_a_z_up_cloud_looks_like_its_y_up_twin():
    points, labels = cloud()
    colours = Panel(points, labels=labels).rgb()
    lying = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1)

    np.testing.assert_array_equal(draw_cloud(points, colours), draw_cloud(lying, colours, up="z"))


def test_the_png_holds_the_picture(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    pixels = np.random.default_rng(0).integers(0, 256, (13, 7, 3)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(encode_png(pixels))

    np.testing.assert_array_equal((image.imread(tmp_path / "a.png")[:, :, :3] * 255).round(), pixels)


def test_a_picture_needs_no_display(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    points, labels = cloud()
    panels = [
        Panel(points, labels=labels, title="$x_1$ <b>"),
        Panel(points, scalars={"s": points[:, 0]}),
        Panel(points),
    ]

    path = render_png(tmp_path / "three.png", panels)

    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 2 * height


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("a.jpg", {}, "does not end in .png"), ("a.png", {"renderer": "gl"}, "use 'matplotlib' or 'open3d'")],
)
def test_pictures_that_cannot_be_made_say_why(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        render_png(tmp_path / name, [Panel(np.zeros((1, 3)))], **options)


def test_missing_system_libraries_of_open3d_are_named(tmp_path, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "open3d":
                raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"libGL\.so\.1.*apt-get install .*libgl1"):
        render_png(tmp_path / "a.png", [Panel(np.zeros((1, 3)))], renderer="open3d")


def test_a_coloured_ply_file_reads_back(tmp_path):
    pytest.importorskip("plyfile")
    points, labels = cloud()
    panel = Panel(points, labels={"my parts": labels + 4}, scalars={"confidence": np.abs(points[:, 0])})

    found = read_points(write_ply(tmp_path / "a.ply", panel))

    np.testing.assert_array_equal(found.points, points)
    np.testing.assert_array_equal(found.fields["my_parts"], labels + 4)
    np.testing.assert_array_equal(found.fields["colors"], panel.rgb())
    np.testing.assert_array_equal(found.fields["confidence"], np.abs(points[:, 0]))
    with pytest.raises(ValueError, match=r"does not end in \.ply"):
        write_ply(tmp_path / "a.obj", panel)


@pytest.mark.skipif(sys.platform != "linux", reason="only there the environment says where the display is")
def test_a_window_without_a_display_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("pcl_clora.vis.window.import_open3d", lambda: None)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(OSError, match="is there a display"):
        show_window([Panel(np.zeros((1, 3)))])
