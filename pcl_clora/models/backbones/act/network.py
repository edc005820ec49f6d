"""ACT: a transformer of Point-MAE's architecture, pre-trained on the features of a frozen 3D autoencoder."""

from __future__ import annotations

from typing import Literal

from pcl_clora.models.backbones.point_mae.network import PointMAE
from pcl_clora.models.config import TransformerConfig


class ACTConfig(TransformerConfig):
    """Settings of ACT; the defaults are the published network at 2,048 points."""

    name: Literal["act"] = "act"


class ACT(PointMAE):
    """ACT for classification. Its files hold the class token and its position besides what Point-MAE's hold.

    Pre-training needs the autoencoder that was tuned from an image transformer, which no file of the family
    holds, so there is no pre-training form; the parts of a file that only it uses (`lm_head`, `cls_head`)
    are left out on loading.

    Source: Dong et al., Autoencoders as Cross-Modal Teachers, ICLR 2023.
    """
