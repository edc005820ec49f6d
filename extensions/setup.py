"""Builds the kernels against the installed torch, without importing or downloading it.

The library uses torch's stable C interface only, so one file serves every Python from 3.10 and every torch
from 2.11, CPU or CUDA build, whichever torch it was built against. Environment: PCL_CLORA_CUDA=0 leaves the
CUDA kernels out, PCL_CLORA_CUDA=1 fails where they cannot be built, CXX and NVCC name compilers, MAX_JOBS
limits how many run at once, PCL_CLORA_CXXFLAGS adds flags behind all others for the CPU kernels.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
CSRC = HERE / "csrc"
LEAST_TORCH = (2, 11)
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # 2.11, the least whose interface is used
COMMON = ["-std=c++17", "-O3", *DEFINES]
# No contraction: a fused multiply-add rounds once where the ops promise two roundings.
CPU = [*COMMON, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
ISA = {  # object name -> flags. GCC 12 warns about its own AVX-512 header.
    "isa_baseline": [],
    "isa_avx2": ["-mavx2"],
    "isa_avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-Wno-uninitialized"],
}
HOST = ("dispatch", "memory", "ops")  # what is the same for all instruction sets
CUDA = [*COMMON, "--fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
LEAST_ARCHITECTURE = 75
Plan = tuple[list[Path], list[Path], list[list[str]]]


def find_torch() -> Path:
    """Return the folder of the installed torch, also from within pip's isolated build."""
    spec = find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    # pip hides the packages of the interpreter from a build; their folders are still known.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    for prefix in (sys.prefix, sys.base_prefix):
        folders += site.getsitepackages([prefix])
    for folder in folders:
        if (Path(folder) / "torch" / "version.py").is_file():
            return Path(folder) / "torch"
    raise SystemExit(
        "torch is not installed for this interpreter, or is hidden from this build. Install torch >= "
        f"{'.'.join(map(str, LEAST_TORCH))} first; where it is installed, "
        "use pip install --no-build-isolation."
    )


def version_of(torch: Path) -> str:
    """Read the version of torch, and refuse one that is too old."""
    found = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text(encoding="utf-8"))
    version = found.group(1) if found else "unknown"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise SystemExit(f"torch {version} in {torch} is too old; the kernels need torch >= {least}.")
    return version


class Cuda:
    """The CUDA compiler, or why there is none."""

    def __init__(self, sources: list[Path]) -> None:
        wanted = os.environ.get("PCL_CLORA_CUDA", "")
        self.nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or ""
        self.sources, self.architectures, self.version = sources, [], ""
        self.missing = ""
        if wanted == "0":
            self.missing = "PCL_CLORA_CUDA=0"
        elif not self.nvcc:
            self.missing = "nvcc was not found"
        elif not sources:
            self.missing = "there are no CUDA sources"
        else:
            listed = re.findall(r"compute_(\d+)", output(self.nvcc, "--list-gpu-arch"))
            self.architectures = sorted({int(arch) for arch in listed if int(arch) >= LEAST_ARCHITECTURE})
            found = re.search(r"release ([\d.]+)", output(self.nvcc, "--version"))
            self.version = found.group(1) if found else "unknown"
            self.runtime = self.find_runtime()
            if self.runtime is None:
                self.missing = f"libcudart_static.a was not found beside {self.nvcc}"
        if self.missing and wanted == "1":
            raise SystemExit(f"PCL_CLORA_CUDA=1 asks for the CUDA kernels, but {self.missing}.")

    def find_runtime(self) -> Path | None:
        """Return the folder of the static CUDA runtime."""
        dry = subprocess.run([self.nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        top = re.search(r"TOP=(.+)", dry.stderr + dry.stdout)
        roots = [Path(top.group(1).strip())] if top else []
        roots.append(Path(self.nvcc).resolve().parent.parent)
        for root in roots:
            for folder in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib"):
                if (root / folder / "libcudart_static.a").is_file():
                    return (root / folder).resolve()
        return None

    def flags(self) -> list[str]:
        """Code for every architecture, and PTX of the last for those to come."""
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in self.architectures]
        last = self.architectures[-1]
        return [*CUDA, *codes, f"-gencode=arch=compute_{last},code=compute_{last}"]


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Build(build_ext):
    """Compiles every source with its own flags, several at once, and only what has changed."""

    def build_extension(self, ext: Extension) -> None:
        """Compile, link, and write down what was used."""
        torch = find_torch()
        built_with = version_of(torch)
        cuda = Cuda(sorted((CSRC / "cuda").glob("*.cu")))
        print(
            f"CUDA kernels: left out, {cuda.missing}."
            if cuda.missing
            else f"CUDA kernels: nvcc {cuda.version}, for sm_{' '.join(map(str, cuda.architectures))}.",
            file=sys.stderr,
        )
        compiler = shlex.split(os.environ.get("CXX") or "c++")
        sources, objects, commands = self.plan(torch, compiler, cuda)
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(compile_one, sources, objects, commands))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        run(self.link(torch, compiler, cuda, objects, library))
        facts = {
            "version": self.distribution.get_version(),
            "torch": built_with,
            "compiler": output(*compiler, "--version").splitlines()[0],
            "isa": [name.removeprefix("isa_") for name in self.isas()],
            "cuda": cuda.missing or f"nvcc {cuda.version}",
            "cuda_architectures": [] if cuda.missing else [f"sm_{a}" for a in cuda.architectures],
        }
        text = "\n".join(f"    {key!r}: {value!r}," for key, value in facts.items())
        head = '"""Written by setup.py: what the library beside this file was built with."""\n\n'
        (library.parent / "_build.py").write_text(f"{head}BUILD = {{\n{text}\n}}\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """Where the library is built in place (pip install -e), put what it was built with beside it."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            source = HERE / ext.name.partition(".")[0]
            shutil.copyfile(Path(self.build_lib) / source.name / "_build.py", source / "_build.py")

    @staticmethod
    def isas() -> list[str]:
        """Return the objects of the instruction sets of this kind of processor, the baseline first."""
        return list(ISA) if platform.machine() in ("x86_64", "AMD64") else ["isa_baseline"]

    def plan(self, torch: Path, compiler: list[str], cuda: Cuda) -> Plan:
        """Return sources, objects in the order in which they are linked, and how each is made.

        A function that several objects have in common, such as std::sort of integers, is taken from the first
        that has it. So the baseline comes first, and no such function needs more than every processor has.
        """
        include = [f"-I{torch / 'include'}"]
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        plan = [(CSRC / "cpu" / f"{name}.cpp", [*compiler, *CPU, *ISA[name]]) for name in self.isas()[:1]]
        plan += [(CSRC / "cpu" / f"{name}.cpp", [*compiler, *CPU, *include]) for name in HOST]
        plan += [(CSRC / "cpu" / f"{name}.cpp", [*compiler, *CPU, *ISA[name]]) for name in self.isas()[1:]]
        if not cuda.missing:
            plan += [(source, [cuda.nvcc, *cuda.flags(), *include]) for source in cuda.sources]
        objects = [folder / f"{source.parent.name}_{source.stem}.o" for source, _ in plan]
        more = shlex.split(os.environ.get("PCL_CLORA_CXXFLAGS") or "")
        commands = [
            [*start, *(() if source.suffix == ".cu" else more), "-c", str(source), "-o", str(made)]
            for (source, start), made in zip(plan, objects, strict=True)
        ]
        return [source for source, _ in plan], objects, commands

    @staticmethod
    def link(torch: Path, compiler: list[str], cuda: Cuda, objects: list[Path], library: Path) -> list[str]:
        """Return the command that links the library; torch's own libraries are found at run time."""
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
        if not cuda.missing:
            libraries += [f"-L{cuda.runtime}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        if sys.platform == "linux":
            libraries = ["-Wl,--as-needed", "-Wl,--exclude-libs,ALL", *libraries]
        return [*compiler, "-shared", *map(str, objects), "-o", str(library), *libraries]


def compile_one(source: Path, made: Path, command: list[str]) -> None:
    """Run a compiler, unless the object is newer than what it is made of and was made in the same way."""
    note = made.with_suffix(".txt")
    parts = [path for folder in (source.parent, CSRC / "common") for path in folder.glob("*.*")]
    newest = max(path.stat().st_mtime for path in parts)
    is_current = made.is_file() and made.stat().st_mtime > newest
    if is_current and note.is_file() and note.read_text(encoding="utf-8") == shlex.join(command):
        return
    run(command)
    note.write_text(shlex.join(command), encoding="utf-8")


def run(command: list[str]) -> None:
    """Run a command; show what it says only where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("pcl_clora_ops._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
