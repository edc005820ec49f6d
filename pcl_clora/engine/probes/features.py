"""The features of a frozen backbone, and the probe of them on labelled clouds."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from torch import Tensor, nn

from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader, build_dataset, fps_resample
from pcl_clora.engine.config import ProbeConfig
from pcl_clora.engine.modes import autocast, evaluation_mode
from pcl_clora.engine.probes.knn import knn_accuracy
from pcl_clora.engine.probes.svm import svm_accuracy
from pcl_clora.engine.randomness import make_generator
from pcl_clora.models.layers.transformer import pool_max_mean

BATCH_SIZE = 64


def extract_features(
    model: nn.Module, loader: PointLoader, num_points: int, *, amp: bool = False
) -> tuple[Tensor, Tensor]:
    """Describe clouds by the patch tokens of a frozen backbone: their maximum beside their mean.

    Tokens before the patches (class token) are left out: masked autoencoders do not train them.

    Args:
        model: a backbone of `create_model`, of any task; put into evaluation mode, and back as it was.
        loader: which clouds.
        num_points: points that the model gets, thinned by farthest point sampling.
        amp: bfloat16 where it is safe.

    Returns:
        Features (n, 2 D), float32, and labels (n,), int64, on the CPU, in the order of the loader.

    Source: maximum and mean pooling follow the linear evaluation of the masked autoencoders of the family.
    """
    network = cast(Any, model)
    device = next(model.parameters()).device
    features, labels = [], []
    with evaluation_mode(model), torch.inference_mode(), autocast(device, amp):
        for batch in loader.batches(0):
            tokens = network.tokenize(fps_resample(batch.points.to(device), num_points))
            patches = network.encode(tokens)[:, tokens.num_prefix :]
            features.append(pool_max_mean(patches).float().cpu())
            labels.append(batch.label.cpu())
    return torch.cat(features).clone(), torch.cat(labels).clone()


class FeatureProbe:
    """Nearest-neighbour and linear-SVM accuracy of the features on labelled clouds.

    The clouds are the same in every epoch and for every seed of a run, so that curves can be compared.
    Nothing is drawn from the global generators.

    Args:
        config: which clouds, and how often.
        amp: features in bfloat16 where it is safe, as the run is computed.

    Raises:
        ConfigError: if the data set has fewer clouds than asked for.
        DataError: if files are at fault.
    """

    def __init__(self, config: ProbeConfig, *, amp: bool = False) -> None:
        self.config, self._amp = config, amp
        self._train = self._loader("train", config.num_train)
        self._test = self._loader("test", config.num_test)

    @property
    def sizes(self) -> dict[str, int]:
        """How many clouds are known ("num_train") and classified ("num_test")."""
        return {"num_train": len(self._train.indices), "num_test": len(self._test.indices)}

    def due(self, epoch: int, epochs: int) -> bool:
        """Tell whether to probe after an epoch (0-based): every so many, and after the last."""
        return (epoch + 1) % self.config.every_epochs == 0 or epoch + 1 == epochs

    def run(self, model: nn.Module) -> dict[str, Any]:
        """Probe a backbone, which stays as it is.

        Args:
            model: a network of `create_model`, without adapter, in evaluation mode.

        Returns:
            "knn_acc" and, if asked for, "svm_acc", both in [0, 1]; "seconds".
        """
        began, num_points = time.monotonic(), self.config.data.num_points
        train = extract_features(model, self._train, num_points, amp=self._amp)
        test = extract_features(model, self._test, num_points, amp=self._amp)
        found = {"knn_acc": knn_accuracy(train, test)}
        if self.config.svm:
            found["svm_acc"] = svm_accuracy(train, test)
        return {**found, "seconds": round(time.monotonic() - began, 3)}

    def _loader(self, split: str, count: int) -> PointLoader:
        dataset = build_dataset(self.config.data, split)
        if count > len(dataset):
            raise ConfigError(
                f"probe.num_{split}={count}, but the {split} split of {self.config.data.name} has "
                f"{len(dataset)} clouds; set it to that or less, or to 0 for all."
            )
        order = torch.randperm(len(dataset), generator=make_generator("probe", split))
        indices = order[: count or len(dataset)].sort().values
        return PointLoader(dataset, BATCH_SIZE, indices=indices)
