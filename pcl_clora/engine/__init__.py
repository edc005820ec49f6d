"""Training and evaluation: one run from settings to result."""

from pcl_clora.engine.config import (
    OptimConfig,
    ProtocolConfig,
    RunConfig,
    TrainConfig,
    WeightsConfig,
    load_run_config,
)
from pcl_clora.engine.evaluate import evaluate
from pcl_clora.engine.evaluate_run import evaluate_run
from pcl_clora.engine.events import read_metrics
from pcl_clora.engine.interrupt import TrainingInterrupted
from pcl_clora.engine.metrics.classification import ClassificationMetrics, ConfusionMatrix
from pcl_clora.engine.metrics.segmentation import SegmentationMeter, SegmentationMetrics
from pcl_clora.engine.optim import build_optimizer, learning_rate
from pcl_clora.engine.randomness import deterministic_mode, seed_everything
from pcl_clora.engine.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pcl_clora.engine.run.folder import RunFolder, environment
from pcl_clora.engine.run.result import RunResult
from pcl_clora.engine.run.snapshot import NonFiniteLossError
from pcl_clora.engine.setup import choose_device, load_run, make_backbone, make_data
from pcl_clora.engine.tasks import ClassificationTask, PartSegmentationTask, Task, headlines, make_task
from pcl_clora.engine.trainer import Trainer

__all__ = [
    "CheckpointError",
    "ClassificationMetrics",
    "ClassificationTask",
    "ConfusionMatrix",
    "NonFiniteLossError",
    "OptimConfig",
    "PartSegmentationTask",
    "ProtocolConfig",
    "RunConfig",
    "RunFolder",
    "RunResult",
    "SegmentationMeter",
    "SegmentationMetrics",
    "Task",
    "TrainConfig",
    "Trainer",
    "TrainingInterrupted",
    "WeightsConfig",
    "build_optimizer",
    "choose_device",
    "deterministic_mode",
    "environment",
    "evaluate",
    "evaluate_run",
    "headlines",
    "learning_rate",
    "load_checkpoint",
    "load_run",
    "load_run_config",
    "make_backbone",
    "make_data",
    "make_task",
    "read_metrics",
    "save_checkpoint",
    "seed_everything",
]
