"""`pcl-clora doctor`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, print_json, show

OPTIONAL = {  # package -> what it makes possible
    "matplotlib": "learning curves as pictures (report run)",
    "tensorboard": "train.tensorboard=true",
    "laspy": "las, laz and copc files",
    "pye57": "e57 files",
    "pypcd4": "pcd files",
    "trimesh": "stl, glb, gltf and 3mf files",
    "gradio": "the page of serve",
    "open3d": "comparison in bench ops",
}


def doctor(
    data: Annotated[Path, typer.Option(help="Folder that holds the data sets.")] = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Print what this installation has: versions, device, operator backends, data, optional packages."""
    found = diagnose(data)
    if as_json:
        print_json(found)
        return
    from pcl_clora.report.show import plain_table

    system = [
        [name, str(found[name])]
        for name in (
            "pcl_clora",
            "git",
            "python",
            "platform",
            "device",
            "threads",
            "train.amp=auto",
            "train.product=auto",
        )
    ]
    system += [[name, number] for name, number in found["versions"].items()]
    optional = [
        [name, state["version"] or f"not installed: pip install {name}", state["enables"]]
        for name, state in found["optional"].items()
    ]
    sets = [[name, state] for name, state in found["data"].items()]
    empty = [[f"no folder in {data}", "see data/README.md, or name one with --data"]]
    show(
        plain_table("Installation", ["what", "value"], system, left=2),
        plain_table(
            "Point operators", ["operator", "backend"], [list(row) for row in found["ops"].items()], left=2
        ),
        plain_table(
            "What point operators can run on",
            ["backend", "state"],
            [list(row) for row in found["backends"].items()],
            left=2,
        ),
        plain_table("Data", ["folder", "state"], sets or empty, left=2),
        plain_table("Optional packages", ["package", "version", "enables"], optional, left=3),
    )


def diagnose(data: Path) -> dict[str, Any]:
    """Gather what `doctor` prints, in json types."""
    from pcl_clora.engine import choose_device, environment
    from pcl_clora.engine.precision import choose_precision
    from pcl_clora.models.layers.product import choose

    device = choose_device("auto")
    return {
        **environment(device),
        "train.amp=auto": choose_precision("auto", device),
        "train.product=auto": str(choose()),
        "data": {str(folder): _state_of(folder) for folder in _folders(data)},
        "backends": _backends(),
        "optional": {name: {"version": _version(name), "enables": use} for name, use in OPTIONAL.items()},
    }


def _backends() -> dict[str, str]:
    """Say for every backend of the point operators whether it is there, or how to get it."""
    from pcl_clora import ops

    native = ops.describe_native()
    if native is None:
        compiled = "not installed: pip install ./extensions, in a checkout of the repository"
    else:
        cuda = native["cuda_architectures"]
        kernels = f"CUDA kernels for {' '.join(cuda)}" if cuda else f"no CUDA kernels ({native['cuda']})"
        compiled = f"version {native['version']}, CPU kernels for {native['isa']}, {kernels}"
    return {
        "reference": "plain torch, always there",
        "native": compiled,
        "pointnet2_ops": _version("pointnet2_ops") or "not installed; needed for backend 'pointnet2' only",
        "knn_cuda": _version("KNN_CUDA") or "not installed; needed for backend 'pointnet2' only",
    }


def _folders(data: Path) -> list[Path]:
    if not data.is_dir():
        return []
    return [path for path in sorted(data.iterdir()) if path.is_dir() and path.name != "manifests"]


def _state_of(folder: Path) -> str:
    """Say what a data folder holds, from names and headers only, or what is wrong with it."""
    from pcl_clora.data import describe_root
    from pcl_clora.io import DataError

    try:
        found = describe_root(folder)
    except DataError as error:
        return f"{error.problem}; {error.remedy}"
    return str(found).removeprefix(f"{found.root}: ")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
