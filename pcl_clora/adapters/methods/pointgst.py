"""PointGST: a narrow path beside the MLP that works on the spectrum of the patches' graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.sequence import PublishedConfig, SequenceMethod, as_split, check_split
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles


class PointGSTConfig(PublishedConfig):
    """Settings of point cloud graph spectral tuning (Liang et al., 2024)."""

    method: Literal["pointgst"] = "pointgst"
    rank: PositiveInt = 36  # r, width of the path
    local: PositiveInt = 32  # patches in a local group; divides the number of patches


def morton_order(center: Tensor) -> Tensor:
    """Order centres along a Morton curve: of trunc(100 c) & 0xFFFF, bits of z lowest, then x, y highest.

    Args:
        center: (B, G, 3).

    Returns:
        (B, G), int64; equal codes keep their order.
    """
    cells = (center * 100).trunc().to(torch.int64) & 0xFFFF
    code = torch.zeros_like(cells[..., 0])
    for bit in range(16):
        for place, axis in enumerate((2, 0, 1)):
            code = code | (((cells[..., axis] >> bit) & 1) << (3 * bit + place))
    return code.argsort(dim=-1, stable=True)


def spectral_basis(center: Tensor, mode: str) -> Tensor:
    """Eigenvectors of the normalised Laplacian of a graph whose weights are delta / distance.

    Args:
        center: (..., G, 3).
        mode: "corrected" takes the smallest distance of each graph as delta, computes distances from
            differences, and makes the largest component of every eigenvector positive. "paper" takes the
            smallest non-zero entry of `torch.cdist` over the whole batch, rounding noise of the distances of
            a point to itself included, and the signs that come out.

    Returns:
        (..., G, G), eigenvectors in columns, eigenvalues ascending.
    """
    if mode == "paper":
        distance = torch.cdist(center, center)
        delta = distance.masked_fill(distance <= 0, torch.inf).min()
    else:
        distance = (center[..., :, None, :] - center[..., None, :, :]).norm(dim=-1)
        delta = distance.masked_fill(distance == 0, torch.inf).amin(dim=(-2, -1), keepdim=True)
    weight = torch.where(distance > 0, delta / distance, torch.ones_like(distance))
    root = weight.sum(dim=-1).rsqrt()
    if mode == "paper":  # by products with diagonal matrices
        scaled = torch.diag_embed(root) @ weight @ torch.diag_embed(root)
    else:
        scaled = root[..., :, None] * weight * root[..., None, :]
    laplacian = torch.eye(center.shape[-2]).to(center) - scaled
    basis: Tensor = torch.linalg.eigh(laplacian).eigenvectors
    if mode == "corrected":
        largest = basis.gather(-2, basis.abs().argmax(dim=-2, keepdim=True))
        basis = basis * torch.where(largest < 0, -1.0, 1.0).to(basis)
    return basis


class SpectralPath(nn.Module):
    """The path of one block.

    Attributes:
        down: (r, D) with bias; up: (D, r) with bias, zero; adapt: (r, r) with bias, of both spectra.
        norm_global: LayerNorm of the global spectrum.
        norm_local: LayerNorm of the local ones.
    """

    def __init__(self, dim: int, config: PointGSTConfig, like: Tensor) -> None:
        super().__init__()
        rank = config.rank
        self.norm_global, self.norm_local = nn.LayerNorm(rank), nn.LayerNorm(rank)
        self.down, self.adapt, self.up = nn.Linear(dim, rank), nn.Linear(rank, rank), nn.Linear(rank, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)
        self.inverse = config.mode == "paper"  # the release multiplies by U where U^T would be meant
        self.to(like.device, like.dtype)

    def forward(self, x: Tensor, start: int, bases: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B, T, D) after the attention -> (B, T, D), what is added behind the MLP."""
        whole, local, order = bases
        narrow = self.down(x)
        s = narrow[:, start : start + order.shape[1]]
        index = order[..., None].expand_as(s)
        groups = s.gather(1, index).unflatten(1, local.shape[1:3])
        spread = torch.empty_like(s).scatter(
            1, index, self._filter(groups, local, self.norm_local).flatten(1, 2)
        )
        added = self._filter(s, whole, self.norm_global) + spread
        added = F.pad(added, (0, 0, start, x.shape[1] - start - order.shape[1]))
        result: Tensor = self.up(F.silu(narrow) + added)
        return result

    def _filter(self, signal: Tensor, basis: Tensor, norm: nn.LayerNorm) -> Tensor:
        there, back = (basis, basis.mT) if self.inverse else (basis.mT, basis)
        f = there @ signal
        f = f + F.silu(self.adapt(norm(f)))
        return back @ f


class PointGSTDelta(Delta):
    """A block with a spectral path beside its MLP."""

    def __init__(self, method: PointGST, interface: ModelInterface, like: Tensor) -> None:
        super().__init__()
        self.path = SpectralPath(interface.embed_dim, method.config, like)
        self._method = (method,)  # a tuple: it owns nothing here

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        halves = as_split(block, "pointgst")
        bases = self._method[0].bases(tokens)
        x = halves.attend(x + pos, tokens)
        added: Tensor = self.path(x, tokens.num_prefix, bases)
        return halves.feed(x) + added


def _read_settings(file: FileFacts) -> dict[str, Any]:
    return {"mode": "paper", "rank": file.shapes["blocks.blocks.0.gft_adapter.down.weight"][0]}


class PointGST(SequenceMethod):
    """Graph spectral tuning: x = x + MLP(LN2 x) + up(h), x after the attention.

    h = SiLU(down x), and on the patch tokens besides U (f + SiLU(adapt(LN f))) with the spectrum
    f = U^T down x of the graph of all patch centres, and the same in groups along a Morton curve, with bases
    of their own.

    Trained: 354,528 numbers for Point-MAE with rank 36; 622,831 with class token and head of 15 classes. Not
    mergeable. The base at the start. It does not depend on batch mates, except in paper mode without stored
    bases.

    Mended (mode corrected): the released scale of the weights is the smallest non-zero entry of the distances
    of the whole batch, rounding noise included, so that the published basis is noise; here it is the smallest
    true distance of each graph. Eigenvectors have fixed signs, and the spectrum is U^T x where the release
    has U x. Paper mode keeps all three; its bases depend on the machine, so stored ones can be given:
    `method.provide(basis=, local_basis=, order=)`.

    Source: Liang et al., Parameter-Efficient Fine-Tuning in Spectral Domain for Point Cloud Learning, 2024,
    as released.
    """

    config_type: ClassVar[type[AdapterConfig]] = PointGSTConfig
    config: PointGSTConfig
    inputs: ClassVar[Mapping[str, str]] = {
        "basis": "(B, G, G) eigenvectors of the graph of all patches",
        "local_basis": "(B, G / local, local, local) those of the groups, in the order of `order`",
        "order": "(B, G) int64, patches along the curve",
    }
    released_files = MethodFiles("PointGST", r"\.gft_adapter\.", _read_settings)
    official_keys: KeyMap = KeyMap(
        tuple(
            Rule(f"blocks.blocks.*.gft_adapter.{official}.", f"layers.blocks.*.path.{ours}.")
            for official, ours in (
                ("norm_ly1", "norm_global"),
                ("norm_ly2", "norm_local"),
                ("down", "down"),
                ("up", "up"),
                ("adapt1", "adapt"),
            )
        )
    )

    def bases(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return global basis, local bases and order: what was provided, or computed once a cloud."""
        if "pointgst" not in tokens.memo:
            tokens.memo["pointgst"] = self._make_bases(tokens.center.detach())
        found: tuple[Tensor, Tensor, Tensor] = tokens.memo["pointgst"]
        return found

    @torch.no_grad()
    def _make_bases(self, center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config, (b, g, _) = self.config, center.shape
        if g % config.local:
            raise UserValueError(
                f"local={config.local} does not divide the {g} patches of a cloud; set a divisor of {g}."
            )
        given = {name: self.provided(name, center) for name in self.inputs}
        blocks = (b, g // config.local, config.local, config.local)
        shapes = {"basis": (b, g, g), "local_basis": blocks, "order": (b, g)}
        for name, value in given.items():
            if value is not None and tuple(value.shape) != shapes[name]:
                raise UserValueError(
                    f"{name} was provided with shape {tuple(value.shape)}, but these clouds need "
                    f"{shapes[name]}; provide it for this batch, or call clear_provided()."
                )
        order, whole, local = given["order"], given["basis"], given["local_basis"]
        if order is None:
            order = morton_order(center)
        if whole is None:
            whole = spectral_basis(center, config.mode)
        if local is None:
            sorted_center = center.gather(1, order[..., None].expand_as(center))
            local = spectral_basis(sorted_center.view(b, -1, config.local, 3), config.mode)
        return whole, local, order

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make one path a block."""
        blocks, like = self.chosen(interface), next(model.parameters())
        check_split(model, interface, blocks, "pointgst")
        if interface.num_patches % self.config.local:
            raise UserValueError(
                f"local={self.config.local} does not divide the {interface.num_patches} patches of a cloud; "
                f"set a divisor of {interface.num_patches}."
            )
        return {interface.blocks[index]: PointGSTDelta(self, interface, like) for index in blocks}
