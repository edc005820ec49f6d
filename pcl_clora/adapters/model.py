"""A backbone with adapters: activate, route, merge, and say what training changes.

It is long because one class keeps the state that every switch of adapters must leave consistent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pcl_clora.adapters import files
from pcl_clora.adapters.base import AdapterMethod, AdapterStateError, TunerLayer, module_key
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.files import AdapterHeader
from pcl_clora.adapters.parts import check_targets, copy_items
from pcl_clora.adapters.paths import (
    at_or_inside,
    base_tensors,
    live_path,
    locate,
    outermost,
    tuner_layers,
    walk,
)
from pcl_clora.adapters.plan import (
    apply_gradients,
    count_parameters,
    file_keys,
    freeze_statistics,
    make_plan,
    statistics_paths,
)
from pcl_clora.adapters.routing import group_samples, put_in_order
from pcl_clora.adapters.slot import Shelf, Slot
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, auxiliary_losses, get_interface


class AdaptedModel(nn.Module):
    """A frozen backbone with named adapters, one of which is active.

    `attach_adapter` and `load_adapter` make it. Layers of the backbone are replaced in place by
    `TunerLayer`s. What an adapter trains besides (head, class tokens, ...) is a copy of its own, which sits
    in the backbone while the adapter is active; the backbone's own waits in `originals`, the copies of other
    adapters in their slots. Switching moves references, never values.

    Attributes:
        base: the backbone, with the active adapter in place.
        slots: all adapters, by `Slot.key`.
        originals: what the backbone had where the active adapter now has its copies.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        get_interface(base)
        self.base = base
        self.slots = nn.ModuleDict()
        self.originals = Shelf()
        self._base_classes: int | None = getattr(base, "num_classes", None)
        self._active: str | None = None
        self._merged = False
        self._required_grad = {
            name for name, p in base.named_parameters(remove_duplicate=False) if p.requires_grad
        }
        self._unloaded = False
        self.training = base.training

    # What it is

    @property
    def interface(self) -> ModelInterface:
        """Where the parts of the backbone are, by the names it has without adapters."""
        return get_interface(self.base)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of all adapters, in the order they were attached."""
        return tuple(slot.name for slot in self._all_slots())

    @property
    def active(self) -> str | None:
        """Name of the active adapter; None while the bare backbone runs."""
        return self._active

    @property
    def method(self) -> AdapterMethod:
        """The method of the active adapter."""
        return self.slot(self._require_active("ask for its method")).method

    @property
    def config(self) -> AdapterConfig:
        """Settings of the active adapter."""
        return self.method.config

    def slot(self, name: str) -> Slot:
        """Return what the model holds of an adapter.

        Raises:
            ValueError: if there is no adapter of this name.
        """
        key = module_key(name)
        if key not in self.slots:
            raise UserValueError(
                f"There is no adapter {name!r}; attached are: {', '.join(self.adapter_names) or 'none'}."
            )
        return cast(Slot, self.slots[key])

    def _all_slots(self) -> Iterator[Slot]:
        return cast(Iterator[Slot], iter(self.slots.values()))

    @property
    def num_classes(self) -> int | None:
        """Number of logits of the active head; None if the backbone does not say."""
        return self._classes_of(self._active)

    def _classes_of(self, name: str | None) -> int | None:
        return self._base_classes if name is None else self.slot(name).num_classes

    @property
    def is_merged(self) -> bool:
        """Whether the active adapter is folded into the weights."""
        return self._merged

    @property
    def plan(self) -> dict[str, str]:
        """What training changes and why; see `plan.make_plan`."""
        return {} if self._active is None else make_plan(self.base, self.slot(self._active))

    def saved_names(self) -> tuple[str, ...]:
        """Name the tensors that training changes and an adapter file holds, as the state_dict does."""
        return tuple(self.plan)

    def owned_paths(self, name: str) -> Mapping[str, str]:
        """Say what an adapter has copies of: dotted path in the backbone -> reason."""
        return self.slot(name).owned

    def live_tuners(self) -> dict[str, TunerLayer]:
        """List the layers that carry deltas by their path in `base`, as it is now."""
        return {node.live: node.module for node in walk(self.base) if isinstance(node.module, TunerLayer)}

    def parameter_counts(self) -> dict[str, int]:
        """Count total, trainable, adapter, head and tokens parameters; see `plan.count_parameters`."""
        return count_parameters(self.base, None if self._active is None else self.slot(self._active))

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay spares, as this model names them; asks the backbone."""
        ask = getattr(self.base, "no_weight_decay", None)
        return set() if ask is None else {f"base.{live_path(self.base, path)}" for path in ask()}

    # Running it

    def forward(self, points: Tensor, *more: Tensor, adapters: Sequence[str | None] | None = None) -> Tensor:
        """Run the backbone with the active adapter, or every sample with an adapter of its own.

        Args:
            points: (B, N, 3), or whatever the backbone takes.
            more: further inputs of the backbone, each with B as first dimension.
            adapters: B names, None for the bare backbone; samples of one adapter run together. Only in
                evaluation mode, because BatchNorm would see the groups, and only unmerged.

        Returns:
            (B, num_classes) logits in the order of `points`. With heads of different class counts the last
            dimension is the widest one's; classes that a sample's own head does not have are -inf.

        Raises:
            ValueError: if `adapters` does not name one known adapter for every sample.
            AdapterStateError: if it is given while training or merged.
        """
        if adapters is None:
            return cast(Tensor, self.base(points, *more))
        groups = group_samples(adapters, points.shape[0], self.adapter_names)
        self._require_unmerged("route samples")
        if self.training:
            raise AdapterStateError(
                "Routing by sample is for evaluation; call eval(), or train one adapter at a time."
            )
        before, results = self._active, []
        try:
            for name, indices in groups.items():
                self._install(name)
                rows = torch.tensor(indices, device=points.device)
                inputs = (points, *more) if len(groups) == 1 else tuple(x[rows] for x in (points, *more))
                results.append((rows, self.base(*inputs)))
        finally:
            self._install(before)
        return put_in_order(results, points.shape[0])

    def train(self, mode: bool = True) -> AdaptedModel:
        """Set training mode as the plan says: frozen BatchNorms stay in evaluation mode.

        Raises:
            AdapterStateError: if mode is True while an adapter is merged.
        """
        if mode and self._merged:
            raise AdapterStateError(
                "The adapter is merged, so training it would have no effect; call unmerge() first."
            )
        super().train(mode)
        if mode:
            freeze_statistics(self, self.plan)
        return self

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute the backbone's and the method's terms beside the task loss by name, times their weights."""
        own = auxiliary_losses(self.base)
        return own if self._active is None else {**own, **self.method.extra_losses()}

    def extra_loss_values(self) -> dict[str, Tensor]:
        """Compute the same terms before weighting, without gradient, for the log."""
        with torch.no_grad():
            return {} if self._active is None else self.method.extra_loss_values()

    # Which adapter

    def add_adapter(
        self,
        name: str,
        method: AdapterMethod,
        *,
        num_classes: int | None = None,
        header: AdapterHeader | None = None,
    ) -> None:
        """Attach one more adapter and make it the active one. Everything is matched before anything changes.

        Args:
            name: letters, digits, "_" and "-"; not in use.
            method: the method, with its own tensors.
            num_classes: a new head with so many logits; None copies the backbone's head.
            header: of the file that its tensors come from.

        Raises:
            ValueError: if the name is taken or not allowed, or a role or part does not match; the message
                lists what exists.
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("attach another adapter")
        self._check_new_name(name)
        before = self._active
        self._install(None)
        try:
            deltas = method.make_deltas(self.base, self.interface)
            owned = outermost(self._paths_to_own(method))
            check_targets(self.base, list(deltas), owned)
            copies = copy_items(self.base, owned)
            if num_classes is not None:
                copies.update(self._new_head(owned, num_classes))
        except Exception:
            self._install(before)
            raise
        classes = num_classes if num_classes is not None else self._base_classes
        slot = Slot(name, method, copies, owned, classes, header)
        for path, delta in deltas.items():
            self._tuner_at(path).deltas[slot.key] = delta
        self.slots[slot.key] = slot
        self.set_active(name)

    def _paths_to_own(self, method: AdapterMethod) -> dict[str, str]:
        paths = method.owned_paths(self.base, self.interface)
        if method.config.freeze.norm_stats == "track":
            for path in statistics_paths(self.base):
                paths.setdefault(path, "normalisation statistics of frozen layers")
        return paths

    def remove_adapter(self, name: str) -> None:
        """Take an adapter off; if it was active, the bare backbone runs.

        Raises:
            ValueError: if there is no adapter of this name.
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("remove an adapter")
        key = self.slot(name).key
        keep = None if self._active == name else self._active
        self.set_active(None)
        for path, tuner in reversed(tuner_layers(self.base).items()):
            if key in tuner.deltas:
                del tuner.deltas[key]
            if not tuner.deltas:
                self._unwrap(path, tuner)
        del self.slots[key]
        self.set_active(keep)

    def set_active(self, name: str | None) -> None:
        """Make another adapter the active one, with its own head and tokens; None for the bare backbone.

        Raises:
            ValueError: if there is no adapter of this name.
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("change the active adapter")
        if name is not None:
            self.slot(name)
        self._install(name)
        apply_gradients(self, self.plan)
        self.train(self.training)

    @contextmanager
    def disabled(self) -> Iterator[AdaptedModel]:
        """Run the bare backbone, with its own head and tokens, for the length of a `with` block."""
        before = self._active
        self.set_active(None)
        try:
            yield self
        finally:
            self.set_active(before)

    def _install(self, name: str | None) -> None:
        """Move references so that one adapter is in the backbone; nothing else changes."""
        if name == self._active:
            return
        if self._active is not None:
            slot = self.slot(self._active)
            for path in slot.owned:
                owner, leaf = locate(self.base, path)
                slot.copies.put(path, getattr(owner, leaf))
                setattr(owner, leaf, self.originals.take(path))
        if name is not None:
            slot = self.slot(name)
            for path in slot.owned:
                owner, leaf = locate(self.base, path)
                self.originals.put(path, getattr(owner, leaf))
                setattr(owner, leaf, slot.copies.take(path))
        for tuner in tuner_layers(self.base).values():
            tuner.activate(name)
        classes = self._classes_of(name)
        if classes is not None:
            cast(Any, self.base).num_classes = classes
        self._active = name

    def _tuner_at(self, path: str) -> TunerLayer:
        owner, leaf = locate(self.base, path)
        if isinstance(owner, TunerLayer):
            return owner
        tuner = TunerLayer(getattr(owner, leaf))
        tuner.train(self.training)
        setattr(owner, leaf, tuner)
        return tuner

    def _unwrap(self, path: str, tuner: TunerLayer) -> None:
        parent, _, leaf = path.rpartition(".")
        owner: Any = self.base
        if parent:
            holder, name = locate(self.base, parent)
            owner = getattr(holder, name)
        setattr(owner, leaf, tuner.base_layer)

    def _new_head(self, owned: Mapping[str, str], num_classes: int) -> dict[str, nn.Module]:
        paths = self.interface.parts.get("head", ())
        make = getattr(self.base, "make_classifier", None)
        if len(paths) != 1 or paths[0] not in owned or make is None:
            raise UserValueError(
                f"num_classes={num_classes} asks for a new head, but the adapter does not train one that "
                f"{type(self.base).__name__} can make; add 'head' to train, or use a backbone with "
                "make_classifier()."
            )
        owner, leaf = locate(self.base, paths[0])
        like = next(getattr(owner, leaf).parameters(), None)
        head = cast(nn.Module, make(num_classes))
        return {paths[0]: head if like is None else head.to(like.device, like.dtype)}

    # Merging

    def merge(self) -> None:
        """Fold the active adapter into the weights, and put the model into evaluation mode.

        Merged weights are computed in float64 and then cast; the original ones are kept.

        Raises:
            AdapterStateError: if no adapter is active, one is merged already, or the method cannot be merged.
        """
        self._require_unmerged("merge again")
        self._require_active("merge")
        tuners = [tuner for tuner in tuner_layers(self.base).values() if tuner.active is not None]
        merged = [tuner.compute_merged() for tuner in tuners]
        for tuner, (weight, bias) in zip(tuners, merged, strict=True):
            tuner.merge(weight, bias)
        self.eval()
        self._merged = True

    def unmerge(self) -> None:
        """Put the original weights back, every bit of them.

        Raises:
            AdapterStateError: if nothing is merged.
        """
        if not self._merged:
            raise AdapterStateError("Nothing is merged; call merge() before unmerge().")
        for tuner in tuner_layers(self.base).values():
            if tuner.is_merged:
                tuner.unmerge()
        self._merged = False

    @contextmanager
    def merged(self) -> Iterator[AdaptedModel]:
        """Run merged, in evaluation mode, for the length of a `with` block."""
        training = self.training
        self.merge()
        try:
            yield self
        finally:
            self.unmerge()
            self.train(training)

    def merge_and_unload(self) -> nn.Module:
        """Return the plain backbone with the active adapter folded in and its head and tokens in place.

        The backbone is the same object, in place; this AdaptedModel and its other adapters are used up.
        For a copy, call it on `copy.deepcopy(model)`.
        """
        if not self._merged:
            training = self.training
            self.merge()
        else:
            training = False
        return self._release(training)

    def unload(self) -> nn.Module:
        """Return the plain backbone as it was before any adapter; this AdaptedModel is used up."""
        self.set_active(None)
        return self._release(self.training)

    def _release(self, training: bool) -> nn.Module:
        for path, tuner in reversed(tuner_layers(self.base).items()):
            self._unwrap(path, tuner)
        new = self.slot(self._active).owned if self._active is not None else {}
        for name, parameter in self.base.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(name in self._required_grad or at_or_inside(name, new))
        self._unloaded = True
        return self.base.train(training)

    # Files

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors of the active adapter by the names they have in its file; live, detached."""
        self._require_unmerged("read its state")
        tensors = self.state_dict()
        return {key: tensors[name].detach() for name, key in self.key_map().items()}

    @torch.no_grad()
    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the active adapter.

        Args:
            state: what `adapter_state` returned, for an adapter of the same method, settings and backbone.

        Raises:
            ValueError: if a name is missing or left over, or a shape differs. Nothing is copied then.
        """
        live = self.adapter_state()
        files.check_state(live, state)
        for key, value in live.items():
            value.copy_(state[key])

    def key_map(self) -> dict[str, str]:
        """Map names of the state_dict to names in the adapter's file; see `plan.file_keys`."""
        return file_keys(self.base, self.slot(self._require_active("map its names")))

    def backbone_tensors(self) -> dict[str, Tensor]:
        """List the live tensors of the bare backbone, by the names it has without adapters.

        Where the active adapter has copies of its own, these are the backbone's, which wait in `originals`.

        Raises:
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("reach the backbone's tensors")
        before = self._active
        self._install(None)
        try:
            return base_tensors(self.base)
        finally:
            self._install(before)

    def base_hash(self) -> str:
        """Return the SHA-256 over the tensors of the backbone that the active adapter does not carry."""
        name = self._require_active("hash its base")
        return files.hash_tensors(base_tensors(self.base), without=self.slot(name).owned)

    def save_adapter(
        self,
        path: str | Path,
        *,
        head_dtype: Literal["float32", "float16"] = "float32",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the active adapter to a safetensors file, whole or not at all.

        Args:
            path: the file; missing folders are made.
            head_dtype: "float16" halves the size of the head; "float32" writes it as it is.
            metadata: what the header should say besides: base_id, classes, input_rule, protocol, metrics,
                licence, git, see `AdapterHeader`; other keys go to its `extra`.

        Raises:
            AdapterStateError: if no adapter is active or it is merged.
            ValueError: if the head does not fit into half precision, or metadata cannot be written as json.
        """
        self._require_unmerged("save it")
        state = self.adapter_state()
        if head_dtype == "float16":
            heads = [f"model.{path}" for path in self.interface.parts.get("head", ())]
            state = {
                key: files.to_half(key, t) if at_or_inside(key, heads) else t for key, t in state.items()
            }
        header = files.make_header(
            self.base,
            metadata or {},
            adapter=self.config.model_dump(mode="json"),
            base_sha256=self.base_hash(),
            num_classes=self.num_classes,
            head_dtype=head_dtype,
        )
        files.write_adapter(path, state, header)

    # Checks

    def _require_active(self, purpose: str) -> str:
        if self._active is None:
            raise AdapterStateError(
                f"No adapter is active, so I cannot {purpose}; call set_active() with one of: "
                f"{', '.join(self.adapter_names) or 'none attached'}."
            )
        return self._active

    def _require_unmerged(self, purpose: str) -> None:
        if self._unloaded:
            raise AdapterStateError(
                f"merge_and_unload() or unload() has used this model up, so I cannot {purpose}; use the "
                "plain backbone that it returned."
            )
        if self._merged:
            raise AdapterStateError(
                f"Adapter {self._active!r} is merged; call unmerge() before you {purpose}."
            )

    def _check_new_name(self, name: str) -> None:
        if name in self.adapter_names:
            raise UserValueError(
                f"An adapter named {name!r} is attached already; choose another name than "
                f"{', '.join(self.adapter_names)}, or call remove_adapter() first."
            )
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict, name):
            raise UserValueError(
                f"{name!r} cannot name an adapter; use letters, digits, '_' and '-', and no method of a dict."
            )


def trainable_plan(model: AdaptedModel, config: AdapterConfig | None = None) -> dict[str, str]:
    """Say which tensors training changes and why: name in the adapted model's state_dict -> reason.

    Args:
        model: the adapted model.
        config: settings of its active adapter; its own by default.

    Raises:
        ValueError: if config is not the one the active adapter was attached with.
    """
    if model.active is not None and config is not None and config != model.config:
        raise UserValueError(
            f"The plan was asked for with other settings than adapter {model.active!r} was attached with; "
            f"asked: {config!r}; attached: {model.config!r}."
        )
    return model.plan
