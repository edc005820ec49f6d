"""A model and what torch.compile makes of it, with gradients; in a child where the compiler is native.

Inductor builds and loads C++, and a death in there takes its process along: `checked_apart` looks from
outside. `python -m tests.support.compiled clora` compares one method, `plain` a network without our code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model
from tests.support import adapter_cases as cases
from tests.support.engine_cases import FITTING

ROOT = Path(__file__).parents[2]
PLAIN = "plain"


def compare(model: nn.Module, points: torch.Tensor, backend: str) -> None:
    """Assert that the compiled model, in one graph, has the outputs and gradients of the model."""
    torch._dynamo.reset()
    found = []
    for run in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        output = run(points)
        output.square().sum().backward()
        found.append(
            (output.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None})
        )

    assert found[0][1]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def compare_adapted(settings: dict[str, Any], backend: str) -> None:
    """`compare` for a small Point-MAE with an adapter of these settings."""
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8}
    torch.manual_seed(0)
    base = create_model("point_mae", num_classes=4, encoder_widths=(8, 16, 16), head_width=16, **sizes).eval()
    compare(cases.shake(attach_adapter(base, settings)), cases.make_points(2), backend)


def in_child(name: str) -> list[str]:
    """Command that compares one method, or `PLAIN`, with inductor."""
    return [sys.executable, "-m", "tests.support.compiled", name]


def checked_apart(command: Sequence[str], plain: Sequence[str]) -> None:
    """Assert that a command succeeds; skip the test if a signal kills it and kills the plain one, too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, capture_output=True, text=True, env=environment)

    done = run(command)
    if done.returncode < 0 and run(plain).returncode < 0:
        pytest.skip(f"the compiler dies by signal {-done.returncode}, and does so for a plain nn.Linear, too")
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"


if __name__ == "__main__":
    if sys.argv[1] == PLAIN:
        compare(nn.Sequential(nn.Linear(8, 8), nn.GELU()), torch.ones(2, 8), "inductor")
    else:
        compare_adapted({"method": sys.argv[1], **FITTING.get(sys.argv[1], {})}, "inductor")
