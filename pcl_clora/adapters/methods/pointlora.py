"""PointLoRA: low-rank updates with a shared MLP beside them, and chosen patches of two sizes as prompts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta, as_linear
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.methods.lora import LoRADelta, LowRank, LowRankConfig, Update
from pcl_clora.adapters.paths import LinearSite, find_linears
from pcl_clora.adapters.sequence import (
    PublishedConfig,
    SequenceMethod,
    check_patches,
    more_patches,
    on_patches_and_extras,
    outer_layers,
    seen_by_all,
    small_mlp,
)
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Role, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles
from pcl_clora.models.published import Rewritten

RELEASED_PATCHES = 128  # what the release takes for patches, whatever the backbone has
SECOND_SHARE, EPS = 0.25, 1e-6  # of the second size in the loss; inside its logarithms
_ROLES: tuple[Role, ...] = ("qkv", "proj")
_ATTENTION = "blocks.blocks.*.attn."  # in released files


class PointLoRAConfig(PublishedConfig):
    """Settings of PointLoRA."""

    method: Literal["pointlora"] = "pointlora"
    rank: PositiveInt = 8  # R, width of an update
    alpha: PositiveFloat = 8.0  # an update is scaled by alpha / rank; not in paper mode, as released
    width: PositiveInt = 32  # hidden width of the shared MLPs
    keep: tuple[PositiveInt, PositiveInt] = (32, 8)  # chosen patches of each size
    num_first: NonNegativeInt = 0  # patches of the first size; 0 = the backbone's own
    first_size: PositiveInt = 32  # points in one; read with num_first only
    num_second: PositiveInt = 64  # patches of the second size
    second_size: PositiveInt = 64  # points in one
    mask_weight: NonNegativeFloat = 0.004  # of the loss that makes the choice firm

    @model_validator(mode="after")
    def _fits(self) -> PointLoRAConfig:
        if self.blocks:
            raise UserValueError("pointlora's prompts pass through all blocks; leave blocks out.")
        for kept, there, name in zip(
            self.keep, (self.num_first, self.num_second), ("num_first", "num_second"), strict=True
        ):
            if there and kept > there:
                raise UserValueError(f"keep={list(self.keep)} chooses more than {name}={there}; lower it.")
        return self


class Chosen(NamedTuple):
    """Chosen patches: features and positions, each (B, E, D)."""

    features: Tensor
    pos: Tensor


class UpdateWithMlp(Rewritten, LoRADelta):
    """y = W x + b + s B A x + mlp(x), with an MLP that all layers of the role share.

    As published the layer's own product is a function call, which counters that hook layers do not see.

    Attributes:
        gain: 1, a factor of the MLP that the release holds and never trains; in paper mode only.
    """

    gain: Tensor

    def __init__(self, site: LinearSite, config: PointLoRAConfig, mlp: nn.Module) -> None:
        low_rank = LowRankConfig(method="lora", rank=config.rank, alpha=config.alpha)
        update: Update = LowRank(site, low_rank)
        update.scale = 1.0 if config.mode == "paper" else update.scale
        super().__init__(site.layer, {site.role: update}, 0.0)
        self._mlp, self.released = (mlp,), config.mode == "paper"  # a tuple: the method owns it
        if self.released:
            self.register_buffer("gain", torch.ones(1))

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        beside: Tensor = self._mlp[0](x)
        layer = as_linear(base_layer, "pointlora changes linear layers")
        y = F.linear(x, layer.weight, layer.bias) if self.published else layer(x)
        return self.added_to(y, x) + (self.gain * beside if self.released else beside)

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Refuse: the MLP is no weight."""
        return Delta.merged_weight(self, weight, bias)


class PointLoRADelta(Delta):
    """A block with the chosen patches behind its sequence, before which two MLPs act."""

    def __init__(self, method: PointLoRA, interface: ModelInterface, index: int) -> None:
        super().__init__()
        self._method, self.index, self.causal = (method,), index, interface.causal  # a tuple: no owner
        self.is_last = index == len(interface.blocks) - 1 and not interface.takes_category

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D), from the last block (B, T + E, D) with the chosen patches behind."""
        method, length = self._method[0], x.shape[1]
        found = tokens.memo["pointlora", self.index - 1] if self.index else method.choose(tokens)
        extra = found.features.shape[1]
        wide = seen_by_all(tokens, length, extra, self.causal, x.device)
        x = torch.cat([x + pos, found.features + found.pos], dim=1)
        patches = RELEASED_PATCHES if method.config.mode == "paper" else tokens.center.shape[1]
        sizes = (tokens.num_prefix, patches, extra)
        x = on_patches_and_extras(x, sizes, method.on_patches[0], method.on_extra[0])
        y: Tensor = block(x, torch.zeros_like(x), wide)
        tokens.memo["pointlora", self.index] = found._replace(features=y[:, length:])
        return y if self.is_last else y[:, :length]


def _read_settings(file: FileFacts) -> dict[str, Any]:
    return {
        "mode": "paper",
        "rank": file.shapes["blocks.blocks.0.attn.qkv.lora_A"][0],
        "width": file.shapes["blocks.prompt_mlp.0.weight"][0],
    }


class PointLoRA(SequenceMethod):
    """Low-rank adaptation of qkv and proj with multi-scale token selection.

    y = W x + b + s B A x + mlp(x), the MLP (D - 32 - D with GELU) shared by all layers of a role. Patches of
    two sizes are scored by sigmoid(fc2 ReLU fc1 token); the best of each stand behind the sequence with their
    positions, and before every block one MLP is added to the patches, another to the chosen ones. The head
    sees [class token, maximum over all others]. A further loss, weighted 0.004, makes the scores firm: the
    mean of s log s + (1 - s) log(1 - s), of the second size a quarter. In part segmentation the chosen ones
    are dropped behind the last block (C).

    Trained besides: the entry of the patch encoder and the positions' layers. On Point-MAE 504,449 numbers,
    772,752 with class token and head of 15 classes. Not mergeable. Not the base at the start. It does not
    depend on batch mates.

    Mended (mode corrected): alpha is applied; the numbers of patches are the backbone's, where the release
    takes 128; the backbone's patches are not embedded a second time; a batch of one works. The paper also
    speaks of the MLP's layers, the release changes qkv and proj only, and so does this.

    Ours (C): chosen patches are seen by all tokens of a causal backbone and look at one another only.

    Attributes:
        firmness: the further loss of the last training pass before weighting, None after any other.

    Source: Wang et al., PointLoRA: Low-Rank Adaptation with Token Selection for Point Cloud Learning, CVPR
    2025, as released.
    """

    config_type: ClassVar[type[AdapterConfig]] = PointLoRAConfig
    config: PointLoRAConfig
    released_files = MethodFiles("PointLoRA", r"^lora_mask_predictor\.", _read_settings)
    official_keys: KeyMap = KeyMap(
        (
            *(Rule(f"{_ATTENTION}{role}.linear.", f"model.blocks.*.attn.{role}.") for role in _ROLES),
            Rule("blocks.prompt_mlp.", "method.on_patches.0."),
            Rule("blocks.prompt_pos_mlp.", "method.on_extra.0."),
            Rule("blocks.prompt_qkv_mlp.", "method.on_layers.qkv."),
            Rule("blocks.prompt_proj_mlp.", "method.on_layers.proj."),
            Rule("lora_mask_predictor.fc1.", "method.score.0."),
            Rule("lora_mask_predictor.fc2.", "method.score.2."),
            *(
                Rule(
                    f"{_ATTENTION}{role}.{official}",
                    f"layers.blocks.*.attn.{role}.{ours.format(role)}",
                )
                for role in _ROLES
                for official, ours in (
                    ("lora_A", "updates.{}.down"), ("lora_B", "updates.{}.up"), ("weight", "gain"),
                )
            ),
        )
    )  # fmt: skip

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.on_patches, self.on_extra = nn.ModuleList(), nn.ModuleList()
        self.on_layers, self.score = nn.ModuleDict(), nn.Sequential()
        self.firmness: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the last pass: copies and pickles have none."""
        return {**self.__dict__, "firmness": None}

    def choose(self, tokens: Tokens) -> Chosen:
        """Score the patches of both sizes, and take the best of each."""
        config = self.config
        scales = ((config.num_first, config.first_size), (config.num_second, config.second_size))
        found, firmness = [], []
        for (count, size), keep in zip(scales, config.keep, strict=True):
            features, pos = more_patches(tokens, count, size)
            if keep > features.shape[1]:
                raise UserValueError(
                    f"keep={list(config.keep)} chooses more patches than there are ({features.shape[1]}); "
                    "lower it."
                )
            score = torch.sigmoid(self.score(features).squeeze(-1))
            firmness.append((score * (score + EPS).log() + (1 - score) * (1 - score + EPS).log()).mean())
            best = score.topk(keep, dim=1).indices[..., None].expand(-1, -1, features.shape[2])
            found.append((features.gather(1, best), pos.gather(1, best)))
        total = firmness[0] + SECOND_SHARE * firmness[1]
        if "pointlora" not in tokens.memo:  # a block that is computed again is no pass of its own
            tokens.memo["pointlora"] = True
            self.firmness = total if self.training and torch.is_grad_enabled() else None
        (first, first_pos), (second, second_pos) = found
        return Chosen(torch.cat([first, second], dim=1), torch.cat([first_pos, second_pos], dim=1))

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make what is shared, the updates, and one delta a block."""
        config, dim, like = self.config, interface.embed_dim, next(model.parameters())
        blocks = self.chosen(interface)
        if not config.num_first:
            check_patches(interface, config.keep[0], f"keep={list(config.keep)}")
        self.on_patches.append(small_mlp(dim, config.width))
        self.on_extra.append(small_mlp(dim, config.width))
        self.score.extend([nn.Linear(dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, 1)])
        deltas: dict[str, Delta] = {}
        for role in _ROLES:
            sites = find_linears(model, interface, role)
            mlp = small_mlp(dim, config.width, sites[0].layer.out_features)
            self.on_layers[role] = mlp
            deltas.update({site.path: UpdateWithMlp(site, config, mlp) for site in sites})
        for index in blocks:
            deltas[interface.blocks[index]] = PointLoRADelta(self, interface, index)
        self.to(like.device, like.dtype)
        return {path: delta.to(like.device, like.dtype) for path, delta in deltas.items()}

    def owned_paths(self, model: nn.Module, interface: ModelInterface) -> dict[str, str]:
        """Name what is trained besides."""
        return {**super().owned_paths(model, interface), **outer_layers(interface, "pointlora")}

    def extra_loss_values(self) -> dict[str, Tensor]:
        """Give the loss of the last training pass before weighting; nothing after any other."""
        return {} if self.firmness is None else {"mask": self.firmness}

    def extra_losses(self) -> dict[str, Tensor]:
        """Give it times its weight; nothing if that is zero."""
        weight = self.config.mask_weight
        return {name: weight * value for name, value in self.extra_loss_values().items() if weight}
