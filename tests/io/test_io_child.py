"""Parsers of other libraries run in a process of their own: whatever happens there is one error here."""

import os
import sys
import time

import numpy as np
import pytest

from pcl_clora.errors import MissingPackageError
from pcl_clora.io import DataError, child, read_points, write_points

POINTS = np.random.default_rng(0).random((50, 3)).astype(np.float32)

FAKES = {
    "abort": "import os\ndef open(*a, **k): os.abort()\n",
    "segmentation fault": "import ctypes\ndef open(*a, **k): ctypes.string_at(0)\n",
    "exit": "import os\ndef open(*a, **k): os._exit(3)\n",
    "hang": "def open(*a, **k):\n    while True: pass\n",
    "sleep": "import time\ndef open(*a, **k): time.sleep(1000)\n",
    "memory": "def open(*a, **k): return bytearray(1 << 40)\n",
    "words": "def open(*a, **k):\n    print('x' * 100000)\n    raise ValueError('torn')\n",
    "garbage": "import sys\nsys.stdout.write('not json')\ndef open(*a, **k): raise RuntimeError\n",
}
SAID = {
    "abort": r"its parser crashed \(SIGABRT\); the file is broken or hostile",
    "segmentation fault": r"its parser crashed \(SIGSEGV\)",
    "exit": r"its parser crashed \(exit code 3\)",
    "hang": r"its parser was stopped \(SIGXCPU\), it took too long",
    "sleep": r"its parser was stopped \(SIGKILL\), it took too long",
    "memory": "announces more than fits into memory",
    "words": r"is not a complete las file \(ValueError: torn\)",
    "garbage": r"is not a complete las file \(RuntimeError\)",
}


@pytest.fixture
def las(tmp_path):
    pytest.importorskip("laspy")
    write_points(tmp_path / "a.las", POINTS)
    yield tmp_path / "a.las"
    child.stop()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put another package in the place of laspy, for the process of the parsers."""

    def put(code):
        child.stop()
        (tmp_path / "fake").mkdir()
        (tmp_path / "fake" / "laspy.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path / "fake"))

    return put


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of memory are those of posix")
@pytest.mark.parametrize("how", FAKES)
def test_a_crash_of_a_parser_is_one_error_and_the_next_file_is_read(las, fake, monkeypatch, how):
    with monkeypatch.context() as patched:
        patched.setattr(child, "SECONDS", (0.0 if how in ("hang", "sleep") else 60.0, 0.0))
        patched.setattr(child, "WAIT", 1.0 if how == "sleep" else 100.0)
        fake(FAKES[how])
        with pytest.raises(DataError, match=SAID[how]):
            read_points(las)
        with pytest.raises(DataError, match=SAID[how]):
            read_points(las)
    sys.path.remove(str(las.parent / "fake"))
    child.stop()
    assert len(read_points(las).points) == 50


def test_one_process_reads_many_files(las):
    read_points(las)
    first = child._running.process.pid
    start = time.perf_counter()
    for _ in range(20):
        read_points(las)
    assert child._running.process.pid == first
    assert time.perf_counter() - start < 2.0


def test_a_killed_process_is_started_again(las):
    read_points(las)
    child._running.process.kill()
    child._running.process.wait()
    assert len(read_points(las).points) == 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own(las):
    read_points(las)
    of_parent = child._running.process.pid
    pid = os.fork()
    if not pid:
        try:
            same = len(read_points(las).points) == 50 and child._running.process.pid != of_parent
            child.stop()
            os._exit(0 if same else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(read_points(las).points) == 50
    assert child._running.process.pid == of_parent


@pytest.mark.slow
def test_the_process_ends_with_the_one_that_asked(tmp_path, las):
    import subprocess

    code = (
        "from pcl_clora.io import child, read_points; "
        f"read_points({str(las)!r}); print(child._running.process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


@pytest.mark.parametrize(
    ("module", "name"),
    [("laspy", "a.las"), ("lazrs", "a.laz"), ("pye57", "a.e57"), ("pypcd4", "a.pcd"), ("trimesh", "a.glb")],
)
def test_a_missing_package_names_itself(tmp_path, monkeypatch, module, name):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingPackageError, match=rf'{name[1:]} files need .*pip install "pcl-clora\[files\]"'
    ):
        read_points(tmp_path / name)
    if module != "lazrs":
        with pytest.raises(MissingPackageError, match="pip install"):
            write_points(tmp_path / f"new{name[1:]}", POINTS)
        assert not (tmp_path / f"new{name[1:]}").exists()
