"""Every form of a network that is measured: published and ours, inference and training step.

All forms have the same weights and are handed the same patches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.methods.lora import LoRADelta
from pcl_clora.bench.harness import load
from pcl_clora.bench.parts import OPTIMISER, OTHER, PartClock
from pcl_clora.bench.plain import PlainLoRA, PlainOutput, make_plain, plain_attentions, plain_names
from pcl_clora.engine import OptimConfig, build_optimizer, choose_device
from pcl_clora.engine.modes import autocast
from pcl_clora.engine.patch_memory import KnownPatches
from pcl_clora.engine.precision import has_native_bfloat16
from pcl_clora.errors import UserValueError
from pcl_clora.models import create_model
from pcl_clora.models.backbones.pointgpt.layers import generation_loss
from pcl_clora.models.backbones.pointgpt.network import PointGPTConfig
from pcl_clora.models.config import TransformerConfig
from pcl_clora.models.layers.int8 import quantise
from pcl_clora.models.layers.shared_patches import shared_patches

PLAIN, PLAIN_LORA, PLAIN_FULL, PLAIN_PROBE = (
    "published", "published, LoRA", "published, full fine-tuning", "published, linear probe",
)  # fmt: skip
# method -> (whose time it is compared with, who has the same loss)
METHODS = {
    "full": (PLAIN_FULL, PLAIN_FULL),
    "lora": (PLAIN_LORA, PLAIN_LORA),
    "clora": (PLAIN_LORA, ""),
    "dapt": (PLAIN_LORA, ""),
    "linear_probe": (PLAIN_PROBE, PLAIN_PROBE),
}
KEPT = "tokens kept"  # a step of a frozen patch encoder whose tokens are known, see `train.cache`
CALIBRATION = 4  # clouds on which int8 is calibrated; none of those that are timed
LEARNING_RATE = 1e-6  # small, so that repeated steps stay at one place


@dataclass(frozen=True)
class Network:
    """A network that is measured.

    Attributes:
        model: name for `create_model`.
        num_points: N of a cloud.
        settings: of the model.
    """

    model: str
    num_points: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One form of a network, ready to run.

    Attributes:
        run: what is timed; a forward pass returns its logits, a step its loss.
        model: the network.
        against: name of the side that its time is compared with; "" for none.
        same_as: name of the side that computes the same function; "" for none.
        exact: whether the two outputs must be the same up to rounding.
        forward: the forward pass of a step alone, for what it saves.
    """

    run: Callable[[], Tensor]
    model: nn.Module
    against: str = ""
    same_as: str = ""
    exact: bool = True
    forward: Callable[[], Any] | None = None


class Bench:
    """A network in all its forms, on the same weights.

    Args:
        network: which.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            settings = {"drop_path": 0.0, "head_dropout": 0.0, **network.settings}
            self.ours = create_model(network.model, **settings)
            for module in self.ours.modules():
                if isinstance(module, nn.BatchNorm1d):  # statistics of a network that has seen data
                    module.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
                    module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        self.config = cast(TransformerConfig, self.ours.config)
        self.plain = make_plain(self.ours, self.config)
        self.parts = self.config.task == "part_segmentation"
        self._groups: dict[int, ops.PointGroups] = {}
        self._group = cast(Callable[[Tensor], ops.PointGroups], self.ours.group)

    def rows(self, size: int) -> int:
        """How many tokens a batch has."""
        return size * (self.config.num_groups + 1)

    def inputs(self, size: int) -> list[Tensor]:
        """Clouds in the unit ball (B, N, 3), and a category each for part segmentation."""
        generator = torch.Generator().manual_seed(size)
        points = torch.randn(size, self.network.num_points, 3, generator=generator)
        points = points / points.norm(dim=-1).amax(dim=1)[:, None, None]
        return [points, torch.arange(size) % self.config.num_categories] if self.parts else [points]

    def groups(self, size: int) -> ops.PointGroups:
        """The patches that both sides are handed."""
        if size not in self._groups:
            self._groups[size] = self._group(self.inputs(size)[0])
        return self._groups[size]

    def target(self, size: int) -> Tensor:
        """A class for every cloud, or a part for every point."""
        shape = (size, self.network.num_points) if self.parts else (size,)
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, self.config.num_logits, shape, generator=generator)

    def adapted(self, method: str, size: int) -> AdaptedModel:
        """Ours with an adapter whose updates are not zero, handed the patches."""
        backbone = copy.deepcopy(self.ours)
        groups = self.groups(size)
        backbone.group = lambda points: groups  # type: ignore[assignment]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = attach_adapter(backbone, {"method": method})
        generator = torch.Generator().manual_seed(2)
        holders = (model.method, *(tuner.deltas for tuner in model.live_tuners().values()))
        with torch.no_grad():
            for parameter in (parameter for holder in holders for parameter in holder.parameters()):
                if not parameter.any():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        return model

    def plain_lora(self, like: AdaptedModel) -> nn.Module:
        """The plain form with plain LoRA, its updates those of `like`."""
        model = copy.deepcopy(self.plain)
        deltas = [module for module in like.modules() if isinstance(module, LoRADelta)]
        for attention, delta in zip(plain_attentions(model), deltas, strict=False):
            assert isinstance(attention.qkv, nn.Linear)
            attention.qkv = wrapped = PlainLoRA(attention.qkv, 8, 8.0)
            updates: Any = delta.updates
            for role in ("q", "v"):
                getattr(wrapped, f"down_{role}").weight.data = updates[role].down.detach().clone()
                getattr(wrapped, f"up_{role}").weight.data = updates[role].up.detach().clone()
        return model

    def call_plain(self, model: nn.Module, size: int) -> Callable[[], PlainOutput]:
        """Forward pass of a plain form."""
        groups = self.groups(size)
        inputs = self.inputs(size) if self.parts else []
        return lambda: model(groups, *inputs)

    def forward_sides(self, size: int) -> tuple[dict[str, Side], dict[str, str]]:
        """Every form of a forward pass, and who is absent with the reason.

        What is merged is CLoRA; the published form has the merged weights, so that ours must agree with it
        merged and unmerged.
        """
        inputs, device = self.inputs(size), choose_device("cpu")
        lora, clora = self.adapted("lora", size).eval(), self.adapted("clora", size).eval()
        merged = copy.deepcopy(clora).merge_and_unload().eval().requires_grad_(False)
        plain, plain_lora = make_plain(merged, self.config).eval(), self.plain_lora(lora).eval()
        run_plain, run_lora = self.call_plain(plain, size), self.call_plain(plain_lora, size)

        def ours(model: nn.Module, bfloat16: bool = False) -> Callable[[], Tensor]:
            def run() -> Tensor:
                with torch.inference_mode(), autocast(device, bfloat16):
                    return cast(Tensor, model(*inputs))

            return run

        def published(call: Callable[[], PlainOutput]) -> Callable[[], Tensor]:
            def run() -> Tensor:
                with torch.inference_mode():
                    return call().logits

            return run

        sides = {
            PLAIN: Side(published(run_plain), plain),
            PLAIN_LORA: Side(published(run_lora), plain_lora),
            "merged": Side(ours(merged), merged, PLAIN, PLAIN),
            "unmerged, lora": Side(ours(lora), lora, PLAIN_LORA, PLAIN_LORA),
            "unmerged, clora": Side(ours(clora), clora, PLAIN_LORA, PLAIN),
        }
        absent: dict[str, str] = {}
        if has_native_bfloat16(device):
            sides["merged, bfloat16"] = Side(ours(merged, True), merged, PLAIN, PLAIN, exact=False)
        else:
            absent["merged, bfloat16"] = "bfloat16 is not native on this processor"
        try:
            calibrated = copy.deepcopy(merged)
            calibrated.group = lambda points: self.groups(CALIBRATION)  # type: ignore[assignment]
            small = quantise(calibrated, [tuple(self.inputs(CALIBRATION))], anyway=True).model
            small.group = lambda points: self.groups(size)  # type: ignore[assignment]
            ours(small)()
            sides["merged, int8"] = Side(ours(small), small, PLAIN, PLAIN, exact=False)
        except UserValueError as error:
            absent["merged, int8"] = str(error).splitlines()[0]
        return sides, absent

    def step_sides(self, size: int) -> dict[str, Side]:
        """Every form of a training step: forward, loss, backward, clipping, AdamW."""
        target, native = self.target(size), has_native_bfloat16(choose_device("cpu"))
        lora = self.adapted("lora", size)
        head, tokens = plain_names(self.ours, ("head",)), plain_names(self.ours, ("tokens",))
        sides = {
            PLAIN_FULL: self._plain_step(copy.deepcopy(self.plain), None, size, target),
            PLAIN_LORA: self._plain_step(self.plain_lora(lora), head | tokens, size, target),
            PLAIN_PROBE: self._plain_step(copy.deepcopy(self.plain), head, size, target),
        }
        for method, (against, same_as) in METHODS.items():
            model = self.adapted(method, size)
            run, forward = self._own_step(model, target, size)
            sides[method] = Side(run, model, against, same_as, forward=forward)
            if native and method in ("full", "clora"):
                other = self.adapted(method, size)
                run, forward = self._own_step(other, target, size, bfloat16=True)
                sides[f"{method}, bfloat16"] = Side(run, other, against, method, False, forward)
            if method in ("clora", "linear_probe"):
                other = self.adapted(method, size)
                run, forward = self._own_step(other, target, size, kept=True)
                sides[f"{method}, {KEPT}"] = Side(run, other, method, method, forward=forward)
        return sides

    def checkpointed_side(self, size: int) -> Side:
        """A CLoRA step that keeps no activations inside the blocks."""
        model = self.adapted("clora", size)
        base: Any = model.base
        base.set_grad_checkpointing(True)
        run, forward = self._own_step(model, self.target(size), size)
        return Side(run, model, forward=forward)

    def _plain_step(self, model: nn.Module, trained: set[str] | None, size: int, target: Tensor) -> Side:
        """A step of the published loop; frozen statistics stay as they are, as in ours."""
        if trained is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trained or ".down_" in name or ".up_" in name)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train(bool(module.weight.requires_grad))
        call, groups = self.call_plain(model, size), self.groups(size)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=0.05)

        def forward() -> Tensor:
            output = call()
            loss = F.cross_entropy(output.logits.flatten(0, -2), target.flatten())
            if output.generated is not None:
                patches = groups.neighborhood + groups.center[:, :, None]
                config = cast(PointGPTConfig, self.config)
                loss = loss + config.generation_weight * generation_loss(output.generated, patches)
            return loss

        return Side(_stepper(forward, optimizer, learned), model, forward=forward)

    def _own_step(
        self, model: AdaptedModel, target: Tensor, size: int, *, bfloat16: bool = False, kept: bool = False
    ) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """A step of our loop, and its forward pass with the loss; `kept`: the patches' tokens are known."""
        model.train()
        optimizer = build_optimizer(model, OptimConfig(lr=LEARNING_RATE))
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        inputs, device = self.inputs(size), choose_device("cpu")
        around: Callable[[], AbstractContextManager[Any]] = nullcontext
        if kept:
            encoder: Any = model.base.patch_embed
            with torch.no_grad():
                tokens = encoder(self.groups(size).neighborhood)
            known = KnownPatches(inputs[0], self.groups(size), lambda: tokens)
            around = partial(shared_patches, known)

        def forward() -> Tensor:
            with autocast(device, bfloat16), around():
                logits = model(*inputs)
            loss = F.cross_entropy(logits.float().flatten(0, -2), target.flatten())
            for term in model.extra_losses().values():
                loss = loss + term
            return loss

        return _stepper(forward, optimizer, learned), forward

    def profile(self, size: int) -> dict[str, Any]:
        """Say where the time of a merged forward pass and of steps goes, ms a cloud by part."""
        forwards, _ = self.forward_sides(size)
        steps = self.step_sides(size)
        wanted = {f"inference: {name}": forwards[name] for name in (PLAIN, "merged", "unmerged, clora")}
        wanted |= {f"step: {name}": steps[name] for name in (PLAIN_LORA, "clora", PLAIN_FULL, "full")}
        profiles = {}
        for name, side in wanted.items():
            side.run()
            best: dict[str, float] = {}
            for _ in range(3):
                clock = PartClock()
                with clock.watching(side.model):
                    _step_clock.append(clock)
                    try:
                        side.run()
                    finally:
                        _step_clock.pop()
                if not best or sum(clock.seconds.values()) < sum(best.values()):
                    best = clock.seconds
            profiles[name] = {part: 1000 * seconds / size for part, seconds in best.items()}
        return {"profiles": profiles, "clock": "processor", "load": load()}


_step_clock: list[PartClock] = []  # the clock of the step that is being profiled


def _stepper(
    forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer, learned: list[nn.Parameter]
) -> Callable[[], Tensor]:
    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()  # type: ignore[no-untyped-call]
        for clock in _step_clock:
            clock.switch(OPTIMISER)
        nn.utils.clip_grad_norm_(learned, 10.0, foreach=True)
        optimizer.step()
        for clock in _step_clock:
            clock.switch(OTHER)
        return loss.detach()

    return step
