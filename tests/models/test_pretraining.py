"""Masked autoencoders: masks, losses against formulas, official files, and what training does."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

from pcl_clora.models import create_model, load_weights, parse_model_config
from pcl_clora.models.layers.masked_autoencoder import chamfer_loss, draw_mask, init_transformer
from tests.support import formulas
from tests.support.model_cases import SIZES, TINY, count, meta_model

NAMES = ("point_mae", "pcp_mae", "recon")
SMALL = {**TINY, "depth": 2, "drop_path": 0.0, "pretraining": {"decoder_depth": 2}}
HIDDEN = 9  # int(0.6 * 16)


def make(name, seed=0, **changes):
    torch.manual_seed(seed)
    section = {**SMALL["pretraining"], **changes.pop("pretraining", {})}
    return create_model(name, task="pretraining", **{**SMALL, **changes, "pretraining": section})


def spread(model, generator):
    """Move every weight and statistic away from its initial value, in float64."""
    model.double().eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
    return model


@pytest.fixture
def centers(generator):
    return torch.rand(3, 20, 3, generator=generator)


@pytest.mark.parametrize("kind", ["random", "block"])
def test_as_many_patches_are_hidden_in_every_cloud_and_the_generator_decides_which(centers, kind):
    before = torch.get_rng_state()
    drawn = [draw_mask(centers, 7, kind, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0].sum(dim=1).tolist() == [7, 7, 7]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_every_patch_is_hidden_equally_often(generator):
    share = draw_mask(torch.zeros(20_000, 8, 3), 2, "random", generator).float().mean(dim=0)
    np.testing.assert_allclose(share, 0.25, atol=0.02)  # six standard deviations of a binomial share


def test_a_block_is_one_patch_and_those_nearest_to_it(centers, generator):
    mask = draw_mask(centers, 7, "block", generator)
    for cloud, hidden in zip(centers.numpy(), mask.numpy(), strict=True):
        _, nearest = cKDTree(cloud).query(cloud, k=7)
        assert sorted(np.flatnonzero(hidden)) in [sorted(row) for row in nearest]


@pytest.mark.parametrize(
    ("kind", "number", "text"), [("rand", 3, "mask='rand' is not known"), ("random", 21, "not in 0..20")]
)
def test_a_wrong_mask_is_named(centers, kind, number, text):
    with pytest.raises(ValueError, match=text):
        draw_mask(centers, number, kind)


@pytest.mark.parametrize("kind", ["chamfer_l2", "chamfer_l1"])
def test_chamfer_losses_are_those_of_scipy(kind, generator):
    a, b = torch.rand(2, 4, 9, 3, generator=generator)
    there = np.stack([cKDTree(y).query(x)[0] for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    back = np.stack([cKDTree(x).query(y)[0] for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    squared = (there**2).mean() + (back**2).mean()
    expected = squared if kind == "chamfer_l2" else (there.mean() + back.mean()) / 2
    assert chamfer_loss(a, b, kind).item() == pytest.approx(expected, rel=1e-5)


def decode(w, features, visible_pos, hidden_pos, patches):
    """Decoder and chamfer distance of one cloud, from their formulas."""
    x = torch.cat([features, w["mask_token"][0].expand(len(hidden_pos), -1)])
    pos = torch.cat([visible_pos, hidden_pos])
    for index in range(2):
        x = formulas.block(w("decoder")("blocks")(str(index)), x + pos, 3)
    x = formulas.layer_norm(w("decoder")("norm"), x[-len(hidden_pos) :])
    predicted = formulas.linear(w("rebuild"), x).reshape(len(hidden_pos), -1, 3)
    pairs = zip(predicted, patches, strict=True)
    return torch.stack([formulas.chamfer_l2(ours, theirs) for ours, theirs in pairs]).mean()


def sines(center, dim):
    angle = center[:, :, None] / 10_000 ** (torch.arange(dim // 6).double() / (dim // 6))
    return torch.cat([f(angle[:, axis]) for axis in range(3) for f in (torch.sin, torch.cos)], -1)


def point_mae_loss(w, patches, center, mask):
    x = torch.stack([formulas.patch_encoder(w("patch_embed"), patch) for patch in patches])[~mask]
    pos = formulas.two_layers(w("pos_embed"), center[~mask])
    for index in range(2):
        x = formulas.block(w("blocks")(str(index)), x + pos, 3)
    where = [formulas.two_layers(w("decoder_pos_embed"), center[part]) for part in (~mask, mask)]
    return decode(w, formulas.layer_norm(w("norm"), x), *where, patches[mask])


def pcp_mae_loss(w, patches, center, mask):
    x = torch.stack([formulas.patch_encoder(w("patch_embed"), patch) for patch in patches])
    seen, asked = x[~mask], x[mask]
    pos = formulas.two_layers(w("pos_embed"), sines(center[~mask], 48))
    for index in range(2):
        seen, asked = formulas.two_part_block(
            w("blocks")(str(index)), seen + pos, asked + w["mask_pos_token"][0], 3
        )
    seen, asked = (formulas.layer_norm(w("norm"), part) for part in (seen, asked))
    head = w("predict_pos")
    guess = formulas.linear(
        head("3"), formulas.layer_norm(head("1"), formulas.linear(head("0"), asked)).relu()
    )
    where = formulas.two_layers(w("pos_embed"), guess)
    error = (guess - sines(center[mask], 48)).square().mean()
    return decode(w, seen, pos, where, patches[mask]) + 0.1 * error


def recon_loss(w, patches, center, mask):
    x = torch.stack([formulas.patch_encoder(w("patch_embed"), patch) for patch in patches])[~mask]
    tokens, positions = (
        torch.cat([w("prefix")(name)[kind][0] for name in ("cls", "img", "text")])
        for kind in ("token", "pos")
    )
    x = torch.cat([tokens, x])
    pos = torch.cat([positions, formulas.two_layers(w("pos_embed"), center[~mask])])
    for index in range(2):
        x = formulas.contrast_block(w("blocks")(str(index)), x + pos, 3)
    x = formulas.layer_norm(w("norm"), x)
    where = [formulas.two_layers(w("decoder_pos_embed"), center[part]) for part in (~mask, mask)]
    return decode(w, x[3:], *where, patches[mask])


@pytest.mark.parametrize(
    ("name", "formula"), [("point_mae", point_mae_loss), ("pcp_mae", pcp_mae_loss), ("recon", recon_loss)]
)
def test_the_loss_is_the_formula_cloud_by_cloud(name, formula, generator):
    model = spread(make(name), generator)
    points = torch.rand(2, 64, 3, generator=generator, dtype=torch.float64)
    groups = model.group(points)
    mask = model.draw_mask(groups.center, generator)
    output = model.reconstruct(groups.neighborhood, groups.center, mask)
    w = formulas.Weights(model.state_dict())
    clouds = zip(groups.neighborhood, groups.center, mask, strict=True)
    expected = torch.stack([formula(w, *cloud) for cloud in clouds]).mean()  # every cloud hides as many
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_forward_draws_the_mask_and_says_what_it_computed(points):
    model = make("point_mae").eval()
    output = model(points, torch.Generator().manual_seed(3))
    assert output.predicted.shape == output.target.shape == (2, HIDDEN, 8, 3)
    assert output.mask.sum(dim=1).tolist() == [HIDDEN, HIDDEN]
    neighborhood = model.group(points).neighborhood
    assert torch.equal(output.target.flatten(0, 1), neighborhood[output.mask])
    assert torch.equal(
        output.mask, draw_mask(output.center, HIDDEN, "random", torch.Generator().manual_seed(3))
    )
    assert output.loss.item() == pytest.approx(
        chamfer_loss(output.predicted.flatten(0, 1), output.target.flatten(0, 1)).item()
    )


@pytest.mark.parametrize("name", ["point_mae", "recon"])
@pytest.mark.parametrize("training", [False, True])
def test_embedding_only_visible_patches_changes_nothing_but_batch_statistics(name, training, points):
    published, short = make(name), make(name, pretraining={"embed": "visible"})
    short.load_state_dict(published.state_dict())
    losses = [
        m.train(training)(points, torch.Generator().manual_seed(0)).loss.item() for m in (published, short)
    ]
    if training:
        assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    else:
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_blocks_give_the_same_gradients(name, points):
    plain, saving = make(name).eval(), make(name).eval()
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(points, torch.Generator().manual_seed(0)).loss.backward()
    for (key, ours), theirs in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_on_one_batch_lower_the_loss(name, points):
    model = make(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = model(points, torch.Generator().manual_seed(0)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_teachers_features_are_terms_of_their_own(points, generator):
    model = make("recon", pretraining={"image_dim": 6, "text_dim": 4}).eval()
    image, text = torch.randn(2, 6, generator=generator), torch.randn(2, 4, generator=generator)
    output = model(points, torch.Generator().manual_seed(0), image=image, text=text)
    assert set(output.terms) == {"reconstruction", "image", "text"}
    assert output.loss.item() == pytest.approx(sum(term.item() for term in output.terms.values()))
    output.terms["image"].backward(retain_graph=True)
    assert model.prefix["img"].token.grad.abs().sum() > 0
    assert not model.patch_embed.linear1.weight.grad.any()  # the tokens send nothing into the patches
    without = model(points, torch.Generator().manual_seed(0))
    assert without.loss.item() == pytest.approx(output.terms["reconstruction"].item())


def test_the_teacher_term_is_the_smooth_l1_distance_of_the_projected_token(points, generator):
    model = make("recon", pretraining={"text_dim": 4}).eval()
    text = torch.randn(2, 4, generator=generator)
    output = model(points, torch.Generator().manual_seed(0), text=text)
    groups = model.group(points)
    encoded = model.encode_visible(model.hide(groups.neighborhood, groups.center, output.mask))
    expected = F.smooth_l1_loss(model.text_proj(encoded[:, 2]), text)
    assert output.terms["text"].item() == pytest.approx(expected.item())


def test_features_of_another_width_are_refused(points):
    with pytest.raises(ValueError, match=r"image features have shape \(2, 5\); expected \(2, 768\)"):
        make("recon")(points, image=torch.zeros(2, 5))


def test_pcp_mae_rebuilds_without_gradient_into_the_predicted_positions(points):
    model = make("pcp_mae").eval()
    output = model(points, torch.Generator().manual_seed(0))
    output.terms["reconstruction"].backward(retain_graph=True)
    assert model.predict_pos[0].weight.grad is None
    output.terms["position"].backward()
    assert model.predict_pos[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("point_mae", "pmae_pretrain", (29_006_432, 209)),
        ("pcp_mae", "pcpmae_pretrain", (29_498_848, 212)),
        ("recon", "recon_pretrain", (50_781_280, 363)),
    ],
)
def test_parameters_and_keys_are_the_published_ones(name, keys, expected, request):
    model = meta_model(name, task="pretraining", num_groups=64)
    assert count(model) == expected
    official = [model.official_keys.translate(key, to="official") for key in model.state_dict()]
    assert None not in official
    assert len(set(official)) == expected[1]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "keys"),
    [("point_mae", "pmae_pretrain"), ("pcp_mae", "pcpmae_pretrain"), ("recon", "recon_pretrain")],
)
def test_every_key_of_an_official_pretrained_file_is_used(shared, name, keys):
    entries = json.loads((shared / "reference" / "keys" / f"{keys}.json").read_text())["keys"]
    state = {key: torch.zeros(entry["shape"]) for key, entry in entries.items()}
    report = load_weights(create_model(name, task="pretraining"), state)
    assert (len(report.matched), report.missing, dict(report.unexpected)) == (len(entries), (), {})


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("point_mae", "pointmae", {}),
        ("pcp_mae", "pcpmae", {}),
        ("recon", "recon", {"image_dim": 64, "text_dim": 32}),
    ],
)
def test_an_official_pretrained_file_fills_the_form_it_came_from(shared, name, file, settings, points):
    section = {"decoder_depth": 2, **settings}
    model = create_model(name, task="pretraining", **SIZES, pretraining=section).eval()
    report = load_weights(model, shared / "fixtures" / f"ckpt_{file}_pretrain_tiny.pth")
    assert not report.missing
    assert not report.unexpected
    assert torch.isfinite(model(points, torch.Generator().manual_seed(0)).loss)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_pretrained_fills_the_classifier(name, tmp_path):
    model = make(name)
    classifier = create_model(name, num_classes=5, **{k: v for k, v in SMALL.items() if k != "pretraining"})
    report = load_weights(classifier, model.state_dict())
    assert {key.split(".")[0] for key in report.missing} <= {"head", "prefix"}
    assert torch.equal(classifier.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


def test_a_mask_of_another_size_is_refused(points):
    model = make("point_mae")
    groups = model.group(points)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask hides \[0, 0\] patches, but this model hides 9"):
        model.reconstruct(groups.neighborhood, groups.center, mask)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("point_mae", {"mask_ratio": 0.05}, "hides none of num_groups=16"),
        ("point_mae", {"mask_ratio": 1.0}, "less than 1"),
        ("point_mae", {"decoder_heads": 5}, "not a multiple of decoder_heads=5"),
        ("pcp_mae", {"embed": "visible"}, "embed"),
        ("point_mae", {"image_dim": 5}, "image_dim"),
    ],
)
def test_a_wrong_setting_is_named(name, settings, text):
    with pytest.raises(ValueError, match=text):
        make(name, pretraining=settings)


def test_a_backbone_without_a_pretraining_form_says_what_it_has():
    with pytest.raises(ValueError, match=r"act has no network for task='pretraining'; it has classification"):
        create_model("act", task="pretraining")


def test_pretraining_has_no_classifier_to_reset():
    with pytest.raises(ValueError, match="has no classifier"):
        make("point_mae").reset_classifier(3)


def test_settings_of_pretraining_are_written_for_pretraining_only():
    assert "pretraining" not in parse_model_config({"name": "recon"}).model_dump()
    config = parse_model_config({"name": "recon", "task": "pretraining", "pretraining": {"image_dim": 5}})
    written = config.model_dump(mode="json")
    assert written["pretraining"]["image_dim"] == 5
    assert parse_model_config(written) == config


def test_linear_layers_start_as_published(generator):
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 256)
    init_transformer(layer)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layer.bias.any()
