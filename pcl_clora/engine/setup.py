"""Make the parts of a run from its settings: backbone, adapter and clouds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel, attach_adapter, load_adapter
from pcl_clora.adapters.files import read_header
from pcl_clora.config import ConfigError
from pcl_clora.data import (
    PointDataset,
    PointLoader,
    build_dataset,
    build_validation,
    make_augment,
    split_validation,
)
from pcl_clora.data.input_rule import ThinnedDataset, thin
from pcl_clora.data.subset import require_training_clouds
from pcl_clora.data.transforms import Augment
from pcl_clora.engine.config import RunConfig, differences, flatten, load_run_config
from pcl_clora.engine.continued import Held, start_from
from pcl_clora.engine.ema import WeightAverage
from pcl_clora.engine.optim import build_optimizer, trained_parameters
from pcl_clora.engine.patch_memory import (
    EvaluatedTokens,
    PatchMemory,
    keep_evaluated,
    make_patch_memory,
)
from pcl_clora.engine.probes.features import FeatureProbe
from pcl_clora.engine.randomness import capture_rng_state, restore_rng_state, seeded_apart
from pcl_clora.engine.run.data_identity import data_identity
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.engine.run.rule import warn_other_images
from pcl_clora.engine.run.snapshot import Snapshot
from pcl_clora.engine.run.state import RunState
from pcl_clora.engine.tasks import TASKS, Task, make_task
from pcl_clora.io import explained
from pcl_clora.models import LoadReport, ModelConfig, build_model, load_weights
from pcl_clora.models.registry import parse_model_config
from pcl_clora.models.weights.convert import tensors_of_model
from pcl_clora.models.weights.load import register_run_reader


@dataclass(frozen=True)
class RunData:
    """The clouds of a run.

    Attributes:
        name: of the data set.
        task: what is done with them, with the names of classes or parts.
        train: shuffled, whole batches only.
        validation: the data set's own validation split, or the held-out part of train; None unless the
            protocol selects on it.
        test: in order, nothing dropped.
        num_train: clouds that are trained on.
        num_validation: clouds of validation.
        own_validation: whether validation is a split of the data set itself.
    """

    name: str
    task: Task
    train: PointLoader
    validation: PointLoader | None
    test: PointLoader
    num_train: int
    num_validation: int
    own_validation: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes or categories, in label order."""
        return self.task.class_names

    @property
    def evaluated(self) -> dict[str, PointLoader]:
        """The loaders of evaluations, by split."""
        return {"test": self.test} | ({} if self.validation is None else {"validation": self.validation})

    def split(self, name: str) -> PointLoader:
        """Return the loader that an evaluation on "validation" or "test" uses."""
        if name == "test":
            return self.test
        assert self.validation is not None
        return self.validation


def choose_device(name: str) -> torch.device:
    """Turn train.device into a device.

    Raises:
        ConfigError: if the device is not known or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"train.device={name!r} is not a device; use auto, cpu, cuda or cuda:0.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"train.device={name!r}, but torch sees no GPU; use train.device=cpu or auto.")
    return device


def make_backbone(cfg: RunConfig) -> tuple[nn.Module, LoadReport | None]:
    """Build the backbone and load its weights, if the settings name any.

    `weights.path` is a weights file, the folder of a finished run whose best model is taken, merged, or an
    id of the hub; a head that was made for other classes is left out.

    Returns:
        The model on the CPU, and what was loaded.
    """
    model = build_model(cfg.model)
    if not cfg.weights.path:
        return model, None
    return model, load_weights(model, cfg.weights.path, allow_partial=cfg.weights.allow_partial)


def weights_of_run(folder: Path) -> dict[str, object]:
    """Return the tensors of the best model of a finished run; registered with `load_weights`.

    An adapter is merged; one that does not merge stands beside its backbone. So do its settings, and those
    that the base adopted, or was given.

    Raises:
        ConfigError: if the folder holds no finished run.
    """
    _, model = load_run(folder)
    return tensors_of_model(_deployed(model))


register_run_reader(weights_of_run)


def adapter_on_weights(adapter: Path, weights: str) -> nn.Module:
    """Rebuild what an adapter file makes of the weights that it was trained on.

    Args:
        adapter: the file; it says which network its base is.
        weights: what `load_weights` takes.

    Returns:
        The plain model with the adapter merged; of a method whose code is released the adapted one.

    Raises:
        AdapterFileError: if the file is refused, or the weights are not those of its base.
        WeightsError: if the weights are refused.
    """
    header = read_header(adapter)
    model = build_model(parse_model_config(header.base_model))
    load_weights(model, weights)
    return _deployed(load_adapter(adapter, model))


def _deployed(model: AdaptedModel) -> nn.Module:
    """Merge an adapter, unless it has names of its own in the files of released code."""
    return model if model.released_files is not None else model.merge_and_unload()


def load_run(folder: str | Path) -> tuple[RunConfig, AdaptedModel]:
    """Rebuild the best model of a finished run: the same base, and the adapter file on it.

    What is random in a base is drawn from the run's seed; the caller's generators stay as they are.

    Returns:
        The run's settings, and its model on the CPU in evaluation mode.

    Raises:
        ConfigError: if the folder holds no finished run.
        DataError: if the adapter file is not the one that the run wrote.
    """
    files = RunFolder(Path(folder))
    with explained(folder, "read"):
        for needed in (files.config, files.chosen):
            if not needed.is_file():
                raise ConfigError(f"{folder} is not the folder of a finished run: {needed} is missing.")
    cfg = load_run_config(files.config)
    files.check_chosen()
    with seeded_apart(cfg.seed):
        model, _ = make_backbone(cfg)
        adapted = load_adapter(files.chosen, model)
    adapted.eval()
    return cfg, adapted


def settled(cfg: RunConfig, base: nn.Module) -> RunConfig:
    """Write what a backbone adopted with its weights into the settings of its run."""
    made_from = getattr(base, "config", cfg.model)
    adopted = cfg.model.adopt({name: getattr(made_from, name) for name in cfg.model.adoptable})
    return cfg if adopted == cfg.model else cfg.model_copy(update={"model": adopted})


def kept_rule(config: ModelConfig, identity: Mapping[str, Any]) -> ModelConfig:
    """Take what the settings leave open from the identity of the run that goes on."""
    began = {name: identity.get(f"model.{name}") for name in config.adoptable}
    return config.adopt({name: value for name, value in began.items() if value is not None})


def adapt(cfg: RunConfig, given: nn.Module | None) -> tuple[AdaptedModel, LoadReport | None]:
    """Make the backbone, or take a given one, and attach the adapter.

    Raises:
        ConfigError: if the given model was made from other settings than cfg.model.
    """
    if given is None:
        model, report = make_backbone(cfg)
    else:
        made_from = getattr(given, "config", cfg.model)
        different = differences(flatten(made_from), flatten(settled(cfg, given).model))
        if different:
            raise ConfigError("The given model and the section `model` differ:\n  " + "\n  ".join(different))
        model, report = given, None
    return attach_adapter(model, cfg.adapter), report


def make_data(cfg: RunConfig) -> RunData:
    """Open all splits and make their loaders.

    Raises:
        ConfigError: if the head does not fit the classes or parts, test has categories that train lacks, or
            the training set is smaller than a batch.
        DataError: if classes have no training clouds and the settings do not allow that, or files are at
            fault.
    """
    train, test = build_dataset(cfg.data, "train"), build_dataset(cfg.data, "test")
    if TASKS[cfg.model.task].uses_labels:
        require_training_clouds(train, cfg.data)
    task = make_task(cfg.model, train)
    task.check_splits(train, test)
    indices, validation, own = None, None, None
    if cfg.protocol.select == "validation":
        own = build_validation(cfg.data)
        if own is None:
            indices, held_out = split_validation(train.labels, cfg.protocol.val_fraction, cfg.seed)
            validation = _eval_loader(train, cfg, held_out)
        else:
            validation = _eval_loader(own, cfg, None)
    num_train = len(train) if indices is None else len(indices)
    if num_train < cfg.optim.batch_size:
        raise ConfigError(
            f"optim.batch_size={cfg.optim.batch_size} is more than the training set ({num_train} clouds), "
            f"and batches that are not whole are left out; set optim.batch_size={num_train} or less."
        )
    loader = PointLoader(
        train,
        cfg.optim.batch_size,
        indices=indices,
        shuffle=True,
        drop_last=True,
        seed=cfg.seed,
        num_workers=cfg.train.num_workers,
    )
    return RunData(
        name=cfg.data.name,
        task=task,
        train=loader,
        validation=validation,
        test=_eval_loader(test, cfg, None),
        num_train=num_train,
        num_validation=len(train) - num_train if own is None else len(own),
        own_validation=own is not None,
    )


def _eval_loader(dataset: PointDataset, cfg: RunConfig, indices: Tensor | None) -> PointLoader:
    workers = cfg.train.num_workers
    if cfg.protocol.votes == 1 and cfg.data.read_points > cfg.data.num_points:
        dataset, workers = ThinnedDataset(dataset, cfg.data.num_points), 0
    return PointLoader(dataset, 2 * cfg.optim.batch_size, indices=indices, seed=cfg.seed, num_workers=workers)


@dataclass(frozen=True)
class RunParts:
    """What a run works with.

    Attributes:
        model: the backbone with its adapter, on the device of the run.
        data: clouds and task.
        optimizer: over `trained`.
        trained: the parameters that training changes.
        average: moving average of them.
        augment: changes the points of a training step.
        patches: those of training clouds, where they are the same in every epoch; None elsewhere.
        evaluated: tokens of splits that are evaluated more than once, where they are the same every time.
        probe: of the features; None = none asked for.
        state: where the run stands.
        snapshot: all that moves, for a checkpoint.
    """

    model: AdaptedModel
    data: RunData
    optimizer: torch.optim.Optimizer
    trained: tuple[nn.Parameter, ...]
    average: WeightAverage
    augment: Augment
    patches: PatchMemory | None
    evaluated: Mapping[str, EvaluatedTokens]
    probe: FeatureProbe | None
    state: RunState
    snapshot: Snapshot


def make_parts(
    cfg: RunConfig, model: AdaptedModel, device: torch.device, identity: Mapping[str, Any]
) -> RunParts:
    """Make everything that a run needs besides its model, which moves to the device.

    Raises:
        ConfigError: if settings and data do not fit together.
        DataError: if files are at fault.
    """
    data = make_data(cfg)
    if cfg.data.kind == "images":
        warn_other_images(cfg.data.input_rule(), model)
    model.to(device)
    if cfg.optim.batch_size * data.task.views == 1:
        _refuse_single_clouds(cfg, model, data, device)
    held = start_from(model, cfg.weights.adapter, data.class_names) if cfg.weights.adapter else Held()
    optimizer, average = build_optimizer(model, cfg.optim), WeightAverage(model, cfg.train.ema_decay)
    held.hold(optimizer)
    state = RunState(data.task.meter(device))
    patches = make_patch_memory(cfg, model, len(data.train.dataset))
    taken = 0 if patches is None else patches.num_bytes
    return RunParts(
        model=model,
        data=data,
        optimizer=optimizer,
        trained=tuple(trained_parameters(model).values()),
        average=average,
        augment=make_augment(cfg.augment),
        patches=patches,
        evaluated=keep_evaluated(cfg, model, data.evaluated, taken),
        probe=None if cfg.probe is None else FeatureProbe(cfg.probe, amp=identity["train.amp"] is True),
        state=state,
        snapshot=Snapshot(model, optimizer, average, state, identity, data_identity(cfg.data, data)),
    )


def _refuse_single_clouds(cfg: RunConfig, model: AdaptedModel, data: RunData, device: torch.device) -> None:
    """Try a batch of one cloud in training, which some batch normalisations cannot take; all stays as it was.

    Raises:
        ConfigError: if the model has such a one.
    """
    batch = data.train.dataset.read_batch(data.train.indices[:1]).to(device)
    rng, mode = capture_rng_state(), model.training
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            data.task.run(model.train(), thin(batch, cfg.data.num_points))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"optim.batch_size=1, but {cfg.model.name} has batch normalisation over the clouds of a batch, "
            "which needs two or more to train; set optim.batch_size=2 or more, at most the "
            f"{data.num_train} clouds of training."
        ) from None
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        model.train(mode)
        restore_rng_state(rng)


def describe_plan(model: AdaptedModel, report: LoadReport | None) -> dict[str, Any]:
    """Put together plan.json: what is trained and why, how much that is, and which weights were loaded."""
    return {
        "parameters": dict(model.parameter_counts()),
        "plan": dict(model.plan),
        "weights": None
        if report is None
        else {
            "source": report.source,
            "matched": len(report.matched),
            "missing": list(report.missing),
            "unexpected": dict(report.unexpected),
        },
    }
