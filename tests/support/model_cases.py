"""Golden files of official models, and how tests compare a backbone with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pcl_clora.models import create_model, load_weights
from pcl_clora.models.weights.load import native_name

LOGIT_TOLERANCE = 2e-5  # the golden files' own: float32 sums in another order
SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_groups": 16, "group_size": 8}
TINY = {**SIZES, "encoder_widths": (16, 32, 64), "head_width": 32}  # where no golden file sets the sizes


def weights_of(archive, prefix="w:"):
    """The weights of a golden file by official name."""
    return {k[2:]: torch.from_numpy(archive[k]).float() for k in archive.files if k.startswith(prefix)}


def golden_model(name, archive, **settings):
    """A backbone with the weights of a golden file, every one of them used."""
    model = create_model(name, num_classes=15, **SIZES, **settings)
    report = load_weights(model, weights_of(archive))
    assert not report.missing
    assert not report.unexpected
    return model.eval()


def assert_logits_match(model, archive):
    logits = model(torch.from_numpy(archive["points"]))
    np.testing.assert_allclose(logits.detach(), archive["output"], atol=LOGIT_TOLERANCE)


def assert_tokens_match(model, archive):
    """Compare centres, patches, patch embeddings and the first normalised outputs."""
    points = torch.from_numpy(archive["points"])
    groups = model.group(points)
    tokens = model.embed_groups(groups.neighborhood, groups.center)
    norms = groups.neighborhood.norm(dim=-1).sort(dim=-1).values
    np.testing.assert_array_equal(groups.center, archive["center"])
    np.testing.assert_allclose(norms, archive["neighborhood_sorted_norm"], atol=1e-6)
    np.testing.assert_allclose(
        tokens.x[:, tokens.num_prefix :].detach(), archive["tokens"], atol=LOGIT_TOLERANCE
    )
    features = model.encode(tokens).detach()
    np.testing.assert_allclose(features[:, :4], archive["norm_out_first"], atol=5e-5)  # unit-scale values


def assert_gradients_match(model, archive):
    """Compare the loss and the norm of every parameter's gradient."""
    loss = F.cross_entropy(model(torch.from_numpy(archive["points"])), torch.from_numpy(archive["target"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(archive["loss"]), abs=2e-5)
    names = [native_name(str(name), model) for name in archive["grad_names"]]
    params = dict(model.named_parameters())
    ours = np.array([params[name].grad.norm().item() for name in names])
    assert set(names) == set(params)
    np.testing.assert_allclose(ours, archive["grad_l2"], rtol=2e-3, atol=2e-5)  # norms of float32 sums


def assert_checkpoint_gives(name, checkpoint: Path, archive, rest: tuple[str, ...] = (), **settings):
    """Load an official file, fill what it does not hold from the golden file, and compare the logits."""
    model = create_model(name, num_classes=15, **SIZES, **settings).eval()
    report = load_weights(model, checkpoint)
    filled = {key: value for key, value in weights_of(archive).items() if key.startswith(rest)}
    load_weights(model, filled, allow_partial=True)
    assert_logits_match(model, archive)
    return report


def meta_model(name, **settings) -> nn.Module:
    """A backbone of full size that takes no memory."""
    with torch.device("meta"):
        return create_model(name, **settings)


def count(model: nn.Module) -> tuple[int, int]:
    """Parameters, and tensors of the state dict."""
    return sum(p.numel() for p in model.parameters()), len(model.state_dict())
