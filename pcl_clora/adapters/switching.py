"""Which adapters are on a backbone, and which of them is in it: attach, take off, switch, disable."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, AdapterStateError, TunerLayer, module_key
from pcl_clora.adapters.files import AdapterHeader
from pcl_clora.adapters.parts import check_targets, copy_items
from pcl_clora.adapters.paths import at_or_inside, base_tensors, locate, outermost, tuner_layers
from pcl_clora.adapters.plan import (
    apply_gradients,
    file_keys,
    freeze_statistics,
    make_plan,
    statistics_paths,
)
from pcl_clora.adapters.slot import Shelf, Slot
from pcl_clora.adapters.state import active_when_saved, current_name
from pcl_clora.adapters.watch import Watch
from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.models.interface import ModelInterface, get_interface


class SwitchedModel(nn.Module):
    """A backbone and its adapters, one of which is in place at a time; `AdaptedModel` makes it run.

    Layers of the backbone are replaced in place by `TunerLayer`s; every module keeps its mode (training or
    evaluation) but for BatchNorms that the adapter freezes. What an adapter trains besides (head, class
    tokens, ...) is a copy of its own, which sits in the backbone while the adapter is active; the backbone's
    own waits in `originals`, the copies of other adapters in their slots. Switching moves references, never
    values. Attributes and methods that this model does not have itself are the backbone's; a call of a method
    that a switch in another thread overlaps raises, as a forward pass does.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        _refuse_adapted(base)
        get_interface(base)
        self.base = base
        self.slots = nn.ModuleDict()
        self.originals = Shelf()
        self._base_classes: int | None = getattr(base, "num_classes", None)
        self._active: str | None = None
        self._disabled = 0
        self._after: str | None = None  # while disabled: what is active afterwards
        self._before_loading: str | None = None
        self._merged = self._unloaded = False
        self._required_grad = {
            name for name, p in base.named_parameters(remove_duplicate=False) if p.requires_grad
        }
        self._watch = Watch()
        self.register_load_state_dict_post_hook(_finish_loading)  # type: ignore[no-untyped-call]
        self.training = base.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("_"):
                raise
        value = getattr(base, name)
        return partial(self._watch.run, value) if inspect.ismethod(value) else value

    @property
    def interface(self) -> ModelInterface:
        """Where the parts of the backbone are, by the names it has without adapters."""
        return get_interface(self.base)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of all adapters, in the order they were attached."""
        return tuple(slot.name for slot in self.all_slots())

    @property
    def active(self) -> str | None:
        """Name of the active adapter; None while the bare backbone runs."""
        return self._active

    @property
    def chosen(self) -> str | None:
        """Name of the adapter that is active, or will be at the end of `disabled()`."""
        return self._after if self._disabled else self._active

    @property
    def num_classes(self) -> int | None:
        """Number of logits of the active head; None if the backbone does not say."""
        return self._base_classes if self._active is None else self.slot(self._active).num_classes

    @property
    def is_merged(self) -> bool:
        """Whether the active adapter is folded into the weights."""
        return self._merged

    @property
    def plan(self) -> dict[str, str]:
        """What training changes and why; see `plan.make_plan`."""
        return {} if self._active is None else make_plan(self.base, self.slot(self._active))

    def slot(self, name: str) -> Slot:
        """Return what the model holds of an adapter.

        Raises:
            ValueError: if there is no adapter of this name.
        """
        if name not in self.adapter_names:
            raise UserValueError(
                f"There is no adapter {name!r}; attached are: {', '.join(self.adapter_names) or 'none'}."
            )
        return cast(Slot, self.slots[module_key(name)])

    def all_slots(self) -> list[Slot]:
        """List what the model holds of every adapter."""
        return cast(list[Slot], list(self.slots.values()))

    def owned_paths(self, name: str) -> Mapping[str, str]:
        """Say what an adapter has copies of: dotted path in the backbone -> reason."""
        return self.slot(name).owned

    def backbone_tensors(self) -> dict[str, Tensor]:
        """List the live tensors of the bare backbone, by the names it has without adapters.

        Where the active adapter has copies of its own, these are the backbone's, which wait in `originals`.

        Raises:
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("reach the backbone's tensors")
        with self.installed(None):
            return base_tensors(self.base)

    # Attach and take off

    def add_adapter(
        self,
        name: str,
        method: AdapterMethod,
        *,
        num_classes: int | None = None,
        header: AdapterHeader | None = None,
        carried: Iterable[str] = (),
    ) -> None:
        """Attach one more adapter and make it the active one. Everything is matched before anything changes.

        Args:
            name: letters, digits, "_" and "-"; not in use, and no attribute of a module.
            method: the method, with its own tensors.
            num_classes: a new head with so many logits; None copies the backbone's head.
            header: of the file that its tensors come from.
            carried: paths of tensors that it has copies of without training them.

        Raises:
            ValueError: if the name is taken or not allowed, or a role or part does not match; the message
                lists what exists.
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("attach another adapter")
        self._check_new_name(name)
        if not isinstance(method, AdapterMethod):
            raise UserTypeError(
                f"add_adapter() takes a method with its tensors, not {method!r} ({type(method).__name__}); "
                "attach_adapter(model, settings, name=...) makes one from settings."
            )
        with self._watch.switching(), self.installed(None):
            deltas = method.make_deltas(self.base, self.interface)
            owned = outermost(self._paths_to_own(method))
            check_targets(self.base, list(deltas), owned)
            kept = [path for path in carried if not at_or_inside(path, owned)]
            copies = copy_items(self.base, [*owned, *kept])
            classes = num_classes if num_classes is not None else self._base_classes
            if num_classes is not None or method.has_own_head(self.interface):
                copies.update(self._new_head(owned, classes, method))
            slot = Slot(name, method, copies, owned, tuple(kept), classes, header)
            for path, delta in deltas.items():
                self._tuner_at(path).deltas[slot.key] = delta.train(self.training)
            method.train(self.training)
            self.slots[slot.key] = slot
            vars(self.base)["_adapted_by"] = type(self).__name__
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
        self._keep_flags()
        with self._watch.switching():
            keep = None if self._active == name else self._active
            self._after = None if self._after == name else self._after
            self._install(None)
            for path, tuner in reversed(tuner_layers(self.base).items()):
                if key in tuner.deltas:
                    del tuner.deltas[key]
                if not tuner.deltas:
                    self._unwrap(path, tuner)
            del self.slots[key]
            if not self.slots:
                vars(self.base).pop("_adapted_by", None)
            self._install(keep)
        self._settle()

    def rename_adapter(self, name: str, new: str) -> None:
        """Call an adapter by another name; it stays where it is, active or not.

        Names of tensors in the state_dict follow; those in adapter files have no adapter's name.

        Raises:
            ValueError: if there is no adapter of this name, or the new one is taken or not allowed.
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("rename an adapter")
        slot = self.slot(name)
        if new == name:
            return
        self._check_new_name(new)
        old_key, new_key = slot.key, module_key(new)
        with self._watch.switching():
            for holder in (self.slots, *(tuner.deltas for tuner in tuner_layers(self.base).values())):
                items = holder._modules
                renamed = {new_key if key == old_key else key: item for key, item in items.items()}
                items.clear()  # in place: the order stays
                items.update(renamed)
            slot.name = new
            self._active, self._after = (
                new if kept == name else kept for kept in (self._active, self._after)
            )
            for tuner in tuner_layers(self.base).values():
                tuner.activate(self._active)

    def _tuner_at(self, path: str) -> TunerLayer:
        owner, leaf = locate(self.base, path)
        if isinstance(owner, TunerLayer):
            return owner
        tuner = TunerLayer(getattr(owner, leaf))
        tuner.training = tuner.base_layer.training  # nothing below it changes its mode
        tuner.deltas.training = self.training
        setattr(owner, leaf, tuner)
        return tuner

    def _unwrap(self, path: str, tuner: TunerLayer) -> None:
        parent, _, leaf = path.rpartition(".")
        owner: Any = self.base
        if parent:
            holder, name = locate(self.base, parent)
            owner = getattr(holder, name)
        setattr(owner, leaf, tuner.base_layer)

    def _new_head(
        self, owned: Mapping[str, str], num_classes: int | None, method: AdapterMethod
    ) -> dict[str, nn.Module]:
        paths = self.interface.parts.get("head", ())
        make = getattr(self.base, "make_classifier", None)
        if len(paths) != 1 or paths[0] not in owned or make is None or num_classes is None:
            own = method.has_own_head(self.interface)
            why = "The method's own pooling asks" if own else f"num_classes={num_classes} asks"
            raise UserValueError(
                f"{why} for a new head, but the adapter does not train one that "
                f"{type(self.base).__name__} can make; add 'head' to train, or use a backbone with "
                "make_classifier()."
            )
        owner, leaf = locate(self.base, paths[0])
        like = next(getattr(owner, leaf).parameters(), None)
        head = method.make_head(self.base, self.interface, num_classes).train(getattr(owner, leaf).training)
        return {paths[0]: head if like is None else head.to(like.device, like.dtype)}

    # Switch

    def set_active(self, name: str | None) -> None:
        """Make another adapter the active one, with its own head and tokens; None for the bare backbone.

        What requires gradients is what the plan of the adapter names, less what the user has switched off
        while it was active. Inside `disabled()` the choice takes effect at the end of the block.

        Raises:
            ValueError: if there is no adapter of this name.
            AdapterStateError: if an adapter is merged, or another thread routes samples or switches.
        """
        self._require_unmerged("change the active adapter")
        if name is not None:
            self.slot(name)
        if self._disabled:
            self._after = name
            return
        with self._watch.alone():
            self._keep_flags()
            self._install(name)
            self._settle()

    @contextmanager
    def disabled(self) -> Iterator[SwitchedModel]:
        """Run the bare backbone, with its own head and tokens, for the length of a `with` block.

        Samples that are routed inside get the bare backbone too. Adapters may be attached, removed and
        chosen; the one that is active afterwards is the one that was, or the last that was chosen.
        """
        if not self._disabled:
            before = self._active
            self.set_active(None)
            self._after = before
        self._disabled += 1
        try:
            yield self
        finally:
            self._disabled -= 1
            if not self._disabled and not self._unloaded:
                self.set_active(self._after)

    @contextmanager
    def installed(self, name: str | None) -> Iterator[None]:
        """Have another adapter in the backbone for the length of a block; gradients and modes stay."""
        with self._watch.switching():
            before = self._active
            self._install(name)
            try:
                yield
            finally:
                self._install(before)

    def set_trainable(self, name: str, trainable: bool) -> None:
        """Let all parameters of an adapter require gradients while it is active, or none."""
        with self.installed(name):
            keys = file_keys(self.base, self.slot(name)).values()
        self.slot(name).frozen = set() if trainable else set(keys)
        self._settle()

    def _install(self, name: str | None) -> None:
        """Move references so that one adapter is in the backbone; nothing else changes."""
        if name == self._active:
            return
        with self._watch.switching():
            if self._active is not None:
                slot = self.slot(self._active)
                for path in slot.copied:
                    owner, leaf = locate(self.base, path)
                    slot.copies.put(path, getattr(owner, leaf))
                    setattr(owner, leaf, self.originals.take(path))
            if name is not None:
                slot = self.slot(name)
                for path in slot.copied:
                    owner, leaf = locate(self.base, path)
                    self.originals.put(path, getattr(owner, leaf))
                    setattr(owner, leaf, slot.copies.take(path))
            for tuner in tuner_layers(self.base).values():
                tuner.activate(name)
            self._active = name
            if self.num_classes is not None:
                cast(Any, self.base).num_classes = self.num_classes

    def _keep_flags(self) -> None:
        """Remember what of the active adapter the user has switched gradients off for."""
        if self._active is not None:
            slot, parameters = self.slot(self._active), dict(self.named_parameters(remove_duplicate=False))
            slot.frozen = {
                key
                for live, key in file_keys(self.base, slot).items()
                if live in parameters and not parameters[live].requires_grad
            }

    def _settle(self) -> None:
        """Set gradients and modes as the plan of the active adapter says."""
        keys = {} if self._active is None else file_keys(self.base, self.slot(self._active))
        frozen = set() if self._active is None else self.slot(self._active).frozen
        apply_gradients(self, {live for live, key in keys.items() if key not in frozen})
        if self.training:
            freeze_statistics(self, self.plan)

    def train(self, mode: bool = True) -> SwitchedModel:
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

    def reset_classifier(self, num_classes: int, *more: Any, **named: Any) -> None:
        """Replace the head by a new one: that of the active adapter, or the backbone's while none is active.

        Args:
            num_classes: logits; parts in part segmentation.
            more: what the backbone's own method takes besides, such as the number of categories.
            named: the same by name.

        Raises:
            AdapterStateError: if the active adapter has no head of its own.
        """
        self._require_unmerged("replace its head")
        slot = None if self._active is None else self.slot(self._active)
        if slot is not None and not set(self.interface.parts.get("head", ())) <= set(slot.owned):
            raise AdapterStateError(
                f"Adapter {slot.name!r} runs with the backbone's head; call set_active(None) to replace that."
            )
        if slot is None or not slot.method.has_own_head(self.interface):
            cast(Any, self.base).reset_classifier(num_classes, *more, **named)
        else:
            for path, head in self._new_head(slot.owned, num_classes, slot.method).items():
                owner, leaf = locate(self.base, path)
                setattr(owner, leaf, head)
        if slot is None:
            self._base_classes = num_classes
        else:
            slot.num_classes = num_classes
        self._settle()

    # state_dict

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        """Load tensors into those that they were when they were saved, whatever is active now."""
        self._require_unmerged("load a state_dict")
        for given in [name for name in state_dict if name.startswith(prefix)]:
            name = prefix + current_name(given.removeprefix(prefix))
            if name != given:
                state_dict[name] = state_dict.pop(given)
        names = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
        active = active_when_saved(names, self.state_dict(), self.all_slots(), self._active)
        self._before_loading = self._active
        self._install(active)
        super()._load_from_state_dict(state_dict, prefix, *more)

    # Checks

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
        if not isinstance(name, str):
            raise UserTypeError(f"An adapter is named by a string, not by {name!r} ({type(name).__name__}).")
        if name in self.adapter_names:
            raise UserValueError(
                f"An adapter named {name!r} is attached already; choose another name than "
                f"{', '.join(self.adapter_names)}, or call remove_adapter() first."
            )
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict(), name):
            raise UserValueError(
                f"{name!r} cannot name an adapter; use letters, digits, '_' and '-', and no attribute of a "
                "module, such as 'training' or 'items'."
            )


def _finish_loading(model: nn.Module, incompatible: object) -> None:
    """Put the adapter back that was active before a state_dict was loaded."""
    assert isinstance(model, SwitchedModel)
    model._install(model._before_loading)


def _refuse_adapted(base: nn.Module) -> None:
    """Refuse a backbone that is adapted already, or has an adapted model in it.

    Raises:
        ValueError: if it is one.
    """
    inside = [part for part in base.modules() if isinstance(part, SwitchedModel | TunerLayer)]
    if inside or "_adapted_by" in vars(base):
        raise UserValueError(
            f"This {type(base).__name__} carries adapters already; pass the AdaptedModel around it, which "
            "gets one more adapter, or take the plain backbone from merge_and_unload() or unload()."
        )
