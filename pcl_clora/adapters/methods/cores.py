"""The cores Q of CLoRA: what stands between the projection down and the projection up of a place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pcl_clora.adapters.methods.clora import CLoRAConfig


class BlockCore(nn.Module):
    """Q of a module as E dense blocks: the paper's form (K).

    Attributes:
        weight: (E, R, R), zero or identities at the start.
    """

    def __init__(self, config: CLoRAConfig, like: Tensor) -> None:
        super().__init__()
        self.weight = _start(torch.eye(config.rank).repeat(config.num_spaces, 1, 1), config, like)

    def times(self, up: Tensor) -> Tensor:
        """Compute Q U for U (E R, d): one batched product, E R^2 d MACs."""
        weight = self.weight.to(up)
        return torch.bmm(weight, up.view(*weight.shape[:2], -1)).view_as(up)

    def blocks(self) -> Tensor:
        """Return Q as (E, R, R)."""
        return self.weight


class DiagonalCore(nn.Module):
    """Q of a module as E diagonals; with E = 1 and U = D^T the core of ARC.

    Attributes:
        weight: (E, R), zeros or ones at the start.
    """

    def __init__(self, config: CLoRAConfig, like: Tensor) -> None:
        super().__init__()
        self.weight = _start(torch.ones(config.num_spaces, config.rank), config, like)

    def times(self, up: Tensor) -> Tensor:
        """Compute Q U for U (E R, d)."""
        return self.weight.to(up).view(-1, 1) * up

    def blocks(self) -> Tensor:
        """Return Q as (E, R, R)."""
        return torch.diag_embed(self.weight)


class FullCore(nn.Module):
    """Q of a module as one dense matrix over all spaces: FacT-TT of rank E R.

    Attributes:
        weight: (E R, E R), zero or the identity at the start.
    """

    def __init__(self, config: CLoRAConfig, like: Tensor) -> None:
        super().__init__()
        self.weight = _start(torch.eye(config.num_spaces * config.rank), config, like)

    def times(self, up: Tensor) -> Tensor:
        """Compute Q U for U (E R, d)."""
        return self.weight.to(up) @ up


class IdentityCore(nn.Module):
    """Q = 1 for good; without sharing this is LoRA in front of or beside the layer."""

    def __init__(self, config: CLoRAConfig, like: Tensor) -> None:
        super().__init__()
        self.num_spaces, self.rank = config.num_spaces, config.rank

    def times(self, up: Tensor) -> Tensor:
        """Return U."""
        return up

    def blocks(self) -> Tensor:
        """Return Q as (E, R, R)."""
        return torch.eye(self.rank).expand(self.num_spaces, -1, -1)


Core = BlockCore | DiagonalCore | FullCore | IdentityCore


def make_core(config: CLoRAConfig, like: Tensor) -> Core:
    """Make the core that the settings name, on the device and in the dtype of a tensor."""
    kinds: dict[str, type[Core]] = {
        "block": BlockCore,
        "diagonal": DiagonalCore,
        "full": FullCore,
        "identity": IdentityCore,
    }
    return kinds[config.core](config, like)


def _start(identity: Tensor, config: CLoRAConfig, like: Tensor) -> nn.Parameter:
    start = identity if config.init == "up_zero" else torch.zeros_like(identity)
    return nn.Parameter(start.to(like.device, like.dtype))
