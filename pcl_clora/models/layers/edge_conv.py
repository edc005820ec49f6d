"""Graph convolution over patches and points: what Point-BERT's tokenizer is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.models.layers import product
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.published import Rewritten


class EdgeConv(Rewritten, nn.Module):
    """A linear layer over the edges from every patch to its neighbours, normalised, and their maximum.

    An edge is [neighbour - self, self]. The linear layer is split into its two halves, so that it runs once a
    patch and not once an edge: an exact rewrite. `published_form` runs it on edges.

    Args:
        in_features: width C of a patch.
        out_features: width of the result, a multiple of `num_norm_groups`.
        num_norm_groups: groups of the GroupNorm, whose statistics go over all edges of a cloud.
        slope: of the LeakyReLU.

    Source: Wang et al., Dynamic Graph CNN, TOG 2019, in the form of Yu et al., Point-BERT, CVPR 2022.
    """

    def __init__(
        self, in_features: int, out_features: int, *, num_norm_groups: int = 4, slope: float = 0.2
    ) -> None:
        super().__init__()
        self.linear = Linear(2 * in_features, out_features, bias=False)
        self.norm = nn.GroupNorm(num_norm_groups, out_features)
        self.slope = slope

    def forward(self, queries: Tensor, sources: Tensor, idx: Tensor) -> Tensor:
        """Gather from neighbours.

        Args:
            queries: (B, Q, C).
            sources: (B, S, C), among which the neighbours are; queries themselves or others.
            idx: (B, Q, K), int64, the neighbours of every query in sources.

        Returns:
            (B, Q, C_out).
        """
        b, q, k = idx.shape
        batch = torch.arange(b, device=idx.device)[:, None, None]
        if self.published:
            own = queries[:, :, None].expand(-1, -1, k, -1)
            edges = self.linear(torch.cat([sources[batch, idx] - own, own], dim=3))
        else:
            of_difference, of_self = torch.split(self.linear.weight, queries.shape[2], dim=1)
            edges = product.linear(sources, of_difference)[batch, idx]
            edges = edges + product.linear(queries, of_self - of_difference)[:, :, None]
        edges = self.norm(edges.view(b, q * k, -1).transpose(1, 2))
        edges = torch.unflatten(F.leaky_relu(edges, self.slope), 2, (q, k))
        return edges.amax(dim=3).transpose(1, 2)
