"""PointGPT's pre-training form: the mask, the loss against its formula, official files."""

import json

import pytest
import torch
import torch.nn.functional as F

from pcl_clora.models import create_model, load_weights, parse_model_config
from pcl_clora.models.layers.masked_autoencoder import chamfer_loss
from tests.support import formulas
from tests.support.model_cases import SIZES, TINY, count, meta_model

SMALL = {**TINY, "depth": 2, "generator_depth": 1}


def make(name="pointgpt_s", **changes):
    torch.manual_seed(0)
    return create_model(name, task="pretraining", **{**SMALL, **changes})


def predict(model, points, dropped):
    groups = model.group(points)
    return model.predict(groups.neighborhood, groups.center, dropped)


@pytest.mark.parametrize(
    ("settings", "num_groups", "free", "hidden"),
    [({}, 64, 10, 37), ({}, 16, 10, 4), ({}, 8, 8, 0), ({"mask_ratio": 1.0, "keep_first": 3}, 16, 3, 13)],
)
def test_places_behind_the_first_are_dropped_by_the_generator(settings, num_groups, free, hidden):
    model = make(num_groups=num_groups, pretraining=settings)
    before = torch.get_rng_state()
    drawn = [model.draw_dropped(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert [int(dropped.sum()) for dropped in drawn] == [hidden] * 3
    assert not drawn[0][:free].any()
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2]) == (hidden in (0, num_groups - free))
    assert torch.equal(torch.get_rng_state(), before)


def causal_block(w, x, heads, may_look):
    """Residuals on the normalised input; x already has the position added."""
    x = formulas.layer_norm(w("norm1"), x)
    read = torch.zeros_like(x)
    for place, seen in enumerate(may_look):
        q, k, v = formulas.linear(w("attn")("qkv"), x).chunk(3, -1)
        read[place] = formulas.attend(q[place][None], k[seen], v[seen], heads)[0]
    x = x + formulas.linear(w("attn")("proj"), read)
    return x + formulas.mlp(w("mlp"), formulas.layer_norm(w("norm2"), x))


def turns(points, dim):
    """Six numbers a point, repeated; no padding for this width."""
    angle = 2 * torch.pi * points
    pairs = torch.stack([angle.sin(), angle.cos()], -1)
    return torch.cat([pairs[:, axis].repeat(1, dim // 6) for axis in range(3)], 1)


def pointgpt_loss(w, patches, center, dropped):
    """One cloud: chamfer L1 + L2 of every patch, predicted from the start token and the patches before it."""
    places = range(len(patches))
    may_look = [[j for j in places if j == i or (j < i and not dropped[j])] for i in places]
    x = torch.stack([formulas.patch_encoder(w("patch_embed"), patch) for patch in patches])
    x = torch.cat([w("prefix")["start"][None], x[:-1]])
    pos = torch.cat([w("prefix")["start_pos"][0], turns(center[:-1], 48)])
    for index in range(2):
        x = causal_block(w("blocks")(str(index)), x + pos, 3, may_look)
    x = formulas.layer_norm(w("norm"), x)
    steps = F.normalize(center[1:] - center[:-1], dim=-1)
    x = causal_block(
        w("generator")("blocks")("0"), x + turns(torch.cat([center[:1], steps]), 48), 3, may_look
    )
    x = formulas.layer_norm(w("generator")("norm"), x)
    predicted = formulas.linear(w("generator")("increase_dim"), x).reshape(len(patches), -1, 3)
    d = torch.cdist(predicted, patches)
    l1 = (d.amin(1).mean() + d.amin(2).mean()) / 2
    return l1 + d.amin(1).square().mean() + d.amin(2).square().mean()


def test_the_loss_is_the_formula_cloud_by_cloud(generator):
    model = make().double().eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
    points = torch.rand(2, 64, 3, generator=generator, dtype=torch.float64)
    groups, dropped = model.group(points), model.draw_dropped(generator)
    w = formulas.Weights(model.state_dict())
    clouds = zip(groups.neighborhood, groups.center, strict=True)
    expected = torch.stack([pointgpt_loss(w, *cloud, dropped.tolist()) for cloud in clouds]).mean()
    output = model.predict(groups.neighborhood, groups.center, dropped)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_patch_is_predicted_without_it_and_later_ones(points):
    model = make().eval()
    groups, dropped = model.group(points), torch.zeros(16, dtype=torch.bool)
    changed = groups.neighborhood.clone()
    changed[:, 5:] *= 0.5
    before, after = (
        model.predict(patches, groups.center, dropped).predicted for patches in (groups.neighborhood, changed)
    )
    same = (before == after).flatten(2).all(dim=2).all(dim=0)
    assert same.tolist() == [True] * 6 + [False] * 10


def test_a_dropped_place_is_seen_by_itself_alone(points):
    model = make().eval()
    groups, dropped = model.group(points), torch.zeros(16, dtype=torch.bool)
    dropped[4] = True  # holds patch 3
    changed = groups.neighborhood.clone()
    changed[:, 3] *= 0.5
    before, after = (
        model.predict(patches, groups.center, dropped).predicted for patches in (groups.neighborhood, changed)
    )
    same = (before == after).flatten(2).all(dim=2).all(dim=0)
    assert same.tolist() == [place != 4 for place in range(16)]


def test_forward_draws_the_mask_and_says_what_it_computed(points):
    model = make().eval()
    output = model(points, torch.Generator().manual_seed(3))
    again = predict(model, points, model.draw_dropped(torch.Generator().manual_seed(3)))
    assert output.predicted.shape == output.target.shape == (2, 16, 8, 3)
    assert torch.equal(output.loss, again.loss)
    assert torch.equal(output.target, model.group(points).neighborhood)
    assert output.mask.all()
    both = [
        chamfer_loss(output.predicted.flatten(0, 1), output.target.flatten(0, 1), f"chamfer_l{n}")
        for n in (1, 2)
    ]
    assert output.loss.item() == pytest.approx(sum(term.item() for term in both))


def test_a_few_steps_on_one_batch_lower_the_loss(points):
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = model(points, torch.Generator().manual_seed(0)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_checkpointed_blocks_give_the_same_gradients(points):
    plain, saving = make().eval(), make().eval()
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(points, torch.Generator().manual_seed(0)).loss.backward()
    for (key, ours), theirs in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=key)
    unused = {key.split(".")[0] for key, value in plain.named_parameters() if value.grad is None}
    assert unused == {"feature_norm", "increase_dim", "generator"}  # of the generator only its start token


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pointgpt_s", (28_963_264, 223)),
        ("pointgpt_b", (119_994_048, 230)),
        ("pointgpt_l", (359_858_368, 374)),
    ],
)
def test_parameters_and_keys_are_the_published_ones(name, expected):
    model = meta_model(name, task="pretraining", num_groups=64)
    assert count(model) == expected
    official = [model.official_keys.translate(key, to="official") for key in model.state_dict()]
    assert None not in official
    assert len(set(official)) == expected[1]


@pytest.mark.shared_data
@pytest.mark.parametrize("size", ["S", "B", "L"])
def test_every_official_key_has_its_place_with_its_shape(shared, size):
    entries = json.loads((shared / "reference" / "keys" / f"pgpt_pretrain_{size}.json").read_text())["keys"]
    model = meta_model(f"pointgpt_{size.lower()}", task="pretraining", num_groups=64)
    own = {name: value.shape for name, value in model.state_dict().items()}
    placed = {}
    for key, entry in entries.items():
        key = key.removeprefix("GPT_Transformer.")
        tensor = torch.empty(entry["shape"], device="meta")
        keys = model.official_keys
        placed[keys.translate(key, to="ours")] = keys.translate_tensor(key, tensor, to="ours").shape
    assert placed == own


@pytest.mark.shared_data
def test_an_official_file_fills_the_form_and_the_form_fills_the_classifier(shared):
    model = create_model("pointgpt_s", task="pretraining", generator_depth=2, **SIZES)
    report = load_weights(model, shared / "fixtures" / "ckpt_pointgpt_pretrain_tiny.pth")
    assert not report.missing
    assert not report.unexpected
    classifier = create_model("pointgpt_s", num_classes=15, generator_depth=2, **SIZES)
    report = load_weights(classifier, model.state_dict())
    assert {name.split(".")[0] for name in report.missing} == {"prefix", "head", "head_norm"}
    assert len(report.matched) == len(model.state_dict())


def test_there_is_no_classifier_to_reset():
    with pytest.raises(ValueError, match="pre-training form has no classifier"):
        make().reset_classifier(5)


@pytest.mark.parametrize("setting", [{"mask_ratio": 1.1}, {"keep_first": -1}])
def test_a_setting_out_of_range_is_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        parse_model_config({"name": "pointgpt_s", "task": "pretraining", "pretraining": setting})
