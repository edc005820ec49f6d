"""The files of a run: where each one is, and what is known about the machine and the code that made it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pcl_clora
from pcl_clora import ops
from pcl_clora.config import dump_yaml
from pcl_clora.engine.config import RunConfig
from pcl_clora.io import read_json, write_json, write_text

PACKAGES = ("torch", "numpy", "h5py", "pydantic", "pyyaml", "safetensors", "rich", "timm", "tensorboard")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def env(self) -> Path:
        """Versions, git hash, device and op backends."""
        return self.path / "env.json"

    @property
    def plan(self) -> Path:
        """What is trained and why, and what was loaded."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """One json object a line for every step, epoch and evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of tensorboard files, if asked for."""
        return self.path / "tensorboard"

    @property
    def checkpoint(self) -> Path:
        """Everything a run needs to go on."""
        return self.path / "last" / "checkpoint.safetensors"

    @property
    def chosen(self) -> Path:
        """Adapter file of the epoch that counts."""
        return self.path / "best" / "adapter.safetensors"

    @property
    def result(self) -> Path:
        """What came out, in numbers."""
        return self.path / "result.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them but tensorboard's, whether they are there or not."""
        chosen = (self.chosen, self.checkpoint)
        return (self.config, self.env, self.plan, self.metrics, self.result, *chosen)

    def nonfinite(self, step: int) -> Path:
        """State and batch of a step whose loss was not finite."""
        return self.path / f"nonfinite-step-{step}.safetensors"

    def begin(self, cfg: RunConfig, env: dict[str, Any]) -> None:
        """Write settings and environment."""
        write_text(self.config, dump_yaml(cfg))
        write_json(self.env, env)

    def read_result(self) -> dict[str, Any]:
        """Read what came out.

        Raises:
            DataError: if the file is missing or damaged.
        """
        return read_json(self.result)

    def holds_a_run(self) -> bool:
        """Tell whether there is a checkpoint to go on from, or a result that starting over would lose."""
        return self.checkpoint.is_file() or self.result.is_file()

    def clear(self) -> None:
        """Remove what an earlier run in this folder would leave standing beside a new one."""
        for path in (self.checkpoint, self.chosen, self.result, self.metrics):
            path.unlink(missing_ok=True)
        for path in self.tensorboard.glob("events.out.tfevents.*"):
            path.unlink()


def environment(device: torch.device) -> dict[str, Any]:
    """Describe what a run ran on: versions, git commit, threads, device and the backend of every op."""
    return {
        "pcl_clora": pcl_clora.__version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": package_versions(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "ops": ops.report(),
    }


def package_versions() -> dict[str, str]:
    """List the versions of the packages that matter, as far as they are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Name the commit of the code, "-dirty" if tracked files were changed; None outside a git checkout."""
    here = Path(pcl_clora.__file__).resolve().parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", "__init__.py"],
            capture_output=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 and tracked.returncode == 0 else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"
