"""Two views of a cloud: the comparison against its formula, and what it leaves alone."""

import math

import pytest
import torch

from pcl_clora.config import ConfigError
from pcl_clora.models import WeightsError, create_model, load_weights, parse_model_config
from pcl_clora.models.backbones.point_mae.pretraining import contrast_loss
from tests.support.model_cases import TINY

SMALL = {**TINY, "depth": 2, "drop_path": 0.0}


def make(seed=0, **pretraining):
    torch.manual_seed(seed)
    return create_model(
        "point_mae", task="pretraining", **SMALL, pretraining={"decoder_depth": 1, **pretraining}
    )


@pytest.fixture
def points(generator):
    return torch.rand(4, 64, 3, generator=generator) - 0.5


def formula(first, second, temperature):
    """NT-Xent term by term in float64."""
    views = [row / math.sqrt(sum(x * x for x in row)) for row in torch.cat([first, second]).double()]
    count, total = len(first), 0.0
    for i, view in enumerate(views):
        alike = [float(view @ other) / temperature for other in views]
        others = sum(math.exp(alike[k]) for k in range(2 * count) if k != i)
        total -= math.log(math.exp(alike[(i + count) % (2 * count)]) / others)
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_comparison_is_the_formula(temperature, generator):
    first, second = torch.randn(2, 5, 7, generator=generator)
    found = contrast_loss(first, second, temperature)
    assert found.item() == pytest.approx(formula(first, second, temperature), rel=1e-5)


def test_equal_views_of_unlike_clouds_are_found():
    features = torch.eye(6) * 3
    assert contrast_loss(features, features, 0.05).item() < 1e-6
    assert contrast_loss(features, features.roll(1, 0), 0.05).item() > 5


def test_without_comparison_nothing_is_added(points):
    plain, compared = make(), make(contrast=0.5)
    names = set(compared.state_dict()) - set(plain.state_dict())
    assert {name.split(".")[0] for name in names} == {"project"}
    assert all(torch.equal(value, compared.state_dict()[name]) for name, value in plain.state_dict().items())
    masks = [torch.Generator().manual_seed(1) for _ in range(2)]
    found = plain.train()(points, masks[0]), compared.train()(points, masks[1])
    assert set(found[0].terms) == {"reconstruction"}
    assert torch.equal(found[0].terms["reconstruction"], found[1].terms["reconstruction"])


def test_training_adds_the_weighted_comparison_of_the_pooled_visible_features(points):
    model = make(contrast=0.25, temperature=0.2).train()
    groups, both = model.group(points), len(points) // 2
    mask = model.draw_mask(groups.center, torch.Generator().manual_seed(1))
    output = model.reconstruct(groups.neighborhood, groups.center, mask)
    encoded = model.encode_visible(model.hide(groups.neighborhood, groups.center, mask))
    pooled = model.project(torch.cat([encoded.max(dim=1).values, encoded.mean(dim=1)], dim=1))
    expected = 0.25 * contrast_loss(pooled[:both], pooled[both:], 0.2)
    torch.testing.assert_close(output.terms["contrast"], expected)
    torch.testing.assert_close(output.loss, output.terms["reconstruction"] + expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.project.parameters())


def test_evaluation_is_rebuilding_alone_and_takes_any_batch(points):
    model = make(contrast=0.5).eval()
    assert set(model(points[:1]).terms) == {"reconstruction"}


def test_an_odd_batch_is_refused_in_training(points):
    for size in (2, 3):
        with pytest.raises(ValueError, match=f"two views of every cloud.* the batch holds {size}"):
            make(contrast=0.5).train()(points[:size])


def test_settings_that_are_off_are_not_written():
    settings = {"name": "point_mae_tiny", "task": "pretraining"}
    written = parse_model_config(settings).model_dump()["pretraining"]
    assert not {"contrast", "temperature", "init"} & set(written)
    written = parse_model_config({**settings, "pretraining": {"contrast": 0.1}}).model_dump()["pretraining"]
    assert (written["contrast"], written["temperature"]) == (0.1, 0.1)


@pytest.mark.parametrize("name", ["pcp_mae", "recon", "point_mae"])
def test_settings_of_other_pretrainings_are_written_as_before(name):
    written = parse_model_config({"name": name, "task": "pretraining"}).model_dump()["pretraining"]
    assert "init" not in written
    assert "contrast" not in written


def test_a_comparison_starts_from_weights_that_have_none(points):
    plain, compared = make(seed=1), make(contrast=0.5)
    with pytest.raises(WeightsError, match=r"project\.0\.weight.*allow_partial"):
        load_weights(compared, plain.state_dict())
    report = load_weights(compared, plain.state_dict(), allow_partial=True)
    assert {name.split(".")[0] for name in report.missing} == {"project"}
    assert torch.equal(compared.eval()(points, mask(2)).loss, plain.eval()(points, mask(2)).loss)
    classifier = create_model("point_mae", **SMALL)
    left_out = load_weights(classifier, compared.state_dict()).unexpected
    assert "used in pre-training only" in str(left_out)


def mask(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((3, 4), (2, 4))])
def test_what_cannot_be_compared_is_refused(shapes):
    with pytest.raises(ValueError, match=r"at least 2 clouds|give equal ones"):
        contrast_loss(*(torch.ones(shape) for shape in shapes), 0.1)


@pytest.mark.parametrize("pretraining", [{"contrast": -1}, {"temperature": 0.2}, {"init": "zeros"}])
def test_a_wrong_setting_is_named(pretraining):
    with pytest.raises((ConfigError, ValueError), match=next(iter(pretraining))):
        parse_model_config({"name": "point_mae", "task": "pretraining", "pretraining": pretraining})


def test_initial_weights_are_published_or_those_of_the_layers():
    deviation = {
        kind: make(init=kind).blocks[0].attn.qkv.weight.std().item() for kind in ("normal", "default")
    }
    assert deviation["normal"] == pytest.approx(0.02, rel=0.1)
    assert deviation["default"] == pytest.approx(1 / math.sqrt(3 * SMALL["embed_dim"]), rel=0.1)
