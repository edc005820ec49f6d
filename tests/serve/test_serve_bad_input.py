"""What a request gets that cannot be answered: the right status, a code, the remedy; and nothing stays."""

import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.io import write_points
from pcl_clora.serve import ServeSettings, need_packages, serve

SMALL = {"max_upload_mib": 0.05, "max_points": 2000}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
GLTF = b'{"asset": {"version": "2.0"}, "buffers": [{"uri": "b.bin", "byteLength": 96}]}'


def npy(tmp_path, points):
    np.save(tmp_path / "made.npy", points)
    return (tmp_path / "made.npy").read_bytes()


def row(*values):
    return " ".join(map(str, values)) + "\n"


FILES = {  # name, content, status, code, what the message says
    "empty": ("a.ply", b"", 422, "unreadable_file", "a.ply: is empty"),
    "picture": ("a.ply", PNG, 415, "wrong_type", "is a picture"),
    "web page": ("a.xyz", b"<!doctype html><html>", 415, "wrong_type", "is a web page"),
    "another kind": ("a.ply", "npy", 415, "wrong_type", "is a .npy file by its content"),
    "torn": ("a.npy", b"\x93NUMPY\x01\x00garbage", 422, "unreadable_file", "is not"),
    "one point": ("a.xyz", row(1, 2, 3).encode(), 422, "no_shape", "has one point"),
    "one place": ("a.xyz", (row(1, 2, 3) * 50).encode(), 422, "no_shape", "50 points are all at one place"),
    "nan": ("a.xyz", (row(1, 2, 3) + row("nan", 0, 0)).encode(), 422, "unreadable_file", "not finite"),
    "unknown": ("a.docx", b"PK", 415, "wrong_type", "a.docx: files ending in .docx are not taken"),
    "no ending": ("points", b"1 2 3", 415, "wrong_type", "ending in nothing"),
    "gltf": ("a.gltf", GLTF, 422, "unreadable_file", "keeps its numbers in another file, 'b.bin'"),
    "pickle": ("a.pkl", b"\x80\x04.", 415, "wrong_type", "files ending in .pkl are not taken"),
    "torn e57": ("a.e57", b"ASTM-E57" + bytes(range(200)), 422, "unreadable_file", "not a complete e57"),
    "dat": ("a.dat", b"1 2 3", 415, "wrong_type", "files ending in .dat are not taken"),
    "whole numbers": ("a.bin", bytes([1, 0, 0, 0] * 8), 422, "unreadable_file", "is no scan of float32"),
    "too many": ("a.xyz", (row(1, 2, 3) * 3000).encode(), 413, "too_many_points", "has 3,000 points"),
    "too large": ("a.xyz", bytes(200_000), 413, "too_large", "larger than 0.05 MiB"),
    "hidden": ("a\x1b[2J.docx", b"x", 415, "wrong_type", r"a\x1b[2J.docx: files"),
}


def refused(reply, status, code):
    """Check the form of a refusal; its message and remedy."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["code"] == code
    assert error["remedy"]
    assert "Traceback" not in reply.text
    return error["message"]


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("address", ["/predict", "/embed"])
def test_a_bad_file_is_told_with_its_remedy(make_client, tmp_path, points, case, address):
    client = make_client(**SMALL)
    name, content, status, code, said = FILES[case]
    if name.endswith((".e57", ".gltf")):
        pytest.importorskip({"e57": "pye57", "gltf": "trimesh"}[name[2:]])
    content = npy(tmp_path, points) if content == "npy" else content

    reply = client.post(address, files={"file": (name, content)})

    assert said in refused(reply, status, code)
    assert str(client.app.state.service.folder) not in reply.text
    assert list(client.app.state.service.folder.iterdir()) == []


@pytest.mark.parametrize(("name", "said"), [("a.pkl", "a pickle is a program"), ("a.dat", "text as .xyz")])
def test_a_file_that_no_server_takes_is_told_what_to_send(client, name, said):
    reply = client.post("/predict", files={"file": (name, b"1 2 3")})
    assert said in reply.json()["error"]["remedy"]


BODIES = {  # content type, body, status, code
    "another type": ("text/plain", b"1 2 3", 415, "wrong_content_type"),
    "no type": ("", b"1 2 3", 415, "wrong_content_type"),
    "torn form": ("multipart/form-data; boundary=x", b"--x\r\nbad", 400, "no_file"),
    "form without boundary": ("multipart/form-data", b"--x", 400, "bad_form"),
    "torn json": ("application/json", b'{"points": [[1,2', 400, "bad_json"),
    "deep json": ("application/json", b"[" * 30000, 400, "bad_json"),
    "ragged": ("application/json", b'{"points": [[1,2,3],[1,2]]}', 422, "bad_points"),
    "words": ("application/json", b'{"points": "many"}', 422, "bad_points"),
    "no points": ("application/json", b'{"points": []}', 422, "bad_points"),
    "other json": ("application/json", b"[1]", 422, "bad_points"),
    "nan json": ("application/json", b'{"points": [[NaN,0,0],[1,1,1]]}', 422, "bad_points"),
    "huge numbers": ("application/json", b'{"points": [[1' + b"0" * 400 + b",0,0]]}", 422, "bad_points"),
    "one point": ("application/json", b'{"points": [[1,0,0]]}', 422, "no_shape"),
    "nameless": ("application/octet-stream", b"1 2 3", 400, "no_name"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_body_is_told_with_its_remedy(make_client, case):
    kind, content, status, code = BODIES[case]
    headers = {"Content-Type": kind} if kind else {}
    refused(make_client(**SMALL).post("/predict", content=content, headers=headers), status, code)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"model": "nobody"}, "unknown_model"),
        ({"model": "parts"}, "unknown_category"),
        ({"model": "parts", "category": "ship"}, "unknown_category"),
        ({"up": "w"}, "wrong_axis"),
        ({"topk": "0"}, "wrong_parameter"),
        ({"output": "pdf"}, "wrong_parameter"),
        ({"part": "no_such_set"}, "unreadable_file"),
    ],
)
def test_a_wrong_parameter_is_told_with_its_remedy(client, tmp_path, points, query, code):
    content = npy(tmp_path, points)
    if "part" in query:
        write_points(tmp_path / "a.h5", points)
        reply = client.post(
            "/predict", files={"file": ("a.h5", (tmp_path / "a.h5").read_bytes())}, params=query
        )
    else:
        reply = client.post("/predict", files={"file": ("a.npy", content)}, params=query)
    refused(reply, 422, code)


def test_a_model_of_parts_makes_no_vectors(client, tmp_path, points):
    reply = client.post("/embed?model=parts", files={"file": ("a.npy", npy(tmp_path, points))})
    refused(reply, 422, "no_vectors")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/no", 404), ("GET", "/predict", 405)])
def test_wrong_addresses_get_json_too(client, method, path, status):
    assert client.request(method, path).json()["error"]["remedy"] == "see /docs"
    assert client.request(method, path).status_code == status


def test_a_full_queue_turns_down_with_a_time_to_come_back(make_client, tmp_path, points):
    client, content = make_client(queue=2), npy(tmp_path, points)
    service = client.app.state.service
    with service.admission.admit(), service.admission.admit():
        reply = client.post("/predict", files={"file": ("a.npy", content)})
    refused(reply, 429, "queue_full")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert client.post("/predict", files={"file": ("a.npy", content)}).status_code == 200


@pytest.fixture
def hurried(monkeypatch):
    """Let requests of a client take little time within a block."""

    @contextmanager
    def within(client, seconds=0.5):
        service = client.app.state.service
        with monkeypatch.context() as patched:
            patched.setattr(service, "settings", service.settings.model_copy(update={"timeout_s": seconds}))
            yield

    return within


def test_points_in_memory_are_bounded(make_client, hurried, tmp_path, points):
    client, content = make_client(max_waiting_points=400), npy(tmp_path, points)
    held = client.app.state.service.budget.hold()
    assert held.take(200, 1.0)
    with hurried(client):
        refused(client.post("/predict", files={"file": ("a.npy", content)}), 504, "timeout")
    held.release()
    assert client.post("/predict", files={"file": ("a.npy", content)}).status_code == 200
    assert client.app.state.service.budget.used == 0


def test_a_slow_model_is_a_timeout_and_the_next_is_answered(client, hurried, tmp_path, points, monkeypatch):
    content, batcher = npy(tmp_path, points), client.app.state.service._batcher
    go, answer = threading.Event(), batcher._answer
    monkeypatch.setattr(batcher, "_answer", lambda key, items: go.wait(20) and answer(key, items))
    with hurried(client):
        reply = client.post("/predict", files={"file": ("a.npy", content)})
    assert refused(reply, 504, "timeout") == "no answer within 0.5 s"
    go.set()
    assert client.post("/predict", files={"file": ("a.npy", content)}).status_code == 200


def test_one_cloud_that_fails_in_the_model_fails_no_other(client, tmp_path, points, monkeypatch):
    batcher = client.app.state.service._batcher
    answer, content = batcher._answer, npy(tmp_path, points)
    bad = npy(tmp_path, points[:77])

    def fail(key, items):
        if any(len(item.whole.points) == 77 for item in items):
            raise ZeroDivisionError
        return answer(key, items)

    monkeypatch.setattr(batcher, "_answer", fail)
    monkeypatch.setattr(batcher, "_wait_s", 0.2)
    with ThreadPoolExecutor(4) as pool:
        replies = pool.map(
            lambda body: client.post("/predict", files={"file": ("a.npy", body)}), [content, bad, content]
        )
    replies = list(replies)
    assert [reply.status_code for reply in replies] == [200, 500, 200]
    refused(replies[1], 500, "internal")


CRASHES = {
    "crash": (
        "import os, signal\ndef open(*a, **k): os.kill(os.getpid(), signal.SIGSEGV)",
        422,
        "parser_crashed",
    ),
    "hang": ("import time\ndef open(*a, **k): time.sleep(60)", 504, "timeout"),
    "memory": ("def open(*a, **k): bytearray(1 << 45)", 422, "unreadable_file"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of memory are those of posix")
@pytest.mark.parametrize("how", CRASHES)
def test_a_parser_that_crashes_or_hangs_ends_one_request_only(
    make_client, hurried, tmp_path, points, monkeypatch, how
):
    code, status, said = CRASHES[how]
    (tmp_path / "laspy.py").write_text(code)
    client, las = make_client(), b"LASF" + bytes(300)
    service = client.app.state.service
    service._readers.stop()
    with monkeypatch.context() as patched, hurried(client, 2.0 if how == "hang" else 30.0):
        patched.syspath_prepend(str(tmp_path))
        began = time.monotonic()
        refused(client.post("/predict", files={"file": ("a.las", las)}), status, said)
        assert how != "hang" or time.monotonic() - began < 15
    service._readers.stop()
    reply = client.post("/predict", files={"file": ("a.npy", npy(tmp_path, points))})
    assert reply.status_code == 200
    assert client.get("/health").status_code == 200


def test_a_stopping_server_says_so(predictors, tmp_path, points):
    testing = pytest.importorskip("fastapi.testclient")
    from pcl_clora.serve import make_app

    app = make_app(predictors, ServeSettings(app=False, readers=1))
    client = testing.TestClient(app, base_url="http://127.0.0.1")  # no lifespan: closed below
    app.state.service.close()
    refused(client.post("/predict", files={"file": ("a.npy", npy(tmp_path, points))}), 503, "stopping")
    assert client.get("/health").status_code == 503
    assert not app.state.service.folder.exists()


TOKEN = "a long secret"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer other"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Cookie": f"pcl_clora_token={TOKEN}"}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_a_token_is_asked_for(make_client, tmp_path, points, headers, status):
    client = make_client(token=TOKEN)
    for address in ("/predict", "/embed"):
        reply = client.post(address, files={"file": ("a.npy", npy(tmp_path, points))}, headers=headers)
        assert reply.status_code == status
    assert client.get("/metrics", headers=headers).status_code == status
    assert client.get("/health").status_code == 200
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in reply.text


def test_a_browser_logs_in_once(make_client):
    client = make_client(token=TOKEN)
    client.cookies.clear()
    assert "type='password'" in client.get("/docs", headers={"Accept": "text/html"}).text
    assert client.post("/login", data={"token": "other"}).status_code == 401
    reply = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert "HttpOnly" in reply.headers["set-cookie"]
    assert TOKEN not in reply.headers["set-cookie"]
    assert client.get("/docs").status_code == 200
    client.cookies.clear()


@pytest.mark.parametrize(
    ("headers", "code"),
    [({"Host": "evil.example"}, "wrong_host"), ({"Origin": "https://evil.example"}, "wrong_origin")],
)
def test_pages_of_other_hosts_cannot_ask_a_local_server(client, headers, code):
    reply = client.get("/openapi.json", headers=headers)
    assert reply.json()["error"]["code"] == code


def test_a_port_in_use_is_told_before_a_model_is_opened():
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserValueError, match=f"Port {port} of 127.0.0.1 is in use; choose another"):
            serve(["no such run"], ServeSettings(port=port, app=False))


def test_a_host_of_elsewhere_is_told():
    pytest.importorskip("uvicorn")
    with pytest.raises(UserValueError, match="no such host"):
        serve(["no such run"], ServeSettings(host="no such host", app=False))


def test_a_missing_package_is_named(monkeypatch):
    with pytest.raises(MissingPackageError, match=r"needs no_such_package: pip install 'pcl-clora\[serve\]'"):
        need_packages("no_such_package")


@pytest.mark.parametrize(
    ("given", "said"), [({"types": ["ply", "pkl"]}, r"types=\.pkl"), ({"port": 70000}, "65535")]
)
def test_settings_that_cannot_be_are_told(given, said):
    with pytest.raises(ValueError, match=said):
        ServeSettings(**given)


def test_types_can_be_fewer(make_client, tmp_path, points):
    client = make_client(types=["ply"])
    reply = client.post("/predict", files={"file": ("a.npy", npy(tmp_path, points))})
    assert json.loads(reply.text)["error"]["remedy"] == "send one that ends in .ply"
