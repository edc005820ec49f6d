"""What is done with a run's model computes as the run did: precision, and library of products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pcl_clora.engine import Trainer, evaluate_run, load_run
from pcl_clora.engine.diagnose import diagnose_calibration, diagnose_robustness
from pcl_clora.engine.probes.of_weights import probe_weights
from pcl_clora.models.layers import product
from pcl_clora.models.layers.transformer import Attention
from pcl_clora.predict import Predictor
from tests.engine.test_engine_pretraining import pretraining_config
from tests.support.engine_cases import tiny_config

OTHER = {"torch": "onednn", "onednn": "torch"}
SHORT = {"optim": {"epochs": 1, "warmup_epochs": 0}, "data": {"test_size": 6}, "train": {"amp": True}}
pytestmark = pytest.mark.skipif(not product.has_onednn(), reason="this torch has one product only")


def say_faster(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(product, "_found", {"choice": product.Choice(name, "test")})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[tuple[bool, str]]:
    """How the backbone computed, whenever it did: in bfloat16, and by which library."""
    found: set[tuple[bool, str]] = set()
    forward = Attention.forward

    def noted(self: Attention, *inputs: Any, **named: Any) -> Any:
        found.add((torch.is_autocast_enabled("cpu"), product.route()))
        return forward(self, *inputs, **named)

    monkeypatch.setattr(Attention, "forward", noted)
    return found


@pytest.fixture(scope="module", params=product.ROUTES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in bfloat16 by one of the libraries."""
    folder = tmp_path_factory.mktemp("numerics") / "run"
    with pytest.MonkeyPatch.context() as patch:
        say_faster(patch, request.param)
        Trainer(tiny_config(SHORT), run_dir=folder).fit()
    return folder, request.param


DOORS: dict[str, Callable[[Path], object]] = {
    "eval": evaluate_run,
    "robustness": lambda folder: diagnose_robustness(folder, *load_run(folder), ["pointcloud_c.jitter"]),
    "calibration": lambda folder: diagnose_calibration(folder, *load_run(folder)),
    "predict": lambda folder: Predictor(folder)(torch.rand(100, 3)),
}


@pytest.mark.parametrize("door", list(DOORS))
def test_every_door_computes_as_the_run_did(
    run: tuple[Path, str], seen: set[tuple[bool, str]], monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    folder, name = run
    say_faster(monkeypatch, OTHER[name])

    DOORS[door](folder)

    assert seen == {(True, name)}
    assert product.route() == OTHER[name]


@pytest.mark.parametrize("name", product.ROUTES)
@pytest.mark.parametrize("amp", [True, False])
def test_a_probe_computes_as_a_run_of_its_settings_would(
    seen: set[tuple[bool, str]], amp: bool, name: str
) -> None:
    cfg = tiny_config(SHORT, {"train": {"amp": amp, "product": name}, "data": {"train_size": 12}})
    before = torch.get_rng_state()

    found = probe_weights(cfg, svm=False)

    assert seen == {(amp, name)}
    assert (found["precision"], found["product"]) == ("bfloat16" if amp else "float32", name)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("amp", [True, False])
def test_the_probe_of_a_pre_training_computes_as_it_does(
    tmp_path: Path, seen: set[tuple[bool, str]], amp: bool
) -> None:
    cfg = pretraining_config(
        {"train": {"amp": amp, "product": "torch"}, "optim": {"epochs": 1, "warmup_epochs": 0}}
    )

    Trainer(cfg, run_dir=tmp_path).fit()

    assert seen == {(amp, "torch")}
