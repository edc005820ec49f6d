"""Point-MAE, in the published size and in the one that this package has weights for."""

from __future__ import annotations

from typing import Any

from torch import nn

from pcl_clora.models.backbones.point_mae.keys import HUB_TABLES
from pcl_clora.models.backbones.point_mae.network import PointMAE, PointMAEConfig, PointMAETinyConfig
from pcl_clora.models.backbones.point_mae.pretraining import TwoViewAutoencoder
from pcl_clora.models.backbones.point_mae.segmentation import PointMAESegmenter
from pcl_clora.models.config import Task
from pcl_clora.models.entry import BackboneEntry, FileFacts, OfficialFiles
from pcl_clora.models.layers import family_keys

_TASKS: dict[Task, type[nn.Module]] = {
    "classification": PointMAE,
    "part_segmentation": PointMAESegmenter,
    "pretraining": TwoViewAutoencoder,
}


def _read_sizes(file: FileFacts) -> dict[str, Any]:
    return family_keys.read_sizes(file) | family_keys.pretraining_sizes(file)


ENTRIES = (
    BackboneEntry(
        "point_mae",
        "Point-MAE",
        PointMAEConfig,
        _TASKS,
        files=OfficialFiles(
            are=family_keys.has_coordinate_positions,
            task=family_keys.read_task,
            sizes=_read_sizes,
            wrappers=family_keys.MASKED_AUTOENCODER,
            beside=family_keys.BESIDE_ENCODER,
            left_out=(*family_keys.DECODER_LEFT_OUT, (r"^project\.", family_keys.PRETRAINING_ONLY)),
            hub_tables=HUB_TABLES,
            trained_with=family_keys.TRAINED_WITH,
        ),
    ),
    BackboneEntry(
        "point_mae_tiny",
        "Point-MAE, tiny",
        PointMAETinyConfig,
        _TASKS,
        same_network="point_mae",
        is_size=True,
    ),
)
