"""A prediction sees what the evaluation saw, on real data in every layout that is at hand."""

import numpy as np
import pytest

from pcl_clora.config import build, merge
from pcl_clora.data import parse_data_config
from pcl_clora.data.part_taxonomy import PartDataset
from pcl_clora.data.registry import build_dataset
from pcl_clora.engine import RunConfig, Trainer
from pcl_clora.predict import Predictor
from tests.predict.test_predict_as_evaluated import CLOSE, evaluated, predicted
from tests.support.cli_cases import TINY
from tests.support.rule_runs import PARTS

SETS = {
    "modelnet40_ply_hdf5_1024": {"name": "modelnet40_hdf5", "num_points": 512, "shots": 1},
    "infomr_shapedb_hdf5_1024": {"name": "modelnet40_hdf5", "num_points": 256, "allow_empty_classes": True},
    "modelnet40_normal_resampled": {
        "name": "modelnet40_txt", "cache": "none", "num_points": 256, "allow_empty_classes": True,
    },
    "modelnet40_normal_resampled_full10k": {"name": "folder", "num_points": 256},
    "lidar_dales500_scanobjectnn_layout": {"name": "scanobjectnn", "variant": "obj_only", "num_points": 512},
    "lidar_lsood_scanobjectnn_layout": {"name": "scanobjectnn", "variant": "obj_only", "num_points": 256},
    "partseg_coseg_hdf5": {"name": "shapenetpart_hdf5", "num_points": 256},
    "partseg_labeled_psb_hdf5": {"name": "shapenetpart_hdf5", "num_points": 512},
    "shapenetcore_partanno_segmentation_benchmark_v0_normal": {
        "name": "shapenetpart_txt", "allow_empty_classes": True, "num_points": 256,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("folder", SETS)
def test_a_real_cloud_gets_the_probabilities_that_the_evaluation_computed(shared, tmp_path, folder):
    data = {**SETS[folder], "root": str(shared / "data" / folder)}
    train = build_dataset(parse_data_config(data), "train")
    model = {"num_classes": len(train.class_names)}
    if isinstance(train, PartDataset):
        model = {**PARTS, "num_parts": train.taxonomy.num_parts, "num_categories": len(train.class_names)}
    values = merge(
        {**TINY, "data": data},
        {
            "model": model,
            "optim": {"epochs": 1, "batch_size": min(64, len(train))},
            "output": str(tmp_path / "runs"),
        },
    )
    predictor = Predictor(Trainer(build(RunConfig, values), run_dir=tmp_path / "run").fit().run_dir)
    expected, dataset = evaluated(predictor), predictor.dataset()

    found = [predicted(predictor, dataset[index]) for index in range(min(len(dataset), 4))]

    np.testing.assert_allclose(found, expected[: len(found)], atol=CLOSE, rtol=0)
