"""Point-BERT."""

from __future__ import annotations

from typing import Any

from pcl_clora.models.backbones.point_bert.keys import HUB_TABLES
from pcl_clora.models.backbones.point_bert.network import PointBERT, PointBERTConfig
from pcl_clora.models.backbones.point_bert.pretraining import PointBERTPretraining
from pcl_clora.models.backbones.point_bert.segmentation import PointBERTSegmenter
from pcl_clora.models.config import Task
from pcl_clora.models.entry import BackboneEntry, FileFacts, OfficialFiles
from pcl_clora.models.key_map import LeftOut
from pcl_clora.models.layers import family_keys


def _are(file: FileFacts) -> bool:
    """Others of the family have such a layer too where encoder_dim is set; their heads are of more layers."""
    others = file.any(r"^cls_head_finetune\.8\.|^convs3\.")
    return file.has("reduce_dim.weight") and not others


def _read_task(file: FileFacts) -> Task | None:
    if file.any(r"^dgcnn_pro_1\."):
        return "part_segmentation"
    return "pretraining" if file.any(r"^transformer_k\.") else family_keys.read_task(file)


def _read_sizes(file: FileFacts) -> dict[str, Any]:
    sizes = family_keys.read_sizes(file)
    if file.has("dgcnn_pro_1.layer1.0.weight"):
        sizes["num_parts"] = file.width("conv2.weight")
    return sizes


ENTRIES = (
    BackboneEntry(
        "point_bert",
        "Point-BERT",
        PointBERTConfig,
        {
            "classification": PointBERT,
            "part_segmentation": PointBERTSegmenter,
            "pretraining": PointBERTPretraining,
        },
        files=OfficialFiles(
            are=_are,
            task=_read_task,
            sizes=_read_sizes,
            rather_than=("point_mae",),
            wrappers={
                "transformer_q.": "the trained network of Point-BERT, beside its momentum copy transformer_k"
            },
            beside=r"(transformer_k|queue|queue_ptr|dvae)\b",
            left_out=(
                (r"^transformer_k\.", LeftOut("pretraining", "momentum copy of the network")),
                (r"^queue(_ptr)?$", LeftOut("pretraining", "queue of the contrastive loss")),
                (r"^dvae\.", LeftOut("pretraining", "tokenizer (dVAE) of pre-training")),
                (r"^(lm_head|cls_head)\.|^mask_token$", family_keys.PRETRAINING_ONLY),
            ),
            hub_tables=HUB_TABLES,
            trained_with=family_keys.TRAINED_WITH,
        ),
    ),
)
