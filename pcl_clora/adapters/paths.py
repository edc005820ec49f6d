"""Paths: from what a backbone calls its layers to where they are once some of them carry deltas, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pcl_clora.adapters.base import TunerLayer, as_linear
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Role


@dataclass(frozen=True)
class LinearSite:
    """A linear layer that plays a role, or the rows of it that do.

    Attributes:
        role: the role.
        block: index of the block.
        path: dotted path of the layer in the backbone.
        rows: (start, stop) of the output rows that belong to the role.
        layer: the untouched layer.
    """

    role: Role
    block: int
    path: str
    rows: tuple[int, int]
    layer: nn.Linear


@dataclass(frozen=True)
class Node:
    """A module of a backbone: the path the backbone knows it by, the path it has now, and the module."""

    path: str
    live: str
    module: nn.Module


def walk(module: nn.Module, path: str = "", live: str = "") -> Iterator[Node]:
    """Visit every module of a backbone, parents first, without deltas; shared modules come again.

    A layer that carries deltas comes twice with the same `path`: as `TunerLayer`, then as the layer
    underneath.
    """
    yield Node(path, live, module)
    if isinstance(module, TunerLayer):
        yield from walk(module.base_layer, path, join(live, "base_layer"))
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, join(path, name), join(live, name))


def join(path: str, name: str) -> str:
    """Append a name to a dotted path."""
    return f"{path}.{name}" if path else name


def outermost(paths: Mapping[str, str]) -> dict[str, str]:
    """Leave out paths that lie inside another one, and the second of two equal ones."""
    return {path: reason for path, reason in paths.items() if not inside(path, paths)}


def inside(path: str, others: Iterable[str]) -> bool:
    """Tell whether a dotted path lies below one of the others."""
    return any(path.startswith(f"{other}.") for other in others)


def at_or_inside(path: str, others: Collection[str]) -> bool:
    """Tell whether a dotted path is one of the others or lies below one."""
    return path in others or inside(path, others)


def tuner_layers(model: nn.Module) -> dict[str, TunerLayer]:
    """List the layers that carry deltas by the path the backbone knows them by.

    A block and a layer inside it have different paths, so each path carries one `TunerLayer` at most.
    """
    return {node.path: node.module for node in walk(model) if isinstance(node.module, TunerLayer)}


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """List parameters and persistent buffers of a backbone by the names it has without adapters."""
    tensors: dict[str, Tensor] = {}
    for node in walk(model):
        if not isinstance(node.module, TunerLayer):
            tensors.update({join(node.path, name): value for name, value in own_tensors(node.module)})
    return tensors


def own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """List the parameters and persistent buffers that a module holds itself, not those of its children."""
    hidden = module._non_persistent_buffers_set
    items = [*module._parameters.items(), *((k, v) for k, v in module._buffers.items() if k not in hidden)]
    return [(name, value) for name, value in items if value is not None]


def locate(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Resolve a dotted path of the backbone to (owner, attribute), as they are now.

    If the path names a layer that carries deltas, the answer is (that `TunerLayer`, "base_layer"), so that
    setting the attribute replaces the layer underneath.

    Raises:
        ValueError: if there is nothing at the path.
    """
    owner, leaf = model, ""
    for step in path.split("."):
        owner = getattr(owner, leaf) if leaf else owner
        if not hasattr(owner, step):
            raise UserValueError(
                f"The model has nothing at {path!r}: {type(owner).__name__} has no {step!r}."
            )
        leaf = step
        if isinstance(getattr(owner, leaf), TunerLayer):
            owner, leaf = getattr(owner, leaf), "base_layer"
    return owner, leaf


def live_path(model: nn.Module, path: str) -> str:
    """Translate a path of the backbone into the one it has now; a layer with deltas becomes its inside."""
    steps: list[str] = []
    owner: Any = model
    for step in path.split("."):
        steps.append(step)
        owner = getattr(owner, step)
        if isinstance(owner, TunerLayer):
            steps.append("base_layer")
            owner = owner.base_layer
    return ".".join(steps)


def chosen_blocks(interface: ModelInterface, blocks: Collection[int] = ()) -> frozenset[int]:
    """Return the indices of the blocks that a setting names: all if it names none, from the end if negative.

    Raises:
        ValueError: if the backbone does not have one of them.
    """
    count = len(interface.blocks)
    wrong = [index for index in blocks if not -count <= index < count]
    if wrong:
        raise UserValueError(
            f"blocks names {', '.join(map(str, wrong))}, but this backbone has {count} blocks: name 0 to "
            f"{count - 1}, or -1 to {-count} from the end."
        )
    return frozenset(index % count for index in blocks) or frozenset(range(count))


def find_norms(
    model: nn.Module, interface: ModelInterface, blocks: Collection[int] = ()
) -> dict[str, nn.LayerNorm]:
    """Find the LayerNorms that the backbone names: path -> layer, in the order it names them.

    Args:
        model: the backbone, with or without adapters.
        interface: of the backbone.
        blocks: only norms inside these blocks; none named = all, and those outside blocks too.

    Raises:
        ValueError: if the backbone does not have one of the blocks.
    """
    some = [interface.blocks[index] for index in sorted(chosen_blocks(interface, blocks))] if blocks else None
    norms = {}
    for path in interface.parts.get("norms", ()):
        owner, leaf = locate(model, path)
        layer = getattr(owner, leaf)
        wanted = not at_or_inside(path, interface.unused) and (some is None or inside(path, some))
        if wanted and isinstance(layer, nn.LayerNorm):
            norms[path] = layer
    return norms


def find_linears(
    model: nn.Module, interface: ModelInterface, role: Role, blocks: Collection[int] = ()
) -> list[LinearSite]:
    """Find the linear layers that play a role, one a block, in block order.

    Args:
        model: the backbone, with or without adapters.
        interface: of the backbone.
        role: the role.
        blocks: only in these blocks; none named = all.

    Raises:
        ValueError: if the backbone has no such layer, no such blocks, or a fused q, k, v layer of another
            shape.
        TypeError: if the layer is not an `nn.Linear`.
    """
    sites, wanted = [], chosen_blocks(interface, blocks)
    for site in interface.sites(role):
        if site.block not in wanted:
            continue
        owner, leaf = locate(model, site.path)
        layer = as_linear(getattr(owner, leaf), f"role {role!r} at {site.path}")
        start, stop = site.rows
        if stop != -1 and layer.out_features != 3 * interface.embed_dim:
            raise UserValueError(
                f"{site.path} has {layer.out_features} output rows, not 3 x {interface.embed_dim}, so role "
                f"{role!r} cannot be cut out of it; adapt role 'qkv'."
            )
        sites.append(
            LinearSite(
                role, site.block, site.path, (start, layer.out_features if stop == -1 else stop), layer
            )
        )
    if len({site.path for site in sites}) != len(sites):
        raise UserValueError(
            f"The backbone's interface names a layer of role {role!r} twice; name each block once."
        )
    if not sites:
        raise UserValueError(f"No layer matches role {role!r}: the backbone publishes no blocks.")
    return sites
