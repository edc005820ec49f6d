import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.stats import chisquare, kstest

from pcl_clora.data.shapes import CATALOG, Draw, Mesh, ShapeBuilder
from pcl_clora.data.shapes.mesh import arc, curve, rounded_outline

# Seeds are fixed, so a statistical test gives the same p value every time; below this one it has failed.
IMPLAUSIBLE = 1e-4


def build(add):
    builder = ShapeBuilder(("first", "second"))
    add(builder)
    return builder.mesh()


PRIMITIVES = {
    "box": (lambda b: b.box("first", (1, 2, 3)), 22.0, 0.0),
    "ball": (lambda b: b.ball("first", (2, 2, 2)), 4 * np.pi, 0.05),  # 16 x 9 facets lie inside the sphere
    "cylinder": (lambda b: b.revolve("first", (1, 1), (0, 2), sides=60), 6 * np.pi, 0.005),
    "cone": (lambda b: b.revolve("first", (1, 0), (0, 1), sides=60), np.pi * (1 + 2**0.5), 0.005),
    "torus": (lambda b: b.torus("first", 2, 0.5, sides=60, tube_sides=40), 4 * np.pi**2, 0.005),
    "rod": (lambda b: b.rod("first", (0, 0, 0), (1, 2, 2), 0.5, sides=60), 3.5 * np.pi, 0.005),
    "prism": (lambda b: b.prism("first", np.array([[0, 0], [3, 0], [0, 4.0]]), 2.0), 36.0, 0.0),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_primitive_has_the_area_that_geometry_says(name):
    add, area, tolerance = PRIMITIVES[name]
    assert build(add).areas().sum() == pytest.approx(area, rel=tolerance + 1e-12)


@pytest.mark.parametrize("name", ["box", "ball", "cylinder", "cone", "rod", "prism"])
def test_a_convex_primitive_is_the_surface_of_its_hull(name):
    mesh = build(PRIMITIVES[name][0])
    assert mesh.areas().sum() == pytest.approx(ConvexHull(mesh.vertices).area, rel=1e-9)


@pytest.mark.parametrize("edge", [0.1, 0.4, 1.0])
def test_a_block_fills_its_box(edge):
    mesh = build(lambda b: b.block("first", (2, 4, 6), (1, 0, 0), edge=edge))
    np.testing.assert_allclose(mesh.vertices.min(axis=0), (0, -2, -3), atol=1e-12)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), (2, 2, 3), atol=1e-12)


def test_a_tube_keeps_its_radius_along_a_curve():
    path = curve([(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 0, 0)], 20)
    mesh = build(lambda b: b.tube("first", path, 0.1, sides=8))
    rings = mesh.vertices.reshape(22, 8, 3)[1:-1]
    np.testing.assert_allclose(np.linalg.norm(rings - path[:, None], axis=-1), 0.1, atol=1e-12)


def test_pieces_are_moved_turned_and_stretched_in_the_order_of_the_calls():
    mesh = build(lambda b: b.box("first", (2, 2, 2)).scale(1, 2, 1).turn("z", 90).move(5, 0, 0))
    np.testing.assert_allclose(mesh.vertices.min(axis=0), (3, -1, -1), atol=1e-12)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), (7, 1, 1), atol=1e-12)


@pytest.mark.parametrize(("axis", "expected"), [("x", (1, -3, 2)), ("y", (3, 2, -1)), ("z", (-2, 1, 3))])
def test_a_quarter_turn_is_counter_clockwise(axis, expected):
    builder = ShapeBuilder(("first",))
    piece = builder.box("first", (1, 1, 1))
    piece.vertices[0] = (1, 2, 3)
    np.testing.assert_allclose(piece.turn(axis, 90).vertices[0], expected, atol=1e-12)


def test_a_mirrored_piece_is_a_copy_across_the_plane():
    builder = ShapeBuilder(("first",))
    piece = builder.box("first", (1, 1, 1), (2, 0, 0))
    twin = builder.mirrored(piece)
    piece.move(0, 9, 0)
    np.testing.assert_allclose(twin.vertices.mean(axis=0), (-2, 0, 0), atol=1e-12)


def test_building_shapes_leaves_the_primitives_as_they_were():
    first = build(lambda b: b.box("first", (1, 1, 1)))
    build(lambda b: b.box("first", (5, 5, 5)).move(1, 2, 3).scale(2, 2, 2))
    assert np.array_equal(build(lambda b: b.box("first", (1, 1, 1))).vertices, first.vertices)


def test_curves_pass_through_their_points():
    points = np.array([[0.0, 0.0], [1, 2], [3, 1], [4, 4]])
    np.testing.assert_allclose(curve(points, 10)[::3], points, atol=1e-12)


def test_outlines_have_the_size_asked_for():
    ellipse, arch = rounded_outline(4, 2, 2.0, 40), arc(2.0, 0, 180, 5)
    np.testing.assert_allclose((ellipse / (2, 1) ** np.ones(1)) ** 2 @ np.ones(2), 1.0, atol=1e-12)
    np.testing.assert_allclose(arch[[0, 2, 4]], [[2, 0], [0, 2], [-2, 0]], atol=1e-12)


def test_every_triangle_gets_points_by_its_area():
    mesh = build(lambda b: (b.ball("first", (1, 2, 3)), b.box("second", (3, 0.1, 1), (0, 2, 0))))
    single = Mesh(mesh.vertices, mesh.faces, np.arange(len(mesh.faces)))
    _, triangle = single.sample(200_000, Draw("area"))
    areas = mesh.areas()
    solid = areas > 0
    found = np.bincount(triangle, minlength=len(areas))
    assert found[~solid].sum() == 0
    assert chisquare(found[solid], 200_000 * areas[solid] / areas.sum()).pvalue > IMPLAUSIBLE


def test_points_are_uniform_inside_a_triangle():
    mesh = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]), np.zeros(1, np.int64))
    points, _ = mesh.sample(50_000, Draw("triangle"))
    x, y = points[:, 0], points[:, 1]
    assert kstest(x, lambda t: 1 - (1 - t) ** 2).pvalue > IMPLAUSIBLE
    assert kstest(y, lambda t: 1 - (1 - t) ** 2).pvalue > IMPLAUSIBLE
    assert kstest(y / (1 - x), "uniform").pvalue > IMPLAUSIBLE


def test_points_of_a_sphere_are_uniform_in_height():
    mesh = build(lambda b: b.revolve("first", *arc(1, -90, 90, 120).T, sides=120))
    points, _ = mesh.sample(20_000, Draw("sphere"))
    assert kstest(points[:, 1], lambda t: (t + 1) / 2).pvalue > IMPLAUSIBLE


def test_a_stretched_shape_is_sampled_by_its_stretched_area():
    mesh = build(lambda b: (b.box("first", (1, 1, 1)), b.box("second", (1, 1, 1)).scale(1, 9, 1)))
    _, part = mesh.sample(50_000, Draw("stretch"))
    assert part.mean() == pytest.approx(38 / 44, abs=0.006)  # four standard deviations


def test_points_carry_the_part_of_the_surface_they_lie_on():
    mesh = build(lambda b: (b.box("second", (1, 1, 1), (5, 0, 0)), b.box("first", (1, 1, 1), (-5, 0, 0))))
    points, part = mesh.sample(500, Draw("parts"))
    assert np.array_equal(part == 1, points[:, 0] > 0)


def test_an_unknown_part_is_an_error():
    with pytest.raises(KeyError, match="third"):
        build(lambda b: b.box("third", (1, 1, 1)))


def test_drawn_numbers_are_the_same_in_every_version():
    draw = Draw("fixed", 1)
    np.testing.assert_array_equal(
        np.round(draw.array(3), 12), [0.249529323688, 0.565626255457, 0.874283384611]
    )


def test_drawn_numbers_are_uniform_and_normal():
    draw = Draw("distribution")
    assert kstest(draw.array(20_000), "uniform").pvalue > IMPLAUSIBLE
    assert kstest(draw.normal(20_000), "norm").pvalue > IMPLAUSIBLE
    assert kstest([draw.uniform(2, 4) for _ in range(5000)], "uniform", (2, 2)).pvalue > IMPLAUSIBLE


def test_whole_numbers_include_both_ends_equally():
    draw = Draw("integers")
    counts = np.bincount([draw.integer(2, 5) for _ in range(8000)], minlength=6)
    assert counts[:2].sum() == 0
    assert chisquare(counts[2:]).pvalue > IMPLAUSIBLE


@pytest.mark.parametrize("key", [("fixed", 2), ("other", 1), ("fixed1",), ("fixed", 1, 0)])
def test_another_key_gives_other_numbers(key):
    assert not np.isin(Draw(*key).array(50), Draw("fixed", 1).array(50)).any()


@pytest.mark.parametrize("name", CATALOG)
def test_every_class_uses_all_of_its_parts(name):
    entry, seen = CATALOG[name], set()
    for index in range(60):
        builder = ShapeBuilder(entry.parts)
        entry.build(builder, Draw("parts", name, index))
        seen |= set(builder.mesh().part.tolist())
    assert seen == set(range(len(entry.parts)))
    assert entry.build.__doc__
