"""Building the emulated kernels: g++, once per content, into a cache folder.

A mutant is built from the real sources with one text replaced, so what is shown to be caught is a fault of
the kernels that ship.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "extensions" / "csrc" / "cuda"
UNITS = ("cuda_emulation", "emulated_fps", "emulated_knn", "emulated_gather", "emulated_selftest")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# Libraries with and without a fault are loaded side by side: none may share its variables with another.
FAST = ("-std=c++17", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off", *WARNINGS, "-O2")
SANITIZED = (*FAST, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
MUTATED = ("-w", "-O0", "-DEMULATED_FLOAT_ONLY")  # used once, so the compiler is the slower part
COMPILER = "g++"
KEPT_DAYS = 14  # what nobody asked for that long belongs to sources that are gone


@dataclass(frozen=True)
class Mutant:
    """A fault put into one kernel file: the `place`-th `old` (from 0) of at least one becomes `new`."""

    file: str
    old: str
    new: str
    place: int = 0

    def applied_to(self, source: str) -> str:
        parts = source.split(self.old)
        if len(parts) <= self.place + 1:
            raise ValueError(
                f"{self.file} has no {self.old!r} number {self.place}; the mutant is out of date."
            )
        before, after = self.old.join(parts[: self.place + 1]), self.old.join(parts[self.place + 1 :])
        return before + self.new + after


def has_compiler() -> bool:
    return shutil.which(COMPILER) is not None


def cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pcl_clora" / "cuda-emulation"


def shared_library(mutant: Mutant | None = None) -> Path:
    """Build the library that ctypes loads."""
    objects = [_object(unit, FAST, mutant) for unit in UNITS]
    return _built("emulated.so", FAST, objects, ("-shared",))


def sanitized_program(mutant: Mutant | None = None) -> Path:
    """Build the program that runs one call from a file under ASan and UBSan."""
    objects = [_object(unit, SANITIZED, mutant) for unit in (*UNITS, "runner")]
    return _built("runner", SANITIZED, objects, ("-rdynamic", "-ldl"))


@cache
def _version() -> bytes:
    return subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout


def _object(unit: str, flags: tuple[str, ...], mutant: Mutant | None) -> Path:
    """Compile one source; the key of the cache is all it can include."""
    sources = {path.name: path.read_text() for path in (*HERE.glob("*.h"), *KERNELS.glob("*.cuh"))}
    sources[f"{unit}.cpp"] = (HERE / f"{unit}.cpp").read_text()
    if mutant is not None and mutant.file in sources:
        faulty = mutant.applied_to(sources[mutant.file])
        if _mentions(sources, f"{unit}.cpp", mutant.file):
            sources[mutant.file] = faulty
            flags = (*flags, *MUTATED)
    key = _key(flags, *(f"{name}\n{text}" for name, text in sorted(sources.items())))
    target = cache_folder() / f"{unit}-{key}.o"
    with tempfile.TemporaryDirectory() as folder:
        if not target.exists():
            for name, text in sources.items():
                Path(folder, name).write_text(text)
        _run(target, *flags, "-c", f"{folder}/{unit}.cpp", f"-I{folder}")
    return target


def _mentions(sources: dict[str, str], unit: str, file: str) -> bool:
    """Tell whether a source includes a file, directly or through others."""
    seen, todo = set(), [unit]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += [other for other in sources if f'#include "{other}"' in sources[name]]
    return file in seen


def _built(name: str, flags: tuple[str, ...], objects: list[Path], extra: tuple[str, ...]) -> Path:
    target = cache_folder() / f"{_key(flags, *(path.name for path in objects))}-{name}"
    _run(target, *flags, *map(str, objects), *extra)
    return target


def _key(flags: tuple[str, ...], *texts: str) -> str:
    digest = hashlib.sha256(_version() + "\0".join((*flags, *texts)).encode())
    return digest.hexdigest()[:24]


def _run(target: Path, *arguments: str) -> None:
    """Compile or link what is not there yet. Test processes run side by side: one builds, the others wait."""
    if target.exists():
        os.utime(target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _prune(target.parent)
    with (target.parent / f"{target.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        unfinished = target.with_name(f"{target.name}.unfinished")
        done = subprocess.run([COMPILER, *arguments, "-o", str(unfinished)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{COMPILER} failed for {target.name}:\n{done.stderr[-4000:]}")
        unfinished.replace(target)


@cache
def _prune(folder: Path) -> None:
    """Delete what was not used for a long time, once per process and only where something new is built."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process prunes too
            if path.stat().st_mtime < oldest:
                path.unlink()
