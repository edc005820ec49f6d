"""Adapter files of format 1 with every method, kept for ever, and the network they stand on.

`python -m tests.support.kept_files NAME` writes the file of a new method; one that is there is never written
again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from pcl_clora.adapters import attach_adapter, list_adapters
from pcl_clora.adapters.methods.vera import uniform_numbers
from pcl_clora.models import create_model
from tests.support import adapter_cases as cases
from tests.support.engine_cases import FITTING

FOLDER = Path(__file__).parents[1] / "golden" / "adapters" / "methods"
LOGITS = FOLDER / "logits.json"
NARROW = {  # where the defaults are wide
    "stag": {"rank": 4},
    "ppt": {"width": 4},
    "pointlora": {"width": 4},
    "gft": {"num_prompts": 3, "width": 4, "edge_layers": 2, "edge_width": 4, "graph_width": 8},
    "pointgst": {"rank": 4},
    "point_peft": {"rank": 2},
    "dapt": {"rank": 2},
    "adapter": {"bottleneck": 2},
    "vpt": {"num_prompts": 2},
    "clora": {"rank": 2, "num_spaces": 2},
    "clora_geo": {"rank": 2, "num_spaces": 2},
    "vera": {"rank": 8},
}
POINTS = uniform_numbers(2 * 32 * 3, seed=1).float().view(2, 32, 3)


def make_base() -> nn.Module:
    """A small Point-MAE whose tensors are the same on every machine."""
    sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}
    base = create_model("point_mae", num_classes=3, encoder_widths=(4, 4, 4), head_width=4, **sizes)
    with torch.no_grad():
        for index, (name, value) in enumerate(sorted(base.state_dict().items())):
            if value.is_floating_point():
                value.copy_(0.5 * uniform_numbers(value.numel(), seed=index).float().view(value.shape))
                if name.endswith("running_var"):
                    value.abs_().add_(0.5)
    return base.eval()


def kept() -> list[str]:
    """Names of the methods whose files are kept."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def logits_of(name: str) -> Tensor:
    return torch.tensor(json.loads(LOGITS.read_text())[name])


def write(name: str) -> None:
    """Write the file of a method, and the logits that it gives, unless they are there."""
    file = FOLDER / f"{name}.safetensors"
    if file.exists():
        raise SystemExit(f"{file} is kept; it is never written again")
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = cases.shake(
        attach_adapter(make_base(), {"method": name, **FITTING.get(name, {}), **NARROW.get(name, {})})
    )
    model.save_adapter(file, metadata={"seed": 3})
    found = json.loads(LOGITS.read_text()) if LOGITS.exists() else {}
    with torch.no_grad():
        found[name] = [[round(value, 6) for value in row] for row in model(POINTS).tolist()]
    LOGITS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    for each in sys.argv[1:] or list_adapters():
        write(each)
