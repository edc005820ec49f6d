"""VeRA against the peft library, its formula where layers differ in width, and its random matrices."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pcl_clora.adapters import attach_adapter, load_adapter
from pcl_clora.adapters.methods.vera import uniform_numbers
from pcl_clora.adapters.paths import tuner_layers
from tests.support import adapter_cases as cases


def test_slices_use_the_first_rows_and_columns() -> None:
    settings = {"method": "vera", "rank": 5, "targets": ["v", "fc1"]}
    model = cases.shake(attach_adapter(cases.make_backbone("bare").double(), settings))
    tuner = tuner_layers(model.base)["layers.1.attention.mix_in"]
    d, b = (model.adapter_state()[f"layers.layers.1.attention.mix_in.updates.v.{name}"] for name in "db")
    spaces = model.method.spaces
    x = torch.randn(3, 16, dtype=torch.float64)

    expected = tuner.base_layer(x).clone()
    expected[:, 32:] += ((x @ spaces.down.t()) * d) @ spaces.up[:16].t() * b

    assert spaces.up.shape == (32, 5)
    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "trained", "frozen"),
    [({}, 15_360, 196_608), ({"targets": ["qkv", "fc1"]}, 38_400, 491_520)],
    ids=str,
)
def test_numbers_on_point_mae(settings: dict[str, object], trained: int, frozen: int) -> None:
    model = attach_adapter(cases.full_size_without_values(), {"method": "vera", **settings})

    assert model.parameter_counts()["adapter"] == trained
    assert sum(buffer.numel() for buffer in model.method.buffers()) == frozen


def test_the_start_is_that_of_the_paper() -> None:
    model = attach_adapter(cases.make_backbone("plain"), {"method": "vera"})
    state = model.adapter_state()

    assert all(bool((state[key] == 0.1).all()) for key in state if key.endswith(".d"))
    assert all(bool((state[key] == 0).all()) for key in state if key.endswith(".b"))


def test_random_matrices_are_drawn_again_and_not_stored(tmp_path) -> None:
    settings = {"method": "vera", "rank": 16, "seed": 5}
    model = cases.shake(attach_adapter(cases.make_backbone("plain"), settings))
    model.save_adapter(tmp_path / "a.safetensors")

    torch.manual_seed(99)
    loaded = load_adapter(tmp_path / "a.safetensors", cases.make_backbone("plain"))

    assert torch.equal(loaded.method.spaces.down, model.method.spaces.down)
    assert not any("spaces" in key for key in model.adapter_state())


def test_random_numbers_are_the_same_for_ever_and_uniform() -> None:
    numbers = uniform_numbers(100_000, seed=3)
    other = uniform_numbers(100_000, seed=4)

    first = [int(value * 2**23) for value in uniform_numbers(4, seed=0)]
    assert first == [
        -1809840,
        5881977,
        3094062,
        -22391,
    ]
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.square().mean() - 1 / 3) < 0.01
    assert numbers.min() >= -1
    assert numbers.max() < 1
    counts = torch.histc(numbers, 50, -1, 1)
    assert (counts - 2000).abs().max() < 5 * 2000**0.5
    assert abs((numbers * other).mean()) < 0.01
    assert abs((numbers[1:] * numbers[:-1]).mean()) < 0.01


def test_the_random_matrices_are_in_the_file_if_asked_for(tmp_path):
    points = cases.make_points()
    sizes = {}
    for stored in (False, True):
        settings = {"method": "vera", "rank": 16, "stored": stored}
        model = cases.shake(attach_adapter(cases.make_backbone("point_mae"), settings))
        file = tmp_path / f"{stored}.safetensors"
        model.save_adapter(file)
        state = load_file(file)
        sizes[stored] = sum(t.numel() for key, t in state.items() if ".spaces." in key)
        assert torch.equal(load_adapter(file, cases.make_backbone("point_mae"))(points), model(points))

    assert sizes == {False: 0, True: 16 * (48 + 48)}


def test_stored_matrices_win_over_the_seed(tmp_path):
    """A file written elsewhere may hold matrices that our generator does not draw."""
    settings = {"method": "vera", "rank": 16, "stored": True}
    model = cases.shake(attach_adapter(cases.make_backbone("point_mae"), settings))
    expected = model(cases.make_points())
    state = {key: value.clone() for key, value in model.adapter_state().items()}
    other = attach_adapter(cases.make_backbone("point_mae"), {**settings, "seed": 5})
    assert not torch.equal(other(cases.make_points()), expected)

    other.load_adapter_state(state)

    assert torch.equal(other(cases.make_points()), expected)
