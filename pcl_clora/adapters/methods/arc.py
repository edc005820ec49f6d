"""ARC: one projection, used down and up, for all places of a kind, and a diagonal that a place owns."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from pcl_clora.adapters.config import AdapterConfig, LayerwiseConfig
from pcl_clora.adapters.methods.clora import CLoRA, CLoRAConfig
from pcl_clora.adapters.methods.sade import SadeConfig


class ARCConfig(LayerwiseConfig):
    """Settings of adapter re-composing (Dong et al., NeurIPS 2023)."""

    method: Literal["arc"] = "arc"
    rank: PositiveInt = 50  # r, width of the shared projections
    dropout: float = Field(0.1, ge=0, lt=1)  # of the narrow features

    def as_clora(self) -> CLoRAConfig:
        """Return the settings of the CLoRA that it is."""
        return CLoRAConfig(
            rank=self.rank,
            num_spaces=1,
            core="diagonal",
            tied=True,
            sharing="per_role",
            bias=True,
            dropout=self.dropout,
            sade=SadeConfig(weight=0),
            blocks=self.blocks,
            train=self.train,
            freeze=self.freeze,
        )


class ARC(CLoRA):
    """Adapter re-composing: x + dropout((x D) * c_j) D^T + b_j in front of qkv and fc1, D shared per role.

    Trained: 2 d r + 2 L (r + d), 48,816 for Point-MAE with r = 50. Mergeable: W' = W (1 + D diag(c) D^T)^T,
    b' = b + W b_j. Does not depend on batch mates, equal to the base at the start (c and b are zero). It is
    the CLoRA with one space, a diagonal core, U = D^T, spaces per role and a bias, and runs by its code.

    Ours: c starts at zero for both roles; a public copy of the code starts the one of the MLP at random.

    Source: Dong, Yan, Lin, Wang, Efficient Adaptation of Large Vision Transformer via Adapter Re-Composing,
    NeurIPS 2023, section 3.2.
    """

    config_type: ClassVar[type[AdapterConfig]] = ARCConfig

    def read(self, config: AdapterConfig) -> CLoRAConfig:
        """Return the settings of the CLoRA that it is."""
        assert isinstance(config, ARCConfig)
        return config.as_clora()
