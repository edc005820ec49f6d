"""A backbone with adapters: run it, route samples, merge, save."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pcl_clora.adapters import files, share
from pcl_clora.adapters.base import AdapterMethod, AdapterStateError, TunerLayer
from pcl_clora.adapters.combine import combine
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.paths import at_or_inside, base_tensors, live_path, tuner_layers, walk
from pcl_clora.adapters.peft_layout import save_peft
from pcl_clora.adapters.plan import count_parameters, file_keys
from pcl_clora.adapters.routing import group_samples, put_in_order, take_rows
from pcl_clora.adapters.slot import Slot
from pcl_clora.adapters.status import LayerStatus, layer_status
from pcl_clora.adapters.switching import SwitchedModel
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import auxiliary_losses
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.method_files import MethodFiles, is_own_tensor, network_keys


class AdaptedModel(SwitchedModel):
    """A frozen backbone with named adapters, one of which is active.

    `attach_adapter` and `load_adapter` make it. Names that it does not have itself are the backbone's:
    `forward_features`, `get_classifier`, `set_grad_checkpointing`, ... work as on the backbone.

    Threads may run it side by side. A forward pass during which another thread routes samples, switches or
    merges raises AdapterStateError; a program of torch.compile or torch.export is not watched.

    Attributes:
        base: the backbone, with the active adapter in place.
        slots: all adapters, by `Slot.key`.
        originals: what the backbone had where the active adapter now has its copies.
    """

    # What it is

    @property
    def method(self) -> AdapterMethod:
        """The method of the active adapter."""
        return self._active_slot("ask for its method").method

    @property
    def config(self) -> AdapterConfig:
        """Settings of the active adapter."""
        return self.method.config

    @property
    def released_files(self) -> MethodFiles | None:
        """How released files of the active adapter's method look; None where there are none."""
        return None if self._active is None else self.method.released_files

    @property
    def official_keys(self) -> KeyMap:
        """What official files call the tensors of the network that runs, see `network_tensors`."""
        own = getattr(self.base, "official_keys", KeyMap(()))
        return own if self._active is None else network_keys(self.method.official_keys, own)

    def network_tensors(self) -> dict[str, Tensor]:
        """List the live tensors of the network that runs: all that its prediction follows from.

        Returns:
            Those of the backbone by the names it has without adapters, with the copies of the active adapter
            in place; what the adapter adds as "layers.<path>.*" and "method.*", as in its file.

        Raises:
            AdapterStateError: if an adapter is merged.
        """
        self._require_unmerged("list the tensors of the network")
        added = {} if self._active is None else self.adapter_state()
        return {**base_tensors(self.base), **{key: t for key, t in added.items() if is_own_tensor(key)}}

    def saved_names(self) -> tuple[str, ...]:
        """Name the tensors that training changes and an adapter file holds, as the state_dict does."""
        return tuple(self.plan)

    def live_tuners(self) -> dict[str, TunerLayer]:
        """List the layers that carry deltas by their path in `base`, as it is now."""
        return {node.live: node.module for node in walk(self.base) if isinstance(node.module, TunerLayer)}

    def status(self) -> list[LayerStatus]:
        """Say of every adapted layer which adapters it has, which runs, is merged, and what is trained."""
        return layer_status(self.base, self.all_slots())

    def combine_adapters(
        self, weights: Mapping[str, float], name: str = "combined", *, head_of: str | None = None
    ) -> None:
        """Make one more adapter whose change is the weighted sum of others', exactly, and make it active.

        Low-rank updates (lora, clora, arc without bias, fact, vera) are put side by side: the result is a
        `lora` on whole layers whose rank is the sum of theirs, {"a": 1, "b": 1} is their concatenation,
        {"a": 1, "b": -1} their difference. bitfit, ssf and full stay what they are; their tensors are added
        up from where they change nothing. Head, class tokens and what else the methods train besides are not
        added up, except with full and bitfit the tensors of the backbone's own layers.

        Args:
            weights: name of an adapter -> its factor, such as {"a": 0.7, "b": 0.3}; all of one method.
            name: what to call the new one.
            head_of: whose head and tokens it gets; by default the first one's.

        Raises:
            ValueError: if a name is not known, taken or not allowed, a factor is not finite, the adapters are
                of several methods, or of one whose settings must be the same and are not.
            AdapterStateError: if an adapter is merged, or the method's change is no such sum (dora, a bias of
                clora, methods that do not merge). Nothing is attached then.
        """
        self._require_unmerged("combine adapters")
        self._check_new_name(name)
        combine(self, weights, name, head_of)

    def parameter_counts(self) -> dict[str, int]:
        """Count total, trainable, adapter, head and tokens parameters; see `plan.count_parameters`."""
        return count_parameters(self.base, None if self._active is None else self.slot(self._active))

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay spares, as this model names them; asks the backbone."""
        ask = getattr(self.base, "no_weight_decay", None)
        return set() if ask is None else {f"base.{live_path(self.base, path)}" for path in ask()}

    # Running it

    def forward(self, *inputs: Any, adapters: Sequence[str | None] | None = None, **named: Any) -> Any:
        """Run the backbone with the active adapter, or every sample with an adapter of its own.

        Args:
            inputs: what the backbone takes: (B, N, 3) points, and further inputs.
            adapters: B names, None for the bare backbone; samples of one adapter run together. Only in
                evaluation mode, because BatchNorm would see the groups, and only unmerged. Every input that
                is a tensor or list then has one entry a sample.
            named: inputs by their names.

        Returns:
            (B, num_classes) logits in the order of the samples, or what the backbone returns. With heads of
            different class counts the last dimension is the widest one's; classes that a sample's own head
            does not have are -inf.

        Raises:
            ValueError: if the batch is empty, or `adapters` does not name one known adapter a sample.
            AdapterStateError: if it is given while training or merged, or if another thread routes or
                switches meanwhile.
        """
        first = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.dim()), None)
        if first is not None and first.shape[0] == 0:
            raise UserValueError(f"The batch is empty: {tuple(first.shape)}; give at least one cloud.")
        if adapters is None:
            return self._watch.run(self.base, *inputs, **named)
        if first is None:
            raise UserValueError("adapters routes the samples of a batch, but no tensor is given.")
        if torch.compiler.is_dynamo_compiling():  # without fullgraph the call runs beside the graph instead
            raise AdapterStateError(
                "Routing samples switches adapters in between, which is no single graph: compile without "
                "fullgraph=True, or run one adapter at a time with set_active() and without adapters."
            )
        return self._route(adapters, first, inputs, named)

    def _route(
        self, adapters: Sequence[str | None], first: Tensor, inputs: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Tensor:
        count, results = first.shape[0], []
        groups = group_samples(adapters, count, self.adapter_names)
        self._require_unmerged("route samples")
        if self.training:
            raise AdapterStateError(
                "Routing by sample is for evaluation; call eval(), or train one adapter at a time."
            )
        if self._disabled:
            return cast(Tensor, self.base(*inputs, **named))
        with self._watch.switching(), self.installed(self._active):
            for name, indices in groups.items():
                self._install(name)
                rows = torch.tensor(indices, device=first.device)
                some, some_named = inputs, dict(named)
                if len(groups) > 1:
                    some = tuple(take_rows(value, rows, count) for value in inputs)
                    some_named = take_rows(some_named, rows, count)
                results.append((rows, self.base(*some, **some_named)))
        return put_in_order(results, count)

    def extra_losses(self) -> dict[str, Tensor]:
        """Give the backbone's and the method's terms beside the task loss by name, times their weights.

        Asking changes nothing: the backbone's terms stand until its next forward pass, the method's are those
        of its present tensors.
        """
        own = auxiliary_losses(self.base)
        return own if self._active is None else {**own, **self.method.extra_losses()}

    def extra_loss_values(self) -> dict[str, Tensor]:
        """Compute the method's terms before weighting, without gradient, for the log.

        The backbone's terms are left out: it gives them weighted only, in `extra_losses`.
        """
        with torch.no_grad():
            return {} if self._active is None else self.method.extra_loss_values()

    # Merging

    def merge(self) -> None:
        """Fold the active adapter into the weights, and put the model into evaluation mode.

        Merged weights are computed in float64 and then cast; the original ones are kept.

        Raises:
            AdapterStateError: if no adapter is active, one is merged already, the method cannot be merged, or
                a value of the adapter or of the merged weights is not finite. Nothing is merged then.
        """
        self._require_unmerged("merge again")
        name = self._active_slot("merge").name
        with self._watch.switching():
            tuners = {path: t for path, t in tuner_layers(self.base).items() if t.active is not None}
            files.refuse_non_finite(self.adapter_state(), f"Adapter {name!r} cannot be merged")
            merged = [tuner.compute_merged(path) for path, tuner in tuners.items()]
            for tuner, (weight, bias) in zip(tuners.values(), merged, strict=True):
                tuner.merge(weight, bias)
            self._merged = True
        self.eval()

    def unmerge(self) -> None:
        """Put the original weights back, every bit of them.

        Raises:
            AdapterStateError: if nothing is merged.
        """
        if not self._merged:
            raise AdapterStateError("Nothing is merged; call merge() before unmerge().")
        with self._watch.switching():
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
        vars(self.base).pop("_adapted_by", None)
        self._unloaded = True
        return self.base.train(training)

    # Files

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors of the active adapter by the names they have in its file; live, detached."""
        self._require_unmerged("read its state")
        slot, tensors = self._active_slot("read its state"), self.state_dict()
        state = {key: tensors[name].detach() for name, key in self.key_map().items()}
        own = base_tensors(self.base) if slot.carried else {}
        return {**state, **{f"model.{path}": own[path].detach() for path in slot.carried}}

    @torch.no_grad()
    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the active adapter.

        Args:
            state: what `adapter_state` returned or its file holds, for an adapter of the same method,
                settings and backbone.

        Raises:
            ValueError: if a name is missing or left over, a shape or kind of number differs, or a value is
                not finite. Nothing is copied then.
        """
        live = self.adapter_state()
        ours = {f"model.{name}": value for name, value in self._random_tensors().items()}
        same = {
            key for key in state.keys() - live.keys() if key in ours and torch.equal(ours[key], state[key])
        }
        files.check_names(live, {key: value for key, value in state.items() if key not in same})
        files.check_range(live, state)
        self.method.check_state(state)
        for key, value in live.items():
            value.copy_(state[key])

    def key_map(self) -> dict[str, str]:
        """Map names of the state_dict to names in the adapter's file; see `plan.file_keys`."""
        return file_keys(self.base, self._active_slot("map its names"))

    def _random_tensors(self) -> dict[str, Tensor]:
        """List base tensors that the base's weights did not fill, except what the active adapter trains.

        They are those that `load_report` of the backbone names as missing or as fine-tuned, and those that
        the file of the active adapter names.
        """
        slot = self._active_slot("save it")
        report = getattr(self.base, "load_report", None)
        left = {*getattr(report, "missing", ()), *getattr(report, "tuned", ())}
        left |= set(slot.header.not_in_weights if slot.header else ())
        tensors = base_tensors(self.base)
        return {name: t for name, t in tensors.items() if name in left and not at_or_inside(name, slot.owned)}

    def base_hash(self, not_in_weights: Sequence[str] | None = None) -> str:
        """Return the SHA-256 over the tensors of the backbone that belong to its weights.

        Left out are those that the active adapter trains, and those that the weights do not fill: they are
        random, another time others, so the file carries the ones that the network runs.

        Args:
            not_in_weights: the latter; None finds out.
        """
        without = self._random_tensors() if not_in_weights is None else not_in_weights
        slot = self._active_slot("hash its base")
        return files.hash_tensors(base_tensors(self.base), without=[*slot.owned, *without])

    def save_adapter(
        self,
        path: str | Path,
        *,
        layout: Literal["pcl_clora", "peft"] = "pcl_clora",
        dtype: Literal["float32", "float16"] = "float32",
        head_dtype: Literal["float32", "float16"] = "float32",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the active adapter to a safetensors file, whole or not at all; or to a folder for peft.

        Tensors of the backbone that its weights do not fill, for example the class token of pre-trained ones,
        are random in every process; those that the network runs are written too, so that the file loads on
        the same weights anywhere.

        Args:
            path: the file, or the folder; missing folders are made.
            layout: "peft" writes a low-rank adapter as that library's LoRA, which computes the same: `lora`,
                and `clora` without bias as the LoRA of rank E R that it equals. `load_adapter` reads it as
                `lora`. Its files say neither base nor metadata, and hold the head, but no class token.
            dtype: "float16" halves the size of everything; "float32" writes it as it is. The file says which
                (`head_dtype`, and the type of every tensor), and loading casts to the model's type. Numbers
                then differ by up to 2^-11 of their size (those below 6e-5 by 3e-8), logits by less than a
                hundredth of their standard deviation in all methods tried.
            head_dtype: "float16" halves the size of the head alone.
            metadata: what the header should say besides: base_id, base_weights, classes, input_rule,
                protocol, metrics, licence, git, see `AdapterHeader`; other keys go to its `extra`.

        Raises:
            AdapterStateError: if no adapter is active, it is merged, or a value of it is not finite.
            ValueError: if a value does not fit into half precision, something is trained that the layout has
                no place for, other options are given with layout="peft", or metadata is no json.
        """
        self._require_unmerged("save it")
        self._active_slot("save it")
        if layout == "peft":
            if (dtype, head_dtype) != ("float32", "float32") or metadata:
                raise UserValueError(
                    "layout='peft' takes neither dtype, head_dtype nor metadata; leave them out."
                )
            save_peft(self, path)
            return
        if layout != "pcl_clora":
            raise UserValueError(f"layout={layout!r} is not known; choose pcl_clora or peft.")
        state = self.adapter_state()
        files.refuse_non_finite(state, f"Adapter {self._active!r} cannot be saved")
        left, idle = self._random_tensors(), (*self.interface.unused, *self.interface.training_only)
        state |= {f"model.{name}": t for name, t in left.items() if not at_or_inside(name, idle)}
        heads = [f"model.{path}" for path in self.interface.parts.get("head", ())]
        if dtype == "float16":
            state, head_dtype = {key: files.to_half(key, t) for key, t in state.items()}, dtype
        elif head_dtype == "float16":
            state = {
                key: files.to_half(key, t) if at_or_inside(key, heads) else t for key, t in state.items()
            }
        header = files.make_header(
            self.base,
            metadata or {},
            adapter=self.config.model_dump(mode="json"),
            base_sha256=self.base_hash(tuple(left)),
            not_in_weights=tuple(left),
            num_classes=self.num_classes,
            head_dtype=head_dtype,
        )
        files.write_adapter(path, state, header)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        picture: str | Path = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the active adapter with a card that says what it is; see `share.push`.

        Args:
            repo: "user/name" of a model hub; made where it is not there.
            private: of a new one.
            picture: a png for the card.
            metadata: see `save_adapter`.

        Returns:
            "hub:user/name@commit", which `load_adapter` takes.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_adapter(Path(folder) / share.FILE, metadata=metadata)
            return share.push_adapter(Path(folder) / share.FILE, repo, private=private, picture=picture)

    def _active_slot(self, purpose: str) -> Slot:
        if self._active is None:
            raise AdapterStateError(
                f"No adapter is active, so I cannot {purpose}; call set_active() with one of: "
                f"{', '.join(self.adapter_names) or 'none attached'}."
            )
        return self.slot(self._active)


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
