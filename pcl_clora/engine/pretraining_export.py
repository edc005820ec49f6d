"""Turn a finished pre-training into weights that ship: the encoder in half precision, and its model card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pcl_clora.adapters.files import to_half
from pcl_clora.config import ConfigError, config_hash, dump_yaml
from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.events import read_probes
from pcl_clora.engine.precision import precision_of
from pcl_clora.engine.randomness import seeded_apart
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.engine.setup import load_run
from pcl_clora.errors import UserValueError
from pcl_clora.io import atomic_write, read_json, write_json, write_text
from pcl_clora.models import build_model, get_interface, parse_model_config
from pcl_clora.models.builtin import FOLDER, sizes_of

METHOD = "masked autoencoding of patches (Pang et al., Point-MAE, ECCV 2022)"
COMPARED = "and comparison of two views of a cloud (as Chen et al., SimCLR, ICML 2020); no labels"
LARGEST_BYTES = 6_000_000  # what the package may carry


def export_builtin(run: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Write <model>.safetensors, its card (.json, .md) and its settings (.yaml) from a finished pre-training.

    Kept is what the classification form shares with the pre-training form. Matrices are stored in half
    precision; vectors (biases, norms, running statistics) stay in float32, they are small.

    Args:
        run: folder of the run.
        out: folder to write to; by default that of the package.

    Returns:
        The model card.

    Raises:
        ConfigError: if the run is not a finished pre-training.
        ValueError: if the file would be larger than the package may carry, or a value is too large for half
            precision.
    """
    files = RunFolder(Path(run))
    if not files.result.is_file():
        raise ConfigError(f"{run} is not finished: {files.result.name} is missing; resume it first.")
    cfg, adapted = load_run(run)
    if cfg.model.task != "pretraining":
        raise ConfigError(f"{run} is a run of task {cfg.model.task}; expected a pre-training.")
    with seeded_apart(cfg.seed):
        tensors = encoder_tensors(cfg, adapted.merge_and_unload().state_dict())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > LARGEST_BYTES:
        raise UserValueError(
            f"{cfg.model.name} takes {size:,} bytes, the package carries at most {LARGEST_BYTES:,}; name the "
            "run folder as weights instead."
        )
    path = Path(out or FOLDER) / f"{cfg.model.name}.safetensors"
    metadata = {"format": "pcl_clora.builtin", "model": cfg.model.name, "config_hash": config_hash(cfg)}
    atomic_write(path, lambda aside: save_file(tensors, aside, metadata=metadata))
    card = make_card(cfg, files, tensors, path)
    write_json(path.with_suffix(".json"), card)
    write_text(path.with_suffix(".md"), card_page(card))
    write_text(path.with_suffix(".yaml"), dump_yaml(cfg))
    return card


def encoder_tensors(cfg: RunConfig, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick what the classification form shares, without its head and learned tokens, and store it small."""
    settings = cfg.model.model_dump(mode="json", exclude={"task", "pretraining"})
    classifier = build_model(parse_model_config(settings))
    interface = get_interface(classifier)
    own = tuple(f"{path}." for part in ("head", "tokens") for path in interface.parts.get(part, ()))
    names = [name for name in classifier.state_dict() if name in trained and not name.startswith(own)]
    stored = {name: _small(name, trained[name]) for name in names}
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def _small(name: str, tensor: Tensor) -> Tensor:
    if tensor.dim() < 2:
        return tensor.clone()
    if not bool(tensor.isfinite().all()):
        raise UserValueError(f"{name} has values that are not finite; was training diverging?")
    return to_half(name, tensor)


def make_card(cfg: RunConfig, files: RunFolder, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Put together what one needs to know of the weights, and to make them again."""
    files.check_metrics()
    result, env = files.read_result(), read_json(files.env)
    with torch.device("meta"):
        learned = dict(build_model(cfg.model).named_parameters())
    return {
        "model": cfg.model.name,
        "sizes": sizes_of(cfg.model),
        "parameters": sum(tensor.numel() for name, tensor in tensors.items() if name in learned),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "method": METHOD + (f" {COMPARED}" if cfg.model.num_views > 1 else ""),
        "num_groups": cfg.model.model_dump()["num_groups"],
        "pretraining": cfg.model.model_dump(mode="json")["pretraining"],
        "data": cfg.data.model_dump(mode="json"),
        "augment": cfg.augment,
        "optim": cfg.optim.model_dump(mode="json"),
        "seed": cfg.seed,
        "epochs": result["epochs"],
        "steps": result["steps"],
        "clouds_seen": result["steps"] * cfg.optim.batch_size,
        "views": cfg.model.num_views,
        "hours": round(result["train_seconds"] / 3600, 2),
        "device": env["device"],
        "threads": env["threads"],
        "bfloat16": precision_of(cfg, result) == "bfloat16",
        "reconstruction_loss": result["metrics"]["loss"],
        "probe": None if cfg.probe is None else cfg.probe.model_dump(mode="json"),
        "probes": read_probes(files.metrics),
        "config_hash": result["config_hash"],
        "git": result["git"],
        "versions": result["versions"],
        "command": f"pcl-clora pretrain --config pcl_clora/models/builtin/{cfg.model.name}.yaml",
    }


def card_page(card: Mapping[str, Any]) -> str:
    """Write a model card for people."""
    data, sizes = card["data"], card["sizes"]
    where = f"{card['device']}, {card['threads']} thread(s)" + (", bfloat16" if card["bfloat16"] else "")
    made = f", {data['train_size']:,} made shapes, seed {data['seed']}" if "train_size" in data else ""
    views = f", {card['views']} views of each" if card["views"] > 1 else ""
    facts = [
        ("model", f'`create_model("{card["model"]}", weights="builtin")`'),
        ("sizes", ", ".join(f"{key} {value}" for key, value in sizes.items())),
        ("parameters", f"{card['parameters']:,}; head and class token are not among them"),
        ("file", f"{card['bytes']:,} bytes, matrices in half precision, SHA-256 {card['sha256']}"),
        ("method", card["method"]),
        ("data", data["name"] + made),
        ("input", f"{data['num_points']} points in {card['num_groups']} patches; other numbers can be used"),
        ("steps", f"{card['steps']:,} ({card['epochs']} epochs, {card['clouds_seen']:,} clouds seen{views})"),
        ("time", f"{card['hours']} hours, {where}"),
        ("loss", f"{card['reconstruction_loss']:.5f} on shapes that were not trained on, fixed masks"),
        ("settings", f"{card['config_hash']}, code {card['git']}"),
        ("again", f"`{card['command']}`"),
    ]
    text = f"# {card['model']}\n\n| | |\n|---|---|\n"
    text += "".join(f"| {key} | {value} |\n" for key, value in facts)
    if card["probes"]:
        probe = card["probe"]
        text += (
            f"\nProbes of the frozen features on {probe['data']['name']} ({probe['num_train'] or 'all'} "
            f"labelled clouds, {probe['num_test'] or 'all'} to classify), percent:\n\n"
            "| epoch | k-NN | linear SVM |\n|---|---|---|\n"
        )
        for line in card["probes"]:
            svm = f"{100 * line['svm_acc']:.1f}" if "svm_acc" in line else ""
            text += f"| {line['epoch'] + 1} | {100 * line['knn_acc']:.1f} | {svm} |\n"
    return text
