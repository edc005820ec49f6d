"""Methods that change the sequence of tokens, against their formulas written out and against golden files."""

import pytest
import torch
import torch.nn.functional as F

from pcl_clora.adapters import attach_adapter
from pcl_clora.errors import UserValueError
from tests.support import adapter_cases as cases
from tests.support import naive_blocks as naive
from tests.support.peft_golden import LOGIT_TOLERANCE, differences, golden_adapted

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, sums in another order
GOLDEN = {
    "peft_vptdeep_full": ({"method": "vpt"}, 360_463),
    "peft_dapt_full": ({"method": "dapt", "mode": "paper", "dropout": 0.2}, 1_087_771),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", GOLDEN)
def test_an_official_configuration_gives_its_logits_and_gradients(name, shared):
    settings, trained = GOLDEN[name]
    model, archive = golden_adapted(shared, name, settings)

    logits, gradients, _ = differences(model, archive)

    assert logits < LOGIT_TOLERANCE
    assert gradients < 1e-4  # norms of float32 sums
    assert model.parameter_counts()["trainable"] == trained


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_vpt_is_its_formula(depth):
    model, points = naive.shaken({"method": "vpt", "num_prompts": 3, "depth": depth})
    tokens = model.base.tokenize(points)
    logits = []
    for x, pos in zip(tokens.x, tokens.pos, strict=True):
        prompts = naive.delta(model, "blocks.0").prompts
        carried = prompts.token[0]
        for index, block in enumerate(model.base.blocks):
            if depth == "deep":
                prompts = naive.delta(model, f"blocks.{index}").prompts
                carried = prompts.token[0]
            y = naive.run(block, torch.cat([x + pos, carried + prompts.pos[0]]))
            x, carried = y[: len(x)], y[len(x) :]
        x = naive.norm(model.base.norm, x)
        logits.append(model.base.head(torch.cat([x[0], x[1:].amax(0)])[None])[0])

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


@pytest.mark.parametrize(("prompt", "patch"), [("mean", "max"), ("none", "max"), ("mean", "none")])
def test_dapt_is_its_formula(prompt, patch):
    settings = {"method": "dapt", "rank": 5, "prompt_token": prompt, "patch_token": patch}
    model, points = naive.shaken(settings)
    tokens, last = model.base.tokenize(points), naive.delta(model, "norm")
    logits = []
    for x, pos in zip(tokens.x, tokens.pos, strict=True):
        first = naive.delta(model, "blocks.0").tokens
        x = torch.cat([x[:1], x[1:] * first.gamma + first.beta]) + pos
        num_patches = len(x) - 1
        for index, block in enumerate(model.base.blocks):
            own, inside = naive.delta(model, f"blocks.{index}"), naive.plain(block)

            def scaled(y, path, index=index):
                change = naive.delta(model, f"blocks.{index}.{path}")
                return y * change.gamma + change.beta

            y = scaled(naive.norm(naive.plain(inside.norm1), x), "norm1")
            y = naive.attention(block, y, lambda y: scaled(y, "attn.qkv"))
            x = x + scaled(y, "attn.proj")
            y = scaled(naive.norm(naive.plain(inside.norm2), x), "norm2")
            z, adapter = naive.norm(own.adapter.norm, y), own.adapter
            added = F.gelu(z @ adapter.down.weight.t() + adapter.down.bias) @ adapter.up.weight.t()
            added = (added + adapter.up.bias) * F.relu(z @ adapter.scale.weight.t() + adapter.scale.bias)
            fc1, fc2 = naive.plain(inside.mlp.fc1), naive.plain(inside.mlp.fc2)
            y = F.gelu(scaled(y @ fc1.weight.t() + fc1.bias, "mlp.fc1"))
            x = x + scaled(y @ fc2.weight.t() + fc2.bias, "mlp.fc2") + added
            new = F.gelu(added).mean(0) * own.prompt.gamma + own.prompt.beta
            x = torch.cat([x[:1], new[None], x[1:]])
        x = naive.norm(naive.plain(model.base.norm), x) * last.gamma + last.beta
        seen = [x[0], x[1:-num_patches].mean(0), x[-num_patches:].amax(0)]
        kept = [seen[0]] + [seen[1]] * (prompt == "mean") + [seen[2]] * (patch == "max")
        logits.append(model.base.head(torch.cat(kept)[None])[0])

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


@pytest.mark.parametrize("settings", [{"method": "vpt"}, {"method": "dapt"}])
def test_a_head_of_other_classes_keeps_its_width(settings):
    model = attach_adapter(cases.make_backbone("point_mae"), settings)
    width = next(model.base.head.parameters()).shape[1]

    model.reset_classifier(7)

    assert model(cases.make_points()).shape == (4, 7)
    assert next(model.base.head.parameters()).shape[1] == width


def test_settings_that_a_backbone_cannot_follow_are_refused_before_anything_changes():
    base = cases.make_backbone("point_mae")
    names = list(base.state_dict())
    wrong = [{"method": "dapt", "blocks": [0]}, {"method": "dapt", "train": ["tokens"]}]
    for settings in wrong:
        with pytest.raises(UserValueError, match=r"leave blocks out|add 'head' to train"):
            attach_adapter(base, settings)
    with pytest.raises(ValueError, match="leave blocks out"):
        attach_adapter(base, {"method": "vpt", "depth": "shallow", "blocks": [1]})

    assert list(base.state_dict()) == names


def test_inputs_are_known_by_name():
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "vpt"})

    with pytest.raises(UserValueError, match=r"vpt takes no input 'bank'"):
        model.method.provide(bank=torch.zeros(2))
