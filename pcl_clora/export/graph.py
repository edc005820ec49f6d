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
from pcl_clora.models.backbones.point_bert.segmentation import PointBERTSegmentationHead
from pcl_clora.models.layers.part_segmentation import PartSegmenter, SegmentationHead
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.transformer import folded_linear
from pcl_clora.models.published import published_form

Inputs = tuple[Tensor, ...]
Runner = Callable[..., Tensor]  # an exported program: its inputs -> logits


class FromPatches(nn.Module):
    """A classifier that starts behind the grouping: (center, neighborhood) -> logits.

    Args:
        model: in evaluation mode.

    Attributes:
        names: of the inputs, in their order.
    """

    names: tuple[str, ...] = ("center", "neighborhood")

    def __init__(self, model: PatchTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, center: Tensor, neighborhood: Tensor) -> Tensor:
        """Patch centres (B, G, 3) and patches (B, G, K, 3) minus their centres -> (B, num_classes)."""
        model = self.model
        return model.forward_head(model.encode(model.embed_groups(neighborhood, center)))

    def inputs(self, points: Tensor, category: Tensor) -> Inputs:
        """Make the inputs of clouds.

        Args:
            points: (B, N, 3), float32, as the model sees them.
            category: (B,), int64; a classifier is not told.
        """
        groups = self.model.group(points)
        return groups.center, groups.neighborhood

    def fewer(self, inputs: Inputs, clouds: int, patches: int) -> Inputs:
        """Take the first clouds, and of each the first patches."""
        return tuple(each[:clouds, :patches].contiguous() for each in inputs)


class PartsFromPatches(FromPatches):
    """A part segmenter that starts behind everything that is chosen from places.

    The inputs are patch centres and patches, points (B, N, 3), category (B,), and "near" (B, N, 3), int64:
    the three patches that features are carried from to every point, with their "weight" (B, N, 3). In
    Point-BERT features climb to "level" (B, 512, 3), one more input, and from there to the points: near has
    places in the level for the N points, then places of patches for the 512, then for the first 256 of them.

    Attributes:
        levels: (512, 256); empty where there is no such input.
    """

    model: PartSegmenter

    def __init__(self, model: PartSegmenter) -> None:
        super().__init__(model)
        head = model.head
        self.levels = head.num_points if isinstance(head, PointBERTSegmentationHead) else ()
        self.names = (*FromPatches.names, "points", "category", "near", "weight")
        if self.levels:
            self.names = (*self.names, "level")

    def forward(  # type: ignore[override]
        self,
        center: Tensor,
        neighborhood: Tensor,
        points: Tensor,
        category: Tensor,
        near: Tensor,
        weight: Tensor,
        level: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, N, P) of the parts of all categories."""
        model = self.model
        fetched = model.fetch(model.embed_groups(neighborhood, center))
        chosen = {} if level is None else {"level": level}
        return model.forward_head(fetched, points, category, near=(near, weight), **chosen)

    def inputs(self, points: Tensor, category: Tensor) -> Inputs:
        """Make the inputs of clouds (B, N, 3) of categories (B,)."""
        return self._with_choice(*super().inputs(points, category), points, category)

    def fewer(self, inputs: Inputs, clouds: int, patches: int) -> Inputs:
        """Take the first clouds, and of each the first patches."""
        center, neighborhood = super().fewer(inputs[:2], clouds, patches)
        points, category = (each[:clouds].contiguous() for each in inputs[2:4])
        return self._with_choice(center, neighborhood, points, category)

    def _with_choice(self, *given: Tensor) -> Inputs:
        center, _, points, _ = given
        chosen = self.model.choose_for_head(points, center)
        level = (chosen["level"],) if self.levels else ()
        return (*given, *chosen["near"], *level)


def exportable(model: nn.Module) -> FromPatches:
    """Copy a model for export: adapter merged, BatchNorm folded, evaluation mode.

    An adapter of a method that does not merge stays in the graph as layers of its own.

    Raises:
        UserValueError: if the model is no network over point patches, or its head cannot be exported.
    """
    copied = _merged(deepcopy(model))
    task = getattr(getattr(copied, "config", None), "task", "")
    segments = isinstance(copied, PartSegmenter) and task == "part_segmentation"
    if not isinstance(copied, PatchTransformer) or not (segments or task == "classification"):
        raise UserValueError(
            f"{type(copied).__name__} is not exported: classifiers and part segmenters of point patches are "
            "(Point-MAE, ACT, PCP-MAE, ReCon, Point-BERT, PointGPT)."
        )
    if segments and not isinstance(copied.head, SegmentationHead | PointBERTSegmentationHead):
        raise UserValueError(
            f"The head of this part segmenter is {type(copied.head).__name__}, which its fine-tuning method "
            "brought; only the heads of the backbones themselves are exported."
        )
    copied.eval().requires_grad_(False)
    fold_norms(copied)
    return PartsFromPatches(copied) if isinstance(copied, PartSegmenter) else FromPatches(copied)


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
        if linear.bias is None:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
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
        if linear is not None:
            pairs.append((linear, cast(nn.BatchNorm1d, module)))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(note))
        elif isinstance(module, nn.BatchNorm1d):
            hooks.append(module.register_forward_pre_hook(look))
    config = model.config
    count = max(config.num_groups, config.group_size, 64, *getattr(config, "num_upsampled", ()))
    points = torch.rand(1, count, 3, generator=torch.Generator().manual_seed(0))
    told = (torch.zeros(1, dtype=torch.int64),) if isinstance(model, PartSegmenter) else ()
    try:
        with published_form(model):
            model(points.to(next(model.parameters())), *told)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def trace(module: FromPatches, inputs: Inputs) -> ExportedProgram:
    """Trace the graph; the numbers of clouds, patches and points stay open, as `write.compare` checks.

    Args:
        module: what `exportable` returned.
        inputs: of at least two clouds.
    """
    free = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in module.names}
    if "category" in free:
        del free["category"][1]
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=free)


def without_own_ops(program: ExportedProgram) -> ExportedProgram:
    """Write operators of this package as plain torch, which other programs know.

    `knn` loses the promise of the order of ties.
    """
    own = torch.ops.pcl_clora
    plain: ExportedProgram = program.run_decompositions(
        {own.knn.default: _knn, own.three_interpolate.default: _interpolate}
    )
    return plain


def _knn(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    difference = queries[:, :, None] - points[:, None]
    dist2, idx = torch.topk(difference.square().sum(dim=-1), k, largest=False, sorted=True)
    return dist2, idx


def _interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    batch, known, width = features.shape
    places = idx + known * torch.arange(batch, device=idx.device)[:, None, None]
    rows = features.reshape(batch * known, width)
    first, second, third = (
        rows[places[..., k].reshape(-1)].view(batch, -1, width) * weight[..., k : k + 1] for k in range(3)
    )
    return first + second + third
