"""ACT."""

from __future__ import annotations

from pcl_clora.models.backbones.act.network import ACT, ACTConfig
from pcl_clora.models.backbones.act.segmentation import ACTSegmenter
from pcl_clora.models.entry import BackboneEntry, FileFacts, OfficialFiles
from pcl_clora.models.layers import family_keys


def _are(file: FileFacts) -> bool:
    """Point-MAE's keys and shapes, told apart by what stands around them: a prefix, or the head's names."""
    if not family_keys.has_coordinate_positions(file):
        return False
    return "ACT_encoder." in file.wrappers or (file.has("label_conv_cls.0.weight") and not file.method)


ENTRIES = (
    BackboneEntry(
        "act",
        "ACT",
        ACTConfig,
        {"classification": ACT, "part_segmentation": ACTSegmenter},
        files=OfficialFiles(
            are=_are,
            task=family_keys.read_task,
            sizes=family_keys.read_sizes,
            rather_than=("point_mae",),
            wrappers={
                "ACT_encoder.": "encoder of ACT",
                "point_encoder.": "the point network of ACT's own teacher",
            },
            left_out=((r"^(lm_head|cls_head)\.", family_keys.PRETRAINING_ONLY),),
            trained_with=family_keys.TRAINED_WITH,
        ),
        same_network="point_mae",
    ),
)
