"""Image transformers of timm: the same numbers as timm, adapters on them, counts of the CLoRA paper."""

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model, describe_timm, list_models, load_weights, parse_model_config
from pcl_clora.models.interface import Backbone, get_interface
from pcl_clora.report import count_cost

timm = pytest.importorskip("timm")

TINY = {"image_size": 8, "patch_size": 2, "channels": 1, "embed_dim": 24, "depth": 2, "num_heads": 3}
OF_TIMM = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 3}
ARCHITECTURES = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224")
METHODS = {
    "clora": {"method": "clora", "rank": 4, "num_spaces": 2},
    "lora": {"method": "lora", "rank": 4},
    "linear_probe": {"method": "linear_probe"},
    "full": {"method": "full"},
}


def make(architecture=ARCHITECTURES[0], **changes):
    torch.manual_seed(0)
    return create_model(f"timm/{architecture}", num_classes=5, **{**TINY, **changes}).eval()


@pytest.fixture
def images(generator):
    return torch.randn(4, 1, 8, 8, generator=generator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_timm(architecture, images):
    torch.manual_seed(0)
    theirs = timm.create_model(architecture, num_classes=5, **OF_TIMM).eval()
    ours = make(architecture)
    assert torch.equal(ours(images), theirs(images))
    assert ours.forward_features(images).shape[::2] == (4, 24)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_state_dict_of_timm_loads_completely(architecture, images):
    torch.manual_seed(1)
    theirs = timm.create_model(architecture, num_classes=5, **OF_TIMM).eval()
    model = make(architecture)
    report = load_weights(model, theirs.state_dict())
    assert not report.missing
    assert not report.unexpected
    assert torch.equal(model(images), theirs(images))
    names = [model.official_keys.translate(name, to="official") for name in model.state_dict()]
    assert names == list(theirs.state_dict())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_start_as_the_base_train_and_merge(architecture, method, images):
    base = make(architecture)
    expected = base(images)
    model = attach_adapter(base, METHODS[method])
    assert torch.equal(model(images), expected)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)  # LayerScale makes the gradients of deit3 tiny
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(model.plan)
    logits = model(images)
    with model.merged():
        torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_query_key_and_value_are_rows_of_the_fused_layer(role, images):
    model = make()
    sites = get_interface(model).sites(role)
    assert [site.path for site in sites] == ["vit.blocks.0.attn.qkv", "vit.blocks.1.attn.qkv"]
    start = "qkv".index(role) * 24
    assert sites[0].rows == (start, start + 24)
    layer = model.get_submodule(sites[0].path)
    x = torch.randn(1, 3, 24)
    split = layer(x).view(1, 3, 3, 3, 8).permute(2, 0, 3, 1, 4)["qkv".index(role)]  # as timm cuts it
    torch.testing.assert_close(layer(x)[..., start : start + 24], split.transpose(1, 2).flatten(2))


def test_a_model_that_timm_made_takes_an_adapter(images):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **OF_TIMM).eval()
    model.interface = describe_timm(model)
    expected = model(images)
    adapted = attach_adapter(model, METHODS["clora"])
    assert torch.equal(adapted(images), expected)
    assert adapted.interface.blocks == ("blocks.0", "blocks.1")


def test_the_distilled_model_has_two_heads_and_two_tokens():
    model = make("deit_tiny_distilled_patch16_224")
    assert model.interface.parts["head"] == ("vit.head", "vit.head_dist")
    assert model.interface.parts["tokens"] == ("vit.cls_token", "vit.dist_token")
    model.eval().reset_classifier(7)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 7)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({"method": "clora", "rank": 8, "num_spaces": 8}, 110_592),  # E (2 d r + m r^2), m = 24
        ({"method": "lora", "rank": 8, "targets": ["q", "v"]}, 294_912),  # 2 d r m
    ],
)
def test_adapter_counts_of_vit_b_are_those_of_the_formula(adapter, expected):
    with torch.device("meta"):
        model = attach_adapter(create_model("timm/vit_base_patch16_224", num_classes=100), adapter)
    counts = model.parameter_counts()
    assert counts["adapter"] == expected
    assert counts["head"] == 100 * 768 + 100
    assert counts["tokens"] == 768


def test_vit_b_has_the_known_number_of_parameters():
    with torch.device("meta"):
        model = create_model("timm/vit_base_patch16_224", num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == 86_567_656  # timm's model card


def test_cost_counts_the_layers_of_an_image(images):
    report = count_cost(attach_adapter(make(), METHODS["clora"]), 64)
    assert report["image"] == [1, 8, 8]
    patches, tokens, dim = 16, 17, 24
    blocks = 2 * tokens * 12 * dim * dim
    assert report["macs"]["published"] == patches * 4 * dim + blocks + dim * 5


def test_it_follows_the_backbone_protocol():
    model = make()
    assert isinstance(model, Backbone)
    assert model.interface.input_shape == (1, 8, 8)
    assert model.interface.parts["tokens"] == ("vit.cls_token",)
    assert model.interface.parts["pos_embed"] == ("vit.pos_embed",)
    assert model.no_weight_decay() == {"vit.cls_token", "vit.pos_embed"}
    assert model.get_classifier() is model.vit.head


def test_checkpointed_blocks_give_the_same_gradients(images):
    plain, saving = make(), make()
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model.train()(images).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_names_of_timm_are_listed_on_demand():
    assert list_models("timm") == ["timm"]
    names = list_models("timm/vit_base_patch16_*")
    assert "timm/vit_base_patch16_224" in names
    assert all(name.startswith("timm/vit_base_patch16_") for name in names)


def test_a_name_with_the_architecture_is_the_same_as_the_setting():
    assert parse_model_config({"name": "timm/vit_small_patch16_224"}) == parse_model_config(
        {"name": "timm", "architecture": "vit_small_patch16_224"}
    )


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        ("resnet50", r"not one of timm's vit_\* or deit\* models"),
        ("vit_base_patch16_225", "did you mean 'vit_base_patch16_224"),
        ("vit_small_patch16_18x2_224", "no fused layer for q, k and v in every block"),
    ],
)
def test_an_architecture_that_does_not_fit_is_named(architecture, text):
    with pytest.raises(ValueError, match=text), torch.device("meta"):
        create_model(f"timm/{architecture}")


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 9, 8), (2, 128, 3)])
def test_wrong_images_are_named(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 1, 8, 8\)"):
        make()(torch.zeros(shape))


def test_without_timm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r"pcl-clora\[images\]"):
        create_model("timm/vit_tiny_patch16_224")
