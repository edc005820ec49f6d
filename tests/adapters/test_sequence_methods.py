"""Methods that change the sequence of tokens, against their formulas written out and against golden files."""

import pytest
import torch
import torch.nn.functional as F

from pcl_clora import ops
from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.methods.pointgst import morton_order
from pcl_clora.errors import UserValueError
from tests.support import adapter_cases as cases
from tests.support import naive_blocks as naive
from tests.support.peft_golden import LOGIT_TOLERANCE, differences, golden_adapted

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, sums in another order
GOLDEN = {
    "peft_vptdeep_full": ({"method": "vpt"}, 360_463),
    "peft_dapt_full": ({"method": "dapt", "mode": "paper", "dropout": 0.2}, 1_087_771),
    "peft_idpt_full": ({"method": "idpt", "mode": "paper"}, 1_696_783),
    "peft_pointgst_full": ({"method": "pointgst", "mode": "paper"}, 622_831),
    "peft_stag_tiny": ({"method": "stag", "rank": 24, "per_down": 6, "start": 3, "per_graph": 3}, 87_391),
    "peft_stag_sl_tiny": ({"method": "stag", "rank": 24, "per_down": 2, "start": 2, "per_graph": 2}, 92_743),
}
TINY_GFT = {
    "method": "gft", "mode": "paper", "num_prompts": 6, "cross_blocks": [0, 2], "width": 16, "num_heads": 2,
    "neighbors": 5, "edge_layers": 3, "edge_width": 16, "graph_width": 32,
}  # fmt: skip
GOLDEN |= {"peft_gft_tiny": (TINY_GFT, 151_951), "peft_gft_pb_tiny": (TINY_GFT, 151_951)}
GOLDEN["peft_pointpeft_tiny"] = (
    {"method": "point_peft", "mode": "paper", "neighbors": 4, "num_heads": 3},
    134_220,
)
GOLDEN["peft_gft_seg_tiny"] = (
    {
        **TINY_GFT,
        "decoder": {
            "width": 24, "propagation_widths": [64, 32], "head_widths": [32, 24], "category_width": 16,
        },
    },
    96_330,
)  # fmt: skip
SIX_BLOCKS = {"embed_dim": 48, "depth": 6, "num_heads": 3, "num_groups": 16, "group_size": 8}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", GOLDEN)
def test_an_official_configuration_gives_its_logits_and_gradients(name, shared):
    settings, trained = GOLDEN[name]
    sizes = (
        {**SIX_BLOCKS, "depth": {"gft": 3, "sta": 6, "poi": 7}[name[5:8]]} if name.endswith("tiny") else {}
    )
    if name == "peft_gft_pb_tiny":
        sizes["encoder_dim"] = 32
    if name == "peft_gft_seg_tiny":
        sizes["task"] = "part_segmentation"
    model, archive = golden_adapted(shared, name, settings, **sizes)
    if name == "peft_pointgst_full":
        given = {"basis": "pgst_U", "local_basis": "pgst_subU", "order": "pgst_idx0"}
        model.method.provide(**{key: torch.from_numpy(archive[there]) for key, there in given.items()})
    if name == "peft_pointpeft_tiny":
        model.method.provide(**{key: torch.from_numpy(archive[key]) for key in ("bank", "cp_feat")})

    logits, gradients, _ = differences(model, archive)

    assert logits < (5e-5 if "seg" in name else LOGIT_TOLERANCE)
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


def logits_of(model, features):
    """The backbone's own head on (T, D) tokens before the last norm: class token beside the maximum."""
    x = naive.norm(naive.plain(model.base.norm), features)
    return model.base.head(torch.cat([x[0], x[1:].amax(0)])[None])[0]


def nearest(center, k):
    """The k nearest of (G, 3) centres to each of them, by differences."""
    distance = (center[:, None] - center[None]).norm(dim=-1)
    return distance.topk(k, largest=False).indices


@pytest.mark.parametrize(("place", "pooling"), [("beside", "max"), ("behind", "max"), ("beside", "mean")])
def test_clora_geo_adds_to_clora_what_the_neighbours_differ_in(place, pooling):
    sizes = {"rank": 4, "num_spaces": 3}
    settings = {"method": "clora_geo", "neighbors": 5, "place": place, "pooling": pooling, **sizes}
    model, points = naive.shaken(settings)
    linear = attach_adapter(cases.make_backbone("point_mae"), {"method": "clora", **sizes}).double()
    state = model.adapter_state()
    linear.load_adapter_state({key: state[key] for key in linear.adapter_state()})
    tokens, spaces = model.base.tokenize(points), model.method.spaces["global/"]
    logits = []
    for x, pos, center in zip(tokens.x, tokens.pos, tokens.center, strict=True):
        for index, block in enumerate(linear.base.blocks):
            y = block((x + pos)[None], torch.zeros_like(x)[None], tokens)[0]
            t = F.layer_norm((y if place == "behind" else x + pos)[1:], (48,)) @ spaces.down
            differences = t[nearest(center, 5)] - t[:, None]
            u = differences.amax(1) if pooling == "max" else differences.mean(1)
            core = torch.block_diag(*naive.delta(model, f"blocks.{index}").core)
            x = torch.cat([y[:1], y[1:] + u @ core @ spaces.up])
        linear.base.head = model.base.head
        logits.append(logits_of(linear, x))

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


def test_clora_geo_is_clora_bit_for_bit_while_its_cores_are_zero():
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "clora_geo", "neighbors": 5})
    cases.shake(model)
    for name, parameter in model.named_parameters():
        if name.endswith("deltas.default.core"):
            parameter.data.zero_()
    linear = attach_adapter(cases.make_backbone("point_mae"), {"method": "clora"})
    state = model.adapter_state()
    linear.load_adapter_state({key: state[key] for key in linear.adapter_state()})
    points = cases.make_points()

    assert torch.equal(model(points), linear(points))
    assert model.parameter_counts()["adapter"] - linear.parameter_counts()["adapter"] == 3 * 8 * 64


def edge_conv(edge, x, k):
    """Edge convolution of one cloud (T, C) on edges, as published."""
    idx = (x[:, None] - x[None]).norm(dim=-1).topk(k, largest=False).indices
    edges = torch.cat([x[idx] - x[:, None], x[:, None].expand(-1, k, -1)], dim=-1) @ edge.linear.weight.t()
    return F.leaky_relu(naive.batch_norm(edge.norm, edges), 0.2).amax(1)


def test_idpt_is_its_formula():
    model, points = naive.shaken({"method": "idpt", "neighbors": 4})
    tokens, own = model.base.tokenize(points), naive.delta(model, "blocks.2")
    logits = []
    for x, pos in zip(tokens.x, tokens.pos, strict=True):
        for block in model.base.blocks[:2]:
            x = naive.run(block, x + pos)
        outs = [x[1:]]
        for edge in own.graph.edges:
            outs.append(edge_conv(edge, outs[-1], 4))
        fused = torch.cat(outs[1:], dim=-1) @ own.graph.fuse.weight.t()
        prompt = F.leaky_relu(naive.batch_norm(own.graph.norm, fused), 0.2).amax(0, keepdim=True)
        x = naive.run(model.base.blocks[2], torch.cat([x + pos, prompt + own.pos[0]]))
        x = naive.norm(model.base.norm, x)
        logits.append(model.base.head(torch.cat([x[0], x[-1], x[1:-1].amax(0)])[None])[0])

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


def test_the_statistics_of_a_methods_own_norms_move_and_are_in_its_file():
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "idpt", "neighbors": 4})
    before = model.adapter_state()["layers.blocks.2.graph.norm.running_mean"].clone()

    cases.train_steps(model)

    assert not torch.equal(model.adapter_state()["layers.blocks.2.graph.norm.running_mean"], before)
    assert model.base.patch_embed.norm1.training is False


def test_idpts_position_is_trained_except_in_paper_mode_where_its_file_has_it_all_the_same():
    for mode, trained in (("corrected", True), ("paper", False)):
        settings = {"method": "idpt", "neighbors": 4, "mode": mode}
        model = attach_adapter(cases.make_backbone("point_mae"), settings)
        assert any(name.endswith("deltas.default.pos") for name in model.plan) is trained
        assert "layers.blocks.2.pos" in model.adapter_state()


def graph_basis(center):
    """Eigenvectors of the normalised Laplacian, largest components positive; one graph, pair by pair."""
    g = len(center)
    distance = torch.tensor([[float((a - b).norm()) for b in center] for a in center], dtype=torch.float64)
    delta = distance[distance > 0].min()
    weight = torch.where(distance > 0, delta / distance, torch.ones(g, g, dtype=torch.float64))
    root = weight.sum(1) ** -0.5
    vectors = torch.linalg.eigh(
        torch.eye(g, dtype=torch.float64) - torch.diag(root) @ weight @ torch.diag(root)
    )[1]
    return torch.stack([v if v[v.abs().argmax()] > 0 else -v for v in vectors.t()], dim=1)


def test_pointgst_is_its_formula():
    model, points = naive.shaken({"method": "pointgst", "rank": 5, "local": 4})
    tokens = model.base.tokenize(points)
    order = morton_order(tokens.center)
    logits = []
    for x, pos, center, rows in zip(tokens.x, tokens.pos, tokens.center, order, strict=True):
        whole = graph_basis(center)
        parts = [(part, graph_basis(center[part])) for part in rows.split(4)]
        for index, block in enumerate(model.base.blocks):
            path, inside = naive.delta(model, f"blocks.{index}").path, naive.plain(block)
            x = x + pos
            x = x + naive.attention(block, naive.norm(inside.norm1, x))
            narrow = x @ path.down.weight.t() + path.down.bias

            def filtered(signal, basis, norm, adapt=path.adapt):
                f = basis.t() @ signal
                return basis @ (f + F.silu(naive.norm(norm, f) @ adapt.weight.t() + adapt.bias))

            h, patches = F.silu(narrow), narrow[1:]
            h[1:] = h[1:] + filtered(patches, whole, path.norm_global)
            for part, basis in parts:
                h[1 + part] = h[1 + part] + filtered(patches[part], basis, path.norm_local)
            x = x + naive.mlp(block, naive.norm(inside.norm2, x)) + h @ path.up.weight.t() + path.up.bias
        logits.append(logits_of(model, x))

    torch.testing.assert_close(model(points), torch.stack(logits), rtol=1e-8, atol=1e-8)  # eigenvectors


def test_bases_that_do_not_fit_a_batch_are_refused_and_cleared():
    model, points = naive.shaken({"method": "pointgst", "rank": 5, "local": 4})
    expected = model(points)
    model.method.provide(basis=torch.eye(16).expand(2, -1, -1))

    with pytest.raises(UserValueError, match=r"basis was provided with shape \(2, 16, 16\).*\(3, 16, 16\)"):
        model(points)
    model.method.clear_provided()

    assert torch.equal(model(points), expected)


def test_stag_is_its_formula():
    model, points = naive.shaken(
        {"method": "stag", "rank": 6, "per_down": 2, "start": 1, "per_graph": 1, "neighbors": 4}
    )
    tokens, method = model.base.tokenize(points), model.method
    logits = []
    for x, pos, center in zip(tokens.x, tokens.pos, tokens.center, strict=True):
        r, near = torch.zeros(16, 6, dtype=torch.float64), nearest(center, 4)
        for index, block in enumerate(model.base.blocks):
            r = r + method.downs[str(index // 2)](x[1:])
            x = naive.run(block, x + pos)
            if index >= 1:
                graph = method.graphs[str(index)]
                r = graph.fuse(graph.own(r) + graph.near(r)[near].amax(1))
                d = F.relu(graph.up(r))
                x = x + torch.cat([d.mean(0, keepdim=True), d])
        logits.append(model.base.head(x.mean(0)[None])[0])

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


def test_gft_is_its_formula():
    settings = {
        "method": "gft", "num_prompts": 3, "cross_blocks": [0, 2], "width": 4, "num_heads": 2, "neighbors": 4,
        "edge_layers": 2, "edge_width": 6, "graph_width": 8,
    }  # fmt: skip
    model, points = naive.shaken(settings)
    tokens, method = model.base.tokenize(points), model.method
    logits = []
    for x, pos in zip(tokens.x, tokens.pos, strict=True):
        x, pos = torch.cat([x, method.prompt[0]]), F.pad(pos, (0, 0, 0, 3))
        outs = [x]
        for edge in method.graph[0].edges:
            outs.append(edge_conv(edge, outs[-1], 4))
        fused = torch.cat(outs[1:], dim=-1) @ method.graph[0].fuse.weight.t()
        graph = F.leaky_relu(naive.batch_norm(method.graph[0].norm, fused), 0.2)
        for index, block in enumerate(model.base.blocks):
            x = naive.run(block, x + pos)
            if index in (0, 2):
                cross, known = naive.delta(model, f"blocks.{index}").cross, []
                q = naive.norm(cross.norm_q, x) @ cross.query.weight.t()
                kv = naive.norm(cross.norm_kv, graph)
                k, v = kv @ cross.key.weight.t(), kv @ cross.value.weight.t()
                for cols in (slice(0, 2), slice(2, 4)):
                    known.append(torch.softmax(q[:, cols] @ k[:, cols].t() / 2**0.5, dim=-1) @ v[:, cols])
                x = x + F.gelu(torch.cat(known, dim=-1) @ cross.proj.weight.t() + cross.proj.bias)
        x = naive.norm(model.base.norm, x)
        seen = [x[0], x[-3:].mean(0), x[1:-3].amax(0)]
        logits.append(model.base.head(torch.cat(seen)[None])[0])

    torch.testing.assert_close(model(points), torch.stack(logits), **EXACT)


def quick(adapter, x):
    """Up(QuickGELU(down x))."""
    hidden = x @ adapter.down.weight.t() + adapter.down.bias
    return (hidden * torch.sigmoid(1.702 * hidden)) @ adapter.up.weight.t() + adapter.up.bias


@pytest.mark.parametrize("with_bank", [True, False])
def test_point_peft_is_its_formula(with_bank):
    settings = {"method": "point_peft", "rank": 3, "prompt_blocks": 2, "neighbors": 3, "num_heads": 3}
    model, points = naive.shaken(settings)
    bank, feature = torch.randn(2, 48, 20, generator=torch.Generator().manual_seed(1)).double()[:, :, :12]
    feature = feature.t()[:3]
    if with_bank:
        model.method.provide(bank=bank, cp_feat=feature)
    tokens, shared = model.base.tokenize(points), model.method.attention[0]
    logits = []
    for cloud, (x, pos, center) in enumerate(zip(tokens.x, tokens.pos, tokens.center, strict=True)):
        middle = ops.farthest_point_sample(center[None], 8)[0]
        distance = (center[:, None] - center[middle][None]).norm(dim=-1)
        near = distance.topk(3, dim=0, largest=False).indices.t()
        weight = 1 / (distance**2 + 1e-8)
        weight = weight / weight.sum(1, keepdim=True)
        for index, block in enumerate(model.base.blocks):
            own, inside = naive.delta(model, f"blocks.{index}"), naive.plain(block)
            x = x + pos
            if index < 2:
                prompts = own.prompts
                if with_bank:
                    score, best = (feature[cloud] / feature[cloud].norm() @ bank).topk(8)
                    mean = torch.softmax(score, 0) @ bank.t()[best]
                    prior = torch.cat([feature[cloud][None], mean[None], bank.t()[best]])
                    prompts = prompts + prior + quick(own.bank_adapter, prior)
                x = torch.cat([x, prompts])
            x = x + naive.attention(block, naive.norm(inside.norm1, x))
            m = naive.mlp(block, naive.norm(inside.norm2, x))
            x = (x + m + 0.7 * quick(naive.delta(model, f"blocks.{index}.mlp.fc2").adapter, m))[:17]
            rows = x[1:][near]
            q, k, v = (naive.norm(shared.norm, rows) @ shared.qkv.weight.t()).chunk(3, dim=-1)
            heads = [slice(6 * head, 6 * head + 6) for head in range(3)]
            seen = [torch.softmax(q[..., h] @ k[..., h].mT / 18**0.5, -1) @ v[..., h] for h in heads]
            h = rows + torch.cat(seen, dim=-1) @ shared.proj.weight.t() + shared.proj.bias
            v = F.gelu(naive.batch_norm(own.norm, h.amax(1))) + 0.3 * x[1:][middle]
            x = torch.cat([x[:1], x[1:] + 0.3 * weight @ v])
            x = x + quick(own.adapter, x)
        logits.append(logits_of(model, x))

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
