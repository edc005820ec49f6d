"""What an adapter is made of: the change of one layer, the layer that carries it, the method behind it."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any, ClassVar, cast, get_args

import torch
from torch import Tensor, nn

from pcl_clora.adapters.config import AdapterConfig, Task
from pcl_clora.errors import PclCloraError, UserTypeError, UserValueError
from pcl_clora.models.interface import ModelInterface
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.method_files import MethodFiles


class AdapterStateError(PclCloraError, RuntimeError):
    """A call that the adapted model cannot follow in its present state, for example merging twice."""


def module_key(name: str) -> str:
    """Make a name a key under which a module can be registered: programs of torch.export write it as code."""
    return f"{name}/" if keyword.iskeyword(name) else name


class Delta(nn.Module):
    """What one adapter changes in one layer; subclasses hold the tensors that this layer owns.

    A subclass defines `forward(base_layer, *inputs)`, called with the untouched layer and with what the layer
    was called with: `(base_layer, x)` in place of a linear, `(block, x, pos, tokens)` in place of a
    transformer block. It returns what the layer returns, and before the first step bit for bit the same.
    """

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Fold the change into a linear layer or a LayerNorm.

        Args:
            weight: (C_out, C_in) of a linear layer, (C,) of a norm, float64, on the CPU.
            bias: (C_out,) or (C,), float64, or None.

        Returns:
            The weight and the bias with which the bare layer computes what this delta computes, float64.

        Raises:
            AdapterStateError: if this kind of change cannot be written as a weight.
        """
        raise AdapterStateError(
            f"{type(self).__name__} cannot be folded into a weight, so this adapter cannot be merged; "
            "run it unmerged."
        )

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Write the change as a low-rank update of a linear layer: W' = W + up down.

        Args:
            weight: W, (C_out, C_in), float64, on the CPU.

        Returns:
            down (k, C_in) and up (C_out, k), float64.

        Raises:
            AdapterStateError: if the change is none.
        """
        raise AdapterStateError(
            f"{type(self).__name__} is no low-rank update of a weight, so this adapter can neither be "
            "stacked with others nor be written as LoRA."
        )


class TunerLayer(nn.Module):
    """A layer with the deltas of several adapters, one of which is active.

    The layer underneath stays untouched as `base_layer`. While merged, its weight holds the active delta too,
    and the original is kept, so that unmerging restores every bit. Attributes that it does not have itself
    (`weight`, `bias`, `in_features`, ...) are those of the layer underneath.

    Args:
        base_layer: the layer that is adapted: a linear, a norm, or a whole transformer block.
    """

    kept_weight: Tensor | None
    kept_bias: Tensor | None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.deltas = nn.ModuleDict()
        self.active: str | None = None  # key of the delta, see `module_key`
        self.is_merged = False
        self.register_buffer("kept_weight", None, persistent=False)
        self.register_buffer("kept_bias", None, persistent=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("base_layer")
            if layer is None or name.startswith("_"):
                raise
        return getattr(layer, name)

    @property
    def fuses(self) -> bool:
        """Whether the layer is called as it is, and may compute an activation too."""
        return (self.active is None or self.is_merged) and getattr(self.base_layer, "fuses", False)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the layer with the active delta, or bare if there is none or it is merged."""
        if self.active is None or self.is_merged:
            return self.base_layer(*inputs, **named)
        return self.deltas[self.active](self.base_layer, *inputs, **named)

    def activate(self, name: str | None) -> None:
        """Use the delta of an adapter; the bare layer if that adapter has none here."""
        key = "" if name is None else module_key(name)
        self.active = key if key in self.deltas else None

    @torch.no_grad()
    def compute_merged(self, path: str) -> tuple[Tensor, Tensor | None]:
        """Fold the active delta into weight and bias: in float64, then cast to the layer's dtype.

        Args:
            path: what the backbone calls the layer, for messages.

        Raises:
            AdapterStateError: if the change cannot be folded in, or not every value of the result is finite.
        """
        layer, delta = self.base_layer, cast(Delta, self.deltas[cast(str, self.active)])
        if not isinstance(layer, nn.Linear | nn.LayerNorm) or layer.weight is None:
            raise AdapterStateError(
                f"{type(delta).__name__} changes a {type(layer).__name__}, which has no weight to fold it "
                "into, so this adapter cannot be merged; run it unmerged."
            )
        bias64 = None if layer.bias is None else layer.bias.to("cpu", torch.float64)
        weight, bias = delta.merged_weight(layer.weight.to("cpu", torch.float64), bias64)
        _refuse_non_finite(f"{path}.weight", weight, layer.weight.dtype)
        if bias is not None:
            _refuse_non_finite(f"{path}.bias", bias, layer.weight.dtype)
        return weight.to(layer.weight), None if bias is None else bias.to(layer.weight)

    def merge(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put a merged weight and bias in place of the layer's own, which are kept."""
        layer = cast(nn.Linear, self.base_layer)
        self.kept_weight, layer.weight.data = layer.weight.data, weight
        if layer.bias is not None:
            self.kept_bias, layer.bias.data = layer.bias.data, cast(Tensor, bias)
        elif bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        self.is_merged = True

    def unmerge(self) -> None:
        """Put the kept weight and bias back."""
        layer = cast(nn.Linear, self.base_layer)
        layer.weight.data = cast(Tensor, self.kept_weight)
        if self.kept_bias is not None:
            layer.bias.data = self.kept_bias
        else:
            layer.register_parameter("bias", None)
        self.kept_weight = self.kept_bias = None
        self.is_merged = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.is_merged:  # unmerging would undo what was loaded
            raise AdapterStateError("The adapter is merged into the weights; call unmerge() before you load.")
        super()._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.is_merged:  # written like this, the delta would be applied twice after loading
            raise AdapterStateError(
                "The adapter is merged into the weights, so a state_dict would pass them off as the base's "
                "own; call unmerge() first, or take the state_dict of merge_and_unload()."
            )
        super()._save_to_state_dict(destination, prefix, keep_vars)


class AdapterMethod(nn.Module):
    """A fine-tuning method: what it puts into which layer, what it trains besides, and its extra losses.

    A new method is one file: a config, a subclass of this with its deltas, and one line in `registry.py`.
    Override `make_deltas` to change layers (a path may name a linear or a whole block, which is how prompt,
    parallel and spectral methods get at tokens and positions), `owned_paths` to train more of the backbone,
    and `extra_loss_values` / `extra_losses` for terms beside the task loss. Tensors that several layers use
    are registered here, once; a delta keeps its reference in a tuple.

    Args:
        config: settings of the method.

    Attributes:
        linear: whether the change is linear in the method's tensors, counted from where it changes nothing.
        mergeable: whether the change folds into the weights, with the method's default settings.
        batch_independent: whether a prediction is the same whatever else is in the batch.
        tasks: what it is offered for.
        from_file: whether its tensors come from a file, whose settings may be some that a new one is refused.
        released_files: how files of its released code look; None where there are none.
        official_keys: what they call its tensors -> what adapter files call them. Of a method that is on a
            backbone, because it may depend on the settings and on the depth.
    """

    config_type: ClassVar[type[AdapterConfig]] = AdapterConfig
    linear: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    batch_independent: ClassVar[bool] = True
    released_files: ClassVar[MethodFiles | None] = None
    official_keys: KeyMap = KeyMap(())
    tasks: ClassVar[tuple[Task, ...]] = get_args(Task)
    inputs: ClassVar[Mapping[str, str]] = {}  # what it can be given besides the clouds: name -> what it is

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.from_file = False
        self._provided: dict[str, Tensor] = {}

    def provide(self, **tensors: Tensor) -> None:
        """Give the method inputs that the clouds do not hold; they stay until `clear_provided`.

        They are no part of the model's state: not saved, not trained, not moved with the model.

        Raises:
            ValueError: if the method takes no input of a name; the message lists those it takes.
            TypeError: if a value is no tensor.
        """
        for name, value in tensors.items():
            if name not in self.inputs:
                known = "; ".join(f"{key}: {what}" for key, what in self.inputs.items()) or "none"
                raise UserValueError(
                    f"{self.config.method} takes no input {name!r}. Its inputs besides the clouds: {known}."
                )
            if not isinstance(value, Tensor):
                raise UserTypeError(f"{name} is a {type(value).__name__}; provide() takes tensors.")
        self._provided = {**self._provided, **tensors}

    def example_inputs(self, interface: ModelInterface) -> dict[str, Tensor]:
        """Make what `provide` takes for one cloud, in the released sizes and without values, for counting."""
        return {}

    def clear_provided(self) -> None:
        """Forget what was provided."""
        self._provided = {}

    def provided(self, name: str, like: Tensor) -> Tensor | None:
        """Return an input on the device and in the dtype of a tensor (integers keep theirs), or None."""
        value = self._provided.get(name)
        if value is None:
            return None
        return value.to(like) if value.is_floating_point() else value.to(like.device)

    def num_pooled(self, interface: ModelInterface) -> int | None:
        """How many features of width D its head reads; None for as many as the backbone's own.

        Another number gives the adapter a new head, as `num_classes` does.
        """
        return None

    def has_own_head(self, interface: ModelInterface) -> bool:
        """Whether `make_head` makes another head than the backbone's."""
        return self.num_pooled(interface) is not None

    def make_head(self, model: nn.Module, interface: ModelInterface, num_classes: int) -> nn.Module:
        """Make a new head for so many logits; one that reads what this method's pooling gives."""
        pooled = self.num_pooled(interface)
        wider = {} if pooled is None else {"num_pooled": pooled}
        return cast(nn.Module, cast(Any, model).make_classifier(num_classes, **wider))

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the deltas of this method: dotted path of a layer -> delta. Must not change the model.

        Raises:
            ValueError: if a role is not known or nothing matches; the message lists what exists.
        """
        return {}

    def owned_paths(self, model: nn.Module, interface: ModelInterface) -> dict[str, str]:
        """Name what the adapter has copies of, because it trains them: dotted path -> reason.

        Raises:
            ValueError: if the backbone has no such part; the message lists the parts it has.
        """
        paths: dict[str, str] = {}
        for part in self.config.train:
            if part not in interface.parts:
                raise UserValueError(
                    f"train names the part {part!r}, which this backbone does not have; "
                    f"it has {', '.join(interface.parts)}."
                )
            paths.update({path: f"part {part}" for path in interface.parts[part] if path not in paths})
        return paths

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuse tensors of a file or checkpoint that belong to what this method does not have.

        Args:
            state: by the names that they have in the file.

        Raises:
            ValueError: naming both.
        """

    def extra_loss_values(self) -> dict[str, Tensor]:
        """Compute the terms beside the task loss, by name, before weighting; scalars with gradient."""
        return {}

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute the terms beside the task loss, by name, times their weight; zero weights left out."""
        return {}


def _refuse_non_finite(name: str, merged: Tensor, dtype: torch.dtype) -> None:
    wrong = merged[~merged.to(dtype).isfinite()]
    if wrong.numel():
        raise AdapterStateError(
            f"Merging would put {wrong.numel()} of {merged.numel()} values into {name} that {dtype} cannot "
            f"hold or that are not finite, the first {wrong.flatten()[0].item():.4g}; nothing was merged. "
            "Run it unmerged, convert the model to float32 (model.float()), or train the adapter again "
            "if it has nan."
        )


def as_linear(layer: object, purpose: str) -> nn.Linear:
    """Return the layer as an `nn.Linear`.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(layer, nn.Linear):
        raise UserTypeError(f"{purpose}: expected an nn.Linear, found {type(layer).__name__}.")
    return layer
