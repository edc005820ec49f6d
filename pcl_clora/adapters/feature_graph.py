"""Graph convolution over tokens that are near one another in feature space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.models.published import Rewritten


class FeatureEdgeConv(Rewritten, nn.Module):
    """A linear layer over the edges to the nearest tokens in feature space, BatchNorm, and their maximum.

    An edge is [neighbour - self, self]; the layer runs once a token and not once an edge, an exact rewrite.
    `published_form` runs it on edges, and finds the nearest as the release did.

    Args:
        in_features: C.
        out_features: width of the result.
        neighbors: k, the token itself included.
        by_product: whether the release finds the nearest by |a|^2 - 2 a b + |b|^2, which is one more product.

    Source: Wang et al., Dynamic Graph CNN, TOG 2019.
    """

    def __init__(
        self, in_features: int, out_features: int, neighbors: int, *, by_product: bool = False
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features)
        self.neighbors, self.by_product = neighbors, by_product

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C_out)."""
        b, t, c = x.shape
        if self.neighbors > t:
            raise UserValueError(f"neighbors={self.neighbors} is more than there are tokens ({t}); lower it.")
        with torch.no_grad():
            idx = self._distance(x).topk(self.neighbors, dim=-1, largest=False).indices
        first = torch.arange(b, device=x.device)[:, None, None] * t
        rows = (idx + first).flatten()
        if self.published:
            near = x.flatten(0, 1).index_select(0, rows).view(b, t, self.neighbors, c)
            edges = self.linear(torch.cat([near - x[:, :, None], x[:, :, None].expand_as(near)], dim=-1))
        else:
            of_difference, of_self = torch.split(self.linear.weight, c, dim=1)
            near = (x @ of_difference.t()).flatten(0, 1).index_select(0, rows)
            own = (x @ (of_self - of_difference).t())[:, :, None]
            edges = near.view(b, t, self.neighbors, -1) + own
        edges = F.leaky_relu(self.norm(edges.flatten(0, 2)), 0.2).view_as(edges)
        return edges.amax(dim=2)

    def _distance(self, x: Tensor) -> Tensor:
        if self.published and self.by_product:
            square = x.square().sum(dim=-1)
            return square[:, :, None] - 2 * x @ x.mT + square[:, None]
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
