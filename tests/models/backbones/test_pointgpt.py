"""PointGPT against the golden outputs of the official model, and its own promises."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from pcl_clora.adapters import attach_adapter
from pcl_clora.engine import RunConfig, Trainer
from pcl_clora.engine.losses import classification_loss
from pcl_clora.models import WeightsError, create_model, load_weights, parse_model_config, published_form
from pcl_clora.models.backbones.pointgpt.layers import (
    LargePatchEncoder,
    TurnEmbedding,
    generation_loss,
    walk_directions,
    walk_order,
)
from pcl_clora.models.interface import Backbone
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.weights.load import native_name
from pcl_clora.report import count_cost
from pcl_clora.report.macs import count_layers
from tests.support import formulas
from tests.support.model_cases import (
    LOGIT_TOLERANCE,
    TINY,
    assert_checkpoint_gives,
    assert_logits_match,
    assert_tokens_match,
    count,
    golden_model,
    meta_model,
)
from tests.support.plain_pointgpt import plain_classifier

SMALL = {**TINY, "depth": 2, "generator_depth": 1}


@pytest.fixture
def archive(shared):
    return np.load(shared / "fixtures" / "pointgpt_cls_tiny.npz")


def golden(archive, **settings):
    return golden_model("pointgpt_s", archive, generator_depth=2, **settings)


def make(name="pointgpt_s", **changes):
    torch.manual_seed(0)
    return create_model(name, num_classes=5, **{**SMALL, **changes})


# Against the official model


@pytest.mark.shared_data
@pytest.mark.parametrize("fold", [False, True])
def test_logits_and_tokens_equal_the_official_model(archive, fold):
    model = golden(archive, fold_batchnorm=fold)
    assert_logits_match(model, archive)
    assert_tokens_match(model, archive)


@pytest.mark.shared_data
def test_published_form_gives_the_same_logits(archive):
    model = golden(archive)
    with published_form(model):
        assert_logits_match(model, archive)


@pytest.mark.shared_data
def test_order_and_positions_equal_the_official_model(archive):
    model = golden(archive)
    points = torch.from_numpy(archive["points"])
    unordered = PatchTransformer.cut(model, points).center
    center = model.group(points).center
    np.testing.assert_array_equal(unordered, archive["fps_center"])
    np.testing.assert_array_equal(
        walk_order(unordered), archive["sort_index"] % 16
    )  # it counts on over clouds
    np.testing.assert_allclose(model.pos_embed(center)[:, :4], archive["pos_abs"], atol=1e-6)
    relative = model.pos_embed(walk_directions(center))
    np.testing.assert_allclose(relative[:, :4], archive["pos_rel"], atol=2e-6)  # sine of 2 pi


@pytest.mark.shared_data
def test_generated_points_and_second_norm_equal_the_official_model(archive):
    model = golden(archive)
    points = torch.from_numpy(archive["points"])
    features = model.forward_features(points)
    generated = model.generate(features, model.group(points).center).flatten(0, 1)
    np.testing.assert_allclose(generated.detach(), archive["generated_points"], atol=LOGIT_TOLERANCE)
    twice = model.head_norm(features)[:, :4]
    np.testing.assert_allclose(twice.detach(), archive["cls_norm_first"], atol=5e-5)  # unit-scale values


@pytest.mark.shared_data
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("weight", "loss", "norms"), [(0.0, "loss", "grad_l2"), (3.0, "total_loss", "grad_l2_total")]
)
def test_losses_and_gradient_norms_equal_the_official_model(archive, checkpointing, weight, loss, norms):
    model = golden(archive, generation_weight=weight)
    model.set_grad_checkpointing(checkpointing)
    model.training = True  # of the network alone: its layers stay in evaluation mode, as in the golden file
    logits = model(torch.from_numpy(archive["points"]))
    target = torch.from_numpy(archive["target"])
    terms = classification_loss(logits, target, model.auxiliary_losses())
    terms.total.backward()
    assert terms.total.item() == pytest.approx(float(archive[loss]), abs=2e-5)
    params = dict(model.named_parameters())
    names = [native_name(str(name), model) for name in archive["grad_names"]]
    assert set(names) == set(params)
    ours = [0.0 if params[name].grad is None else params[name].grad.norm().item() for name in names]
    np.testing.assert_allclose(ours, archive[norms], rtol=2e-3, atol=2e-5)  # norms of float32 sums


@pytest.mark.shared_data
def test_the_waiting_loss_is_three_times_the_official_one(archive):
    model = golden(archive)
    model.training = True
    model(torch.from_numpy(archive["points"]))
    waiting = model.auxiliary_losses()["generation"].item()
    assert waiting == pytest.approx(3 * float(archive["aux_loss"]), rel=1e-5)


@pytest.mark.shared_data
def test_an_official_pretrained_file_gives_the_golden_logits(archive, shared):
    file = shared / "fixtures" / "ckpt_pointgpt_pretrain_tiny.pth"
    rest = ("cls_", "blocks.cls_")
    report = assert_checkpoint_gives("pointgpt_s", file, archive, rest=rest, generator_depth=2)
    assert {name.split(".")[0] for name in report.missing} == {"prefix", "head", "head_norm"}
    assert not report.unexpected


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("keys", "classes", "matched", "missing"),
    [("pgpt_pretrain_S", 15, 223, 20), ("pgpt_cls_S", 15, 243, 0), ("pgpt_cls_S", 40, 227, 16)],
)
def test_official_key_lists_match_as_the_official_loader_does(shared, keys, classes, matched, missing):
    entries = json.loads((shared / "reference" / "keys" / f"{keys}.json").read_text())["keys"]
    state = {key: torch.zeros(entry["shape"]) for key, entry in entries.items()}
    report = load_weights(create_model("pointgpt_s", num_classes=classes), state)
    left_out = len(entries) - matched  # the head for other classes
    assert (len(report.matched), len(report.missing), len(report.unexpected)) == (matched, missing, left_out)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pointgpt_s", (29_232_335, 243)),
        ("pointgpt_b", (120_461_263, 250)),
        ("pointgpt_l", (360_457_679, 394)),
    ],
)
def test_parameters_and_keys_are_the_published_ones(name, expected):
    model = meta_model(name, num_classes=15)
    assert count(model) == expected
    official = [model.official_keys.translate(key, to="official") for key in model.state_dict()]
    assert None not in official
    assert len(set(official)) == expected[1]


@pytest.mark.parametrize(
    ("name", "published", "inference"),
    [("pointgpt_s", 5.686, 4.775), ("pointgpt_b", 40.985, 37.352), ("pointgpt_l", 74.172, 67.717)],
)
@pytest.mark.slow
def test_published_macs_are_those_of_the_papers_with_and_without_generator(name, published, inference):
    with torch.device("meta"):
        model, cloud = create_model(name, num_classes=15), torch.rand(1, 2048, 3)
        with published_form(model):
            counts = count_layers(model, cloud)
    generator = sum(macs for layer, macs in counts.items() if layer.startswith("generator."))
    assert sum(counts.values()) / 1e9 == pytest.approx(published, abs=5e-4)
    assert (sum(counts.values()) - generator) / 1e9 == pytest.approx(inference, abs=5e-4)


def test_the_cost_report_has_both_macs_and_inference_never_runs_the_generator():
    report = count_cost(make(), 64)
    macs, generator = report["macs"], report["modules"]["generator"]
    assert generator["macs_executed"] == 0
    assert macs["published"] - macs["published_inference"] == generator["macs_published"] > 0
    assert macs["layers"] < macs["published_inference"]


# The walk and the positions


def brute_force_walk(cloud):
    """One cloud, one step at a time, with Python's exact integers."""
    left, walk = list(range(1, len(cloud))), [0]
    while left:
        last = cloud[walk[-1]]
        walk.append(
            min(left, key=lambda i: (sum((a - b) ** 2 for a, b in zip(cloud[i], last, strict=True)), i))
        )
        left.remove(walk[-1])
    return walk


@pytest.mark.parametrize("side", [3, 1000])
def test_a_walk_goes_to_the_nearest_unvisited_centre_and_ties_go_to_the_lowest_index(generator, side):
    center = torch.randint(side, (4, 30, 3), generator=generator)  # side 3: ties and equal centres everywhere
    expected = [brute_force_walk(cloud) for cloud in center.tolist()]
    assert walk_order(center.float()).tolist() == expected


def test_a_walk_of_one_centre_stays_where_it_is():
    assert walk_order(torch.zeros(2, 1, 3)).tolist() == [[0], [0]]


def test_a_walk_visits_every_centre_once_where_distances_overflow(generator):
    center = (torch.rand(2, 30, 3, generator=generator) - 0.5) * 1e30
    assert walk_order(center).sort(dim=1).values.tolist() == [list(range(30))] * 2


def test_a_walk_does_not_depend_on_batch_mates(generator):
    center = torch.rand(5, 40, 3, generator=generator)
    alone = torch.cat([walk_order(cloud[None]) for cloud in center])
    assert torch.equal(walk_order(center), alone)


def test_a_step_between_equal_centres_has_no_direction():
    center = torch.tensor([[[0.0, 0, 1], [0, 0, 1], [0, 2, 1]]])
    assert walk_directions(center).tolist() == [[[0, 0, 1], [0, 0, 0], [0, 1, 0]]]


@pytest.mark.parametrize("dim", [48, 49, 384, 768, 1024])
def test_positions_are_sines_and_cosines_of_turns_padded_with_zeros(generator, dim):
    center = torch.rand(2, 5, 3, generator=generator, dtype=torch.float64) * 2 - 1
    slots = dim // 3 // 2 * 2
    expected = np.zeros((2, 5, dim))
    for axis in range(3):
        turns = 2 * np.pi * center[:, :, axis].numpy()
        expected[:, :, axis * slots : (axis + 1) * slots : 2] = np.sin(turns)[:, :, None]
        expected[:, :, axis * slots + 1 : (axis + 1) * slots : 2] = np.cos(turns)[:, :, None]
    np.testing.assert_allclose(TurnEmbedding(dim)(center), expected, atol=1e-14)


def test_patches_stay_with_their_centres_when_they_are_put_in_order(points):
    model = make()
    groups = model.group(points)
    batch = torch.arange(2)[:, None, None]
    torch.testing.assert_close(points[batch, groups.idx] - groups.center[:, :, None], groups.neighborhood)
    assert torch.equal(points[batch, groups.idx][:, :, 0], groups.center)


# The network


def test_no_token_knows_of_later_patches_and_the_class_token_of_none(points):
    model = make().eval()
    groups = model.group(points)
    changed = groups.neighborhood.clone()
    changed[:, 9:] *= 0.5
    before, after = (
        model.encode(model.embed_groups(patches, groups.center)) for patches in (groups.neighborhood, changed)
    )
    same = (before == after).all(dim=2).all(dim=0)
    assert same.tolist() == [True] * (2 + 9) + [False] * (16 - 9)


def test_the_head_sees_the_class_token_and_the_largest_of_the_patches(points):
    model = make().eval()
    features = model.forward_features(points)
    twice = F.layer_norm(features, (48,))
    expected = model.head(torch.cat([twice[:, 1], twice[:, 2:].max(dim=1).values], dim=1))
    torch.testing.assert_close(model(points), expected)


@pytest.mark.parametrize("name", ["pointgpt_s", "pointgpt_b", "pointgpt_l"])
def test_every_size_follows_the_backbone_protocol(name, points):
    model = make(name).eval()
    assert isinstance(model, Backbone)
    assert model(points).shape == (2, 5)
    model.reset_classifier(7)
    assert model(points).shape == (2, 7)
    assert model.interface.roles() == ("qkv", "proj", "fc1", "fc2", "q", "k", "v")


def large_encoder(w, patch):
    first = formulas.batch_norm(w("norm0"), formulas.linear(w("linear0"), patch)).relu()
    return formulas.patch_encoder(w, first)


@pytest.mark.parametrize("form", ["folded", "plain", "published"])
def test_the_large_patch_encoder_is_its_formula(form, generator):
    torch.manual_seed(0)
    encoder = LargePatchEncoder(12, (8, 10, 16, 20), fold=form != "plain").double().train()
    patches = torch.rand(2, 3, 6, 3, generator=generator, dtype=torch.float64)
    encoder(patches)
    encoder.eval()
    encoder.published = form == "published"
    w = formulas.Weights(encoder.state_dict())
    expected = torch.stack([torch.stack([large_encoder(w, patch) for patch in cloud]) for cloud in patches])
    torch.testing.assert_close(encoder(patches), expected, rtol=1e-10, atol=1e-12)


# The loss of its own


def test_a_loss_stands_until_the_next_pass_and_is_the_same_tensor_when_asked_twice(points):
    model = make().train()
    model(points)
    first = model.auxiliary_losses()["generation"]
    assert model.auxiliary_losses()["generation"] is first
    model.auxiliary_losses().clear()
    assert set(model.auxiliary_losses()) == {"generation"}
    model(points)
    assert model.auxiliary_losses()["generation"] is not first


@pytest.mark.parametrize("state", ["evaluation", "no gradients", "weight 0"])
def test_no_loss_waits_where_none_is_wanted_and_the_generator_does_not_run(state, points):
    model = make(generation_weight=0.0 if state == "weight 0" else 3.0).train(state != "evaluation")
    calls = []
    model.generator.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(state != "no gradients"):
        model(points)
    assert not calls
    assert model.auxiliary_losses() == {}


def test_a_later_pass_without_loss_forgets_the_one_before(points):
    model = make().train()
    model(points)
    model.eval()(points)
    assert model.auxiliary_losses() == {}


def test_a_model_with_a_waiting_loss_can_be_copied(points):
    model = make().train()
    model(points)
    assert copy.deepcopy(model).auxiliary_losses() == {}
    assert model.auxiliary_losses()


def test_an_adapted_model_hands_the_loss_over_with_those_of_the_method(points):
    model = attach_adapter(make(), {"method": "clora", "rank": 4, "num_spaces": 3}).train()
    model(points)
    first = model.extra_losses()
    assert set(first) == {"generation", "sade"}
    assert model.extra_losses()["generation"] is first["generation"]


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_a_tuned_file_without_generator_loads_and_says_that_it_stays_random(task, points):
    state = make(task=task).state_dict()
    without = {key: value for key, value in state.items() if not key.startswith("generator.")}
    other = make(task=task, drop_path=0.0)
    report = load_weights(other, without)
    assert {name.split(".")[0] for name in report.missing} == {"generator"}
    assert "missing, keep their values: generator" in str(report)


def test_a_pretraining_form_needs_its_generator():
    state = make(task="pretraining").state_dict()
    without = {key: value for key, value in state.items() if not key.startswith("generator.")}
    with pytest.raises(WeightsError, match="of the backbone are not in the file"):
        load_weights(make(task="pretraining"), without)


def test_a_file_with_half_a_generator_is_damaged():
    state = make().state_dict()
    damaged = {key: value for key, value in state.items() if not key.startswith("generator.blocks")}
    with pytest.raises(WeightsError, match="of the backbone are not in the file"):
        load_weights(make(), damaged)


def test_what_nothing_runs_is_never_trained(points):
    model = attach_adapter(make(generation_weight=0.0), {"method": "full"}).train()
    trained = {name.split(".")[1] for name, value in model.named_parameters() if value.requires_grad}
    assert "blocks" in trained
    assert not trained & {"feature_norm", "increase_dim", "generator"}


def test_the_generation_loss_has_a_finite_gradient_where_points_coincide(generator):
    target = torch.rand(1, 2, 4, 3, generator=generator)
    predicted = target.clone().requires_grad_()
    loss = generation_loss(predicted, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert not predicted.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_generation_loss_of_a_broken_prediction_is_not_a_number(bad, generator):
    predicted = torch.rand(1, 2, 4, 3, generator=generator)
    predicted[0, 1, 2, 0] = bad
    assert generation_loss(predicted, torch.rand(1, 2, 4, 3, generator=generator)).isnan()


def test_settings_of_pretraining_are_not_written_for_other_tasks():
    config = parse_model_config({"name": "pointgpt_b"})
    assert "pretraining" not in config.model_dump()
    assert parse_model_config(config.model_dump(mode="json")) == config
    written = parse_model_config({"name": "pointgpt_b", "task": "pretraining"}).model_dump(mode="json")
    assert written["pretraining"] == {"mask_ratio": 0.7, "keep_first": 10}


@pytest.mark.slow
def test_training_minimises_both_losses_and_logs_their_shares(tmp_path):
    values = {
        "output": str(tmp_path),
        "model": {"name": "pointgpt_s", **SMALL},
        "adapter": {"method": "full"},
        "data": {"name": "procedural", "train_size": 80, "test_size": 40, "num_points": 64},
        "optim": {"epochs": 1, "batch_size": 40, "warmup_epochs": 0},
        "train": {"progress": "off", "device": "cpu"},
    }
    run = Trainer(RunConfig.model_validate(values)).fit()
    events = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "train"]
    assert len(steps) == 2
    for step in steps:
        assert step["loss"] == pytest.approx(step["loss_task"] + step["loss_generation"], rel=1e-6)
        assert 0.0 < step["share_generation"] < 1.0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pointgpt_s", 29_232_335),
        ("pointgpt_b", 120_461_263),
        ("pointgpt_l", 360_457_679),
        ("point_bert", 22_059_535),
    ],
)
def test_the_committed_settings_make_the_published_network(name, parameters):
    file = Path(__file__).parents[3] / "cfgs" / "_base_" / "model" / f"{name}.yaml"
    settings = yaml.safe_load(file.read_text())["model"]
    config = parse_model_config(settings)
    with torch.device("meta"):
        model = create_model(**{**settings, "num_classes": 15})
    assert count(model)[0] == parameters
    defaults = parse_model_config({"name": name, "num_groups": 64})  # the files are for 1,024 points
    assert config == defaults


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heads"), [("pointgpt_s", 6), ("pointgpt_b", 12), ("pointgpt_l", 16)])
def test_the_full_widths_equal_a_plain_network_with_the_official_names(name, heads, generator):
    model = create_model(name, num_classes=15, depth=2, generator_depth=1, num_groups=8, group_size=4).eval()
    state = {}
    for key, value in model.state_dict().items():
        official = model.official_keys.translate(key, to="official")
        state[official] = model.official_keys.translate_tensor(key, value, to="official").clone()
        if value.dim() == 1:
            state[official] += 0.2 * torch.rand(value.shape, generator=generator)
    report = load_weights(model, state)
    assert not report.missing
    points = torch.rand(2, 32, 3, generator=generator) - 0.5
    groups = model.group(points)
    clouds = zip(groups.neighborhood, groups.center, strict=True)
    expected = torch.stack([plain_classifier(state, *cloud, heads) for cloud in clouds])
    with torch.no_grad():
        torch.testing.assert_close(model(points), expected, rtol=0, atol=LOGIT_TOLERANCE)
