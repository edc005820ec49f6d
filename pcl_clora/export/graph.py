"""The part of a network that is exported: from patches to logits, adapter merged and norms folded."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.base import AdapterStateError
from pcl_clora.errors import UserValueError
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.transformer import folded_linear
from pcl_clora.models.published import published_form


class FromPatches(nn.Module):
    """A classifier that starts behind the grouping: (center, neighborhood) -> logits.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: PatchTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, center: Tensor, neighborhood: Tensor) -> Tensor:
        """Patch centres (B, G, 3) and patches (B, G, K, 3) minus their centres -> (B, num_classes)."""
        model = self.model
        return model.forward_head(model.encode(model.embed_groups(neighborhood, center)))


def exportable(model: nn.Module) -> FromPatches:
    """Copy a model for export: adapter merged, BatchNorm folded, evaluation mode.

    An adapter of a method that does not merge stays in the graph as layers of its own.

    Raises:
        UserValueError: if the model is no classifier of point patches.
    """
    copied = _merged(deepcopy(model))
    if not isinstance(copied, PatchTransformer) or getattr(copied.config, "task", "") != "classification":
        raise UserValueError(
            f"{type(copied).__name__} is not exported: classifiers of point patches are (Point-MAE, ACT, "
            "PCP-MAE, ReCon, Point-BERT, PointGPT)."
        )
    copied.eval().requires_grad_(False)
    fold_norms(copied)
    return FromPatches(copied)


def _merged(model: nn.Module) -> nn.Module:
    if not isinstance(model, AdaptedModel):
        return model
    try:
        return model.merge_and_unload()
    except AdapterStateError:
        return model.base


@torch.no_grad()
def fold_norms(model: PatchTransformer) -> int:
    """Fold every BatchNorm that follows a linear layer into it, in place, and leave an exact identity.

    Which follows which is seen in one pass of the published form.

    Returns:
        How many were folded.
    """
    pairs = _pairs(model)
    for linear, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = folded_linear(linear, norm)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.weight.fill_(1)
        norm.bias.zero_()
        norm.eps = 0.0
    folded = {id(norm) for _, norm in pairs}
    for owner in model.modules():
        if isinstance(owner, nn.Sequential):  # called one by one, so that nothing asks it for its statistics
            for name, part in owner.named_children():
                if id(part) in folded:
                    setattr(owner, name, nn.Identity())
    return len(pairs)


def _pairs(model: PatchTransformer) -> list[tuple[nn.Linear, nn.BatchNorm1d]]:
    made: dict[int, nn.Linear] = {}
    pairs: list[tuple[nn.Linear, nn.BatchNorm1d]] = []
    kept: list[Tensor] = []  # so that no place in memory is used again

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        kept.append(output)
        made[output.data_ptr()] = cast(nn.Linear, module)

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        linear = made.get(inputs[0].data_ptr())
        if linear is not None and linear.bias is not None:
            pairs.append((linear, cast(nn.BatchNorm1d, module)))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(note))
        elif isinstance(module, nn.BatchNorm1d):
            hooks.append(module.register_forward_pre_hook(look))
    config = model.config
    points = torch.rand(
        1, max(config.num_groups, config.group_size, 64), 3, generator=torch.Generator().manual_seed(0)
    )
    try:
        with published_form(model):
            model(points.to(next(model.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def trace(module: FromPatches, center: Tensor, neighborhood: Tensor) -> ExportedProgram:
    """Trace the graph; the number of clouds and of patches stays open, as `write.compare` checks.

    Args:
        module: what `exportable` returned.
        center: (B, G, 3) of at least two clouds.
        neighborhood: (B, G, K, 3).
    """
    shapes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in ("center", "neighborhood")}
    with torch.no_grad():
        return torch.export.export(module, (center, neighborhood), dynamic_shapes=shapes)


def without_own_ops(program: ExportedProgram) -> ExportedProgram:
    """Write operators of this package as plain torch, which other programs know.

    `knn` loses the promise of the order of ties.
    """
    plain: ExportedProgram = program.run_decompositions({torch.ops.pcl_clora.knn.default: _knn})
    return plain


def _knn(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    difference = queries[:, :, None] - points[:, None]
    dist2, idx = torch.topk(difference.square().sum(dim=-1), k, largest=False, sorted=True)
    return dist2, idx


Runner = Callable[[Tensor, Tensor], Tensor]
