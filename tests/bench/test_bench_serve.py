"""Figures of a load on the server, from times that are known."""

import http.server
import json
import threading

import pytest

from pcl_clora.bench.serve import Told, _row, ask_all, serve_table
from pcl_clora.bench.view import put_into, read_record

VERSIONS = {"torch": "2", "numpy": "2"}


def test_a_row_counts_every_request_and_takes_quantiles_of_answers(tmp_path):
    told = Told({200: [k / 1000 for k in range(1, 101)], 429: [0.002] * 5, 0: [1.0]}, wall_s=2.0)
    row = _row(100, told, {"now": 500.0, "peak": 600.0})
    assert (row["answered"], row["turned_down"], row["others"], row["requests"]) == (100, 5, 1, 106)
    assert row["p50_ms"] == pytest.approx(51)
    assert row["p99_ms"] == pytest.approx(100)
    assert row["clouds_per_s"] == 50
    machine = {"machine": {"cpu": "a", "cores": 2}, "environment": {"versions": VERSIONS, "git": None}}
    told = {"benchmark": "serve", "peers": {}, "points": 2048, "queue": 64, "rows": [row], **machine}
    (tmp_path / "serve.json").write_text(json.dumps({**told, "load": 9.0}))
    page = put_into(
        "<!-- bench serve: begin -->\n<!-- bench serve: end -->", read_record(tmp_path / "serve.json")
    )
    assert "| 100 | 100 | 5 | 1 | 51 ms | 100 ms | 50 | 600 MiB |" in page
    assert "busy with other work (load 9.0)" in page
    header, cells = serve_table({"rows": [row]})
    assert cells == [["100", "100", "5", "1", "51 ms", "100 ms", "50", "600 MiB"]]
    assert len(header) == len(cells[0])


def test_clients_come_back_after_a_refusal_and_make_all_requests():
    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version, count = "HTTP/1.1", 0

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            Answers.count += 1
            self.send_response(429 if Answers.count == 1 else 200)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = ask_all(server.server_address[1], [b"x"], clients=3, requests=20, path="/predict")
        server.shutdown()
    assert told.counts == {429: 1, 200: 19}
