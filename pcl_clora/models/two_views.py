"""Masked autoencoding of two views of a cloud: besides rebuilding, the views must find each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.models.config import MaskedConfig, ViewsPretrainingConfig
from pcl_clora.models.pretraining import MaskedAutoencoder, PretrainingOutput, add_terms

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
        ValueError: if there is but one cloud, which is always found.

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
        equation 1 (NT-Xent).
    """
    count = first.shape[0]
    if count < 2:
        raise ValueError("Two views of one cloud have nothing to be told apart from; give at least 2 clouds.")
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

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__(config)
        if self._settings.contrast:
            self.project = nn.Sequential(
                nn.Linear(2 * self.config.embed_dim, HIDDEN),
                nn.BatchNorm1d(HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, WIDTH),
            )
            self.interface = self.describe()

    @property
    def _settings(self) -> ViewsPretrainingConfig:
        settings = self.config.pretraining
        assert isinstance(settings, ViewsPretrainingConfig)
        return settings

    def reconstruct(self, neighborhood: Tensor, center: Tensor, mask: Tensor) -> PretrainingOutput:
        """Rebuild given patches as `MaskedAutoencoder.reconstruct`; in training, compare the views too.

        Raises:
            ValueError: if the mask hides another number of patches, or a batch of two views is of odd size.
        """
        patches = self.hide(neighborhood, center, mask)
        encoded = self.encode_visible(patches)
        output = self.decode(encoded, patches)
        if not (self.training and self._settings.contrast):
            return output
        if len(encoded) % 2:
            raise ValueError(
                f"pretraining.contrast={self._settings.contrast:g} takes two views of every cloud, but the "
                f"batch holds {len(encoded)}; give first one view of each, then the other."
            )
        first, second = self.project(torch.cat([encoded.amax(1), encoded.mean(1)], dim=1)).chunk(2)
        loss = contrast_loss(first, second, self._settings.temperature)
        return add_terms(output, {"contrast": self._settings.contrast * loss})
