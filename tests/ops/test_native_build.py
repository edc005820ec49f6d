"""What was built, and how the build finds what it needs."""

import importlib.util
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from setuptools import find_packages

import pcl_clora

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package():
    """The installed package of kernels."""
    return pytest.importorskip("pcl_clora_ops", reason="build it with: pip install ./extensions")


@pytest.fixture
def build():
    """The build script, as a module."""
    spec = importlib.util.spec_from_file_location("native_setup", ROOT / "extensions" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def symbols(library, *options):
    if shutil.which("nm") is None:
        pytest.skip("needs nm of binutils")
    listed = subprocess.run(
        ["nm", "-D", *options, library], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines()}


def test_versions_of_both_packages_are_the_same(package):
    text = (ROOT / "extensions" / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE).group(1) == pcl_clora.__version__
    assert package.BUILD["version"] == pcl_clora.__version__


def test_the_wheel_serves_every_python_from_3_10(package):
    wheel = metadata.distribution("pcl-clora-ops").read_text("WHEEL")
    assert re.search(r"^Tag: cp310-abi3-", wheel, re.MULTILINE)


def test_the_library_uses_no_python_and_only_the_stable_interface_of_torch(package):
    needed = symbols(package.LIBRARY, "--undefined-only")
    assert not [name for name in needed if re.match(r"_?Py", name)]
    assert not [name for name in needed if re.search(r"N[KR]?(2at|3c10|5torch)", name)]
    assert {"torch_library_impl", "torch_parallel_for"} <= needed


def test_the_library_offers_nothing_but_its_own_name(package):
    offered = symbols(package.LIBRARY, "--defined-only")
    assert {name for name in offered if not name.startswith("_Z")} == {"pcl_clora_ops_isa"}


def test_the_facts_of_the_build_are_reported(package):
    assert set(package.BUILD) == {"version", "torch", "compiler", "isa", "cuda", "cuda_architectures"}
    assert package.BUILD["isa"][0] == "baseline"
    assert package.isa() in package.BUILD["isa"]


def test_architectures_are_named_exactly_where_cuda_was_compiled(package):
    architectures = package.BUILD["cuda_architectures"]
    assert bool(architectures) == package.BUILD["cuda"].startswith("nvcc ")
    assert all(int(name.removeprefix("sm_")) >= 75 for name in architectures)


def test_the_main_package_holds_no_compiled_kernels():
    found = find_packages(str(ROOT), include=["pcl_clora*"])
    assert "pcl_clora" in found
    assert not [name for name in found if name.startswith(("pcl_clora_ops", "extensions"))]


def test_torch_is_found_where_a_build_hides_it(build, monkeypatch):
    torch = build.find_torch()
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert build.find_torch() == torch


def test_a_build_without_torch_says_what_to_do(build, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(build.site, "getusersitepackages", lambda: str(tmp_path))
    monkeypatch.setattr(build.site, "getsitepackages", lambda prefixes: [str(tmp_path)])
    with pytest.raises(SystemExit, match=r"Install torch >= 2\.11 first; .* --no-build-isolation"):
        build.find_torch()


@pytest.mark.parametrize("version", ["2.10.1", "1.13.0+cpu", "unknown"])
def test_a_torch_that_is_too_old_is_refused(build, tmp_path, version):
    (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
    with pytest.raises(SystemExit, match=re.escape(f"torch {version} in {tmp_path} is too old")):
        build.version_of(tmp_path)


@pytest.mark.parametrize(
    ("asked", "nvcc", "reason"),
    [("0", "nvcc", "PCL_CLORA_CUDA=0"), ("", "", "nvcc was not found")],
)
def test_leaving_cuda_out_has_a_reason(build, monkeypatch, asked, nvcc, reason):
    monkeypatch.setenv("PCL_CLORA_CUDA", asked)
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: nvcc)
    assert build.Cuda([Path("fps.cu")]).missing == reason


def test_cuda_that_is_asked_for_and_cannot_be_built_is_an_error(build, monkeypatch):
    monkeypatch.setenv("PCL_CLORA_CUDA", "1")
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(
        SystemExit, match="PCL_CLORA_CUDA=1 asks for the CUDA kernels, but nvcc was not found"
    ):
        build.Cuda([Path("fps.cu")])


def test_flags_of_ones_own_come_last_and_for_the_cpu_kernels_alone(build, monkeypatch, tmp_path):
    monkeypatch.setenv("PCL_CLORA_CXXFLAGS", "-O1 -g")
    cuda = SimpleNamespace(missing="", nvcc="nvcc", sources=[Path("fps.cu")], flags=lambda: ["--fmad=false"])
    command = SimpleNamespace(build_temp=str(tmp_path), isas=build.Build.isas)
    sources, _, commands = build.Build.plan(command, tmp_path, ["c++"], cuda)
    for source, flags in zip(sources, commands, strict=True):
        before = flags[flags.index("-c") - 2 : flags.index("-c")]
        assert (before == ["-O1", "-g"]) == (source.suffix == ".cpp")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_another_torch_gets_an_environment_of_its_own():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-n", "test-torch", "TORCH=2.11.0", "TESTS=tests/ops"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ".venv-torch-2.11.0/bin/python -m pytest -n 2 tests/ops" in done.stdout
    assert ".venv/" not in done.stdout
