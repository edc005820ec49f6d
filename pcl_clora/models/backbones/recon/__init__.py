"""ReCon, in both senses."""

from __future__ import annotations

from typing import Any

from pcl_clora.models.backbones.recon.network import ReCon, ReConConfig, ReConPlain, ReConPlainConfig
from pcl_clora.models.backbones.recon.pretraining import ReConPretraining
from pcl_clora.models.backbones.recon.segmentation import ReConPlainSegmenter, ReConSegmenter
from pcl_clora.models.entry import BackboneEntry, FileFacts, OfficialFiles
from pcl_clora.models.key_map import LeftOut
from pcl_clora.models.layers import family_keys

_BRANCH = "contrast branch of ReCon, which this model does not have"


def _are(file: FileFacts) -> bool:
    return file.has("blocks.blocks.0.norm1_contrast.weight")


def _read_sizes(file: FileFacts) -> dict[str, Any]:
    image, text = file.width("img_proj.weight"), file.width("text_proj.weight")
    section = family_keys.pretraining_sizes(file, image_dim=(image, 768), text_dim=(text, 512))
    return family_keys.read_sizes(file) | section


ENTRIES = (
    BackboneEntry(
        "recon",
        "ReCon with its contrast branch",
        ReConConfig,
        {"classification": ReCon, "part_segmentation": ReConSegmenter, "pretraining": ReConPretraining},
        files=OfficialFiles(
            are=_are,
            task=family_keys.read_task,
            sizes=_read_sizes,
            rather_than=("point_mae",),
            wrappers=family_keys.MASKED_AUTOENCODER,
            beside=family_keys.BESIDE_ENCODER,
            left_out=(
                (r"^(img|text)_encoder\.", LeftOut("pretraining", "frozen teacher of pre-training")),
                (
                    r"^(img|text)_proj(\.|$)",
                    LeftOut("pretraining", "projection to the teacher's features, used in pre-training only"),
                ),
                (r"_contrast\.", LeftOut("branch", _BRANCH)),
                (r"^(img|text)_(token|pos)$", LeftOut("token", _BRANCH)),
                *family_keys.DECODER_LEFT_OUT,
            ),
            trained_with=family_keys.TRAINED_WITH,
        ),
    ),
    BackboneEntry(
        "recon_plain",
        "the plain transformer of ReCon",
        ReConPlainConfig,
        {"classification": ReConPlain, "part_segmentation": ReConPlainSegmenter},
        same_network="point_mae",
        also_takes=("recon",),
    ),
)
