"""PPT, PointLoRA and IDPT's further forms, against their formulas written out in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_clora import ops
from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.config import ConfigError
from pcl_clora.errors import UserValueError
from pcl_clora.models import create_model
from tests.support import adapter_cases as cases
from tests.support import naive_blocks as naive
from tests.support.adapter_places import SEGMENTER, SIZES
from tests.support.plain_segmentation import plain_head

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, sums in another order
CHOOSING = {"method": "pointlora", "rank": 2, "width": 5, "keep": [4, 2], "num_second": 8, "second_size": 12}


def mlp(layers, x: Tensor) -> Tensor:
    """D - width - D with GELU, written out."""
    first, _, second = layers
    return F.gelu(x @ first.weight.t() + first.bias) @ second.weight.t() + second.bias


def added(x: Tensor, rows: slice, change: Tensor) -> Tensor:
    """x with a change of some rows."""
    x = x.clone()
    x[rows] = x[rows] + change
    return x


def patches(model: AdaptedModel, cloud: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Features and positions of a second sampling of one cloud."""
    groups = ops.group_points(cloud[None], count, size)
    base = model.base
    return base.patch_embed(groups.neighborhood)[0], base.pos_embed(groups.center)[0]


@pytest.mark.parametrize("num_extra", [0, 10])
@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_ppt_is_its_formula(num_extra, mode):
    more = {"num_extra": num_extra, "extra_size": 6} if num_extra else {}
    model, points = naive.shaken({"method": "ppt", "width": 5, "mode": mode, **more})
    tokens, method, logits = model.base.tokenize(points), model.method, []
    for cloud, x, pos in zip(points, tokens.x, tokens.pos, strict=True):
        extra, extra_pos = patches(model, cloud, num_extra, 6) if num_extra else (x[1:], pos[1:])
        x, pos, count = torch.cat([x, extra]), torch.cat([pos, extra_pos]), len(extra)
        for block in model.base.blocks:
            x = x + pos
            x = added(x, slice(1, 17), mlp(method.on_patches[0], x[1:17]))
            x = added(x, slice(len(x) - count, None), mlp(method.on_extra[0], x[-count:]))
            inside = naive.plain(block)
            x = x + naive.attention(block, naive.norm(inside.norm1, x))
            x = x + naive.mlp(block, naive.norm(inside.norm2, x)) + mlp(method.on_all[0], x)
        x = naive.norm(model.base.norm, x)
        seen = torch.cat([x[0], x[1:17].mean(0), x[-count:].mean(0)])
        head = model.base.head
        for linear, norm in ((head[0], head[1]), (head[4], head[5])):
            seen = F.gelu(naive.batch_norm(norm, linear.weight @ seen + linear.bias))
        logits.append(head[8].weight @ seen + head[8].bias)

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_pointlora_is_its_formula(mode):
    settings = {**CHOOSING, "mode": mode, "alpha": 6, "num_first": 14, "first_size": 9}
    model, points = naive.shaken(settings)
    tokens, method, logits, losses = model.base.tokenize(points), model.method, [], []
    scale = 1.0 if mode == "paper" else 6 / 2
    for cloud, x, pos in zip(points, tokens.x, tokens.pos, strict=True):
        loss = 0.0
        for (count, size, keep), share in (((14, 9, 4), 1), ((8, 12, 2), 0.25)):
            features, places = patches(model, cloud, count, size)
            fc1, _, fc2 = method.score
            score = torch.sigmoid(F.relu(fc1(features)) @ fc2.weight[0] + fc2.bias)
            entropy = score * (score + 1e-6).log() + (1 - score) * (1 - score + 1e-6).log()
            loss = loss + share * entropy.mean()
            best = score.argsort(descending=True)[:keep]
            x, pos = torch.cat([x, features[best]]), torch.cat([pos, places[best]])
        losses.append(loss)
        last = len(x) if mode == "paper" else 17  # the release takes 128 patches; fewer are all that there is
        for index, block in enumerate(model.base.blocks):
            x = x + pos
            x = added(x, slice(1, last), mlp(method.on_patches[0], x[1:last]))
            x = added(x, slice(len(x) - 6, None), mlp(method.on_extra[0], x[-6:]))

            def changed(y: Tensor, into: Tensor, role: str, index: int = index) -> Tensor:
                update = naive.delta(model, f"blocks.{index}.attn.{role}").updates[role]
                low_rank = scale * into @ update.down.t() @ update.up.t()
                return y + low_rank + mlp(method.on_layers[role], into)

            inside = naive.plain(block)
            attn, y = inside.attn, naive.norm(inside.norm1, x)
            q, k, v = changed(y @ naive.plain(attn.qkv).weight.t(), y, "qkv").chunk(3, dim=-1)
            heads = [slice(16 * head, 16 * head + 16) for head in range(3)]
            mixed = [torch.softmax(q[:, h] @ k[:, h].t() / 4, -1) @ v[:, h] for h in heads]
            mixed, proj = torch.cat(mixed, dim=-1), naive.plain(attn.proj)
            x = x + changed(mixed @ proj.weight.t() + proj.bias, mixed, "proj")
            x = x + naive.mlp(block, naive.norm(inside.norm2, x))
        x = naive.norm(model.base.norm, x)
        logits.append(model.base.head(torch.cat([x[0], x[1:].amax(0)])[None])[0])

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)
    with torch.no_grad():
        value = method.extra_loss_values()
    assert value == {}  # a prediction has no loss
    method.train()  # with the statistics of evaluation everywhere
    model(points)
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(model.extra_losses()["mask"], 0.004 * mean, **EXACT)


@pytest.mark.parametrize(("first", "tokens_seen"), [(0, "all"), (1, "prompt"), (-1, "prompt")])
def test_idpts_prompt_may_come_in_early_and_be_all_that_the_head_sees(first, tokens_seen):
    settings = {"method": "idpt", "neighbors": 4, "blocks": [first], "head_tokens": tokens_seen}
    model, points = naive.shaken(settings)
    tokens, start, logits = model.base.tokenize(points), first % 3, []
    own = naive.delta(model, f"blocks.{start}")
    for x, pos in zip(tokens.x, tokens.pos, strict=True):
        for index, block in enumerate(model.base.blocks):
            if index == start:
                x = torch.cat([x, own.graph(x[None, 1:])[0]])
                pos = torch.cat([pos, own.pos[0]])
            x = naive.run(block, x + pos)
        x = naive.norm(model.base.norm, x)
        seen = [x[0], x[-1], x[1:-1].amax(0)] if tokens_seen == "all" else [x[-1]]
        logits.append(model.base.head(torch.cat(seen)[None])[0])

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


def segmenter(settings: dict[str, object]) -> tuple[AdaptedModel, Tensor, Tensor, dict[str, Tensor]]:
    """A shaken segmenter in float64, clouds, categories, and its head by the official names."""
    torch.manual_seed(0)
    base = create_model("point_mae", **{**SIZES, **SEGMENTER})
    with torch.no_grad():
        base.train()(torch.rand(6, 64, 3), torch.arange(6) % 3)
    model = cases.shake(attach_adapter(base.eval(), settings)).double()
    keys, own = model.base.official_keys, {f"head.{k}": v for k, v in model.base.head.state_dict().items()}
    state = {}
    for name, value in own.items():
        official = keys.translate(name, to="official")
        state[official] = keys.translate_tensor(name, value, to="official")
    points = (torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1).double()
    return model, points, torch.tensor([2, 0]), state


def test_idpt_in_segmentation_shows_the_head_its_prompts_before_and_behind_the_blocks():
    model, points, category, state = segmenter({"method": "idpt"})
    tokens, features, pooled = model.base.tokenize(points), [], []
    for x, pos in zip(tokens.x, tokens.pos, strict=True):
        levels, prompts = [], []
        for index, block in enumerate(model.base.blocks):
            graph = naive.delta(model, f"blocks.{index}").graph
            fused = naive.batch_norm(graph.norm, x @ graph.fuse.weight.t())
            prompt = F.leaky_relu(fused, 0.2).amax(0, keepdim=True)
            y = naive.run(block, torch.cat([prompt + model.method.pos[0], x + pos]))
            prompts.append(naive.norm(model.base.norm, torch.cat([prompt, y[:1]])))
            x = y[1:]
            levels.append(naive.norm(model.base.norm, x))
        features.append(torch.cat(levels, dim=1).t())
        pooled.append(torch.cat(prompts, dim=1).flatten())
    expected = plain_head(
        state, points, tokens.center, torch.stack(features), category, pooled=torch.stack(pooled)
    )

    torch.testing.assert_close(model(points, category).log_softmax(-1), expected, **EXACT)


@pytest.mark.parametrize("mode", ["corrected", "paper"])
def test_ppt_in_segmentation_has_the_patches_twice_and_counts_a_class_token_in_paper_mode(mode):
    model, points, category, state = segmenter({"method": "ppt", "width": 5, "mode": mode})
    tokens, method, features, pooled = model.base.tokenize(points), model.method, [], []
    start = 1 if mode == "paper" else 0
    for x, pos in zip(tokens.x, tokens.pos, strict=True):
        x, pos, levels = torch.cat([x, x]), torch.cat([pos, pos]), []
        for block in model.base.blocks:
            x = x + pos
            rows = slice(start, start + 12)
            x = added(x, rows, mlp(method.on_patches[0], x[rows]))
            x = added(x, slice(12, None), mlp(method.on_extra[0], x[12:]))
            inside = naive.plain(block)
            x = x + naive.attention(block, naive.norm(inside.norm1, x))
            x = x + naive.mlp(block, naive.norm(inside.norm2, x)) + mlp(method.on_all[0], x)
            levels.append(naive.norm(model.base.norm, x))
        both = torch.cat(levels, dim=1).t()
        features.append(both[:, :12])
        pooled.append(torch.cat([both.amax(1), both.mean(1)]))
    expected = plain_head(
        state, points, tokens.center, torch.stack(features), category, pooled=torch.stack(pooled)
    )

    torch.testing.assert_close(model(points, category).log_softmax(-1), expected, **EXACT)
    assert ("base.head.label.linear.weight" in model.plan) == (mode == "corrected")


def test_the_choice_of_pointlora_has_a_loss_in_training_only_and_no_copy_takes_it_along():
    model = attach_adapter(cases.make_backbone("point_mae"), CHOOSING).train()
    model(cases.make_points())

    assert model.extra_losses()["mask"].requires_grad
    assert copy.deepcopy(model).extra_losses() == {}
    assert pickle.loads(pickle.dumps(model)).extra_losses() == {}
    assert model.eval()(cases.make_points()).shape == (4, 5)
    assert model.extra_losses() == {}


@pytest.mark.parametrize("method", ["ppt", "pointlora"])
def test_a_batch_of_one_trains(method):
    """In place, as released, the slices break the backward pass of one cloud."""
    model = attach_adapter(cases.make_backbone("point_mae"), cases.SETTINGS[method])

    model(cases.make_points(1)).sum().backward()

    assert all(p.grad is not None for name, p in model.named_parameters() if ".on_" in name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ppt", "blocks": [1]}, "leave blocks out"),
        ({"method": "pointlora", "keep": [4, 9], "num_second": 8}, r"chooses more than num_second=8; lower"),
        ({"method": "pointlora", "blocks": [1]}, "leave blocks out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        attach_adapter(cases.make_backbone("point_mae"), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**CHOOSING, "keep": [17, 2]}, r"keep=\[17, 2\] is more than there are: .* 16 patches; lower it"),
        ({"method": "idpt", "neighbors": 17}, "neighbors=17 is more than there are"),
        ({"method": "gft", "cross_blocks": [0], "neighbors": 68}, "and 51 tokens stand beside them"),
        ({"method": "stag", "start": 1, "neighbors": 17}, "neighbors=17 is more"),
        ({"method": "clora_geo", "neighbors": 17}, "neighbors=17 is more"),
        ({"method": "point_peft", "neighbors": 17}, "neighbors=17 is more"),
        ({"method": "pointgst", "local": 5}, "set a divisor of 16"),
    ],
    ids=str,
)
def test_more_patches_than_there_are_is_refused_before_anything_changes(settings, message):
    base = cases.make_backbone("point_mae")
    names = list(base.state_dict())

    with pytest.raises(UserValueError, match=message):
        attach_adapter(base, settings)

    assert list(base.state_dict()) == names


def test_prompts_beyond_what_a_cloud_has_are_refused_by_number():
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "ppt", "num_extra": 200})
    with pytest.raises(ValueError, match="200"):
        model(cases.make_points())


def test_idpt_has_one_prompt():
    base = cases.make_backbone("point_mae")
    names = list(base.state_dict())

    with pytest.raises(UserValueError, match="before one block, not before 2"):
        attach_adapter(base, {"method": "idpt", "blocks": [0, 1]})

    assert list(base.state_dict()) == names
