"""Patches that are the same in every epoch: cut once and kept.

Those of evaluated clouds have the same tokens as long as nothing in the patch encoder trains: the second
evaluation of a split finds what the first one computed. Those of training clouds need train.draw=fixed.

Rotation, one factor for all axes and a shift change neither the order of farthest points nor who is whose
neighbour. So where the augmentation is made of these, patches are chosen on the cloud as it is read, and
gathered from the augmented one; without an augmentation a frozen patch encoder gives the same tokens in every
epoch too. Both are computed like this whether they are kept or not, a cloud at a time, so a run has the same
bits with every `train.cache`, and when it goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.base import TunerLayer
from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader
from pcl_clora.data.transforms import keeps_neighbours, take_points
from pcl_clora.engine.config import RunConfig
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.shared_patches import SharedPatches
from pcl_clora.models.layers.transformer import PatchEncoder

logger = logging.getLogger("pcl_clora")

SHARE = 0.5  # of the free memory that a cache may take under train.cache=auto


class KnownPatches(SharedPatches):
    """Patches of a batch that are known before a network sees it; of these very tensors, not of equal ones.

    Args:
        points: (B, N, 3), the clouds.
        groups: their patches.
        encode: returns what the patch encoder makes of `groups.neighborhood`, (B, G, C); None where the
            encoder is to run.
    """

    def __init__(self, points: Tensor, groups: ops.PointGroups, encode: Callable[[], Tensor] | None) -> None:
        super().__init__()
        self.embeds = False
        self._points, self._known, self._encode = points, groups, encode

    def groups(self, points: Tensor, compute: Callable[[], ops.PointGroups]) -> ops.PointGroups:
        """Return the known groups of the known clouds."""
        return self._known if points is self._points else compute()

    def encoded(self, neighborhood: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the known tokens of the known patches."""
        known = self._encode is not None and neighborhood is self._known.neighborhood
        return self._encode() if known and self._encode is not None else compute()


class EvaluatedTokens(SharedPatches):
    """What a frozen patch encoder made of the clouds of a split, for the next evaluation of the same batches.

    Args:
        loader: of the split.
    """

    def __init__(self, loader: PointLoader) -> None:
        super().__init__()
        self.embeds = False
        self._place = torch.zeros(len(loader.dataset), dtype=torch.int64)
        self._place[loader.indices] = torch.arange(len(loader.indices))
        self._known = torch.zeros(len(loader.indices), dtype=torch.bool)
        self._tokens: Tensor | None = None
        self._at, self._points, self._neighborhood = self._place, torch.empty(0), torch.empty(0)

    def of(self, index: Tensor, points: Tensor) -> EvaluatedTokens:
        """Return itself, for a batch: positions in the data set (B,), int64, and points (B, N, 3)."""
        self._at, self._points = self._place[index.cpu()], points
        return self

    def groups(self, points: Tensor, compute: Callable[[], ops.PointGroups]) -> ops.PointGroups:
        """Return groups, and know those of the batch again."""
        groups = compute()
        if points is self._points:
            self._neighborhood = groups.neighborhood
        return groups

    def encoded(self, neighborhood: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tokens of the batch's own patches as they were computed first, those of others anew."""
        if neighborhood is not self._neighborhood:
            return compute()
        if self._tokens is not None and bool(self._known[self._at].all()):
            return self._tokens[self._at].to(neighborhood.device)
        tokens = compute()
        if self._tokens is None:
            self._tokens = tokens.new_empty((len(self._known), *tokens.shape[1:]), device="cpu")
        self._tokens[self._at] = tokens.cpu()
        self._known[self._at] = True
        return tokens


class PatchMemory:
    """Chooses the patches of training clouds before they are augmented, and keeps what it was told to keep.

    Args:
        base: the backbone.
        num_clouds: of the training set; their positions are the keys.
        frozen: whether the tokens of the patch encoder are the same in every epoch.
        keep_groups: keep which points make a patch.
        keep_tokens: keep the tokens.
    """

    def __init__(
        self, base: PatchTransformer, num_clouds: int, *, frozen: bool, keep_groups: bool, keep_tokens: bool
    ) -> None:
        self._base, self._frozen, self._num_clouds = base, frozen, num_clouds
        self.num_bytes = 0  # that it will take
        self._keep_groups, self._keep_tokens = keep_groups, keep_tokens
        self._groups: Tensor | None = None
        self._tokens: Tensor | None = None
        self._has_groups = torch.zeros(num_clouds, dtype=torch.bool)
        self._has_tokens = torch.zeros(num_clouds, dtype=torch.bool)

    def of(self, index: Tensor, still: Tensor, moved: Tensor) -> KnownPatches:
        """Return the patches of clouds.

        Args:
            index: (B,), int64, positions in the training set.
            still: (B, N, 3), the clouds as they are read, the same in every epoch.
            moved: (B, N, 3), the same points augmented.
        """
        index = index.cpu()
        idx = self._choose(index, still).to(moved.device)
        b, g, k = idx.shape
        center = take_points(moved, idx[:, :, 0])  # the nearest point of a centre is itself, or a copy
        neighborhood = take_points(moved, idx.view(b, g * k)).view(b, g, k, 3) - center[:, :, None]
        groups = ops.PointGroups(center, neighborhood, idx)
        encode = (lambda: self._encode(index, neighborhood)) if self._frozen else None
        return KnownPatches(moved, groups, encode)

    def _choose(self, index: Tensor, still: Tensor) -> Tensor:
        if self._keep_groups and self._groups is not None and bool(self._has_groups[index].all()):
            return self._groups[index].long()
        idx = self._base.cut(still).idx
        if self._keep_groups:
            if self._groups is None:
                kind = _index_type(still.shape[1])
                self._groups = torch.empty((self._num_clouds, *idx.shape[1:]), dtype=kind)
            self._groups[index] = idx.to("cpu", self._groups.dtype)
            self._has_groups[index] = True
        return idx

    @torch.no_grad()
    def _encode(self, index: Tensor, neighborhood: Tensor) -> Tensor:
        """Embed cloud by cloud, so that a token does not depend on who else is in the batch."""
        known = self._has_tokens[index]
        if self._tokens is not None and bool(known.all()):
            return self._tokens[index].to(neighborhood.device)
        tokens = torch.cat([self._base.patch_embed(cloud) for cloud in torch.split(neighborhood, 1)])
        if self._keep_tokens:
            if self._tokens is None:
                self._tokens = tokens.new_empty((self._num_clouds, *tokens.shape[1:]), device="cpu")
            self._tokens[index] = tokens.cpu()
            self._has_tokens[index] = True
        return tokens


def make_patch_memory(cfg: RunConfig, model: AdaptedModel, num_clouds: int) -> PatchMemory | None:
    """Make the patch memory of a run; None where every step has patches of its own.

    Raises:
        ConfigError: with train.cache=always, if nothing could be kept, or it does not fit in memory.
    """
    base, must = model.base, cfg.train.cache == "always"
    why = _why_not(cfg, base)
    if why or not isinstance(base, PatchTransformer):
        if must:
            raise ConfigError(f"train.cache=always has nothing to keep: {why}; set train.cache=auto.")
        return None
    frozen = cfg.augment == "none" and cfg.model.task != "pretraining" and _is_frozen(base)
    if cfg.train.cache == "never":
        return PatchMemory(base, num_clouds, frozen=frozen, keep_groups=False, keep_tokens=False)
    config = base.config
    index_bytes = _index_type(cfg.data.num_points).itemsize
    groups = num_clouds * config.num_groups * config.group_size * index_bytes
    tokens = num_clouds * config.num_groups * (config.encoder_dim or config.embed_dim) * 4 if frozen else 0
    free = free_memory()
    limit = float("inf") if free is None else free if must else SHARE * free
    if must and groups + tokens > limit:
        raise ConfigError(
            f"train.cache=always would keep {(groups + tokens) / 2**20:,.0f} MiB ({num_clouds} clouds), but "
            f"{limit / 2**20:,.0f} MiB of memory are free; set train.cache=auto, which keeps what fits."
        )
    keep_groups, keep_tokens = groups <= limit, frozen and groups + tokens <= limit
    if not keep_groups or keep_tokens != frozen:
        logger.warning(
            "The patches of %d clouds would take %.0f MiB, more than half of the free memory; %s kept.",
            num_clouds,
            (groups + tokens) / 2**20,
            "only which points they hold is" if keep_groups else "none are",
        )
    memory = PatchMemory(base, num_clouds, frozen=frozen, keep_groups=keep_groups, keep_tokens=keep_tokens)
    memory.num_bytes = groups * keep_groups + tokens * keep_tokens
    return memory


def keep_evaluated(
    cfg: RunConfig, model: AdaptedModel, loaders: Mapping[str, PointLoader], taken: int = 0
) -> dict[str, EvaluatedTokens]:
    """Make what keeps the tokens of the splits that a run evaluates more than once, where they stay the same.

    Args:
        cfg: the settings; train.cache says whether.
        model: whose patch encoder it is.
        loaders: "test" and, if there is one, "validation".
        taken: bytes that are promised already.

    Raises:
        ConfigError: with train.cache=always, if they do not fit in memory.
    """
    base, chooser = model.base, cfg.protocol.select
    rounds = -(-cfg.optim.epochs // cfg.train.eval_every_epochs)
    looked_at = {"test": 1 + rounds * (chooser == "test" or cfg.train.test_curve)}
    looked_at["validation"] = rounds * (chooser == "validation")
    again = {name: loader for name, loader in loaders.items() if looked_at[name] > 1}
    fixed = cfg.protocol.votes == 1 and cfg.data.kind != "images" and cfg.model.task != "pretraining"
    if cfg.train.cache == "never" or not (again and fixed and isinstance(base, PatchTransformer)):
        return {}
    if not _is_frozen(base):
        return {}
    width = base.config.encoder_dim or base.config.embed_dim
    size = sum(len(loader.indices) for loader in again.values()) * base.config.num_groups * width * 4
    free = free_memory()
    must = cfg.train.cache == "always"
    left = float("inf") if free is None else (free if must else SHARE * free) - taken
    if size > left:
        told = f"The tokens of evaluated clouds would take {size / 2**20:,.0f} MiB"
        if must:
            raise ConfigError(
                f"{told}, but {left / 2**20:,.0f} MiB of memory are free; set train.cache=auto, which keeps "
                "what fits."
            )
        logger.warning("%s, more than what is left of half of the free memory; none are kept.", told)
        return {}
    return {name: EvaluatedTokens(loader) for name, loader in again.items()}


def free_memory() -> int | None:
    """Return the bytes of memory that programs can take without swapping, where the system says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _why_not(cfg: RunConfig, base: nn.Module) -> str:
    """Say why patches are not the same in every epoch; nothing where they are."""
    if cfg.train.draw != "fixed":
        return f"train.draw={cfg.train.draw} gives a cloud other points in every epoch"
    if not keeps_neighbours(cfg.augment):
        return f"augment={cfg.augment} changes who is whose neighbour"
    if cfg.data.kind == "images" or not isinstance(base, PatchTransformer):
        return f"{cfg.model.name} does not cut clouds into patches"
    return ""


def _is_frozen(base: PatchTransformer) -> bool:
    """Whether the tokens of a cloud depend on nothing that changes while training."""
    encoder = base.patch_embed
    return (
        type(encoder) is PatchEncoder
        and not any(isinstance(module, TunerLayer) for module in encoder.modules())
        and not any(parameter.requires_grad for parameter in encoder.parameters())
    )


def _index_type(num_points: int) -> torch.dtype:
    return torch.int16 if num_points <= torch.iinfo(torch.int16).max else torch.int32
