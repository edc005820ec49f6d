"""BitFit: the biases that the backbone has are trained, and nothing else."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig, LayerwiseConfig
from pcl_clora.adapters.paths import at_or_inside, base_tensors, chosen_blocks, find_linears, find_norms
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Part


class BitFitConfig(LayerwiseConfig):
    """Settings of training biases (Ben Zaken et al., ACL 2022); what is marked C is our choice."""

    method: Literal["bitfit"] = "bitfit"
    new_qkv_bias: bool = False  # add a bias, zero at first, to q, k, v layers that have none (C)
    embed: bool = False  # also the biases of patch encoder and position embedding (C)


class BiasDelta(Delta):
    """A bias for a layer that has none.

    Attributes:
        bias: (C_out,), zero at the start.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0]))

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        y: Tensor = base_layer(x)
        return y + self.bias.to(y)

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Give the layer the bias."""
        own = self.bias.to(weight)
        return weight, own if bias is None else bias + own


class BitFit(AdapterMethod):
    """Train every bias of the blocks (norms, projection, MLP) and of the norm behind them.

    Trained: 12 x 3,072 + 384 = 37,248 numbers of Point-MAE; copies of the backbone's own, nothing is added,
    so `parameter_counts()["adapter"]` is 0. With `blocks`, only biases inside these blocks. With
    `new_qkv_bias`, 1,152 more a block; with `embed`, 2,432 more, those of BatchNorms included. Mergeable by
    nature, does not depend on batch mates, equal to the base at the start.

    Ours: both options, and that head and class token are trained besides, as everywhere here.

    Source: Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models, ACL 2022, section 3.
    """

    config_type: ClassVar[type[AdapterConfig]] = BitFitConfig
    linear: ClassVar[bool] = True
    config: BitFitConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the new biases of the q, k, v layers, if they are asked for."""
        if not self.config.new_qkv_bias:
            return {}
        sites = find_linears(model, interface, "qkv", self.config.blocks)
        bare = [site for site in sites if site.layer.bias is None]
        if not bare:
            raise UserValueError(
                "new_qkv_bias has no effect: the q, k, v layers of this backbone have biases, which bitfit "
                "trains; leave it out."
            )
        return {site.path: BiasDelta(site.layer) for site in bare}

    def owned_paths(self, model: nn.Module, interface: ModelInterface) -> dict[str, str]:
        """Name the biases, besides the parts that are trained as a whole."""
        chosen = sorted(chosen_blocks(interface, self.config.blocks))
        places = [interface.blocks[index] for index in chosen]
        places += find_norms(model, interface, self.config.blocks)
        parts: tuple[Part, ...] = ("patch_embed", "pos_embed") if self.config.embed else ()
        places += [path for part in parts for path in interface.parts.get(part, ())]
        paths = super().owned_paths(model, interface)
        for name, tensor in base_tensors(model).items():
            wanted = at_or_inside(name, places) and not at_or_inside(name, interface.unused)
            if wanted and name.endswith(".bias") and isinstance(tensor, nn.Parameter):
                paths.setdefault(name, "bitfit, a bias of the backbone")
        return paths
