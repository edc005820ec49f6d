"""The settings of a run; its model, adapter and data sections belong to the registries of their packages.

A new backbone, method or data set needs no line here: its section is read by the registry of its package,
checked by its own config class, and written back with all of that class's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from pcl_clora.adapters import AdapterConfig, parse_adapter_config
from pcl_clora.config import Config, load
from pcl_clora.data import DataConfig, make_augment, parse_data_config
from pcl_clora.errors import UserValueError
from pcl_clora.io.text import visible
from pcl_clora.models import ModelConfig, parse_model_config

LONGEST_NAME = 200  # bytes of the name of a run; file systems take 255, and "_seed0" or "_fold9" may follow
SectionT = TypeVar("SectionT", bound=Config)

# A run may go on with other values of these; at most (device) they change the last bits of its numbers.
FREE_ON_RESUME = (
    "name",
    "output",
    "train.cache",
    "train.checkpoint_every_steps",
    "train.device",
    "train.novelty",
    "train.num_workers",
    "train.progress",
    "train.tensorboard",
)


def _section(parse: Callable[[Any], SectionT]) -> BeforeValidator:
    """Read a section by its registry."""

    def read(values: Any) -> SectionT:
        if not isinstance(values, Mapping | Config):
            raise UserValueError(f"expected a section of settings, not {values!r}.")
        return parse(values)

    return BeforeValidator(read)


def _augment_name(name: str) -> str:
    make_augment(name)  # raises with the names that exist
    return name


AugmentName = Annotated[str, AfterValidator(_augment_name)]


def _amp(value: Any) -> Any:
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    known = words.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(known, bool) and known != "auto":
        raise UserValueError("use true, false or auto (bfloat16 where the device computes in it itself)")
    return known


class WeightsConfig(Config):
    """Where the backbone's weights come from."""

    path: str = (
        ""  # weights file, folder of a finished run, hub:<id> or builtin; empty = random from the seed
    )
    allow_partial: bool = False  # accept a file that leaves tensors of the backbone unfilled
    adapter: str = ""  # finished run whose adapter is trained on with more classes; what it learnt is held

    def left_out(self) -> frozenset[str]:
        """Name the settings that came later, where they have their default; see `Config.left_out`."""
        return super().left_out() | self.at_default("adapter")


class OptimConfig(Config):
    """AdamW and the warm-up cosine of the published fine-tuning recipe."""

    epochs: PositiveInt = 300  # passes over the training set; exactly this many are run
    batch_size: PositiveInt = 32  # clouds a step; evaluation uses twice as many
    lr: PositiveFloat = 5e-4  # learning rate after the warm-up
    lr_min: NonNegativeFloat = 1e-6  # learning rate at the end of the cosine
    warmup_epochs: NonNegativeFloat = 10  # length of the linear warm-up
    lr_warmup: NonNegativeFloat = 1e-6  # learning rate at the start of the warm-up
    weight_decay: NonNegativeFloat = 0.05  # not applied to biases, 1-D tensors and tokens
    clip_norm: NonNegativeFloat = 10.0  # largest gradient norm over all trained parameters; 0 = no clipping
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)  # share of the target spread evenly
    lag_epochs: NonNegativeInt = 0  # epochs the curve runs behind; the published loops have 1
    step_unit: Literal["epoch", "step"] = "epoch"  # set the rate each epoch, or each step
    double_step: bool = False  # step twice a batch, before and after clipping, as published part segmentation

    def left_out(self) -> frozenset[str]:
        """Name the settings that came later, where they have their default; see `Config.left_out`."""
        return super().left_out() | self.at_default("double_step")

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise UserValueError(
                f"warmup_epochs={self.warmup_epochs:g} leaves nothing of epochs={self.epochs}; "
                "lower optim.warmup_epochs (a thirtieth of the epochs is published), or set it to 0."
            )
        return self


class ProtocolConfig(Config):
    """How the reported number is chosen; always written beside it.

    "honest" never looks at the test set to choose. "paper" does what the published code does (best epoch on
    the test set) and is for comparison with published tables only.
    """

    name: Literal["honest", "paper"] = "honest"
    select: Literal["last", "validation", "test"] = "last"  # which epoch counts
    val_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)  # held out if select=validation
    votes: PositiveInt = 1  # test resamplings whose logits are averaged, each a whole evaluation; 1 = off
    vote_augment: AugmentName = "none"  # augmentation of the resamplings

    @model_validator(mode="before")
    @classmethod
    def _paper_selects_on_test(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("name") == "paper" and "select" not in values:
            return {**values, "select": "test"}
        return values

    @model_validator(mode="after")
    def _check(self) -> ProtocolConfig:
        if self.name == "honest" and self.select == "test":
            raise UserValueError(
                "protocol honest never chooses on the test set; use select=last or select=validation, or "
                "name=paper to compare with published tables."
            )
        return self


class TrainConfig(Config):
    """How the loop runs."""

    device: str = "auto"  # "auto" = the first GPU if there is one, else "cpu"
    amp: Annotated[bool | Literal["auto"], BeforeValidator(_amp)] = (
        False  # forward pass in bfloat16 where it is safe; auto: if the device computes in it itself
    )
    # Library of float32 products on a CPU: torch's own, oneDNN, or what is faster where the run begins.
    product: Literal["auto", "torch", "onednn"] = "auto"
    # Points of a cloud in training: others in every step, or those of evaluation in every epoch.
    draw: Literal["fresh", "fixed"] = "fresh"
    # Keep patches of clouds that come again as they were (evaluations, fixed points); auto: what fits.
    cache: Literal["auto", "always", "never"] = "auto"
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)  # evaluate a moving average of the weights; 0 = off
    checkpoint_every_steps: NonNegativeInt = 200  # besides the one after every epoch; 0 = only that
    eval_every_epochs: PositiveInt = 1  # how often, where an epoch is chosen or a curve drawn
    test_curve: bool = False  # also evaluate on test while training; under honest only to look at
    num_workers: NonNegativeInt = 0  # processes that read clouds
    progress: Literal["auto", "rich", "plain", "off"] = "auto"  # "auto": a bar on a terminal
    tensorboard: bool = False  # also write tensorboard files; metrics.jsonl is always written
    novelty: NonNegativeInt = 1000  # training clouds that calibrate the novelty of a classifier; 0 = none

    def left_out(self) -> frozenset[str]:
        """Name the settings that came later, where they have their default; see `Config.left_out`."""
        return super().left_out() | self.at_default("product", "draw", "cache", "novelty")

    @field_validator("progress", mode="before")
    @classmethod
    def _read_yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # yaml reads a bare off as false


class ProbeConfig(Config):
    """Labelled clouds on which pre-training looks what its features are worth; nothing is trained on them."""

    data: Annotated[SerializeAsAny[DataConfig], _section(parse_data_config)]  # labelled data set
    every_epochs: PositiveInt = 5  # how often; always after the last epoch
    num_train: NonNegativeInt = 2000  # clouds that the probes know the labels of; 0 = all
    num_test: NonNegativeInt = 500  # clouds that they classify; 0 = all
    svm: bool = True  # a linear SVM (needs scikit-learn) beside the nearest neighbours


# What data sets are called among published settings: name of the reader, variant -> name there.
_PUBLISHED_SETS = {
    ("scanobjectnn", "pb_t50_rs"): "scanobjectnn",
    ("scanobjectnn", "obj_bg"): "scanobjectnn_objbg",
    ("scanobjectnn", "obj_only"): "scanobjectnn_objonly",
    ("modelnet40_hdf5", ""): "modelnet40",
    ("modelnet40_txt", ""): "modelnet40",
    ("shapenetpart_txt", ""): "shapenetpart",
    ("shapenetpart_hdf5", ""): "shapenetpart",
}


def _say_where(section: Mapping[str, Any], model: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """Complete a section `adapter: {published: ...}` by what the run says of backbone, task and data."""
    found = _PUBLISHED_SETS.get((data.name, str(getattr(data, "variant", ""))))
    if found is None and "dataset" not in section:
        raise UserValueError(
            f"adapter.published={section['published']!r} needs a published data set, and data.name="
            f"{data.name!r} is none; set adapter.dataset to the one whose settings you want."
        )
    here = {"backbone": model.name, "task": model.task, "dataset": found}
    return {**here, **section}


class RunConfig(Config):
    """Everything that decides a run.

    Example:
        >>> cfg = load_run_config("cfgs/demo/clora.yaml", ["optim.epochs=3"])
    """

    name: str = Field(default="run", min_length=1)  # folder of the run inside output
    seed: NonNegativeInt = 0  # decides initial weights, order, augmentation, dropout and splits
    deterministic: bool = True  # only algorithms that give the same bits every time
    output: str = "runs"  # folder of all runs
    model: Annotated[SerializeAsAny[ModelConfig], _section(parse_model_config)]  # `name` chooses the backbone
    weights: WeightsConfig = WeightsConfig()
    adapter: Annotated[
        SerializeAsAny[AdapterConfig], _section(parse_adapter_config)
    ]  # `method` chooses what is trained
    data: Annotated[SerializeAsAny[DataConfig], _section(parse_data_config)]  # `name` chooses the data set
    augment: AugmentName = "scale_shift"  # training augmentation, names joined by "+"
    optim: OptimConfig = OptimConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig | None = None  # of pre-training; not set = no probes

    def left_out(self) -> frozenset[str]:
        """Name the settings that came later, where they have their default; see `Config.left_out`."""
        return super().left_out() | self.at_default("probe")

    @model_validator(mode="before")
    @classmethod
    def _read_published(cls, values: Any) -> Any:
        """Tell published settings of an adapter which run they are for; other mistakes are found later."""
        section = values.get("adapter") if isinstance(values, Mapping) else None
        if not isinstance(section, Mapping) or "published" not in section:
            return values
        try:
            model, data = parse_model_config(values["model"]), parse_data_config(values["data"])
        except (KeyError, TypeError, AttributeError, ValueError):
            return values
        return {**values, "adapter": _say_where(section, model, data)}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        odd = name in (".", "..") or name.startswith("~") or any(mark in name for mark in "/\\")
        if odd or visible(name) != name or len(name.encode()) > LONGEST_NAME or not name.strip():
            raise UserValueError(
                "must be the name of one folder inside output: no '/' or '\\', not '.' or '..', no '~' in "
                f"front, no control characters, at most {LONGEST_NAME} bytes; set output to choose where "
                "runs go"
            )
        return name

    @model_validator(mode="after")
    def _check_pretraining(self) -> RunConfig:
        if self.model.task != "pretraining":
            if self.probe is not None:
                raise UserValueError(
                    f"probe is for pre-training, but model.task={self.model.task!r}; leave it out."
                )
            return self
        if self.model.num_views > 1 and self.optim.batch_size < 2:
            raise UserValueError(
                "model.pretraining.contrast compares the clouds of a batch, but optim.batch_size=1; set it "
                "to 2 or more."
            )
        if self.data.kind == "images":
            raise UserValueError(f"pre-training needs clouds, but {self.data.name} holds images.")
        if (self.protocol.select, self.protocol.votes) != ("last", 1) or self.optim.label_smoothing:
            raise UserValueError(
                "pre-training has no accuracy that chooses an epoch, no votes and no labels; set "
                "protocol.select=last, protocol.votes=1 and optim.label_smoothing=0."
            )
        return self

    @model_validator(mode="after")
    def _check_images(self) -> RunConfig:
        if self.data.kind == "images" and (self.augment != "none" or self.protocol.votes > 1):
            raise UserValueError(
                f"augment={self.augment!r} and protocol.votes={self.protocol.votes} are for clouds, but "
                f"{self.data.name} holds images; set augment=none and protocol.votes=1."
            )
        return self


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's settings: yaml file with its bases, then `key=value` overrides.

    Args:
        path: the yaml file.
        overrides: for example ["optim.lr=1e-3", "data.root=/data/modelnet40"].

    Returns:
        The validated settings; `dump_yaml` of them loads back to the same thing.

    Raises:
        ConfigError: one line a problem, each with the dotted key, the value given and what is expected.
    """
    return load(RunConfig, path, overrides)


def flatten(config: Config) -> dict[str, Any]:
    """List all settings as dotted key -> json value."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value

    visit("", config.model_dump(mode="json"))
    return flat


def run_identity(
    cfg: RunConfig, *, bfloat16: bool | None = None, product: str | None = None
) -> dict[str, Any]:
    """List the settings that decide a run's numbers; a resumed run must have the same ones.

    Args:
        cfg: the settings.
        bfloat16: what train.amp comes to where the run is computed; None leaves it as it was given.
        product: what train.product comes to, likewise.
    """
    settings = {key: value for key, value in flatten(cfg).items() if key not in FREE_ON_RESUME}
    computed = {"train.amp": bfloat16, "train.product": product}
    return {**settings, **{key: value for key, value in computed.items() if value is not None}}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in what two flat mappings differ, one line a key."""
    absent = "(not set)"
    return [
        f"{key}: {before.get(key, absent)!r} -> {now.get(key, absent)!r}"
        for key in sorted({*before, *now})
        if before.get(key, absent) != now.get(key, absent)
    ]
