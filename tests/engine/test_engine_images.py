"""Images run through the ordinary trainer: nothing samples or changes them on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcl_clora.config import ConfigError, build, merge
from pcl_clora.data import PointLoader, build_dataset
from pcl_clora.engine import RunConfig, RunFolder, Trainer, evaluate, load_run
from pcl_clora.models import build_model
from pcl_clora.report import make_table

pytest.importorskip("sklearn.datasets")
pytest.importorskip("timm")

VALUES: dict[str, Any] = {
    "name": "digits",
    "model": {
        "name": "timm/vit_tiny_patch16_224",
        "num_classes": 2,
        "image_size": 8,
        "patch_size": 4,
        "channels": 1,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    },
    "adapter": {"method": "full"},
    "data": {"name": "digits", "classes": [0, 1]},
    "augment": "none",
    "optim": {"epochs": 5, "batch_size": 16, "lr": 4e-3, "warmup_epochs": 0},
    "train": {"device": "cpu", "progress": "off"},
}
CLORA = {"adapter": {"method": "clora", "rank": 2, "num_spaces": 2}}


def config(*changes: dict[str, Any]) -> RunConfig:
    values = VALUES
    for change in changes:
        values = merge(values, change)
    return build(RunConfig, values)


class Recorder(nn.Module):
    """Notes what the model inside is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []
        self.interface = replace(
            model.interface, blocks=(), parts={"head": ("model.vit.head",), "tokens": ()}
        )

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return self.model(images)


@pytest.mark.slow
def test_a_run_on_images_learns_and_is_found_again(tmp_path: Path) -> None:
    result = Trainer(config(), run_dir=tmp_path).fit()
    assert result.metrics.oa > 0.9  # chance is about 1/2
    written = json.loads(RunFolder(tmp_path).result.read_text(encoding="utf-8"))
    assert written["data"]["name"] == "digits"
    assert make_table([tmp_path]).title.startswith("digits, 289 training and 71 test images of 64 pixels;")
    _, model = load_run(tmp_path)
    test = build_dataset({"name": "digits", "classes": [0, 1]}, "test")
    again = evaluate(model, PointLoader(test, 16), num_classes=2, num_points=64)
    assert again.oa == result.metrics.oa


@pytest.mark.slow
def test_clora_trains_on_the_weights_of_an_earlier_run(tmp_path: Path) -> None:
    Trainer(config(), run_dir=tmp_path / "warmup").fit()
    start = {"weights": {"path": str(tmp_path / "warmup")}, "data": {"classes": [2, 3]}}
    result = Trainer(config(CLORA, start, {"optim": {"epochs": 1}}), run_dir=tmp_path / "clora").fit()
    assert result.model.parameter_counts()["adapter"] == 2 * (2 * 24 * 2 + 4 * 4)
    assert result.model.num_classes == 2


def test_the_model_sees_the_images_as_they_were_read(tmp_path: Path) -> None:
    cfg = config({"optim": {"epochs": 1, "batch_size": 64}})
    torch.manual_seed(0)
    recorder = Recorder(build_model(cfg.model))
    Trainer(cfg, run_dir=tmp_path, model=recorder).fit()
    train, test = (build_dataset(cfg.data, split) for split in ("train", "test"))
    known = {sample.points.numpy().tobytes() for sample in train}
    assert len(recorder.seen) == 5  # four steps and one batch of the test split
    assert all(image.numpy().tobytes() in known for step in recorder.seen[:4] for image in step)
    assert torch.equal(recorder.seen[4], test.read_batch(range(len(test))).points)


@pytest.mark.parametrize("change", [{"augment": "scale_shift"}, {"protocol": {"votes": 3}}])
def test_what_is_for_clouds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="are for clouds, but digits holds images; set augment=none"):
        config(change)


def test_votes_over_images_are_refused() -> None:
    loader = PointLoader(build_dataset(config().data, "test"), 16)
    model = build_model(config().model)
    with pytest.raises(ValueError, match=r"points must be \(B, N, 3\), not \(16, 1, 8, 8\)"):
        evaluate(model, loader, num_classes=2, num_points=64, votes=2)
