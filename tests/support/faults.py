"""Break files of every kind and see that nothing but answers and errors for users comes out.

`python -m tests.support.faults --seconds 600 --seed 1` goes on for as long as asked, every reading in a child
process with limits of its own, and prints a table of what came out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcl_clora.errors import PclCloraError
from tests.support.file_kinds import KINDS, Kind
from tests.support.mutations import mutate

SECONDS = 1.0  # of processor time that a reading may take
MEMORY = 1 << 29  # bytes that it may ask for beyond what the process has
ANSWER, REFUSED = "answer", "refused"


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let a request for much memory fail instead of taking it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(kind: Kind, file: Path) -> str:
    """Read one file: `ANSWER`, `REFUSED`, or what is wrong with how it was taken."""
    start = time.process_time()
    try:
        with limited_memory():
            kind.read(file)
        found = ANSWER
    except PclCloraError as error:
        found = "memory" if _asked_for_memory(error) else REFUSED
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    return found if time.process_time() - start < SECONDS else f"slow ({found})"


def _asked_for_memory(error: BaseException) -> bool:
    """Tell a request that failed from what Python's own parser says of deep brackets."""
    cause = error.__cause__ or error.__context__
    if not isinstance(cause, MemoryError):
        return False
    return not traceback.extract_tb(cause.__traceback__)[-1].filename.endswith("ast.py")


def break_and_read(name: str, folder: Path, seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Make a file of a kind and read broken versions of it: (mutation, outcome, content)."""
    kind, random = KINDS[name], np.random.default_rng([seed, *name.encode()])
    file = kind.make(folder)
    whole = file.read_bytes()
    kind.read(file)
    for _ in range(count):
        how, content = mutate(whole, random)
        file.write_bytes(content)
        yield how, outcome(kind, file), content


def _in_a_child(name: str, seed: int, count: int, keep: Path) -> Counter[str]:
    """Read in a forked process, which may crash or hang; what went wrong is kept."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(write, "w", buffering=1) as out, tempfile.TemporaryDirectory() as folder:
            for number, (how, found, content) in enumerate(break_and_read(name, Path(folder), seed, count)):
                if found not in (ANSWER, REFUSED):
                    (keep / f"{name.replace(' ', '_')}_{seed}_{number}").write_bytes(content)
                print(found.partition(":")[0] + ("" if found in (ANSWER, REFUSED) else f" ({how})"), file=out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        found = Counter(line.strip() for line in lines)
    status = os.waitpid(child, 0)[1]
    if status:
        found[f"the process ended with {status}"] += 1
    return found


def main() -> int:
    """Run for some time and print the table; 1 if anything else than answers and refusals came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path("faults"), help="Where broken files go that did harm."
    )
    options = parser.parse_args()
    options.keep.mkdir(exist_ok=True)
    end, seed = time.monotonic() + options.seconds, options.seed
    found: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    while time.monotonic() < end:
        for name, counts in found.items():
            counts.update(_in_a_child(name, seed, 40, options.keep))
        seed += 1
    good = (ANSWER, REFUSED)
    print(f"{'kind':22}{'answers':>9}{'refused':>9}  else")
    for name, counts in found.items():
        rest = ", ".join(f"{what}: {count}" for what, count in counts.items() if what not in good)
        print(f"{name:22}{counts[ANSWER]:9}{counts[REFUSED]:9}  {rest}")
    return int(any(what not in good for counts in found.values() for what in counts))


if __name__ == "__main__":
    sys.exit(main())
