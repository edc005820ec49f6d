"""How unlike its training clouds a cloud is: published scores, calibrated on clouds that were held out."""

from pcl_clora.engine.novelty.calibration import (
    NoveltyScale,
    calibrate,
    calibrate_run,
    load_novelty,
    novelty_file,
)
from pcl_clora.engine.novelty.scores import SCORES, auroc

__all__ = ["SCORES", "NoveltyScale", "auroc", "calibrate", "calibrate_run", "load_novelty", "novelty_file"]
