"""PCP-MAE."""

from __future__ import annotations

from typing import Any

from pcl_clora.models.backbones.pcp_mae.network import PCPMAE, PCPMAEConfig
from pcl_clora.models.backbones.pcp_mae.pretraining import PCPMAEPretraining
from pcl_clora.models.backbones.pcp_mae.segmentation import PCPMAESegmenter
from pcl_clora.models.entry import BackboneEntry, FileFacts, OfficialFiles
from pcl_clora.models.layers import family_keys


def _are(file: FileFacts) -> bool:
    """Positions are made from more than three numbers."""
    return family_keys.is_patch_transformer(file) and not family_keys.has_coordinate_positions(file)


def _read_sizes(file: FileFacts) -> dict[str, Any]:
    return family_keys.read_sizes(file) | family_keys.pretraining_sizes(file)


ENTRIES = (
    BackboneEntry(
        "pcp_mae",
        "PCP-MAE",
        PCPMAEConfig,
        {
            "classification": PCPMAE,
            "part_segmentation": PCPMAESegmenter,
            "pretraining": PCPMAEPretraining,
        },
        files=OfficialFiles(
            are=_are,
            task=family_keys.read_task,
            sizes=_read_sizes,
            wrappers=family_keys.MASKED_AUTOENCODER,
            beside=family_keys.BESIDE_ENCODER,
            left_out=(
                *family_keys.DECODER_LEFT_OUT,
                (r"^pred_pos_proj\.|^mask_pos_token$", family_keys.PRETRAINING_ONLY),
            ),
            trained_with=family_keys.TRAINED_WITH,
        ),
    ),
)
