"""Which rule a run or an adapter file says its clouds were read by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pcl_clora.adapters.files import AdapterHeader, read_header
from pcl_clora.config import ConfigError, build
from pcl_clora.data import InputRule
from pcl_clora.engine.config import RunConfig, load_run_config
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.errors import warn_once
from pcl_clora.io import DataError


def rule_in_header(header: AdapterHeader) -> InputRule | None:
    """Read the rule that an adapter file carries; None where it was written before there were any.

    Raises:
        ConfigError: if it is not one that this version knows.
    """
    said = header.input_rule
    return build(InputRule, said, source="input_rule of the adapter file") if said else None


def rule_of_run(cfg: RunConfig, header: AdapterHeader) -> InputRule:
    """Return the rule of a run: that of its adapter file, else the one that its settings mean.

    Where neither says one (the packed data of an old run are gone), the common one is taken, with a warning.
    """
    carried = rule_in_header(header)
    if carried is not None:
        return carried
    try:
        return cfg.data.input_rule()
    except (DataError, ConfigError) as error:
        data = cfg.data
        return _unknown(f"the data set {data.name} ({error})", data.num_points, data.read_points)


def load_input_rule(path: str | Path) -> InputRule:
    """Return the rule of a run folder or an adapter file.

    An adapter file without one takes it from the settings of the run that it lies in; a bare one is taken to
    be for clouds in the unit sphere, with a warning.

    Raises:
        AdapterFileError: if there is no adapter file.
    """
    path = Path(path)
    file = RunFolder(path).chosen if path.is_dir() else path
    header = read_header(file)
    settings = RunFolder(file.parent.parent).config
    if settings.is_file():
        return rule_of_run(load_run_config(settings), header)
    return rule_in_header(header) or _unknown(str(path), 1024, 1024)


def _unknown(what: str, num_points: int, read_points: int) -> InputRule:
    warn_once(
        f"{what}: nothing says which points the model saw in training, and where they lay. Clouds are "
        "brought into the unit sphere and cut to their first points; train again, or save the adapter with "
        "metadata={'input_rule': ...}, to be sure."
    )
    return InputRule(num_points=num_points, read_points=read_points)


def rule_of_weights(model: nn.Module) -> InputRule | None:
    """Return what weights of others expect as input, where they say it: timm's `pretrained_cfg`."""
    for module in model.modules():
        said = getattr(module, "pretrained_cfg", None)
        if isinstance(said, Mapping) and said.get("input_size"):
            mean, std = (tuple(said.get(key) or ()) for key in ("mean", "std"))
            size = said["input_size"][-1]
            return InputRule(kind="images", frame="file", image_size=size, image_mean=mean, image_std=std)
    return None


def warn_other_images(data: InputRule, model: nn.Module) -> None:
    """Warn where images are scaled to other grey values than the weights of a model were trained on."""
    expected = rule_of_weights(model)
    if expected is None or data.kind != "images":
        return
    for name in ("image_mean", "image_std"):
        given, wanted = getattr(data, name), getattr(expected, name)
        if given and wanted and given != wanted:
            warn_once(
                f"the images have {name}={list(given)}, the weights were trained with {list(wanted)}: frozen "
                "features are then not what they could be."
            )
