"""Find the parts of a transformer that nobody wrote for this project, so that adapters attach to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Part, is_tensor_path, split_path

# What layers are called in the transformers that are met; the last part of a path.
FUSED = r"(qkv|qkv_proj|in_proj|to_qkv|c_attn|query_key_value|wqkv|mixin|mix_in)"
SEPARATE = {
    "q": r"(q|query|q_proj|to_q|wq|q_lin|query_proj)",
    "k": r"(k|key|k_proj|to_k|wk|k_lin|key_proj)",
    "v": r"(v|value|v_proj|to_v|wv|v_lin|value_proj)",
}
HEADS = r"(head|heads|classifier|fc|head_dist|cls_head|lm_head|classification_head)"
TOKENS = r".*(cls|class|dist|reg|register).*"
MASKED = r"mask_token"  # stands for patches that pre-training hides
POSITIONS = r".*pos.*"


def describe_transformer(
    module: nn.Module,
    *,
    blocks: str | Sequence[str] = "",
    linears: Mapping[str, str] | None = None,
    block_norms: Sequence[str] | None = None,
    head: str | Sequence[str] | None = None,
    tokens: str | Sequence[str] | None = None,
) -> ModelInterface:
    """Say where the parts of a transformer are: blocks, their linear layers and norms, head, class token.

    They are found by widths, order and the names in use in timm, in the ViT and DINOv2 of Hugging Face, and
    in torchvision. What is given by hand is not searched for. The module is not changed; attach after

        model.interface = describe_transformer(model)

    Layers must be called as modules: `nn.MultiheadAttention` reads the weights of its own, so
    `replace_attention(model)` puts an equal attention in its place first.

    Args:
        module: the transformer, with or without a head. Its blocks are alike and stand in one container.
        blocks: dotted path of the container of the blocks, or the paths of all of them.
        linears: role ("qkv", or "q", "k", "v"; "proj", "fc1", "fc2") -> path in a block. Of a gated MLP "fc1"
            is the first of the two layers that read the tokens.
        block_norms: (before the attention, before the MLP), paths in a block.
        head: path or paths of the head; () for a module without one.
        tokens: path or paths of the learned tokens before the patches; () for a module without.

    Returns:
        The interface: parts "head", "tokens", "patch_embed", "pos_embed" and "norms"; roles q, k, v or qkv,
        proj, fc1, fc2.

    Raises:
        ValueError: if a part is not found, or there are several candidates; the message names it, lists what
            is there, and how to name it by hand. Also if a path given by hand does not exist.
    """
    name = type(module).__name__
    paths = _find_blocks(module, name, blocks)
    first = module.get_submodule(paths[0])
    _refuse_torch_attention(module, name, paths)
    dim = _width(first, name)
    roles = {} if linears is None else {role: str(path) for role, path in linears.items()}
    roles = {**_find_roles(first, name, dim, roles), **roles}
    _check_blocks(module, name, paths, roles)
    norms = tuple(block_norms) if block_norms is not None else _block_norms(first, dim)
    outside = [path for path, _ in module.named_modules() if not _at_or_inside(path, paths)]
    heads = _given(module, "head", head) if head is not None else _find_head(module, name, paths, outside)
    found_tokens = (
        _given(module, "tokens", tokens) if tokens is not None else _find_tokens(module, name, paths, dim)
    )
    parts: dict[Part, tuple[str, ...]] = {
        "head": heads,
        "tokens": found_tokens,
        "patch_embed": _patch_embed(module, paths, outside),
        "pos_embed": tuple(path for path in _outer_parameters(module, paths) if _leaf_fits(path, POSITIONS)),
        "norms": tuple(path for path, part in module.named_modules() if isinstance(part, nn.LayerNorm)),
    }
    return ModelInterface(
        embed_dim=dim,
        blocks=tuple(paths),
        linears={role: roles[role] for role in ("qkv", "q", "k", "v", "proj", "fc1", "fc2") if role in roles},
        parts=parts,
        unused=tuple(path for path in _outer_parameters(module, paths) if _leaf_fits(path, MASKED)),
        input_shape=_input_shape(module),
        block_norms=norms,
        num_prefix=len(found_tokens),
        num_pooled=1,
    )


def _at_or_inside(path: str, others: Sequence[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def _leaf_fits(path: str, pattern: str) -> bool:
    return re.fullmatch(pattern, path.rpartition(".")[2], re.IGNORECASE) is not None


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}


def _find_blocks(module: nn.Module, name: str, given: str | Sequence[str]) -> list[str]:
    if not isinstance(given, str):
        return list(_given(module, "blocks", given))
    if given:
        (path,) = _given(module, "blocks", given)
        return [f"{path}.{child}" for child, _ in module.get_submodule(path).named_children()]
    candidates: list[tuple[int, list[str]]] = []
    for path, part in module.named_modules():
        children = dict(part.named_children())
        if not isinstance(part, nn.ModuleList | nn.Sequential) or not children:
            continue
        if all(_is_block(child) for child in children.values()):
            size = sum(parameter.numel() for parameter in part.parameters())
            candidates.append((size, [f"{path}.{child}" if path else child for child in children]))
    if not candidates:
        lists = [
            path for path, part in module.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential)
        ]
        raise UserValueError(
            f"{name}: found no blocks, a list of modules each with an attention and an MLP. Lists there are: "
            f"{', '.join(lists[:8]) or 'none'}. Name them by hand: describe_transformer(model, "
            'blocks="encoder.layers").'
        )
    return max(candidates, key=lambda item: item[0])[1]


def _is_block(module: nn.Module) -> bool:
    """Tell whether a module has norms, and enough linear layers for an attention and an MLP."""
    parts = list(module.modules())
    attention = sum(isinstance(part, nn.MultiheadAttention) for part in parts)
    has_norm = any(isinstance(part, nn.LayerNorm) for part in parts)
    nested = any(isinstance(part, nn.ModuleList) and len(part) > 1 for part in parts)
    return has_norm and not nested and len(_linears(module)) + attention >= 4


def _refuse_torch_attention(module: nn.Module, name: str, paths: Sequence[str]) -> None:
    there = [
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.MultiheadAttention) and _at_or_inside(path, paths)
    ]
    if there:
        raise UserValueError(
            f"{name}: {there[0]} is an nn.MultiheadAttention, which reads the weights of its layers without "
            f"calling them, so that no adapter could change them ({len(there)} of them). Call "
            "replace_attention(model) first: it puts an equal attention in its place."
        )


def _width(block: nn.Module, name: str) -> int:
    widths = Counter(part.normalized_shape[-1] for part in block.modules() if isinstance(part, nn.LayerNorm))
    if not widths:
        raise UserValueError(
            f"{name}: the blocks have no LayerNorm, which would say how wide a token is. Name other blocks: "
            'describe_transformer(model, blocks="encoder.layers").'
        )
    return int(max(widths, key=lambda width: (widths[width], width)))


def _find_roles(block: nn.Module, name: str, dim: int, given: Mapping[str, str]) -> dict[str, str]:
    layers = _linears(block)
    shapes = {path: (layer.in_features, layer.out_features) for path, layer in layers.items()}
    taken = set(given.values())
    found: dict[str, str] = {}
    if not any(role in given for role in ("qkv", "q", "k", "v")):
        found.update(_find_qkv(shapes, name, dim))
    taken |= set(found.values())
    rest = [path for path in shapes if path not in taken]
    square = [path for path in rest if shapes[path] == (dim, dim)]
    if "proj" not in given:
        found["proj"] = _one(square[:1], "proj", f"a layer {dim} -> {dim} behind them", name, shapes)
    used = {found.get("proj", given.get("proj")), *taken}
    rest = [path for path in rest if path not in used]
    wide = [path for path in rest if shapes[path][0] == dim]
    if "fc1" not in given:
        found["fc1"] = _one(
            wide[:1], "fc1", f"a layer from {dim} to the hidden width of an MLP", name, shapes
        )
    back = [
        path for path in rest if shapes[path][1] == dim and path not in (found.get("fc1"), given.get("fc1"))
    ]
    if "fc2" not in given:
        found["fc2"] = _one(back[-1:], "fc2", f"a layer from a hidden width back to {dim}", name, shapes)
    return found


def _find_qkv(shapes: Mapping[str, tuple[int, int]], name: str, dim: int) -> dict[str, str]:
    tripled = [path for path, shape in shapes.items() if shape == (dim, 3 * dim)]
    named = [path for path in tripled if _leaf_fits(path, FUSED)]
    if named:
        return {"qkv": named[0]}
    separate: dict[str, str] = {}
    for role, pattern in SEPARATE.items():
        fitting = [path for path, shape in shapes.items() if shape[0] == dim and _leaf_fits(path, pattern)]
        if fitting:
            separate[role] = fitting[0]
    if len(separate) == 3:
        return separate
    # Without a telling name: the fused layer beside which, in one module, there is one to the same width.
    for path in tripled:
        owner = path.rpartition(".")[0]
        if any(shape == (dim, dim) and other.rpartition(".")[0] == owner for other, shape in shapes.items()):
            return {"qkv": path}
    raise _missing("qkv", f"a layer {dim} -> {3 * dim}, or layers named q, k and v", name, shapes)


def _one(found: Sequence[str], role: str, what: str, name: str, shapes: Mapping[str, tuple[int, int]]) -> str:
    if not found:
        raise _missing(role, what, name, shapes)
    return found[0]


def _missing(role: str, what: str, name: str, shapes: Mapping[str, tuple[int, int]]) -> UserValueError:
    listed = ", ".join(f"{path} {ins} -> {outs}" for path, (ins, outs) in shapes.items())
    return UserValueError(
        f"{name}: found no {role} in a block, {what}. Its linear layers are: {listed}. Name it by hand: "
        f'describe_transformer(model, linears={{"{role}": "path.in.a.block"}}).'
    )


def _check_blocks(module: nn.Module, name: str, paths: Sequence[str], roles: Mapping[str, str]) -> None:
    for block in paths:
        layers = _linears(module.get_submodule(block))
        for role, path in roles.items():
            if path not in layers:
                raise UserValueError(
                    f"{name}: {role} was found or named at {path} in a block, but {block} has no linear "
                    f"layer there. Its linear layers are: {', '.join(layers)}. Name blocks that are "
                    "alike by hand: describe_transformer(model, blocks=[...], linears={...})."
                )


def _block_norms(block: nn.Module, dim: int) -> tuple[str, ...]:
    norms = [
        path
        for path, part in block.named_modules()
        if isinstance(part, nn.LayerNorm) and part.normalized_shape == (dim,)
    ]
    return tuple(norms[:2]) if len(norms) >= 2 else ()


def _find_head(module: nn.Module, name: str, paths: Sequence[str], outside: Sequence[str]) -> tuple[str, ...]:
    fitting = [path for path in outside if path and _leaf_fits(path, HEADS)]
    fitting = [path for path in fitting if any(True for _ in module.get_submodule(path).parameters())]
    outermost = [path for path in fitting if not _at_or_inside(path.rpartition(".")[0], fitting)]
    if outermost:
        return tuple(outermost)
    linears = [path for path in _linears(module) if not _at_or_inside(path, paths)]
    raise UserValueError(
        f"{name}: found no head. Linear layers outside of the blocks are: {', '.join(linears) or 'none'}. "
        'Name it by hand: describe_transformer(model, head="top.linear"), or head=() for one without.'
    )


def _outer_parameters(module: nn.Module, paths: Sequence[str]) -> Iterator[str]:
    return (path for path, _ in module.named_parameters() if not _at_or_inside(path, paths))


def _find_tokens(module: nn.Module, name: str, paths: Sequence[str], dim: int) -> tuple[str, ...]:
    owners = [
        path for path in _outer_parameters(module, paths) if module.get_parameter(path).shape[-1] == dim
    ]
    loose = [path for path in owners if not path.endswith((".weight", ".bias"))]
    tokens = tuple(
        path
        for path in loose
        if _leaf_fits(path, TOKENS) and not _leaf_fits(path, POSITIONS) and not _leaf_fits(path, MASKED)
    )
    if not tokens:
        raise UserValueError(
            f"{name}: found no class token. Parameters of width {dim} outside of the blocks are: "
            f"{', '.join(loose) or 'none'}. Name it by hand: describe_transformer(model, tokens="
            '"embeddings.token"), or tokens=() for a module without one.'
        )
    return tokens


def _patch_embed(module: nn.Module, paths: Sequence[str], outside: Sequence[str]) -> tuple[str, ...]:
    """Name the convolutions outside of the blocks, which cut images into patches."""
    return tuple(path for path in outside if isinstance(module.get_submodule(path), nn.modules.conv._ConvNd))


def _input_shape(module: nn.Module) -> tuple[int, int, int] | None:
    """Say (C, H, W) of an image, if the module says how large its images are."""
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None:
        return None
    places: list[Any] = [module, getattr(module, "config", None), getattr(module, "patch_embed", None)]
    for place in places:
        for attribute in ("image_size", "img_size"):
            size = getattr(place, attribute, None)
            if isinstance(size, int):
                return (first.in_channels, size, size)
            if isinstance(size, Sequence) and len(size) == 2:
                return (first.in_channels, int(size[0]), int(size[1]))
    return None


def _given(module: nn.Module, what: str, paths: str | Sequence[str]) -> tuple[str, ...]:
    """Check paths that were given by hand."""
    listed = (paths,) if isinstance(paths, str) else tuple(paths)
    for path in listed:
        try:
            if what == "tokens":
                exists = is_tensor_path(module, path)
            else:
                owner, leaf = split_path(module, path)
                exists = isinstance(getattr(owner, leaf), nn.Module)
        except AttributeError:
            exists = False
        if not exists:
            kind = "parameter" if what == "tokens" else "module"
            raise UserValueError(f"{what} names {path!r}, but {type(module).__name__} has no {kind} there.")
    return listed
