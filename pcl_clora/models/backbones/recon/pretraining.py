"""ReCon's pre-training form: rebuild hidden patches, and bring two tokens near image and text features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.models.backbones.recon.keys import PRETRAINING_KEYS, TOKEN_NAMES
from pcl_clora.models.backbones.recon.network import ContrastBlock, ReCon, ReConConfig
from pcl_clora.models.layers.masked_autoencoder import MaskedAutoencoder, PretrainingOutput, add_terms
from pcl_clora.models.layers.product import Linear


class ReConPretraining(MaskedAutoencoder, ReCon):
    """ReCon's pre-training form: the generative branch, and projections of the image and the text token.

    The teachers (an image transformer and a text transformer, both frozen) are not part of it and not of the
    published files either: their features are given, computed once for a data set. Without them only the
    patches are rebuilt, and the contrast branch learns nothing.

    Args:
        config: sizes of the network; the section `pretraining` says how much is hidden, and the decoder.

    Source: Qi et al., Contrast with Reconstruct, ICML 2023, section 3; loss, projections and the cut gradient
        from the tokens to the patches as released. Its optional term that compares clouds of a batch with
        one another is off in the published recipes and not offered.
    """

    official_keys = PRETRAINING_KEYS
    keeps_prefix = True
    config: ReConConfig

    def __init__(self, config: ReConConfig) -> None:
        super().__init__(config)
        settings = config.pretraining
        self.img_proj = Linear(config.embed_dim, settings.image_dim)
        self.text_proj = Linear(config.embed_dim, settings.text_dim)
        for layer in (self.img_proj, self.text_proj):
            nn.init.normal_(layer.weight, 0.02, 0.01)
            nn.init.zeros_(layer.bias)

    def make_block(self, drop_path: float) -> nn.Module:
        """Build one block; the tokens send no gradient into the patches."""
        config = self.config
        return ContrastBlock(config.embed_dim, config.num_heads, config.mlp_ratio, drop_path, detach=True)

    def forward(  # type: ignore[override]
        self,
        points: Tensor,
        generator: torch.Generator | None = None,
        *,
        image: Tensor | None = None,
        text: Tensor | None = None,
    ) -> PretrainingOutput:
        """Hide patches, rebuild them, and compare the tokens with the teachers' features.

        Args:
            points: (B, N, 3), float32, centred and scaled to the unit sphere, N >= num_groups.
            generator: CPU generator that draws the masks; None draws from the global one, as dropout does.
            image: (B, image_dim) features of a picture of each cloud; None leaves the term out.
            text: (B, text_dim) features of a description of each cloud; None leaves the term out.

        Returns:
            The loss with everything it was computed from; terms "image" and "text" where features are given.

        Raises:
            ValueError: if the points or the features have another shape.
        """
        groups = self.group(points)
        mask = self.draw_mask(groups.center, generator)
        return self.reconstruct(groups.neighborhood, groups.center, mask, image=image, text=text)

    def reconstruct(
        self,
        neighborhood: Tensor,
        center: Tensor,
        mask: Tensor,
        *,
        image: Tensor | None = None,
        text: Tensor | None = None,
    ) -> PretrainingOutput:
        """Rebuild given patches as `MaskedAutoencoder.reconstruct`, with features as in `forward`."""
        patches = self.hide(neighborhood, center, mask)
        encoded = self.encode_visible(patches)
        output = self.decode(encoded, patches)
        terms = {}
        teachers = {"image": ("img", self.img_proj, image), "text": ("text", self.text_proj, text)}
        for name, (token, project, features) in teachers.items():
            if features is not None:
                projected = project(encoded[:, TOKEN_NAMES.index(token)])
                if features.shape != projected.shape:
                    raise UserValueError(
                        f"{name} features have shape {tuple(features.shape)}; expected "
                        f"{tuple(projected.shape)}, set pretraining.{name}_dim to their width."
                    )
                terms[name] = F.smooth_l1_loss(projected, features)
        return add_terms(output, terms)

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: the tokens."""
        return {"mask_token", *ReCon.no_weight_decay(self)}
