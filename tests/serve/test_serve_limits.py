"""Single pieces that bound a server: uploads as they come in, batches, the queue, points, files."""

import asyncio
import os
import re
import threading
import time
from pathlib import Path

import pytest

from pcl_clora.serve.settings import ServeSettings

pytest.importorskip("fastapi")
from starlette.requests import Request

from pcl_clora.serve.admission import Admission, PointBudget
from pcl_clora.serve.batching import Batcher
from pcl_clora.serve.disk import sweep
from pcl_clora.serve.refusals import Refusal
from pcl_clora.serve.uploads import receive

ROOT = Path(__file__).resolve().parents[2]
BARE = [(b"content-type", b"application/octet-stream")]


def take(messages, tmp_path, headers=BARE, **limits):
    """Receive an upload whose messages come one after another; after the last one nothing comes."""
    left = list(messages)

    async def come():
        if not left:
            await asyncio.sleep(60)
        return left.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"name=a.ply", "headers": headers}
    return asyncio.run(receive(Request(scope, come), ServeSettings(**limits), tmp_path, time.monotonic()))


def block(content, more=True):
    return {"type": "http.request", "body": content, "more_body": more}


@pytest.mark.parametrize(
    ("messages", "status", "code"),
    [
        ([block(b"ply\n")], 408, "upload_timeout"),
        ([block(b"ply\n"), {"type": "http.disconnect"}], 400, "incomplete"),
        ([block(bytes(50_000)) for _ in range(9)], 413, "too_large"),
    ],
)
def test_an_upload_is_bounded_while_it_comes_in(tmp_path, messages, status, code):
    with pytest.raises(Refusal) as refusal:
        take(messages, tmp_path, timeout_s=0.3, max_upload_mib=0.1)
    assert (refusal.value.status, refusal.value.code) == (status, code)


def test_what_is_announced_as_too_large_is_not_read(tmp_path):
    with pytest.raises(Refusal, match="larger than 1 MiB"):
        take([], tmp_path, [*BARE, (b"content-length", b"99999999")], max_upload_mib=1)


def test_an_upload_in_pieces_is_one_file(tmp_path):
    given = take([block(b"ply\n"), block(b"rest", more=False)], tmp_path)
    assert given.name == "a.ply"
    assert given.content.read_bytes() == b"ply\nrest"


def test_items_that_wait_are_answered_together_and_by_key():
    begun, go, batches = threading.Event(), threading.Event(), []

    def answer(key, items):
        batches.append((key, list(items)))
        begun.set()
        go.wait(20)
        return [10 * item for item in items]

    batcher = Batcher(answer, size=3, wait_s=0.0)
    first = batcher.put("a", 0)
    begun.wait(20)
    rest = [batcher.put(key, item) for key, item in (("a", 1), ("b", 2), ("a", 3), ("a", 4), ("a", 5))]
    rest[3].cancel()
    go.set()
    assert [future.result(20) for future in (first, rest[0], rest[1], rest[2], rest[4])] == [
        0,
        10,
        20,
        30,
        50,
    ]
    batcher.close()
    assert batches == [("a", [0]), ("a", [1, 3]), ("b", [2]), ("a", [5])]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.put("a", 6)


def test_a_lone_item_waits_for_others():
    batches = []
    batcher = Batcher(lambda key, items: batches.append(list(items)) or items, size=2, wait_s=20.0)
    futures = [batcher.put("a", item) for item in (1, 2)]
    assert [future.result(10) for future in futures] == [1, 2]
    batcher.close()
    assert batches == [[1, 2]]


def test_a_full_server_says_when_to_come_back():
    admission = Admission(1)
    with admission.admit(), pytest.raises(Refusal) as refusal:
        admission.admit().__enter__()
    assert (refusal.value.status, refusal.value.headers["Retry-After"]) == (429, "1")
    with admission.admit():
        assert admission.count == 1


def test_points_wait_for_room_and_what_is_over_takes_none():
    budget = PointBudget(100)
    first, second, third = budget.hold(), budget.hold(), budget.hold()
    assert first.take(80, 0.0)
    assert not second.take(50, 0.05)
    first.release()
    assert second.take(500, 0.0)  # alone it may be larger
    assert not third.take(1, 0.05)
    second.release()
    second.release()
    assert not second.take(1, 0.0)
    assert budget.used == 0


def test_old_files_go_and_the_oldest_of_too_many(tmp_path):
    for name, age, size in (("old", 900, 10), ("a", 60, 400), ("b", 30, 400), ("c", 10, 400)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(size))
        os.utime(tmp_path / name / "file", (time.time() - age,) * 2)
    sweep(tmp_path, most_bytes=900)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_every_code_of_a_refusal_is_documented():
    source = "".join(path.read_text() for path in (ROOT / "pcl_clora" / "serve").glob("*.py"))
    codes = set(re.findall(r'Refusal\(\s*\d{3},\s*"(\w+)"', source))
    codes |= set(re.findall(r'\(\d{3}, "(\w+)"\)', source))
    page = (ROOT / "docs" / "serve.md").read_text()
    assert len(codes) > 20
    assert {code for code in codes if f"`{code}`" not in page} == set()
