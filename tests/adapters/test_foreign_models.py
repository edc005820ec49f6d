"""Adapters on transformers that nobody wrote for this project: timm, Hugging Face, torchvision, one's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pcl_clora.adapters import attach_adapter, load_adapter
from pcl_clora.errors import UserValueError
from pcl_clora.models import describe_transformer, replace_attention
from tests.support import adapter_cases as cases

SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
    "num_labels": 5,
}  # fmt: skip
SEPARATE = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "proj": "attention.o_proj",
}
WEIGHT_BASED = {
    "clora": {"method": "clora", "rank": 4, "num_spaces": 2},
    "clora_parallel": {"method": "clora", "rank": 4, "num_spaces": 2, "placement": "parallel"},
    "lora": {"method": "lora", "rank": 4},
    "dora": {"method": "dora", "rank": 4},
    "vera": {"method": "vera", "rank": 16},
    "arc": {"method": "arc", "rank": 4},
    "bitfit": {"method": "bitfit"},
    "ssf": {"method": "ssf"},
    "fact": {"method": "fact", "rank": 4},
    "full": {"method": "full"},
    "linear_probe": {"method": "linear_probe"},
}


def hugging_face_vit():
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, intermediate_size=96))


def hugging_face_dinov2(**more):
    transformers = pytest.importorskip("transformers")
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**SIZES, **more))


def torchvision_vit():
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=5)


def open_torchvision_vit():
    model = torchvision_vit()
    replace_attention(model)
    return model


def timm_vit():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes)


class EarlierLayer(nn.Module):
    """A block as Hugging Face's ViT had it in version 4: the names, not the code."""

    def __init__(self):
        super().__init__()
        layer = {role: nn.Linear(24, 24) for role in ("query", "key", "value")}
        inner, outer = nn.ModuleDict(layer), nn.ModuleDict({"dense": nn.Linear(24, 24)})
        self.attention = nn.ModuleDict({"attention": inner, "output": outer})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(24, 96)})
        self.output = nn.ModuleDict({"dense": nn.Linear(96, 24)})
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(24), nn.LayerNorm(24)


class OwnLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = nn.LayerNorm(24), nn.LayerNorm(24)
        self.mixing = nn.ModuleDict({"mix": nn.Linear(24, 72), "out": nn.Linear(24, 24)})
        self.grow, self.shrink = nn.Linear(24, 96), nn.Linear(96, 24)

    def forward(self, x):
        q, k, v = self.mixing["mix"](self.before(x)).chunk(3, dim=-1)
        x = x + self.mixing["out"](nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.shrink(torch.relu(self.grow(self.between(x))))


class OwnTransformer(nn.Module):
    """Names that nobody else has."""

    def __init__(self):
        super().__init__()
        self.embed, self.start = nn.Conv2d(3, 24, 8, 8), nn.Parameter(torch.zeros(1, 1, 24))
        self.stages = nn.ModuleList(OwnLayer() for _ in range(3))
        self.decide = nn.Linear(24, 5)

    def forward(self, images):
        x = self.embed(images).flatten(2).mT
        x = torch.cat([self.start.expand(len(x), -1, -1), x], dim=1)
        for stage in self.stages:
            x = stage(x)
        return self.decide(x[:, 0])


MODELS = {
    "timm": timm_vit,
    "Hugging Face ViT": hugging_face_vit,
    "Hugging Face DINOv2": hugging_face_dinov2,
    "torchvision": open_torchvision_vit,
    "own": OwnTransformer,
}
BY_HAND = {"own": {"head": "decide", "tokens": "start"}}


def make(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.interface = describe_transformer(model, **BY_HAND.get(name, {}))
    return model


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(output):
    return getattr(output, "logits", output)


@pytest.mark.parametrize(
    ("name", "linears", "head", "tokens", "norms"),
    [
        (
            "timm", {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
            "head", "cls_token", ("norm1", "norm2"),
        ),
        (
            "Hugging Face ViT", {**SEPARATE, "fc1": "mlp.fc1", "fc2": "mlp.fc2"}, "classifier",
            "vit.embeddings.cls_token", ("layernorm_before", "layernorm_after"),
        ),
        (
            "Hugging Face DINOv2", {**SEPARATE, "fc1": "mlp.fc1", "fc2": "mlp.fc2"}, "classifier",
            "dinov2.embeddings.cls_token", ("norm1", "norm2"),
        ),
        (
            "torchvision",
            {"qkv": "self_attention.qkv", "proj": "self_attention.proj", "fc1": "mlp.0", "fc2": "mlp.3"},
            "heads", "class_token", ("ln_1", "ln_2"),
        ),
        (
            "own", {"qkv": "mixing.mix", "proj": "mixing.out", "fc1": "grow", "fc2": "shrink"},
            "decide", "start", ("before", "between"),
        ),
    ],
)  # fmt: skip
def test_the_parts_of_a_foreign_transformer_are_found(name, linears, head, tokens, norms):
    interface = make(name).interface

    assert dict(interface.linears) == linears
    assert interface.parts["head"] == (head,)
    assert interface.parts["tokens"] == (tokens,)
    assert interface.block_norms == norms
    assert len(interface.blocks) == (3 if name == "own" else 2)
    assert interface.input_shape == (None if name == "own" else (3, 32, 32))


def test_the_names_of_earlier_versions_are_known():
    model = nn.Module()
    model.encoder = nn.ModuleDict({"layer": nn.ModuleList(EarlierLayer() for _ in range(2))})

    interface = describe_transformer(model, head=(), tokens=())

    assert dict(interface.linears) == {
        "q": "attention.attention.query", "k": "attention.attention.key", "v": "attention.attention.value",
        "proj": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense",
    }  # fmt: skip
    assert interface.block_norms == ("layernorm_before", "layernorm_after")


def test_of_a_gated_mlp_the_first_and_the_last_layer_have_roles():
    interface = describe_transformer(hugging_face_dinov2(use_swiglu_ffn=True))

    assert (interface.linears["fc1"], interface.linears["fc2"]) == ("mlp.gate_proj", "mlp.down_proj")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", WEIGHT_BASED)
def test_methods_that_change_weights_train_merge_and_save_there(name, method, tmp_path):
    model, x = make(name), images()
    with torch.no_grad():
        before = logits(model(x))
    plain = copy.deepcopy(model)
    adapted = attach_adapter(model, WEIGHT_BASED[method]).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(adapted(x)), before, rtol=1e-5, atol=1e-5)

    cases.shake(adapted, size=0.05)
    loss = logits(adapted(x)).square().sum()
    loss.backward()

    trained = [p for key, p in adapted.named_parameters() if key in adapted.plan]
    assert trained
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        changed = logits(adapted(x))
        assert not torch.allclose(changed, before, atol=1e-3)
        with adapted.merged():
            torch.testing.assert_close(logits(adapted(x)), changed, rtol=1e-4, atol=1e-4)  # float32, folded
        adapted.save_adapter(tmp_path / "adapter.safetensors")
        loaded = load_adapter(tmp_path / "adapter.safetensors", plain)
        assert torch.equal(logits(loaded(x)), changed)
        adapted.set_active(None)
        assert torch.equal(logits(adapted(x)), before)


@pytest.mark.parametrize("method", ["dapt", "clora_geo", "pointgst", "vpt"])
def test_methods_of_point_patches_are_refused_there(method):
    with pytest.raises(UserValueError, match=r"images|opens none|does not run in two steps"):
        attach_adapter(make("Hugging Face ViT"), {"method": method})


def test_torchs_attention_is_refused_by_name_and_replaced_by_an_equal_one():
    model, x = torchvision_vit().eval(), images()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        before = model(x)
    weights = {id(parameter) for parameter in model.parameters()}
    with pytest.raises(UserValueError, match=r"self_attention is an nn.MultiheadAttention.*\(2 of them\)"):
        describe_transformer(model)

    assert replace_attention(model) == 2

    with torch.no_grad():
        torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)
    assert {id(parameter) for parameter in model.parameters()} == weights
    assert replace_attention(model) == 0


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", ["none", "bool", "numbers", "each head", "padding", "both"])
def test_the_equal_attention_takes_what_torchs_takes(batch_first, bias, masks):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).double().eval()
    holder = nn.ModuleDict({"a": copy.deepcopy(theirs)})
    replace_attention(holder)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    causal = torch.ones(5, 5).triu(1).bool()
    padding = torch.zeros(2, 5).bool()
    padding[1, 3:] = True
    given = {
        "none": {},
        "bool": {"attn_mask": causal},
        "numbers": {"attn_mask": torch.randn(5, 5, dtype=torch.float64)},
        "each head": {"attn_mask": torch.randn(6, 5, 5, dtype=torch.float64)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
    }[masks]

    for more in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        ours, own = holder["a"](x, x, x, **given, **more)
        expected, attention = theirs(x, x, x, **given, **more)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        assert (own is None) == (attention is None)
        if own is not None:
            torch.testing.assert_close(own, attention, rtol=1e-12, atol=1e-12)


def test_torchs_encoder_layer_runs_with_the_equal_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True).eval()
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    ours = copy.deepcopy(theirs)
    replace_attention(ours)
    x = torch.randn(2, 5, 12)

    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    interface = describe_transformer(ours, head=(), tokens=())
    assert dict(interface.linears) == {
        "qkv": "self_attn.qkv", "proj": "self_attn.proj", "fc1": "linear1", "fc2": "linear2",
    }  # fmt: skip


def test_an_attention_that_has_no_equal_is_refused_before_any_is_replaced():
    model = nn.ModuleDict(
        {"a": nn.MultiheadAttention(12, 3), "b": nn.MultiheadAttention(12, 3, add_bias_kv=True)}
    )
    with pytest.raises(UserValueError, match="biases of its keys"):
        replace_attention(model)
    assert isinstance(model["a"], nn.MultiheadAttention)

    ours = nn.ModuleDict({"a": nn.MultiheadAttention(12, 3)})
    replace_attention(ours)
    x = torch.randn(5, 2, 12)
    with pytest.raises(UserValueError, match="key and value must be the query"):
        ours["a"](x, x.clone(), x)
    one = x[:, 0]
    with pytest.raises(UserValueError, match=r"The query is \(5, 12\)"):
        ours["a"](one, one, one)


class Without(OwnTransformer):
    """The same without one of its parts."""

    def __init__(self, part):
        super().__init__()
        if part == "blocks":
            self.stages = nn.ModuleList([nn.Linear(24, 24)])
        for stage in self.stages if part != "blocks" else ():
            if part == "qkv":
                stage.mixing["mix"] = nn.Linear(24, 48)
            elif part == "proj":
                del stage.mixing["out"]
                stage.extra = nn.Linear(24, 48)
            elif part == "fc1":
                stage.grow = nn.Linear(30, 96)
            elif part == "fc2":
                stage.shrink = nn.Linear(96, 30)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("blocks", r"Without: found no blocks.*stages.*describe_transformer\(model, blocks="),
        ("qkv", r"found no qkv.*24 -> 72.*mixing.mix 24 -> 48.*linears=\{\"qkv\""),
        ("proj", r"found no proj.*24 -> 24.*linears=\{\"proj\""),
        ("fc1", r"found no fc1.*grow 30 -> 96.*linears=\{\"fc1\""),
        ("fc2", r"found no fc2.*shrink 96 -> 30.*linears=\{\"fc2\""),
        ("head", r"found no head.*decide.*describe_transformer\(model, head="),
        ("tokens", r"found no class token.*start.*tokens=\(\) for a module without"),
    ],
)
def test_what_is_not_found_is_said_with_how_to_name_it(part, message):
    by_hand = {key: value for key, value in BY_HAND["own"].items() if key != part}
    if part == "proj":
        by_hand["linears"] = {"qkv": "mixing.mix"}

    with pytest.raises(UserValueError, match=message):
        describe_transformer(Without(part), **by_hand)


@pytest.mark.parametrize(
    ("by_hand", "message"),
    [
        ({"head": "top"}, r"head names 'top', but OwnTransformer has no module there"),
        ({"tokens": "decide"}, r"tokens names 'decide', but OwnTransformer has no parameter there"),
        ({"blocks": "layers"}, r"blocks names 'layers'"),
        ({"blocks": ["stages.0", "stages.7"]}, r"blocks names 'stages.7'"),
        ({"linears": {"qkv": "mixing.in"}}, r"qkv was found or named at mixing.in.*stages.0 has no linear"),
    ],
)
def test_names_by_hand_that_do_not_exist_are_refused(by_hand, message):
    with pytest.raises(UserValueError, match=message):
        describe_transformer(OwnTransformer(), **{**BY_HAND["own"], **by_hand})


def test_what_is_named_by_hand_is_taken():
    interface = describe_transformer(
        OwnTransformer(), blocks=["stages.0", "stages.2"], head=(), tokens="start",
        linears={"qkv": "mixing.mix", "proj": "mixing.out", "fc1": "grow", "fc2": "shrink"}, block_norms=(),
    )  # fmt: skip

    assert interface.blocks == ("stages.0", "stages.2")
    assert (interface.parts["head"], interface.block_norms, interface.num_prefix) == ((), (), 1)


def test_a_model_without_an_interface_says_how_to_get_one():
    with pytest.raises(TypeError, match=r"set model.interface = describe_transformer\(model\)"):
        attach_adapter(OwnTransformer(), {"method": "lora"})
