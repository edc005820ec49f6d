"""The files of a run: where each one is, and what is known about the machine and the code that made it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pcl_clora
from pcl_clora import ops
from pcl_clora.config import dump_yaml
from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.run.processor import processor_name
from pcl_clora.io import DataError, explained, read_json, sha256_file, write_json, write_text

DERIVED = (  # what later commands make of a run, and write beside it
    *("report.md", "curve.csv", "curve.png", "confusion.png", "reliability.png"),
    *("per_class.png", "per_category.png", "per_part.png"),
    *("robustness.json", "robustness.md", "robustness.png", "calibration.json", "calibration.png"),
)
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
    def novelty(self) -> Path:
        """How unlike the training clouds a cloud is; of classifications only."""
        return self.chosen.with_suffix(".novelty.safetensors")

    @property
    def result(self) -> Path:
        """What came out, in numbers."""
        return self.path / "result.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them but tensorboard's, whether they are there or not."""
        chosen = (self.chosen, self.novelty, self.checkpoint)
        return (self.config, self.env, self.plan, self.metrics, self.result, *chosen)

    def nonfinite(self, step: int) -> Path:
        """State and batch of a step whose loss was not finite."""
        return self.path / f"nonfinite-step-{step}.safetensors"

    def begin(self, cfg: RunConfig, env: Mapping[str, Any], plan: Mapping[str, Any], *, fresh: bool) -> None:
        """Write settings, environment, and what is trained; `fresh` removes what an earlier run left."""
        if fresh:
            self.clear()
        write_text(self.config, dump_yaml(cfg))
        write_json(self.env, env)
        write_json(self.plan, plan)

    def read_result(self) -> dict[str, Any]:
        """Read what came out.

        Raises:
            DataError: if the file is missing or damaged.
        """
        return read_json(self.result)

    def check_chosen(self) -> None:
        """Check the adapter file of a finished run by the digest in its result; older results have none.

        Raises:
            DataError: if it is another file, or its result is damaged.
        """
        self._check(self.chosen, "adapter_sha256")

    def check_metrics(self) -> None:
        """Check metrics.jsonl of a finished run, if it is there, as `check_chosen` does the adapter file.

        Raises:
            DataError: if it was edited since, or the result is damaged.
        """
        if self.metrics.exists():
            self._check(self.metrics, "metrics_sha256")

    def _check(self, path: Path, key: str) -> None:
        wanted = self.read_result().get(key) if self.result.exists() else None
        if wanted is not None and sha256_file(path) != wanted:
            raise DataError(
                path,
                f"is not the file that the run wrote: its SHA-256 is not the one in {self.result}, so it was "
                "damaged, edited or swapped",
                "copy it again from where it is whole, or give the run's train command again, which writes "
                "it anew from the checkpoint",
            )

    def holds_a_run(self) -> bool:
        """Tell whether there is a checkpoint to go on from, or a result that starting over would lose."""
        return self.checkpoint.exists() or self.result.exists()

    def clear(self) -> None:
        """Remove what an earlier run in this folder would leave standing beside a new one."""
        own = (
            self.checkpoint,
            self.chosen,
            self.novelty,
            self.result,
            self.metrics,
            *map(self.path.joinpath, DERIVED),
        )
        patterns = ("nonfinite-step-*.safetensors", "tensorboard/events.out.tfevents.*")
        for path in (*own, *(found for pattern in patterns for found in self.path.glob(pattern))):
            with explained(path, "removed"):
                path.unlink(missing_ok=True)


def environment(device: torch.device) -> dict[str, Any]:
    """Describe what a run ran on: versions, git commit, threads, device and the backend of every op."""
    return {
        "pcl_clora": pcl_clora.__version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": package_versions(),
        "device": _device_name(device),
        "processor": processor_name(),
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
