"""Clouds: readers of the official layouts, procedural shapes, transforms, batches in a resumable order."""

from pcl_clora.data import builtin_sets as builtin_sets  # registers the data sets
from pcl_clora.data.checks import (
    Finding,
    RootInfo,
    check_classes,
    check_data,
    check_headers,
    check_manifest,
    check_root,
    count_classes,
    describe_root,
)
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import (
    ArrayDataset,
    Batch,
    PointDataset,
    Sample,
    split_validation,
    stack_samples,
)
from pcl_clora.data.folds import FewshotConfig
from pcl_clora.data.generated.procedural import (
    PROCEDURAL_CLASSES,
    PROCEDURAL_PARTS,
    ProceduralConfig,
    generate_shape,
)
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.loader import PointLoader
from pcl_clora.data.part_taxonomy import SHAPENETPART, PartDataset, PartTaxonomy, read_taxonomy
from pcl_clora.data.readers.modelnet import MODELNET40_CLASSES
from pcl_clora.data.readers.modelnet_fewshot import ModelNetFewshotConfig
from pcl_clora.data.registry import (
    build_dataset,
    build_validation,
    list_datasets,
    parse_data_config,
    register_dataset,
)
from pcl_clora.data.transforms import (
    AUGMENTATIONS,
    fps_index,
    fps_resample,
    isotropic,
    make_augment,
    normalize_unit_sphere,
    resample,
    resample_index,
    rotate_so3,
    rotate_y,
    scale_shift,
    take_points,
)

__all__ = [
    "AUGMENTATIONS",
    "MODELNET40_CLASSES",
    "PROCEDURAL_CLASSES",
    "PROCEDURAL_PARTS",
    "SHAPENETPART",
    "ArrayDataset",
    "Batch",
    "DataConfig",
    "FewshotConfig",
    "Finding",
    "InputRule",
    "ModelNetFewshotConfig",
    "PartDataset",
    "PartTaxonomy",
    "PointDataset",
    "PointLoader",
    "ProceduralConfig",
    "RootInfo",
    "Sample",
    "build_dataset",
    "build_validation",
    "check_classes",
    "check_data",
    "check_headers",
    "check_manifest",
    "check_root",
    "count_classes",
    "describe_root",
    "fps_index",
    "fps_resample",
    "generate_shape",
    "isotropic",
    "list_datasets",
    "make_augment",
    "normalize_unit_sphere",
    "parse_data_config",
    "read_taxonomy",
    "register_dataset",
    "resample",
    "resample_index",
    "rotate_so3",
    "rotate_y",
    "scale_shift",
    "split_validation",
    "stack_samples",
    "take_points",
]
