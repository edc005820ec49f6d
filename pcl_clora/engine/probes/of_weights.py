"""Probe the features of any weights: what they are worth before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pcl_clora.config import ConfigError, config_hash
from pcl_clora.engine.config import ProbeConfig, RunConfig
from pcl_clora.engine.metrics.spread import mean_and_deviation
from pcl_clora.engine.numerics import numerics_of_settings
from pcl_clora.engine.probes.features import FeatureProbe
from pcl_clora.engine.probes.knn import NEIGHBORS, TEMPERATURE
from pcl_clora.engine.probes.svm import SVM_COST, require_svm
from pcl_clora.engine.randomness import seeded_apart
from pcl_clora.engine.run.folder import environment
from pcl_clora.engine.run.result import describe_data
from pcl_clora.engine.setup import choose_device, make_backbone
from pcl_clora.models.builtin import BUILTIN, builtin_card
from pcl_clora.models.layers.product import use_route

PROTOCOL = (
    f"Frozen features: maximum and mean of the patch tokens. k-NN: {NEIGHBORS} nearest training clouds by "
    f"cosine of centred features, votes weighted exp(cosine / {TEMPERATURE}). SVM: linear, C = {SVM_COST}, "
    "one class against the rest, standardised features. No augmentation; the test clouds choose nothing."
)


def probe_weights(cfg: RunConfig, seeds: Sequence[int] | None = None, *, svm: bool = True) -> dict[str, Any]:
    """Probe the backbone that a run of these settings would start from.

    All training clouds of `cfg.data` (those of `data.shots` only, if set) are known with their labels, all
    test clouds are classified. The sections adapter, optim and augment have no meaning here.

    Args:
        cfg: settings of a run: model, weights, data, train.device.
        seeds: seeds of whatever the weights leave random, one probe each; by default that of the settings.
            Weights of a pre-training leave the class token random, to which the patches attend.
        svm: also a linear SVM, which needs scikit-learn.

    Returns:
        "knn_acc" and "svm_acc" in [0, 1], means over the seeds, with "_std" (n - 1) where there are several;
        "per_seed", and what weights, model, data and versions it was.

    Raises:
        ConfigError: if the settings are of parts or of images.
        DataError: if files are at fault.
        ImportError: if svm is asked for and scikit-learn is not installed.
    """
    if cfg.model.task == "part_segmentation" or cfg.data.kind == "images":
        raise ConfigError(
            f"Probes classify whole clouds, but model.task={cfg.model.task}, data.name={cfg.data.name}."
        )
    seeds = (cfg.seed,) if seeds is None else tuple(seeds)
    if svm:
        require_svm()
    device, found = choose_device(cfg.train.device), []
    numerics = numerics_of_settings(cfg, device)
    looked_at = ProbeConfig(data=cfg.data, num_train=0, num_test=0, svm=svm)
    probe = FeatureProbe(looked_at, amp=numerics.bfloat16)
    for seed in seeds:
        with seeded_apart(seed):
            model, _ = make_backbone(cfg)
        with use_route(numerics.product):
            found.append({"seed": seed, **probe.run(model.to(device))})
    env = environment(device)
    return {
        "weights": cfg.weights.path or "random",
        **({"sha256": builtin_card(cfg.model.name)["sha256"]} if cfg.weights.path == BUILTIN else {}),
        "model": cfg.model.name,
        "data": {**describe_data(cfg.data), **probe.sizes, "num_points": cfg.data.num_points},
        "protocol": PROTOCOL,
        **numerics.as_json(),
        **_mean_and_deviation(found),
        "per_seed": found,
        "config_hash": config_hash(cfg),
        "git": env["git"],
        "versions": env["versions"],
    }


def _mean_and_deviation(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    numbers = {}
    for key in ("knn_acc", "svm_acc"):
        values = [each[key] for each in found if key in each]
        if not values:
            continue
        numbers[key], deviation = mean_and_deviation(values)
        if deviation is not None:
            numbers[f"{key}_std"] = deviation
    return numbers
