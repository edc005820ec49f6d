"""Point-MAE against the golden outputs of the official model, and its own promises."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pcl_clora.models import create_model, load_weights, published_form
from pcl_clora.models.weights.load import native_name

LOGIT_TOLERANCE = 2e-5  # the golden files' own: float32 sums in another order
SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_groups": 16, "group_size": 8}


@pytest.fixture(scope="module")
def tiny_golden(request):
    return np.load(Path(__file__).parents[2] / "golden" / "pointmae_cls_tiny.npz")


def golden_model(archive, **settings):
    model = create_model("point_mae", num_classes=15, **SIZES, **settings)
    state = {k[2:]: torch.from_numpy(archive[k]).float() for k in archive.files if k.startswith("w:")}
    report = load_weights(model, state)
    assert not report.missing
    assert not report.unexpected
    return model.eval()


@pytest.mark.parametrize("compat", ["none", "pointnet2"])
@pytest.mark.parametrize("fold", [False, True])
def test_tiny_logits_equal_the_official_model(tiny_golden, fold, compat):
    model = golden_model(tiny_golden, fold_batchnorm=fold, fps_compat=compat)

    logits = model(torch.from_numpy(tiny_golden["points"]))

    np.testing.assert_allclose(logits.detach(), tiny_golden["output"], atol=LOGIT_TOLERANCE)


def test_published_form_gives_the_same_logits(tiny_golden):
    model = golden_model(tiny_golden)
    with published_form(model):
        logits = model(torch.from_numpy(tiny_golden["points"]))
        assert model.patch_embed.published
    assert not model.patch_embed.published
    np.testing.assert_allclose(logits.detach(), tiny_golden["output"], atol=LOGIT_TOLERANCE)


def test_tiny_intermediate_values_equal_the_official_model(tiny_golden):
    model = golden_model(tiny_golden)
    points = torch.from_numpy(tiny_golden["points"])
    groups = model.group(points)
    tokens = model.embed_groups(groups.neighborhood, groups.center)
    norms = groups.neighborhood.norm(dim=-1).sort(dim=-1).values

    np.testing.assert_array_equal(groups.center, tiny_golden["center"])
    np.testing.assert_allclose(norms, tiny_golden["neighborhood_sorted_norm"], atol=1e-6)
    np.testing.assert_allclose(tokens.x[:, 1:].detach(), tiny_golden["tokens"], atol=LOGIT_TOLERANCE)
    features = model.encode(tokens).detach()
    np.testing.assert_allclose(features[:, :4], tiny_golden["norm_out_first"], atol=5e-5)  # unit-scale values


@pytest.mark.parametrize("fold", [False, True])
def test_tiny_loss_and_gradient_norms_equal_the_official_model(tiny_golden, fold):
    assert_gradients_match(golden_model(tiny_golden, fold_batchnorm=fold), tiny_golden)


def assert_gradients_match(model, archive):
    loss = F.cross_entropy(model(torch.from_numpy(archive["points"])), torch.from_numpy(archive["target"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(archive["loss"]), abs=2e-5)
    names = [native_name(str(name), model) for name in archive["grad_names"]]
    params = dict(model.named_parameters())
    ours = np.array([params[name].grad.norm().item() for name in names])
    assert set(names) == set(params)
    np.testing.assert_allclose(ours, archive["grad_l2"], rtol=2e-3, atol=2e-5)  # norms of float32 sums


@pytest.mark.slow
@pytest.mark.shared_data
def test_full_size_model_equals_the_official_one(shared, monkeypatch):
    monkeypatch.syspath_prepend(str(shared / "fixtures"))
    gen_weights = pytest.importorskip("gen_weights")
    archive = np.load(shared / "fixtures" / "pointmae_cls_full_scan.npz")
    shapes = dict(zip(map(str, archive["keys"]), map(json.loads, map(str, archive["shapes"])), strict=True))
    state = {k: torch.from_numpy(np.asarray(v)) for k, v in gen_weights.state_dict(shapes).items()}
    model = create_model("point_mae", num_classes=15).eval()
    report = load_weights(model, state)
    assert (len(report.matched), len(report.missing), len(report.unexpected)) == (174, 0, 0)

    assert_gradients_match(model, archive)
    with torch.no_grad():
        logits = model(torch.from_numpy(archive["points"]))
    np.testing.assert_allclose(logits, archive["output"], atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize(("num_classes", "expected"), [(40, 22_099_752), (15, 22_093_327)])
def test_parameter_count_is_the_published_one(num_classes, expected):
    with torch.device("meta"):
        model = create_model("point_mae", num_classes=num_classes)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert len(model.state_dict()) == 174


def test_checkpointed_blocks_give_the_same_gradients(tiny_golden):
    model = golden_model(tiny_golden)
    model.set_grad_checkpointing(True)
    assert_gradients_match(model, tiny_golden)


def test_logits_do_not_depend_on_batch_mates(tiny_golden):
    model = golden_model(tiny_golden)
    points = torch.from_numpy(tiny_golden["points"])
    alone = torch.cat([model(cloud[None]) for cloud in points])
    torch.testing.assert_close(model(points), alone, atol=1e-6, rtol=0)  # matrix products of other sizes


def test_folding_changes_only_rounding_after_training_steps(points):
    model = create_model("point_mae", num_classes=5, encoder_widths=(16, 32, 64), **SIZES)
    model.train()
    for _ in range(3):
        model(points)
    model.eval()
    folded = model(points)
    model.patch_embed.fold = False
    torch.testing.assert_close(folded, model(points), atol=1e-6, rtol=1e-5)


def test_reset_classifier_changes_the_number_of_logits(points):
    model = create_model("point_mae", num_classes=5, encoder_widths=(16, 32, 64), **SIZES).eval()
    model.eval().reset_classifier(7)
    assert not any(module.training for module in model.modules())
    assert model(points).shape == (2, 7)
    assert model.num_classes == 7


def test_another_encoder_width_is_reduced_to_the_token_width(points):
    model = create_model("point_mae", num_classes=5, encoder_dim=32, **SIZES).eval()
    assert model(points).shape == (2, 5)
    assert model.reduce_dim.weight.shape == (48, 32)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 128), r"expected \(B, N, 3\)"),
        ((2, 128, 4), r"\(2, 128, 4\)"),
        ((1, 10, 3), "10 points is too small"),
    ],
)
def test_wrong_input_is_named(shape, text):
    model = create_model("point_mae", num_classes=5, **SIZES)
    with pytest.raises(ValueError, match=text):
        model(torch.zeros(shape))
