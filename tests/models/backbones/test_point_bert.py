"""Point-BERT against the golden outputs of the official model, its tokenizer and pre-training form."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model, load_weights, parse_model_config, published_form
from pcl_clora.models.backbones.point_bert.pretraining import PatchTokenizer
from pcl_clora.models.interface import Backbone
from pcl_clora.report.macs import count_layers
from tests.support import formulas
from tests.support.model_cases import (
    SIZES,
    TINY,
    assert_checkpoint_gives,
    assert_gradients_match,
    assert_logits_match,
    count,
    golden_model,
    meta_model,
)

SECTION = {"num_tokens": 32, "tokenizer_widths": (4, 8, 8, 12, 16), "contrast_width": 16}
SMALL = {**TINY, "depth": 2, "encoder_dim": 24, "drop_path": 0.0}


@pytest.fixture
def archive(shared):
    return np.load(shared / "fixtures" / "pointbert_cls_tiny.npz")


def make(task="pretraining", **section):
    torch.manual_seed(0)
    own = {"pretraining": {**SECTION, **section}} if task == "pretraining" else {"num_classes": 5}
    return create_model("point_bert", task=task, **SMALL, **own)


# Classification


@pytest.mark.shared_data
@pytest.mark.parametrize("fold", [False, True])
def test_logits_equal_the_official_model(archive, fold):
    assert_logits_match(golden_model("point_bert", archive, encoder_dim=32, fold_batchnorm=fold), archive)


@pytest.mark.shared_data
def test_patches_and_tokens_equal_the_official_model(archive):
    model = golden_model("point_bert", archive, encoder_dim=32)
    points = torch.from_numpy(archive["points"])
    groups = model.group(points)
    np.testing.assert_array_equal(groups.center, archive["center"])
    tokens = model.patch_embed(groups.neighborhood)  # before they get the width of the transformer
    np.testing.assert_allclose(tokens.detach(), archive["tokens"], atol=2e-5)
    features = model.forward_features(points)[:, :4]
    np.testing.assert_allclose(features.detach(), archive["norm_out_first"], atol=5e-5)  # unit-scale values


@pytest.mark.shared_data
def test_published_form_gives_the_same_logits(archive):
    model = golden_model("point_bert", archive, encoder_dim=32)
    with published_form(model):
        assert_logits_match(model, archive)


@pytest.mark.shared_data
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient_norms_equal_the_official_model(archive, checkpointing):
    model = golden_model("point_bert", archive, encoder_dim=32)
    model.set_grad_checkpointing(checkpointing)
    assert_gradients_match(model, archive)


@pytest.mark.shared_data
def test_an_official_pretrained_file_gives_the_golden_logits(archive, shared):
    file = shared / "fixtures" / "ckpt_pointbert_pretrain_tiny.pth"
    report = assert_checkpoint_gives("point_bert", file, archive, rest=("cls_head",), encoder_dim=32)
    assert {name.split(".")[0] for name in report.missing} == {"head"}


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("keys", "matched", "missing", "unexpected"),
    [("pbert_pretrain", 160, 4, 251), ("pbert_cls_scan", 164, 0, 0)],
)
def test_official_key_lists_match_as_the_official_loader_does(shared, keys, matched, missing, unexpected):
    entries = json.loads((shared / "reference" / "keys" / f"{keys}.json").read_text())["keys"]
    state = {key: torch.zeros(()).expand(entry["shape"]) for key, entry in entries.items()}
    report = load_weights(create_model("point_bert", num_classes=15), state)
    assert (len(report.matched), len(report.missing), len(report.unexpected)) == (
        matched,
        missing,
        unexpected,
    )


@pytest.mark.parametrize(("num_classes", "expected"), [(40, 22_065_960), (15, 22_059_535)])
def test_parameters_and_keys_are_the_published_ones(num_classes, expected):
    model = meta_model("point_bert", num_classes=num_classes)
    assert count(model) == (expected, 164)
    official = {model.official_keys.translate(key, to="official") for key in model.state_dict()}
    assert None not in official
    assert len(official) == 164


def test_published_macs_are_those_of_the_papers():
    with torch.device("meta"):
        model, cloud = create_model("point_bert", num_classes=15), torch.rand(1, 2048, 3)
        with published_form(model):
            counts = count_layers(model, cloud)
    assert sum(counts.values()) / 1e9 == pytest.approx(4.505, abs=5e-4)


def test_the_head_has_two_layers_and_no_batchnorm(points):
    model = make("classification").eval()
    assert isinstance(model, Backbone)
    assert [type(part).__name__ for part in model.head] == ["Linear", "ReLU", "Dropout", "Linear"]
    pooled = model.pool(model.forward_features(points))
    w = formulas.Weights(model.state_dict(), "head.")
    torch.testing.assert_close(model(points), formulas.linear(w("3"), formulas.linear(w("0"), pooled).relu()))
    model.reset_classifier(7)
    assert model(points).shape == (2, 7)


def test_tokens_have_a_width_layer_where_the_widths_are_equal_too():
    model = meta_model("point_bert", encoder_dim=384)
    assert model.reduce_dim.weight.shape == (384, 384)


def test_a_new_network_has_the_released_initial_tokens():
    model = make("classification")
    assert not model.prefix.token.any()
    assert 0.5 < model.prefix.pos.std() < 1.5


def test_clora_attaches_and_trains(points):
    model = attach_adapter(make("classification"), {"method": "clora", "rank": 4, "num_spaces": 3}).train()
    (model(points).square().sum() + sum(model.extra_losses().values())).backward()
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if name in model.plan}


# Pre-training


def edge_conv(w, x, neighbors):
    """One cloud (G, C), as a 1x1 convolution over all edges."""
    edges = torch.cat([x[neighbors] - x[:, None], x[:, None].expand(-1, 4, -1)], -1)
    edges = F.conv2d(edges.permute(2, 0, 1)[None], w("linear")["weight"][:, :, None, None])
    edges = F.group_norm(edges, 4, w("norm")["weight"], w("norm")["bias"])
    return F.leaky_relu(edges, 0.2)[0].amax(-1).T


@pytest.mark.parametrize("published", [False, True])
def test_the_tokenizer_is_its_formula(generator, published):
    torch.manual_seed(0)
    tokenizer = PatchTokenizer(12, 20, (8, 16, 24), (4, 8, 8, 12, 16)).double().eval()
    for edge in tokenizer.edges:
        edge.published = published
    with torch.no_grad():
        for value in tokenizer.parameters():
            value.add_(0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
    patches = torch.rand(2, 9, 5, 3, generator=generator, dtype=torch.float64)
    center = torch.rand(2, 9, 3, generator=generator, dtype=torch.float64)
    w = formulas.Weights(tokenizer.state_dict())
    expected = []
    for cloud, places in zip(patches, center.numpy(), strict=True):
        _, neighbors = cKDTree(places).query(places, k=4)
        x = torch.stack([formulas.patch_encoder(w("patch_embed"), patch) for patch in cloud])
        found = [formulas.linear(w("reduce"), x)]
        for index in range(4):
            found.append(edge_conv(w("edges")(str(index)), found[-1], torch.from_numpy(neighbors)))
        x = formulas.linear(w("vocabulary"), torch.cat(found[1:], -1)).T[None]
        x = F.group_norm(x, 4, w("norm")["weight"], w("norm")["bias"])
        expected.append(F.leaky_relu(x, 0.2)[0].T)
    torch.testing.assert_close(tokenizer(patches, center), torch.stack(expected), rtol=1e-9, atol=1e-11)


def test_a_block_is_hidden_in_every_cloud_and_the_generator_decides_which(generator):
    center = torch.rand(50, 16, 3, generator=generator)
    model, before = make(), torch.get_rng_state()
    mask, again = (model.draw_mask(center, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(mask, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(mask.sum(dim=1).tolist()) == {4, 5, 6, 7}  # 0.25 to 0.45 of 16, rounded down
    for cloud, hidden in zip(center.numpy(), mask.numpy(), strict=True):
        _, nearest = cKDTree(cloud).query(cloud, k=int(hidden.sum()))
        assert sorted(np.flatnonzero(hidden)) in [sorted(row) for row in nearest]


def test_the_loss_is_the_formula(generator):
    model = make().double().eval()
    points = torch.rand(2, 64, 3, generator=generator, dtype=torch.float64)
    groups = model.group(points)
    target = torch.randint(32, (2, 16), generator=generator)
    mask = model.draw_mask(groups.center, generator)
    w, losses = formulas.Weights(model.state_dict()), []
    for patches, center, tokens, hidden in zip(groups.neighborhood, groups.center, target, mask, strict=True):
        x = torch.stack([formulas.patch_encoder(w("patch_embed"), patch) for patch in patches])
        x = formulas.linear(w("reduce_dim"), x)
        x[hidden] = w["mask_token"][0, 0]
        x = torch.cat([w("prefix")["token"][0], x])
        pos = torch.cat([w("prefix")["pos"][0], formulas.two_layers(w("pos_embed"), center)])
        for index in range(2):
            x = formulas.block(w("blocks")(str(index)), x + pos, 3)
        logits = formulas.linear(w("token_head"), formulas.layer_norm(w("norm"), x)[1:][hidden])
        losses += (-logits.log_softmax(-1)[range(len(logits)), tokens[hidden]]).tolist()
    output = model.predict(groups.neighborhood, groups.center, target, mask)
    assert output.loss.item() == pytest.approx(
        np.mean(losses), rel=1e-6
    )  # the logits are compared in float32
    assert output.predicted.shape == (int(mask.sum()), 32)
    assert torch.equal(output.target, target[mask])


def test_in_training_mixed_clouds_are_a_term_of_their_own(points):
    model = make().train()
    output = model(points, torch.Generator().manual_seed(0))
    assert set(output.terms) == {"tokens", "mixed_tokens"}
    assert output.loss.item() == pytest.approx(sum(term.item() for term in output.terms.values()))
    assert set(model.eval()(points, torch.Generator().manual_seed(0)).terms) == {"tokens"}
    assert set(make(mix=False).train()(points).terms) == {"tokens"}


def test_the_tokenizer_stays_as_it_is_and_a_few_steps_lower_the_loss(points):
    model = make(mix=False).train()
    before = {key: value.clone() for key, value in model.tokenizer.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(12):
        loss = model(points, torch.Generator().manual_seed(0)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[key]) for key, value in model.tokenizer.state_dict().items())
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is None} == {
        "contrast_head",
        "tokenizer",
    }


@pytest.mark.shared_data
def test_of_an_official_pretraining_file_all_is_used_but_copy_queue_and_decoder(shared):
    entries = json.loads((shared / "reference" / "keys" / "pbert_pretrain.json").read_text())["keys"]
    model = meta_model("point_bert", task="pretraining", num_groups=64)
    own = {name: value.shape for name, value in model.state_dict().items()}
    placed, left_out = {}, {}
    for key, entry in entries.items():
        key = key.removeprefix("transformer_q.")
        name = model.official_keys.translate(key, to="ours")
        if name is None:
            group = key.split(".")[0] if not key.startswith("dvae") else ".".join(key.split(".")[:2])
            left_out[group] = left_out.get(group, 0) + 1
        else:
            tensor = torch.empty(entry["shape"], device="meta")
            placed[name] = model.official_keys.translate_tensor(key, tensor, to="ours").shape
    assert placed == own
    assert len(placed) == 202
    assert left_out == {
        "transformer_k": 167,
        "queue": 1,
        "queue_ptr": 1,
        "dvae.codebook": 1,
        "dvae.dgcnn_2": 17,
        "dvae.decoder": 22,
    }


@pytest.mark.shared_data
def test_an_official_file_without_tokenizer_fills_the_form_and_the_report_says_so(shared):
    section = {"num_tokens": 32, "contrast_width": 16}
    model = create_model("point_bert", task="pretraining", encoder_dim=32, pretraining=section, **SIZES)
    report = load_weights(model, shared / "fixtures" / "ckpt_pointbert_pretrain_tiny.pth")
    assert {name.split(".")[0] for name in report.missing} == {"tokenizer"}
    assert any(reason.startswith("momentum copy") for reason in report.unexpected.values())
    classifier = create_model("point_bert", num_classes=15, encoder_dim=32, **SIZES)
    report = load_weights(classifier, model.state_dict())
    assert {name.split(".")[0] for name in report.missing} == {"head"}


def test_there_is_no_classifier_to_reset():
    with pytest.raises(ValueError, match="pre-training form has no classifier"):
        make().reset_classifier(5)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"mask_ratio": (0.5, 0.4)}, r"mask_ratio=\[0.5, 0.4\] must be two shares"),
        ({"mask_ratio": (0.01, 0.4)}, r"may hide none of num_groups=16"),
        ({"num_tokens": 10}, "must be multiples of 4"),
    ],
)
def test_a_setting_out_of_range_is_named(section, text):
    with pytest.raises(ValueError, match=text):
        make(**section)


def test_settings_of_pretraining_are_not_written_for_other_tasks():
    config = parse_model_config({"name": "point_bert"})
    assert "pretraining" not in config.model_dump()
    assert parse_model_config(config.model_dump(mode="json")) == config
