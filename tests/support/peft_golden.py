"""Golden files of published fine-tuning methods, and how adapted models are compared with them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.paths import base_tensors, live_path
from pcl_clora.models import create_model, load_weights

LOGIT_TOLERANCE = 2e-5


def tensors_of(shared: Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """A golden file, and its tensors by official name: stored ones, or those of the formula of its folder."""
    archive = np.load(shared / "fixtures" / f"{name}.npz")
    keys = [str(key) for key in archive["keys"]]
    if json.loads(str(archive["meta"]))["weights"] == "stored":
        return archive, {key: torch.from_numpy(archive[f"w:{key}"]) for key in keys if f"w:{key}" in archive}
    spec = importlib.util.spec_from_file_location("gen_weights", shared / "fixtures" / "gen_weights.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    aliases = json.loads(str(archive["aliases"]))
    shapes = dict(zip(keys, (json.loads(str(shape)) for shape in archive["shapes"]), strict=True))
    return archive, {
        key: torch.from_numpy(generator.tensor(aliases.get(key, key), shapes[key])) for key in keys
    }


def live_names(model: AdaptedModel, official: list[str]) -> dict[str, str | None]:
    """Official name -> name in the adapted model's state_dict; None where no tensor of it is meant."""
    live = {key: name for name, key in model.key_map().items()}
    state = model.state_dict()
    found: dict[str, str | None] = {}
    for name in official:
        used = model.released_files.twins.translate(name, to="usual") or name
        key = model.method.official_keys.translate(used, to="ours")
        ours = None if key is not None else model.base.official_keys.translate(name, to="ours")
        if key is None and ours is None and name in base_tensors(model.base):
            ours = name  # reduce_dim, in networks whose files have none
        found[name] = live.get(str(key)) if ours is None else f"base.{live_path(model.base, ours)}"
        if found[name] not in state:
            found[name] = None
    return found


def golden_adapted(
    shared: Path,
    name: str,
    config: dict[str, object],
    *,
    backbone: str = "point_mae",
    **sizes: object,
) -> tuple[AdaptedModel, Any]:
    """An adapted model with the tensors of a golden file, in evaluation mode, and the file.

    The tensors come as the released code saves them; every one has a place, and every place is filled.
    """
    archive, tensors = tensors_of(shared, name)
    if "category" not in archive:
        sizes["num_classes"] = archive["output"].shape[-1]
    base = create_model("point_mae", **sizes)
    model = attach_adapter(base.eval(), config)
    report = load_weights(model, {"base_model": {f"module.{key}": value for key, value in tensors.items()}})
    second = {key for key, reason in report.unexpected.items() if reason.kind == "second"}
    assert report.missing == ()
    assert report.unexpected.keys() == second
    assert len(report.matched) + len(second) == len(tensors)
    return model.eval(), archive


def differences(model: AdaptedModel, archive: Any) -> tuple[float, float, set[str]]:
    """Largest difference of the logits, of relative gradient norms of what trains, and what trains."""
    given = [torch.from_numpy(archive[name]) for name in ("points", "category") if name in archive]
    logits = model(*given)
    if len(given) == 2:
        logits = logits.log_softmax(dim=-1)  # what the official networks return
    loss = F.cross_entropy(logits.flatten(0, -2), torch.from_numpy(archive["target"]).flatten())
    loss.backward()
    names = live_names(model, [str(name) for name in archive["grad_names"]])
    params = dict(model.named_parameters())
    worst, seen = 0.0, set()
    for live, norm in zip(names.values(), archive["grad_l2"], strict=True):
        if live is not None and live in params and params[live].requires_grad:
            grad = params[live].grad
            ours = 0.0 if grad is None else float(grad.norm())
            worst = max(worst, abs(ours - float(norm)) / max(float(norm), 1e-2))
            seen.add(live)
    missing = {live for live in model.plan if live in params} - seen
    assert not missing, missing
    return float((logits.detach() - torch.from_numpy(archive["output"])).abs().max()), worst, seen
