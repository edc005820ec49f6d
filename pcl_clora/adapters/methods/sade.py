"""SADE, sample-agnostic diversity enhancement: exact, from small Gram matrices, never a d x d matrix."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from pcl_clora.config import Config

Form = Literal["output", "input", "inner"]


class SadeConfig(Config):
    """Settings of the diversity term; what the paper leaves open is our choice (C)."""

    weight: NonNegativeFloat = 0.01  # alpha of task loss + alpha * SADE; searched in the paper
    form: Form = "output"  # which similarity, see `pair_similarities` (C)
    normalized: bool = False  # divide by the norms: cannot be lowered by shrinking (C)
    pairs: Literal["mean", "sum"] = "mean"  # over the pairs h < k of a module (C)
    modules: Literal["mean", "sum"] = "mean"  # over modules (C)
    eps: PositiveFloat = 1e-12  # keeps the normalized forms finite at zero (C)


def pair_similarities(
    down: Tensor, up: Tensor, cores: Tensor, form: Form, *, normalized: bool = False, eps: float = 1e-12
) -> Tensor:
    """Compute how similar the matrices M_h = D_h Q_h U_h of each module are, for all pairs h < k.

    "output" is ||M_h^T M_k||_F^2, "input" is ||M_h M_k^T||_F^2, "inner" is <M_h, M_k>_F^2; normalized, each
    is divided by ||M_h||_F^2 ||M_k||_F^2 + eps. With the Grams D^T D and U U^T, which all modules share, the
    largest matrix is E r x E r; value and gradient are those of the direct form, which forms d x d matrices
    for every pair. The gradient of the plain forms is exactly zero at Q = 0, and they grow with the fourth
    power of Q.

    Args:
        down: D, (d, E, r).
        up: U, (E, r, d).
        cores: Q of the modules that use these spaces, (m, E, r, r).
        form: which similarity.
        normalized: divide by the norms.
        eps: added to the divisor.

    Returns:
        (m, E (E - 1) / 2), pairs in the order (0, 1), (0, 2), ...

    Source: arXiv 2512.24603 for a Frobenius term on the weights of one module's spaces (K); its exact form is
    not known, "output" is our reading; the evaluation by Grams is derived (D).
    """
    count, rank = up.shape[0], up.shape[1]
    first, second = torch.triu_indices(count, count, 1, device=cores.device)
    gram_down = _blocks(down.flatten(1).t() @ down.flatten(1), count, rank)  # [h, k] = D_h^T D_k
    gram_up = _blocks(up.flatten(0, 1) @ up.flatten(0, 1).t(), count, rank)  # [h, k] = U_h U_k^T
    q_h, q_k = cores[:, first], cores[:, second]
    if form == "output":
        inner = q_h.mT @ gram_down[first, second] @ q_k
        values = _quadratic(inner, gram_up[first, first], gram_up[second, second])
    elif form == "input":
        inner = q_h @ gram_up[first, second] @ q_k.mT
        values = _quadratic(inner, gram_down[first, first], gram_down[second, second])
    else:
        inner = q_h.mT @ gram_down[first, second] @ q_k
        values = (inner * gram_up[first, second]).sum((-2, -1)).square()
    if normalized:
        every = torch.arange(count, device=cores.device)
        norms = ((cores.mT @ gram_down[every, every] @ cores) * gram_up[every, every]).sum((-2, -1))
        values = values / (norms[:, first] * norms[:, second] + eps)
    return values


def _blocks(gram: Tensor, count: int, rank: int) -> Tensor:
    """(E r, E r) -> (E, E, r, r), block [h, k]."""
    return gram.view(count, rank, count, rank).transpose(1, 2)


def _quadratic(inner: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return tr(S^T L S R) for symmetric L and R."""
    return (inner * (left @ inner @ right)).sum((-2, -1))
