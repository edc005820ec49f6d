"""Several adapters on one backbone in one pass: the same bits, grouping and patches computed once."""

import numpy as np
import pytest
import torch

from pcl_clora import ops
from pcl_clora.adapters import attach_adapter
from pcl_clora.config import build, merge
from pcl_clora.engine import RunConfig, Trainer
from pcl_clora.predict import answer_several, load_several
from pcl_clora.predict.several import keeps_patches
from tests.support.adapter_cases import BACKBONES, make_backbone, make_points
from tests.support.cli_cases import TINY

METHODS = {
    "clora": {"method": "clora", "rank": 2, "num_spaces": 2},
    "lora": {"method": "lora", "rank": 2},
    "linear_probe": {"method": "linear_probe"},
    "tuned patches": {"method": "lora", "rank": 2, "train": ["head", "tokens", "patch_embed"]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run a method, all on the same random backbone."""
    made = []
    for name, adapter in METHODS.items():
        values = merge(TINY, {"name": name, "adapter": None, "optim": {"epochs": 1}})
        cfg = build(RunConfig, {**values, "adapter": adapter})
        made.append(Trainer(cfg, run_dir=tmp_path_factory.mktemp("runs") / name).fit().run_dir)
    return made


@pytest.fixture
def counted(monkeypatch):
    """Count calls of grouping."""
    calls, original = [], ops.group_points

    def count(*arguments, **named):
        calls.append(1)
        return original(*arguments, **named)

    monkeypatch.setattr("pcl_clora.models.layers.patch_transformer.ops.group_points", count)
    return calls


def test_one_pass_gives_the_bits_of_passes_of_their_own(runs, counted):
    together = load_several(runs)
    seen = [together[0].see(np.random.default_rng(k).normal(size=(90, 3))) for k in range(3)]
    alone = [predictor.answer(seen) for predictor in together]
    encoded = []
    together[0].model.base.patch_embed.register_forward_hook(lambda *_: encoded.append(1))
    counted.clear()

    found = answer_several(together, seen, [[]] * len(together))

    assert len(counted) == 1
    tuned = [keeps_patches_of(each) for each in together].count(False)
    assert tuned == 1
    assert len(encoded) == 1  # the tuned encoder is a copy of its own, which the hook does not see
    for each, expected in zip(found, alone, strict=True):
        for one, other in zip(each, expected, strict=True):
            np.testing.assert_array_equal(one.probability, other.probability)
            np.testing.assert_array_equal(one.feature, other.feature)


def keeps_patches_of(predictor):
    with predictor.lock:
        predictor.put_in_place()
        return keeps_patches(predictor)


def test_predictors_without_a_common_backbone_are_refused(runs):
    first, second = load_several(runs[:1])[0], load_several(runs[1:2])[0]

    with pytest.raises(ValueError, match="have no pass in common"):
        answer_several([first, second], [first.see(np.eye(3))], [[], []])


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "plain"])
def test_every_backbone_gives_the_same_bits_with_shared_patches(backbone):
    from pcl_clora.models.layers.shared_patches import shared_patches

    model, points = make_backbone(backbone).eval(), make_points()
    if not hasattr(model, "tokenize"):
        pytest.skip("cuts no clouds into patches")
    model = attach_adapter(model, {"method": "lora", "rank": 2}).eval()
    with torch.inference_mode():
        expected = model(points)
        with shared_patches():
            found = [model(points), model(points)]

    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
