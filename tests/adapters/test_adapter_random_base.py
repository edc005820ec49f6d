"""Adapters of a backbone whose weights do not fill every tensor: the file carries what is random."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pcl_clora.adapters import (
    AdapterFileError,
    attach_adapter,
    list_adapters,
    load_adapter,
    read_adapter,
)
from pcl_clora.models import create_model, load_weights
from tests.support import adapter_cases as cases
from tests.support.engine_cases import FITTING

SETTINGS = [{"method": method, **FITTING.get(method, {})} for method in list_adapters()] + [
    {"method": "lora", "train": []},
    {"method": "clora", "rank": 2, "train": ["head"], "sharing": "per_role"},
    {"method": "linear_probe", "train": ["norms"]},
]


def make_base(seed: int) -> nn.Module:
    """The weights in the package, which hold neither head nor class token; those are random."""
    return copy.deepcopy(_made(seed))


@cache
def _made(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("point_mae_tiny", num_classes=3, weights="builtin").eval()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_file_loads_on_the_same_weights_with_other_random_tensors(
    settings: dict[str, object], tmp_path: Path
) -> None:
    model = cases.shake(attach_adapter(make_base(1), settings))
    model.save_adapter(tmp_path / "a.safetensors")
    other = make_base(2)
    points = cases.make_points()
    bare = other(points)

    loaded = load_adapter(tmp_path / "a.safetensors", other)
    answer = loaded(points)
    loaded.save_adapter(tmp_path / "again.safetensors")

    assert torch.equal(answer, model(points))
    with loaded.disabled():
        assert torch.equal(loaded(points), bare)
    again = load_adapter(tmp_path / "again.safetensors", make_base(3))
    assert torch.equal(again(points), model(points))
    assert read_adapter(tmp_path / "again.safetensors")[0].base_sha256 == model.base_hash()


@pytest.mark.slow
def test_a_file_loads_in_another_process(tmp_path: Path) -> None:
    points = cases.make_points()
    for method in list_adapters():
        model = cases.shake(attach_adapter(make_base(1), {"method": method, **FITTING.get(method, {})}))
        model.save_adapter(tmp_path / f"{method}.safetensors")
        torch.save(model(points).detach(), tmp_path / f"{method}.pt")
    code = (
        "import copy, sys, torch, pcl_clora as pcl\n"
        "from pathlib import Path\n"
        "points = torch.load(sys.argv[1] + '/points.pt', weights_only=True)\n"
        "base = pcl.create_model('point_mae_tiny', num_classes=3, weights='builtin')\n"
        "for file in sorted(Path(sys.argv[1]).glob('*.safetensors')):\n"
        "    answer = pcl.load_adapter(file, copy.deepcopy(base))(points)\n"
        "    there = torch.load(file.with_suffix('.pt'), weights_only=True)\n"
        "    print(file.stem, float((answer - there).abs().max() / there.abs().max()))\n"
    )
    torch.save(points, tmp_path / "points.pt")

    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip

    lines = dict(line.split() for line in found.stdout.splitlines())
    assert sorted(lines) == list_adapters(), found.stderr
    # Not the same bits everywhere: products of torch's library may depend on where in memory a matrix lies.
    assert {name: off for name, off in lines.items() if float(off) > 1e-5} == {}


def test_two_adapters_with_other_random_tensors_live_on_one_base(tmp_path: Path) -> None:
    points, answers = cases.make_points(), {}
    for seed in (1, 2):
        model = cases.shake(attach_adapter(make_base(seed), {"method": "linear_probe"}), seed=seed)
        model.save_adapter(tmp_path / f"{seed}.safetensors")
        answers[seed] = model(points)

    model = load_adapter(tmp_path / "1.safetensors", make_base(3), "one")
    load_adapter(tmp_path / "2.safetensors", model, "two")

    assert torch.equal(model(points), answers[2])
    model.set_active("one")
    assert torch.equal(model(points), answers[1])


def test_only_what_is_random_is_carried_and_other_weights_are_still_refused(tmp_path: Path) -> None:
    model = attach_adapter(make_base(1), {"method": "linear_probe"})
    model.save_adapter(tmp_path / "a.safetensors")
    other = make_base(1)
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight[0, 0] += 1

    assert read_adapter(tmp_path / "a.safetensors")[0].not_in_weights == ("prefix.token", "prefix.pos")
    assert {"model.prefix.token", "model.prefix.pos"} <= load_file(tmp_path / "a.safetensors").keys()
    with pytest.raises(AdapterFileError, match="SHA-256"):
        load_adapter(tmp_path / "a.safetensors", other)


def test_a_run_that_chose_a_file_takes_its_values_back(tmp_path: Path) -> None:
    model = cases.shake(attach_adapter(make_base(1), {"method": "linear_probe"}))
    expected = model(cases.make_points())
    model.save_adapter(tmp_path / "a.safetensors")
    cases.shake(model, seed=9)

    model.load_adapter_state(load_file(tmp_path / "a.safetensors"))

    assert torch.equal(model(cases.make_points()), expected)


def test_a_base_that_nothing_filled_keeps_the_old_rule(tmp_path: Path) -> None:
    attach_adapter(cases.make_backbone("point_mae"), {"method": "linear_probe"}).save_adapter(
        tmp_path / "a.safetensors"
    )

    assert read_adapter(tmp_path / "a.safetensors")[0].not_in_weights == ()


def test_weights_that_come_after_the_adapter_count_too(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = attach_adapter(create_model("point_mae_tiny", num_classes=3).eval(), {"method": "linear_probe"})
    load_weights(model, "builtin")
    cases.shake(model).save_adapter(tmp_path / "a.safetensors")

    loaded = load_adapter(tmp_path / "a.safetensors", make_base(5))

    assert torch.equal(loaded(cases.make_points()), model(cases.make_points()))
