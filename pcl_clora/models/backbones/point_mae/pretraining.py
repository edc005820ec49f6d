"""Masked autoencoding of two views of a cloud: besides rebuilding, the views must find each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.models.backbones.point_mae.network import PointMAEConfig, PointMAETinyConfig
from pcl_clora.models.layers.masked_autoencoder import MaskedAutoencoder, PretrainingOutput, add_terms
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.layers.transformer import pool_max_mean

HIDDEN, WIDTH = 256, 128  # of the projection that is compared; our choice


def contrast_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cross entropy of finding the other view of a cloud among all other views of a batch, by cosine.

    Args:
        first: (B, C), one view of every cloud.
        second: (B, C), the other.
        temperature: divides the cosines.

    Returns:
        (), float32: the mean over all 2 B views.

    Raises:
        ValueError: if the shapes differ, or there is but one cloud, which is always found.

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
        equation 1 (NT-Xent).
    """
    count = first.shape[0]
    if first.shape != second.shape:
        raise UserValueError(
            f"The views have shapes {tuple(first.shape)} and {tuple(second.shape)}; give equal ones."
        )
    if count < 2:
        raise UserValueError(
            "Two views of one cloud have nothing to be told apart from; give at least 2 clouds."
        )
    with torch.autocast(first.device.type, enabled=False):
        features = F.normalize(torch.cat([first, second]).float(), dim=1)
        alike = features @ features.T / temperature
        itself = torch.eye(2 * count, dtype=torch.bool, device=alike.device)
        other = torch.arange(2 * count, device=alike.device).roll(count)
        return F.cross_entropy(alike.masked_fill(itself, -torch.inf), other)


class TwoViewAutoencoder(MaskedAutoencoder):
    """Point-MAE's pre-training form, which can also compare two views of every cloud.

    With `pretraining.contrast` a training batch holds two views of every cloud: first one of each, then the
    other, in the same order; points, augmentation and mask differ. What is compared is the maximum and the
    mean of the visible patches' features behind a small MLP, which is dropped afterwards. In evaluation mode
    batches are ordinary ones and the loss is that of rebuilding alone. Without it (0, the default) this is
    `MaskedAutoencoder`, with the same tensors.

    Args:
        config: sizes of the network; the section `pretraining` says how much is hidden, and the decoder.

    Source: rebuilding as in Point-MAE; the comparison is SimCLR's. Putting both together is our choice: a
        run of an hour on a core teaches little by rebuilding alone (docs/pretraining.md).
    """

    config: PointMAEConfig | PointMAETinyConfig

    def __init__(self, config: PointMAEConfig | PointMAETinyConfig) -> None:
        super().__init__(config)
        if config.pretraining.contrast:
            self.project = nn.Sequential(
                Linear(2 * config.embed_dim, HIDDEN),
                nn.BatchNorm1d(HIDDEN),
                nn.ReLU(),
                Linear(HIDDEN, WIDTH),
            )

    def reconstruct(self, neighborhood: Tensor, center: Tensor, mask: Tensor) -> PretrainingOutput:
        """Rebuild given patches as `MaskedAutoencoder.reconstruct`; in training, compare the views too.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre. In training with `contrast` (2 C, G, K, 3):
                first one view of each of C clouds, then the other, in order.
            center: (B, G, 3).
            mask: (B, G) bool, True at `config.num_masked` patches of every cloud.

        Raises:
            ValueError: if the mask hides another number of patches, or the batch is not two views of at
                least two clouds.
        """
        settings = self.config.pretraining
        compared = self.training and settings.contrast > 0
        if compared and (len(mask) % 2 or len(mask) < 4):
            raise UserValueError(
                f"pretraining.contrast={settings.contrast:g} compares two views of every cloud among at "
                f"least two clouds, but the batch holds {len(mask)}; give first one view of each, then the "
                "other."
            )
        patches = self.hide(neighborhood, center, mask)
        encoded = self.encode_visible(patches)
        output = self.decode(encoded, patches)
        if not compared:
            return output
        first, second = self.project(pool_max_mean(encoded)).chunk(2)
        loss = settings.contrast * contrast_loss(first, second, settings.temperature)
        return add_terms(output, {"contrast": loss})
