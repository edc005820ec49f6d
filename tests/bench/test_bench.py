"""Benchmarks: the right contenders are compared, and the record says what happened."""

import json
from pathlib import Path

import pytest
import torch

from pcl_clora import ops
from pcl_clora.bench import harness
from pcl_clora.bench import ops as bench_ops
from pcl_clora.bench.harness import (
    ISAS,
    Contender,
    Verdict,
    best_peer,
    check_isa,
    in_child,
    race,
    record,
    write_record,
)
from pcl_clora.bench.ops import QUICK, SIZES, Size, Task, judge_groups, judge_neighbors, judge_sampling
from pcl_clora.bench.view import bench_markdown, milliseconds, put_into, read_record, row_line
from pcl_clora.report import ReportError
from pcl_clora.report.latency import interleaved_times

ROOT = Path(__file__).parents[2]
TASK = Task(Size("fps", 2, 64, 12))


def missing(_):
    raise ImportError("no such library\nmore")


def broken(_):
    raise RuntimeError("out of order")


def waits(loops):
    return lambda task: lambda: sum(range(loops))


CONTENDERS = [
    Contender("ours", waits(10), is_peer=False),
    Contender("quick but wrong", waits(11)),
    Contender("slow", waits(200_000)),
    Contender("slower", waits(2_000_000)),
    Contender("missing", missing),
    Contender("broken", broken),
]


@pytest.fixture(scope="module")
def row():
    """A race of stand-ins; one of them computes something else."""
    wrong = sum(range(11))
    return race(CONTENDERS, None, lambda result: Verdict(result != wrong, "by sum"), repeats=3, budget_s=9)


def test_the_best_peer_is_the_fastest_one_that_computes_the_right_thing(row):
    assert best_peer(row) == "slow"
    assert not row["contenders"]["quick but wrong"]["exact"]


def test_who_is_missing_or_fails_is_named_with_the_reason(row):
    assert row["absent"] == {"missing": "no such library", "broken": "fails: RuntimeError: out of order"}
    assert list(row["contenders"]) == ["ours", "quick but wrong", "slow", "slower"]


def test_our_own_failure_is_not_hidden():
    with pytest.raises(RuntimeError, match="out of order"):
        race(
            [Contender("ours", broken, is_peer=False)],
            None,
            lambda _: Verdict(True, ""),
            repeats=1,
            budget_s=1,
        )


def test_without_peers_there_is_no_best_one():
    assert best_peer({"contenders": {"ours": {"is_peer": False, "exact": True, "min_ms": 1.0}}}) is None


def test_times_are_minimum_and_median_of_the_rounds(row):
    entry = row["contenders"]["slow"]
    assert entry["runs"] == 3
    assert 0 < entry["min_ms"] <= entry["median_ms"]


def test_contenders_take_turns_and_a_slow_one_sits_out():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    interleaved_times(runs, 2, warmup=1)
    assert order == list("ababab")
    order.clear()
    times = interleaved_times(runs, 3, warmup=0, budget_s=0.0)
    assert [len(seconds) for seconds in times.values()] == [0, 0]
    times = interleaved_times(runs, 3, warmup=0, budget_s=1e-12)
    assert order == ["a", "b"]
    assert [len(seconds) for seconds in times.values()] == [1, 1]


# Who computes the right thing


def test_the_same_order_is_exact():
    assert judge_sampling(TASK, TASK.chosen) == Verdict(True, "same indices")


def test_a_library_that_ignores_the_start_index_is_followed_from_its_own():
    found = ops.farthest_point_sample(TASK.points, 12, start_index=5)
    assert judge_sampling(TASK, found) == Verdict(True, "same indices, start index ignored")


def test_points_without_an_order_are_compared_as_sets():
    shuffled = TASK.queries.flip(1).double()
    assert judge_sampling(TASK, shuffled) == Verdict(
        True, "same points in 2 of 2 clouds, their order is lost"
    )
    shuffled[1, 3] += 1
    assert not judge_sampling(TASK, shuffled).exact


def test_equal_distances_in_another_order_are_exact():
    task = Task(Size("fps", 1, 4, 3))
    task.points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0.5, 0, 0]]])
    verdict = judge_sampling(task, torch.tensor([[0, 2, 1]]))
    assert verdict.exact
    assert "farthest at every step up to rounding" in verdict.note


def test_random_points_are_not_farthest_ones():
    verdict = judge_sampling(TASK, torch.arange(12).repeat(2, 1))
    assert not verdict.exact
    assert "nearer than the farthest was chosen" in verdict.note


@pytest.mark.parametrize("is_squared", [True, False])
def test_neighbours_may_come_with_squared_distances_or_not(is_squared):
    found = TASK.nearest if is_squared else (TASK.nearest.dist2.sqrt().numpy(), TASK.nearest.idx.numpy())
    assert judge_neighbors(TASK, found).exact


def test_approximate_neighbours_are_told():
    dist2, idx = TASK.nearest
    assert not judge_neighbors(TASK, (dist2.sqrt() * 1.001, idx)).exact


@pytest.mark.parametrize(
    ("scale", "moved", "exact"), [(1.0, 0.0, True), (1.01, 0.0, False), (1.0, 0.1, False)]
)
def test_patches_must_have_our_centres_and_distances(scale, moved, exact):
    groups = ops.group_points(TASK.points, 12, TASK.neighbors)
    found = (groups.center + moved, groups.neighborhood.flip(2) * scale)
    assert judge_groups(TASK, found).exact == exact


# The whole benchmark, at sizes that take no time


@pytest.fixture(scope="module")
def rows():
    """The quick sizes, with what is always there and one peer."""
    kept = {"pcl-clora, native", "pcl-clora, reference (plain torch)", "scipy cKDTree", "torch cdist + topk"}
    few = {op: [c for c in bench_ops.contenders(op) if c.name in kept] for op in bench_ops.JUDGES}
    job = {"sizes": [vars(size) for size in QUICK], "repeats": 2, "budget_s": 1.0, "threads": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_ops, "contenders", few.get)
        return list(bench_ops.measure(job))


def test_a_row_names_its_size_and_the_best_peer(rows):
    assert [row["size"] for row in rows] == ["2 x 256 -> 16", "2 x 256 -> 16 queries", "2 x 256 -> 16 groups"]
    assert rows[1]["contenders"]["scipy cKDTree"]["exact"]
    assert rows[1]["best_exact_peer"] in ("scipy cKDTree", "torch cdist + topk")
    assert all(row["contenders"]["pcl-clora, reference (plain torch)"]["exact"] for row in rows)


def test_the_ratio_is_that_of_the_minima(rows):
    row = rows[1]
    native = row["contenders"].get("pcl-clora, native")
    if native is None:
        assert row["ratio"] is None
    else:
        best = row["contenders"][row["best_exact_peer"]]
        assert row["ratio"] == pytest.approx(best["min_ms"] / native["min_ms"])


def test_a_record_is_written_whole_and_read_back(rows, tmp_path):
    content = record("ops", bench_ops.contenders("fps"), rows)
    write_record(tmp_path / "ops.json", content)
    assert json.loads((tmp_path / "ops.json").read_text()) == content
    assert content["machine"]["cpu"]
    assert set(content["peers"]) == {"pcl-clora-ops", "torch-quickfps", "fpsample", "torch-fps", "open3d"}
    assert content["environment"]["versions"]["torch"]


def test_pages_show_every_row_and_who_is_not_exact(rows):
    rows = json.loads(json.dumps(rows))
    for row in rows:
        row["load"] = 1.5
    rows[0]["absent"]["open3d"] = "no libGL"
    rows[1]["contenders"]["scipy cKDTree"] |= {"exact": False, "note": "made up"}
    page = bench_markdown(record("ops", [], rows))
    assert page.count("| best exact peer / native |") == 3
    assert "* open3d: absent (no libGL)" in page
    assert (
        "* scipy cKDTree (*), knn: not exact in 1 row(s), for example 2 x 256 -> 16 queries: made up" in page
    )
    assert "busy" not in page
    assert page.isascii()


def test_a_busy_machine_is_told(rows):
    rows = [row | {"load": load} for row, load in zip(rows, (7.25, None, 1.0), strict=True)]
    page = bench_markdown(record("ops", [], rows))
    assert "busy with other work in 1 of 3 rows (load up to 7.2)" in page


def test_a_page_is_renewed_between_its_marks(rows):
    result = record("ops", [], rows)
    page = "# Title\n<!-- bench ops: begin (how) -->\nold\n<!-- bench ops: end -->\nrest\n"
    renewed = put_into(page, result)
    assert renewed.startswith("# Title\n<!-- bench ops: begin (how) -->\n")
    assert renewed.endswith(bench_markdown(result) + "<!-- bench ops: end -->\nrest\n")
    assert put_into(renewed, result) == renewed
    with pytest.raises(ValueError, match="The page has no lines"):
        put_into("# Title\n", result)


def test_a_record_that_was_held_to_avx2_says_so_and_has_marks_of_its_own(rows):
    result = record("ops", [], rows, "avx2")
    assert result["held_to"] == "avx2"
    assert result["limits"] == ISAS["avx2"]
    assert f"{result['machine']['cores']} cores, held to avx2; torch" in bench_markdown(result)
    page = "<!-- bench ops: begin -->\nkept\n<!-- bench ops: end -->\n"
    with pytest.raises(ValueError, match="bench ops avx2: begin"):
        put_into(page, result)
    own = page.replace("ops", "ops avx2")
    assert put_into(page + own, result) == page + own.replace("kept\n", bench_markdown(result))
    named = page.replace("ops", "ops threads")
    assert put_into(named + own, result, "threads") == named.replace("kept\n", bench_markdown(result)) + own


def test_limits_that_were_set_by_hand_are_in_the_record(monkeypatch, rows):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert record("ops", [], rows)["limits"]["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE"


def test_an_instruction_set_that_is_not_known_or_not_there_is_refused(monkeypatch):
    check_isa("")
    with pytest.raises(ValueError, match=r"--isa 'sse9' is not known; use avx2"):
        check_isa("sse9")
    monkeypatch.setattr(harness, "vector_flags", lambda: ["sse2"])
    with pytest.raises(ValueError, match="--isa avx2: this processor does not have it"):
        check_isa("avx2")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "results" / "bench").glob("ops*.json")), ids=lambda path: path.stem
)
def test_the_page_of_the_operators_repeats_the_committed_results(file):
    page = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert not result["quick"]
    assert put_into(page, result) == page


def test_a_line_says_ratio_and_target():
    ours, peer = {"min_ms": 1.0}, {"min_ms": 7.0}
    row = {
        "op": "fps",
        "size": "1 x 8 -> 2",
        "threads": 1,
        "ratio": 7.0,
        "target": 6.0,
        "best_exact_peer": "x",
    }
    row["contenders"] = {bench_ops.NATIVE: ours, "x": peer}
    assert row_line(row) == "fps 1 x 8 -> 2, 1 thread(s): 1.00 ms, 7.0 times as fast as x (target 6)"


@pytest.mark.parametrize(
    ("value", "text"), [(0.3943, "0.394"), (1.0, "1.00"), (25.42, "25.4"), (1661.9, "1,662")]
)
def test_times_have_three_digits(value, text):
    assert milliseconds(value) == text


def test_every_size_of_the_targets_is_measured():
    assert {(size.op, size.num_points): size.target_avx2 for size in SIZES if size.target_avx2} == {
        ("fps", 1024): 5.0,
        ("fps", 2048): 5.0,
        ("fps", 8192): 5.0,
        ("fps", 100_000): 5.0,
        ("knn", 1024): 5.0,
        ("knn", 2048): 4.0,
        ("group", 1024): 12.0,
        ("group", 2048): 12.0,
        ("group", 8192): 12.0,
    }
    targets = {(size.op, size.num_points): size.target for size in SIZES if size.target}
    assert targets == {
        ("fps", 1024): 6.0,
        ("fps", 2048): 6.0,
        ("fps", 8192): 5.0,
        ("fps", 100_000): 4.0,
        ("fps", 1_000_000): 2.8,
        ("knn", 1024): 6.0,
        ("knn", 2048): 4.0,
        ("knn", 8192): 1.5,
        ("knn", 100_000): 1.0,
        ("group", 1024): 15.0,
        ("group", 2048): 15.0,
        ("group", 8192): 15.0,
    }


def echo(job):
    """Say in a child process what it was given and how many threads it has."""
    yield {
        "got": job["value"],
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
    if job["value"] == "fail":
        raise ValueError("asked to fail")


@pytest.mark.slow
def test_rows_come_from_a_process_of_their_own_whose_failure_is_seen(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = in_child("tests.bench.test_bench:echo", {"value": "fail"}, 1, "avx2")
    assert next(rows) == {"got": "fail", "threads": 1, "isa": "AVX2"}
    with pytest.raises(RuntimeError, match="with 1 threads failed"):
        next(rows)


def test_the_command_prints_writes_and_shows(monkeypatch, tmp_path, rows):
    from typer.testing import CliRunner

    from pcl_clora.cli import app

    monkeypatch.setattr(bench_ops, "in_child", lambda function, job, threads, isa: iter(rows))
    file = tmp_path / "bench" / "ops.json"
    done = CliRunner().invoke(
        app, ["bench", "ops", "--quick", "--json", "--threads", "1", "--out", str(file)]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(file.read_text())
    assert json.loads(done.stdout)["quick"]
    shown = CliRunner().invoke(app, ["bench", "show", str(file), "--markdown"])
    assert shown.stdout == bench_markdown(json.loads(file.read_text()))
    assert "Farthest point sampling" in CliRunner().invoke(app, ["bench", "show", str(file)]).stdout


def test_without_the_folder_of_peers_our_own_backends_are_measured_and_it_says_so(monkeypatch, rows):
    from typer.testing import CliRunner

    from pcl_clora.cli import app

    monkeypatch.setattr(bench_ops, "has_peers", lambda: False)
    monkeypatch.setattr(bench_ops, "in_child", lambda function, job, threads, isa: iter(()))
    for op in bench_ops.JUDGES:
        assert [c.name for c in bench_ops.contenders(op)] == [bench_ops.NATIVE, bench_ops.REFERENCE]
    done = CliRunner().invoke(app, ["bench", "ops", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    assert "install a checkout" in done.stderr
    assert json.loads(done.stdout)["peers"].keys() == {"pcl-clora-ops"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "of a list"),
        ("{", "not complete json"),
        ('{"benchmark": "page"}', "benchmark is 'page', expected 'ops'"),
        ('{"benchmark": "ops", "rows": {}}', "machine is missing"),
    ],
)
def test_a_record_of_another_shape_is_refused(tmp_path, text, message):
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(ReportError, match=message):
        read_record(file)


def test_the_page_that_is_renewed_is_not_the_record(tmp_path):
    from typer.testing import CliRunner

    from pcl_clora.cli import app

    file = tmp_path / "r.json"
    file.write_bytes((ROOT / "results" / "bench" / "ops.json").read_bytes())
    done = CliRunner().invoke(app, ["bench", "show", str(file), "--into", str(tmp_path / "." / "r.json")])
    assert "over the input" in str(done.exception)
    assert file.read_bytes() == (ROOT / "results" / "bench" / "ops.json").read_bytes()


@pytest.mark.parametrize("command", ["ops", "show"])
def test_every_command_explains_itself(command):
    from typer.testing import CliRunner

    from pcl_clora.cli import app

    assert len(CliRunner().invoke(app, ["bench", command, "--help"]).output) > 400


def test_a_measuring_process_that_is_killed_is_told_as_that():
    with pytest.raises(RuntimeError, match=r"ended by SIGKILL; most often memory was short: .* less at once"):
        list(in_child("signal:raise_signal", 9, 1))
