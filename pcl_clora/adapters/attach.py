"""Put an adapter on a backbone: a new one from settings, or a trained one from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.files import (
    AdapterFileError,
    base_id,
    check_base,
    check_names,
    check_values,
    open_adapter,
)
from pcl_clora.adapters.methods.spaces import find_bank
from pcl_clora.adapters.model import AdaptedModel
from pcl_clora.adapters.peft_layout import is_peft_folder, load_peft
from pcl_clora.adapters.registry import build_method, parse_adapter_config
from pcl_clora.adapters.share import find_adapter
from pcl_clora.config import ConfigError
from pcl_clora.models.interface import adopt_settings


def attach_adapter(
    model: nn.Module,
    config: AdapterConfig | Mapping[str, Any],
    name: str = "default",
    *,
    num_classes: int | None = None,
) -> AdaptedModel:
    """Put a new adapter on a backbone and make it the active one.

    The backbone is changed in place: layers are replaced by layers that carry the adapter. Before the first
    step the result computes what the backbone computes, bit for bit (unless `num_classes` asks for a new
    head).

    Args:
        model: a backbone that publishes a `ModelInterface`, or an adapted model, which gets one more adapter.
        config: settings of a method, or a mapping with `method` and its settings.
        name: what to call it; letters, digits, "_" and "-".
        num_classes: give the adapter a new head with so many logits; None copies the backbone's head.

    Returns:
        The adapted model; the same object if `model` is one.

    Raises:
        ConfigError: if the method or a setting is not known.
        TypeError: if the model publishes no interface.
        ValueError: if a role or part does not exist, the name is taken or cannot be one, or the model has an
            adapted model in it. Nothing is changed then.

    Example:
        >>> model = attach_adapter(create_model("point_mae", num_classes=15), {"method": "clora"})
        >>> loss = cross_entropy(model(points), labels) + sum(model.extra_losses().values())
    """
    method = build_method(parse_adapter_config(config))
    adapted = _as_adapted(model)
    adapted.add_adapter(name, method, num_classes=num_classes)
    return adapted


def load_adapter(
    path: str | Path,
    model: nn.Module,
    name: str = "default",
    *,
    allow_other_base: bool = False,
    trainable: bool = True,
    bank: str | Path = "",
) -> AdaptedModel:
    """Put a trained adapter on the backbone it was trained on, and make it the active one.

    Args:
        path: a file that `save_adapter` wrote, a folder with one (`share.write_folder`), or "hub:user/name",
            with "@revision" to pin it; or the
            folder of a LoRA of peft, which becomes a `lora` and does not say its base.
        model: the backbone with the base weights, or an adapted model, which gets one more adapter.
        name: what to call it here; the file does not say.
        allow_other_base: load it although the base tensors differ from those it was trained on.
        trainable: whether its tensors require gradients while it is active.
        bank: where the bank is that it was trained on; by default where its settings say, or beside its file.

    Returns:
        The adapted model, in evaluation mode; the same object if `model` is one.

    Raises:
        AdapterFileError: if the file is missing, torn, foreign, of a newer format, for another base, or does
            not fit. The model is left as it was.
        HubError: if the hub does not have it.
        ValueError: if the name is taken.
    """
    if is_peft_folder(path):
        return _load_peft(path, model, name, trainable)
    path = find_adapter(path)
    header, state = open_adapter(path)
    settings = _settings_with_bank(path, header.adapter, bank)
    adapted = _as_adapted(model)
    before = adapted.chosen
    try:
        method = build_method(parse_adapter_config(settings))
    except ConfigError as error:
        raise AdapterFileError(path, f"is an adapter not known here ({error})", "update pcl_clora") from error
    method.from_file = True
    new_head = "head" in method.config.train and hasattr(adapted.base, "make_classifier")
    num_classes = header.num_classes if new_head else None
    known = adapted.backbone_tensors()
    carried = [key for key in header.not_in_weights if f"model.{key}" in state and key in known]
    adapted.add_adapter(name, method, num_classes=num_classes, header=header, carried=carried)
    try:
        with adapted.installed(name):
            if not allow_other_base:
                check_base(path, header, base_id(adapted.base), adapted.base_hash(header.not_in_weights))
            try:
                check_names(adapted.adapter_state(), state)
                check_values(path, header, state)
                adapted.load_adapter_state(state)
            except ValueError as error:
                raise AdapterFileError(
                    path, str(error).rstrip("."), "give the backbone it was trained on"
                ) from error
    except AdapterFileError:
        adapted.remove_adapter(name)
        adapted.set_active(before)
        if adapted is not model:
            adapted.unload()
        raise
    adopt_settings(adapted.base, header.base_model, source=str(path))
    adapted.set_trainable(name, trainable)
    return adapted.eval()


def _load_peft(path: str | Path, model: nn.Module, name: str, trainable: bool) -> AdaptedModel:
    adapted = _as_adapted(model)
    try:
        load_peft(path, adapted, name)
    except AdapterFileError:
        if adapted is not model:
            adapted.unload()
        raise
    adapted.set_trainable(name, trainable)
    return adapted.eval()


def _settings_with_bank(path: str | Path, settings: Mapping[str, Any], bank: str | Path) -> Mapping[str, Any]:
    """Return the settings that an adapter file carries, with the place where its bank is now."""
    recorded = settings.get("bank", "")
    if not isinstance(recorded, str) or not recorded:  # Point-PEFT's setting of that name says yes or no
        if bank:
            raise AdapterFileError(
                path, f"was trained without a bank, but bank={bank} is given", "leave bank out"
            )
        return settings
    return {**settings, "bank": str(bank) if bank else find_bank(recorded, path)}


def _as_adapted(model: nn.Module) -> AdaptedModel:
    return model if isinstance(model, AdaptedModel) else AdaptedModel(model)
