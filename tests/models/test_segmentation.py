"""Part segmentation against golden outputs of official models, against plain formulas, and its promises."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pcl_clora.models import create_model, load_weights, parse_model_config, published_form
from pcl_clora.models.weights.load import native_name
from pcl_clora.report import count_cost
from tests.support.model_cases import SIZES, count, meta_model, weights_of
from tests.support.plain_pointgpt import plain_layers
from tests.support.plain_segmentation import plain_head, plain_point_bert_head

GOLDEN_WIDTHS = {"propagation_widths": (192, 64), "segmentation_widths": (64, 32)}
SMALL = {
    "task": "part_segmentation",
    "num_parts": 7,
    "num_categories": 3,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "num_groups": 12,
    "group_size": 8,
    "encoder_widths": (8, 16, 32),
    "propagation_widths": (20, 24),
    "segmentation_widths": (16, 12),
    "label_width": 6,
    "drop_path": 0.0,
    "head_dropout": 0.0,
}
OWN = {"point_bert": {"encoder_dim": 16, "num_upsampled": (48, 24)}, "pointgpt_s": {"generator_depth": 1}}
BACKBONES = ("point_mae", "act", "pcp_mae", "recon", "recon_plain", "point_bert", "pointgpt_s")


def make(name, **settings):
    """A small segmenter whose BatchNorm statistics are not those of a fresh layer."""
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL, **OWN.get(name, {}), **settings})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def official_state(model):
    """The model's weights by official name and in official shape."""
    keys = type(model).official_keys
    return {
        keys.translate(k, to="official"): keys.translate_tensor(k, v, to="official")
        for k, v in model.state_dict().items()
    }


@pytest.fixture
def clouds():
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(2, 96, 3, generator=generator, dtype=torch.float64) * 2 - 1
    return points, torch.tensor([2, 0])


# Golden files


@pytest.fixture(params=["point_mae", pytest.param("recon", marks=pytest.mark.shared_data)])
def official(request, golden, shared):
    """Name, golden archive and weights; those of the encoder stand in the classification file."""
    if request.param == "point_mae":
        archive = np.load(golden / "pointmae_seg_tiny.npz")
        encoder = weights_of(np.load(golden / "pointmae_cls_tiny.npz"))
        encoder = {key: value for key, value in encoder.items() if not key.startswith("cls_")}
        return request.param, archive, {**encoder, **weights_of(archive)}
    archive = np.load(shared / "fixtures" / "recon_seg_tiny.npz")
    return request.param, archive, weights_of(archive)


def golden_segmenter(official, **settings):
    name, _, weights = official
    model = create_model(name, task="part_segmentation", **SIZES, **GOLDEN_WIDTHS, **settings)
    report = load_weights(model, weights)
    assert not report.missing
    assert not report.unexpected
    return model.eval()


def inputs(archive):
    return torch.from_numpy(archive["points"]), torch.from_numpy(archive["category"])


@pytest.mark.parametrize("compat", ["none", "pointnet2"])
@pytest.mark.parametrize("fold", [False, True])
def test_log_probabilities_equal_the_official_model(official, fold, compat):
    archive = official[1]
    model = golden_segmenter(official, fold_batchnorm=fold, fps_compat=compat)
    result = model(*inputs(archive)).log_softmax(-1)
    np.testing.assert_allclose(result.detach(), archive["output"], atol=2e-5)


def test_published_form_equals_the_official_model(official):
    archive, model = official[1], golden_segmenter(official)
    with published_form(model):
        assert model.head.published
        assert model.head.propagation.published
        result = model(*inputs(archive)).log_softmax(-1)
    np.testing.assert_allclose(result.detach(), archive["output"], atol=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient_norms_equal_the_official_model(official, checkpointing):
    archive, model = official[1], golden_segmenter(official)
    model.set_grad_checkpointing(checkpointing)
    logits = model(*inputs(archive))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(archive["target"]).flatten())
    loss.backward()
    assert loss.item() == pytest.approx(float(archive["loss"]), abs=2e-5)
    params = dict(model.named_parameters())
    names = [native_name(str(name), model) for name in archive["grad_names"]]
    assert set(names) == set(params)
    ours = np.array([params[name].grad.norm().item() for name in names])
    np.testing.assert_allclose(ours, archive["grad_l2"], rtol=2e-3, atol=2e-5)  # norms of float32 sums


@pytest.mark.shared_data
def test_an_official_finetuned_file_gives_the_golden_output(shared):
    archive = np.load(shared / "fixtures" / "pointmae_seg_tiny.npz")
    model = create_model("point_mae", task="part_segmentation", **SIZES, **GOLDEN_WIDTHS).eval()
    report = load_weights(model, shared / "fixtures" / "ckpt_pointmae_seg_finetuned_tiny.pth")
    assert (report.container, len(report.matched)) == ("model_state_dict", 93)
    assert not report.missing
    result = model(*inputs(archive)).log_softmax(-1)
    np.testing.assert_allclose(result.detach(), archive["output"], atol=2e-5)


# Published sizes


@pytest.mark.parametrize(
    ("name", "params", "keys"),
    [
        ("point_mae", 27_063_730, 192),
        ("act", 27_063_730, 192),
        ("recon", 48_542_386, 342),
        ("pcp_mae", 27_309_362, 192),
        ("point_bert", 27_085_874, 223),
        ("pointgpt_s", 34_202_738, 261),
        ("pointgpt_b", 140_826_482, 268),
        ("pointgpt_l", 389_872_498, 412),
    ],
)
def test_parameters_and_keys_are_the_published_ones(name, params, keys):
    model = meta_model(name, task="part_segmentation", num_parts=50, num_categories=16)
    assert count(model) == (params, keys)
    official = {type(model).official_keys.translate(key, to="official") for key in model.state_dict()}
    assert None not in official
    assert len(official) == keys


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("point_mae", "pmae_seg"),
        ("act", "act_seg"),
        ("recon", "recon_seg"),
        ("pcp_mae", "pcpmae_seg"),
        ("point_bert", "pbert_seg"),
        ("pointgpt_s", "pgpt_seg_S"),
    ],
)
def test_official_key_lists_are_known_with_their_shapes(shared, name, file):
    entries = json.loads((shared / "reference" / "keys" / f"{file}.json").read_text())["keys"]
    model = meta_model(name, task="part_segmentation")
    keys, own = type(model).official_keys, model.state_dict()
    for key, entry in entries.items():
        theirs = torch.empty(entry["shape"], device="meta")
        assert (
            own[keys.translate(key, to="ours")].shape == keys.translate_tensor(key, theirs, to="ours").shape
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published", "layers"), [("point_mae", 15.445, 9.046), ("recon", 16.354, 9.552)]
)
def test_the_cost_report_has_the_published_count_and_that_of_the_rewrites(name, published, layers):
    macs = count_cost(create_model(name, task="part_segmentation"), 2048)["macs"]
    assert round(macs["published"] / 1e9, 3) == published
    assert round(macs["layers"] / 1e9, 3) == layers


# Formulas


@pytest.mark.parametrize("name", ["point_mae", "pcp_mae", "recon", "pointgpt_s"])
def test_the_head_equals_the_plain_formula(name, clouds):
    points, category = clouds
    model = make(name).double()
    with torch.no_grad():
        fetched = model.fetch(model.tokenize(points))
        expected = plain_head(
            official_state(model),
            points,
            fetched.center,
            fetched.features.transpose(1, 2),
            category,
            fetched.extra,
        )
        torch.testing.assert_close(model(points, category).log_softmax(-1), expected)


def test_the_head_of_point_bert_equals_the_plain_formula(clouds):
    points, category = clouds
    model = make("point_bert").double()
    with torch.no_grad():
        fetched = model.fetch(model.tokenize(points))
        features = fetched.features.transpose(1, 2)
        expected = plain_point_bert_head(
            official_state(model), points, fetched.center, features, category, (48, 24)
        )
        torch.testing.assert_close(model(points, category).log_softmax(-1), expected)


@pytest.mark.parametrize("fetch_layers", [(0, 1, 2), (0, 1)])
def test_what_pointgpt_shows_its_head_equals_the_plain_formula(clouds, fetch_layers):
    model = make("pointgpt_s", fetch_layers=fetch_layers).double()
    state = official_state(model)
    with torch.no_grad():
        tokens = model.tokenize(clouds[0])
        features = model.fetch(tokens).features
        for cloud in range(2):
            blocks = [
                plain_layers(state, "blocks.layers", tokens.x[cloud], tokens.pos[cloud], layer + 1, 2)[2:]
                for layer in fetch_layers
            ]
            normed = [F.layer_norm(x, x.shape[1:], state["norm.weight"], state["norm.bias"]) for x in blocks]
            torch.testing.assert_close(features[cloud], torch.cat(normed, dim=1))


def test_recon_shows_its_head_the_maximum_over_its_three_tokens(clouds):
    model = make("recon").double()
    with torch.no_grad():
        tokens = model.tokenize(clouds[0])
        *_, last = model.block_outputs(tokens)
        torch.testing.assert_close(model.fetch(tokens).extra, last[:, :3].amax(1))


# Promises


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_published_form_gives_the_same_logits_and_statistics(name, training, clouds):
    points, category = clouds
    rewritten, published = make(name).double().train(training), make(name).double().train(training)
    with published_form(published), torch.no_grad():
        torch.testing.assert_close(rewritten(points, category), published(points, category))
    statistics = published.state_dict()
    assert all(torch.allclose(v, statistics[k]) for k, v in rewritten.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
def test_all_parameters_but_the_unused_ones_get_gradients(name, clouds):
    points, category = clouds
    model = make(name).train()
    model(points.float(), category).square().mean().backward()
    without = {key for key, value in model.named_parameters() if value.grad is None}
    unused = model.interface.unused
    assert all(any(key == path or key.startswith(f"{path}.") for path in unused) for key in without)
    assert bool(without) == bool(unused)


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_follow_the_points_and_depend_on_no_batch_mate(name, clouds):
    points, category = clouds
    model = make(name).double()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(95, 0, -1)])  # grouping starts at 0
    with torch.no_grad():
        logits = model(points, category)
        torch.testing.assert_close(model(points[:, order], category), logits[:, order])
        torch.testing.assert_close(model(points[1:], category[1:]), logits[1:])


@pytest.mark.parametrize("name", BACKBONES)
def test_a_new_taxonomy_replaces_the_whole_head(name, clouds):
    points = clouds[0]
    model = make(name)
    backbone = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("head.")}
    old = model.get_classifier()
    model.reset_classifier(11, 5)
    assert model.get_classifier() is not old
    assert model.eval()(points.float(), torch.tensor([4, 3])).shape == (2, 96, 11)
    assert (model.num_classes, model.num_categories) == (11, 5)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in backbone.items())
    model.reset_classifier(4)
    assert model.num_categories == 5


@pytest.mark.parametrize("name", BACKBONES)
def test_bfloat16_stays_near_full_precision(name, clouds):
    points, category = clouds[0].float(), clouds[1]
    model = make(name)
    with torch.no_grad():
        expected = model(points, category)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(points, category)
    assert (logits.float() - expected).abs().max() < 0.1 * expected.std() + 0.02


def test_a_head_of_another_taxonomy_is_left_out_as_a_whole():
    model = make("point_mae")
    report = load_weights(model, make("point_mae", num_parts=9).state_dict())
    assert {name.split(".")[0] for name in report.missing} == {"head"}


def test_weights_of_a_classifier_fill_the_backbone_of_a_segmenter():
    torch.manual_seed(3)
    sizes = {k: SMALL[k] for k in ("embed_dim", "depth", "num_heads", "num_groups", "encoder_widths")}
    classifier = create_model("point_mae", num_classes=5, **sizes)
    model = make("point_mae")
    report = load_weights(model, classifier.state_dict())
    assert {name.split(".")[0] for name in report.missing} == {"head"}
    assert torch.equal(model.blocks[2].mlp.fc1.weight, classifier.blocks[2].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("category", "text"),
    [
        (torch.tensor([0]), r"expected \(2,\) int64"),
        (torch.tensor([0.0, 1.0]), r"expected \(2,\) int64"),
        (torch.tensor([0, 3]), r"holds 0\.\.3, but this model knows 0\.\.2"),
    ],
)
def test_a_wrong_category_is_named(clouds, category, text):
    with pytest.raises(ValueError, match=text):
        make("point_mae")(clouds[0].float(), category)


def test_a_cloud_too_small_for_point_bert_is_named(clouds):
    with pytest.raises(ValueError, match="96 points is too small for num_upsampled"):
        make("point_bert", num_upsampled=(128, 64))(clouds[0].float(), clouds[1])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fetch_layers": [1, 12]}, "ascending block numbers below depth=12"),
        ({"fetch_layers": [3, 1]}, "ascending block numbers"),
        ({"task": "classification", "num_parts": 4}, "num_parts belongs to part segmentation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        parse_model_config({"name": "point_mae", "task": "part_segmentation", **settings})


@pytest.mark.parametrize(("depth", "expected"), [(12, (3, 7, 11)), (3, (0, 1, 2)), (6, (1, 3, 5)), (1, (0,))])
def test_the_fetched_blocks_follow_the_depth(depth, expected):
    config = parse_model_config({"name": "point_mae", "task": "part_segmentation", "depth": depth})
    assert config.fetched == expected


def test_settings_of_segmentation_are_written_for_segmentation_only():
    plain = parse_model_config({"name": "point_mae"}).model_dump()
    assert "num_parts" not in plain
    assert (
        parse_model_config({"name": "point_mae", "task": "part_segmentation"}).model_dump()["num_parts"] == 50
    )


SMALL_HEAD = {"segmentation_head": "small", "num_parts": 7, "num_categories": 3}


@pytest.mark.parametrize("name", ["point_mae", "recon", "point_bert", "pointgpt_b"])
def test_a_small_head_has_less_than_a_sixth_of_the_parameters(name):
    def num_parameters(head):
        model = meta_model(
            name, task="part_segmentation", num_parts=7, num_categories=3, segmentation_head=head
        )
        return sum(p.numel() for p in model.head.parameters())

    assert 6 * num_parameters("small") < num_parameters("published")


def test_a_small_head_leaves_a_twentieth_of_the_cost_of_the_tiny_network():
    def macs(head):
        model = create_model(
            "point_mae_tiny", **{**SMALL_HEAD, "segmentation_head": head}, task="part_segmentation"
        )
        return count_cost(model, 2048)["macs"]["executed"]

    assert macs("small") < 0.055 * macs("published")


def test_the_settings_of_a_small_head_hold_its_widths():
    given = {"name": "point_mae_tiny", "task": "part_segmentation", **SMALL_HEAD}
    config = parse_model_config({**given, "label_width": 16})
    assert config.propagation_widths == (128, 96)
    assert config.segmentation_widths == (96, 64)
    assert config.label_width == 16
    assert parse_model_config(config.model_dump()) == config


def test_published_heads_do_not_write_the_setting():
    config = parse_model_config({"name": "point_mae_tiny", "task": "part_segmentation"})
    assert "segmentation_head" not in config.model_dump()


def test_a_small_head_is_refused_without_part_segmentation():
    with pytest.raises(ValueError, match="segmentation_head belongs to part segmentation"):
        parse_model_config({"name": "point_mae_tiny", "segmentation_head": "small"})


def test_an_unknown_head_names_the_known_ones():
    with pytest.raises(ValueError, match="'published' or 'small'"):
        parse_model_config({"name": "point_mae", "task": "part_segmentation", "segmentation_head": "tiny"})
