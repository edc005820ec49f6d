"""What adapters, reports and the engine may know of a backbone: roles and a protocol, no attribute paths."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from pcl_clora.errors import UserTypeError, UserValueError

Role = Literal[
    "qkv", "proj", "fc1", "fc2", "q", "k", "v",
    "contrast_q", "contrast_kv", "contrast_proj", "contrast_fc1", "contrast_fc2",
]  # fmt: skip
Part = Literal["head", "tokens", "patch_embed", "pos_embed", "norms"]
Place = Literal["pool", "norm", "decoder"]
_LOGGER = logging.getLogger("pcl_clora")
ROLES: tuple[Role, ...] = get_args(Role)
_SLICES: tuple[Role, ...] = ("q", "k", "v")
PARTS: tuple[Part, ...] = ("head", "tokens", "patch_embed", "pos_embed", "norms")


@dataclass(frozen=True)
class Tokens:
    """A batch of clouds as a sequence, with what position-aware methods need besides the features.

    Attributes:
        x: (B, T, D) token features, prefix tokens first, without positions.
        pos: (B, T, D) positional embedding; Point-MAE adds it before every block.
        center: (B, G, 3) patch centres in the order of the patch tokens.
        num_prefix: how many tokens stand before the patch tokens, T = num_prefix + G.
        attn_mask: (T, T) bool, True where the token of the row may look at the token of the column; None
            where every token looks at all.
        points: (B, N, 3) the clouds themselves; None where the pass started behind their grouping.
        embed: patches and their centres (B, M, K, 3), (B, M, 3) -> features and positions, each (B, M, D),
            by the backbone's own layers; None where it has no patches of points.
        regroup: (number of patches M, points in one K) -> patches (B, M, K, 3) of the clouds and their
            centres (B, M, 3), chosen as the backbone chooses its own; None where `points` is.
        memo: what one forward pass hands on from block to block; a new one for every pass. A block that may
            be computed twice (checkpointing) writes under keys of its own.
    """

    x: Tensor
    pos: Tensor
    center: Tensor
    num_prefix: int
    attn_mask: Tensor | None = None
    points: Tensor | None = None
    embed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    regroup: Callable[[int, int], tuple[Tensor, Tensor]] | None = None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False)


@runtime_checkable
class SplitBlock(Protocol):
    """A transformer block in two steps: `feed(attend(x + pos, tokens))` is what it computes."""

    def attend(self, x: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) with positions -> (B, T, D) after the attention and its residual."""
        ...

    def feed(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); extra is added to the output of the MLP, inside drop path."""
        ...


class Opening(nn.Module):
    """A place of the forward pass that has no layer of its own, made one that a method can take over.

    It holds nothing and does nothing: `opening(compute, *inputs)` is `compute(*inputs)`.
    """

    def forward(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """Compute."""
        return compute(*inputs)


@dataclass(frozen=True)
class RoleSite:
    """One linear layer of a block, or a slice of its output rows, addressed by role.

    Attributes:
        role: which role was asked for.
        block: index of the block, 0-based.
        path: dotted path of the `nn.Linear` in the model.
        rows: (start, stop) of the output rows that belong to the role; (0, out_features) for a whole layer.
    """

    role: Role
    block: int
    path: str
    rows: tuple[int, int]


@dataclass(frozen=True)
class ModelInterface:
    """Where the parts of a transformer backbone are. Built by the backbone, read by adapters and reports.

    Attributes:
        embed_dim: D, width of a token.
        blocks: dotted path of every transformer block, in order.
        linears: role ("qkv", "proj", "fc1", "fc2") -> path relative to a block. "q", "k", "v" are row slices
            of "qkv", or layers of their own where these three are named in its place. The roles
            "contrast_..." are those of ReCon's second branch: queries, fused keys and values, output
            projection and MLP.
        parts: part -> dotted paths of the modules or parameters that make it up. "head" and "tokens" are
            what a task owns; they are copied for every adapter.
        takes_category: whether the model takes a second input, the category of every cloud, (B,) int64.
        unused: dotted paths of modules and parameters that a network holds because its published files do,
            and that no forward pass runs; nothing trains them.
        training_only: dotted paths of modules that run only where a loss of the backbone's own is wanted,
            though the published network runs them always.
        input_shape: (C, H, W) of an image, for a backbone that takes images; None for clouds.
        places: where methods may step in besides the layers: "pool" is the `Opening` called with (pool,
            features (B, T, D)), "norm" the last norm before it, "decoder" the `Opening` of a segmenter called
            with (gather, tokens, outputs of its blocks, numbers of those that it reads).
        block_norms: (before the attention, before the MLP), paths relative to a block; empty if not told.
        num_prefix: learned tokens before the patches.
        num_pooled: features of width D that the head reads.
        patch_entry: paths of the patch encoder's layers before its first maximum.
        causal: whether a block that is given no mask lets a token look back only.
        fetched: blocks whose outputs a segmentation head reads.
        num_patches: G, patches of a cloud; 0 if it does not say.
    """

    embed_dim: int
    blocks: tuple[str, ...]
    linears: Mapping[str, str]
    parts: Mapping[Part, tuple[str, ...]]
    takes_category: bool = False
    unused: tuple[str, ...] = ()
    training_only: tuple[str, ...] = ()
    input_shape: tuple[int, int, int] | None = None
    places: Mapping[Place, str] = field(default_factory=dict)
    block_norms: tuple[str, ...] = ()
    num_prefix: int = 1
    num_pooled: int = 2
    patch_entry: tuple[str, ...] = ()
    causal: bool = False
    fetched: tuple[int, ...] = ()
    num_patches: int = 0

    def place(self, name: Place) -> str:
        """Return the path of a place.

        Raises:
            ValueError: if the backbone has no such place.
        """
        if name not in self.places:
            raise UserValueError(
                f"This method steps in at {name!r}, a place that this backbone does not open; it opens "
                f"{', '.join(self.places) or 'none'}. Choose a backbone over patches of points, such as "
                "point_mae, or a method that changes weights only, such as clora."
            )
        return self.places[name]

    def sites(self, role: Role) -> tuple[RoleSite, ...]:
        """List the layers that play a role, one a block, in block order.

        Where q, k and v are layers of their own, "qkv" is all three of them, one after another.

        Raises:
            ValueError: if the backbone has no layer for the role; the message lists the roles that exist.
        """
        if role not in self.roles():
            raise UserValueError(
                f"This backbone has no layer for role {role!r}; it has {', '.join(self.roles())}."
            )
        start, stop, names = 0, -1, [role]
        if role == "qkv" and self.has_separate_qkv:
            names = list(_SLICES)
        elif role in _SLICES and not self.has_separate_qkv:
            start, names = _SLICES.index(role) * self.embed_dim, ["qkv"]
            stop = start + self.embed_dim
        return tuple(
            RoleSite(role, index, f"{block}.{self.linears[name]}", (start, stop))
            for index, block in enumerate(self.blocks)
            for name in names
        )

    @property
    def has_separate_qkv(self) -> bool:
        """Whether queries, keys and values come from a layer each."""
        return "qkv" not in self.linears and all(name in self.linears for name in _SLICES)

    def roles(self) -> tuple[Role, ...]:
        """List the roles this backbone has a layer for."""
        there = {*self.linears}
        if self.has_separate_qkv:
            there.add("qkv")
        elif "qkv" in there:
            there.update(_SLICES)
        return tuple(role for role in ROLES if role in there)


@runtime_checkable
class Backbone(Protocol):
    """What every model of `create_model` offers. All of them are `nn.Module`s and map points to logits.

    Source: the protocol follows timm's model conventions; tokens and positions are split so that methods
        which read either find both (docs/architecture.md).
    """

    interface: ModelInterface
    num_classes: int

    def __call__(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, num_classes) logits."""
        ...

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, T, D), tokens after the last norm."""
        ...

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, T, D) -> (B, num_classes) logits."""
        ...

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        ...

    def make_classifier(self, num_classes: int) -> nn.Module:
        """Build a new head for this backbone without attaching it."""
        ...

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should spare, besides biases and 1-D tensors."""
        ...

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the blocks while training; compute them again in the backward pass."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As `nn.Module.named_parameters`."""
        ...


def get_interface(model: nn.Module) -> ModelInterface:
    """Return the model's interface.

    Raises:
        TypeError: if the model publishes none.
    """
    interface = getattr(model, "interface", None)
    if not isinstance(interface, ModelInterface):
        raise UserTypeError(
            f"{type(model).__name__} publishes no ModelInterface, so nothing can be attached to it; "
            "use a model of create_model(), or set model.interface = describe_transformer(model)."
        )
    return interface


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Ask a backbone for what its last forward pass adds to the task's loss.

    A backbone that has such terms offers a method of this name; most have none. Terms stand until the next
    forward pass: asked twice, they are the same tensors. They are no part of an adapter's
    `extra_loss_values`, which needs no forward pass.

    Returns:
        Name -> () term, weighted already; empty if there is none.
    """
    ask = getattr(model, "auxiliary_losses", None)
    return {} if ask is None else dict(ask())


def adopt_settings(model: nn.Module, recorded: Mapping[str, object], *, source: str) -> dict[str, object]:
    """Let a model take over settings that its weights were trained with, where its own leave them open.

    Args:
        model: a backbone; one without the method `adopt` takes nothing.
        recorded: settings of the model that the weights were trained in.
        source: where they come from, for the log.

    Returns:
        What changed: name -> new value; each is logged at INFO.
    """
    adopt = getattr(model, "adopt", None)
    taken: dict[str, object] = {} if adopt is None else dict(adopt(recorded))
    for name, value in taken.items():
        _LOGGER.info(
            "%s: the model takes %s=%r, with which these weights were trained; set %s to keep another value.",
            source, name, value, name,
        )  # fmt: skip
    return taken


def is_tensor_path(model: nn.Module, path: str) -> bool:
    """Tell whether a dotted path names a parameter (True) or a module (False).

    Raises:
        AttributeError: if the path names neither.
    """
    owner, leaf = split_path(model, path)
    value = getattr(owner, leaf)
    return isinstance(value, torch.Tensor)


def split_path(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Resolve a dotted path to (owner module, last name)."""
    parent, _, leaf = path.rpartition(".")
    return model.get_submodule(parent), leaf
