"""Importing is free, and every public name exists."""

import subprocess
import sys

import pytest

import pcl_clora

HEAVY = ("open3d", "timm", "torchvision", "tensorboard", "matplotlib", "scipy", "sklearn", "plyfile")


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
