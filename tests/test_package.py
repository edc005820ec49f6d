"""Importing is free, and every public name exists."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pcl_clora

ROOT = Path(__file__).parents[1]
HEAVY = (
    "open3d",
    "timm",
    "torchvision",
    "tensorboard",
    "matplotlib",
    "scipy",
    "sklearn",
    "plyfile",
    "laspy",
    "pye57",
    "pypcd4",
    "trimesh",
)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )


def test_import_prints_and_warns_nothing_and_loads_no_torch():
    done = run_python("import sys, pcl_clora; print('torch' in sys.modules)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ops", "io", "models", "adapters", "data", "engine", "report", "cli"])
def test_no_module_imports_an_optional_package(module):
    done = run_python(f"import sys, pcl_clora.{module}; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("name", [name for name in pcl_clora.__all__ if name != "__version__"])
def test_every_public_name_loads(name):
    assert getattr(pcl_clora, name).__doc__


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'attach'"):
        _ = pcl_clora.attach


def test_the_version_is_the_packages_own():
    from importlib.metadata import version

    assert version("pcl-clora") == pcl_clora.__version__


@pytest.mark.slow
def test_the_wheel_is_pure_and_holds_the_package_only(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "golden")
    for folder in ("pcl_clora", "tools", "cfgs", "data", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {
        "pcl_clora/py.typed",
        "pcl_clora/config/demo.yaml",
        "pcl_clora/models/backbones/point_mae/network.py",
    } <= set(names)
    for ending in ("safetensors", "json", "md", "yaml"):
        assert f"pcl_clora/models/builtin/point_mae_tiny.{ending}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pcl_clora"}
    assert "pcl_clora/bench/ops.py" in names
    assert not [name for name in names if "peers" in name]
