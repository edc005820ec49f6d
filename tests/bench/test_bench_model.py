"""The benchmark of whole networks: its plain forms against golden outputs, and what it says of a run."""

import json
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from pcl_clora.bench import model as bench_model
from pcl_clora.bench.harness import record, thread_remarks
from pcl_clora.bench.model import NETWORKS, QUICK, TOLERANCE, choose
from pcl_clora.bench.model_view import is_wide, model_line, model_remarks, model_tables, targets, warnings
from pcl_clora.bench.parts import PartClock, count_flops, matmul_peak, saved_bytes
from pcl_clora.bench.plain import make_plain
from pcl_clora.bench.sides import PLAIN, PLAIN_LORA, Bench
from pcl_clora.bench.view import bench_markdown, put_into, read_record
from pcl_clora.cli import app
from pcl_clora.errors import UserValueError
from pcl_clora.models import create_model, load_weights
from pcl_clora.models.layers import product
from tests.support.model_cases import SIZES, weights_of

ROOT = Path(__file__).parents[2]


def measured(*networks):
    """Every kind of row of small networks, one round each."""
    job = {"kinds": list(bench_model.KINDS), "quick": True, "threads": 1, "repeats": 1, "budget_s": 1.0}
    job["route"] = ""
    return [row for network in networks for row in bench_model.measure({**job, "network": network})]


@pytest.fixture(scope="module")
def rows():
    return measured("point_mae")


# The plain forms


def test_plain_point_mae_equals_the_golden_output_of_the_official_model(golden):
    archive = np.load(golden / "pointmae_cls_tiny.npz")
    ours = create_model("point_mae", num_classes=15, **SIZES)
    load_weights(ours, weights_of(archive))
    plain = make_plain(ours, ours.config).eval()
    groups = ours.group(torch.from_numpy(archive["points"]))
    np.testing.assert_allclose(plain(groups).logits.detach(), archive["output"], atol=2e-5)
    loss = F.cross_entropy(plain(groups).logits, torch.from_numpy(archive["target"]))
    assert loss.item() == pytest.approx(float(archive["loss"]), abs=2e-5)


def test_plain_part_segmentation_equals_the_golden_output_of_the_official_model(golden):
    archive = np.load(golden / "pointmae_seg_tiny.npz")
    encoder = weights_of(np.load(golden / "pointmae_cls_tiny.npz"))
    encoder = {key: value for key, value in encoder.items() if not key.startswith("cls_")}
    widths = {"propagation_widths": (192, 64), "segmentation_widths": (64, 32)}
    ours = create_model("point_mae", task="part_segmentation", **SIZES, **widths)
    load_weights(ours, {**encoder, **weights_of(archive)})
    plain = make_plain(ours, ours.config).eval()
    points, category = torch.from_numpy(archive["points"]), torch.from_numpy(archive["category"])
    result = plain(ours.group(points), points, category).logits.log_softmax(-1)
    np.testing.assert_allclose(result.detach(), archive["output"], atol=2e-5)


@pytest.mark.shared_data
def test_plain_pointgpt_equals_the_golden_output_of_the_official_model(shared):
    archive = np.load(shared / "fixtures" / "pointgpt_cls_tiny.npz")
    sizes = {**SIZES, "generator_depth": 2}
    ours = create_model("pointgpt_s", num_classes=15, **sizes)
    load_weights(ours, weights_of(archive))
    plain = make_plain(ours, ours.config).eval()
    groups = ours.group(torch.from_numpy(archive["points"]))
    np.testing.assert_allclose(plain(groups).logits.detach(), archive["output"], atol=2e-5)


def test_plain_forms_are_made_of_plain_layers():
    plain = Bench(QUICK["point_mae"]).plain
    assert not [module for module in plain.modules() if isinstance(module, product.Linear)]
    assert type(plain.encoder.first_conv[0]) is torch.nn.Conv1d


# What is measured


@pytest.mark.slow
def test_every_network_is_measured_in_every_way():
    found = measured(*QUICK)
    assert [(row["network"], row["kind"]) for row in found] == [
        (network, kind) for network in QUICK for kind in bench_model.KINDS
    ]
    assert found[-1]["profiles"]["inference: merged"]["segmentation head"] > 0
    page = bench_markdown(json.loads(json.dumps(result_of(found))))
    assert page.count("Inference of ") == page.count("Training step of ") == len(QUICK)


def test_float32_forms_compute_the_same_and_others_say_how_far_they_are(rows):
    for row in rows:
        for name, side in row.get("sides", {}).items():
            if side["difference"] is not None and not re.search("bfloat16|int8", name):
                assert side["difference"] <= TOLERANCE, (row["network"], name)
    merged = rows[0]["sides"]
    assert {"merged", "unmerged, clora", "unmerged, lora", PLAIN, PLAIN_LORA} <= merged.keys()
    assert merged["merged"]["ratio"] == pytest.approx(merged[PLAIN]["min_ms"] / merged["merged"]["min_ms"])


@pytest.mark.parametrize("method", ["clora", "linear_probe"])
def test_with_tokens_kept_a_step_has_the_same_loss_and_the_products_of_the_patch_encoder_less(rows, method):
    sides = next(row["sides"] for row in rows if row["kind"] == "step")
    step, kept = sides[method], sides[f"{method}, tokens kept"]
    assert kept["against"] == method
    assert kept["difference"] == 0
    bench = Bench(QUICK["point_mae"])
    patches = bench.groups(2).neighborhood
    encoder = count_flops(lambda: bench.ours.eval().patch_embed(patches)) / 2
    assert step["flops"] - kept["flops"] == encoder


def test_forms_that_do_not_compute_the_same_are_refused():
    bench = Bench(QUICK["point_mae"])
    sides, _ = bench.forward_sides(2)
    with torch.no_grad():
        sides["merged"].model.blocks[0].mlp.fc1.weight.mul_(1.01)
    job = {"repeats": 1, "budget_s": 1.0, "threads": 1}
    with pytest.raises(bench_model.BenchMismatchError, match=r"merged and published differ by .* more than"):
        bench_model._time(sides, 2, job, {}, grad=False)


def test_steps_hold_less_where_less_is_trained(rows):
    memory = next(row["memory"] for row in rows if row["kind"] == "step")
    assert memory["linear_probe"]["saved_mib"] < memory["lora"]["saved_mib"] < memory["full"]["saved_mib"]
    assert memory["clora, checkpointed"]["saved_mib"] < memory["clora"]["saved_mib"]


def test_the_profile_has_every_part_and_nothing_twice(rows):
    profile = next(row for row in rows if row["kind"] == "profile")["profiles"]
    parts = {"patch encoder", "attention", "MLP", "norms", "adapter", "optimiser", "other"}
    assert profile["step: clora"].keys() == parts
    assert profile["inference: merged"].keys() == parts - {"adapter", "optimiser"}


def test_a_clock_gives_time_to_the_part_that_runs():
    bench = Bench(QUICK["point_mae"])
    sides = bench.step_sides(2)
    clock = PartClock()
    with clock.watching(sides["full"].model):
        sides["full"].run()
    total = sum(clock.seconds.values())
    assert clock.seconds["MLP"] > 0
    assert clock.seconds["patch encoder"] > 0
    assert all(0 <= seconds < total for seconds in clock.seconds.values())
    assert not sides["full"].model.base.patch_embed._forward_hooks


def test_saved_tensors_are_counted_once_and_weights_are_not():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    known = {"x": x, "weight": weight}
    assert saved_bytes(lambda: x @ weight, known) == 0
    assert saved_bytes(lambda: (x @ weight).exp(), known) == 4 * 8 * 4

    def twice():
        y = (x @ weight).exp()
        return y * y

    assert saved_bytes(twice, known) == 4 * 8 * 4


def test_counting_what_is_saved_keeps_nothing_alive():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8)
    made = []

    def run():
        y = (x @ weight).exp()  # its backward pass wants its own output
        made.append(weakref.ref(y.untyped_storage()))
        return y

    assert saved_bytes(run, {}) == 4 * 8 * 4 + 8 * 8 * 4
    assert made[0]() is None


def test_flops_of_products_are_counted_on_every_route():
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    for route in product.ROUTES if product.has_onednn() else ("torch",):
        with product.use_route(route):
            assert count_flops(lambda: product.linear(x, weight)) == 2 * 3 * 8 * 4
    q = torch.randn(1, 2, 5, 4)
    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * 2 * (2 * 5 * 5 * 4)


def test_the_peak_is_measured_for_every_route():
    peak = matmul_peak(64, 16, repeats=2)
    assert {"torch", "bfloat16"} <= peak.keys()
    assert all(value > 0 for value in peak.values())


# What is said of it


def result_of(rows):
    return record("model", (), rows) | {"quick": True, "repeats": 1, "budget_s": 1.0}


def test_a_record_says_machine_flags_route_and_versions(rows):
    result = json.loads(json.dumps(result_of(rows)))
    assert result["machine"]["cpu"]
    assert all(isinstance(flag, str) for flag in result["machine"]["flags"])
    assert {row["route"] for row in result["rows"]} <= set(product.ROUTES)
    assert result["environment"]["versions"]["torch"]


def test_the_page_shows_every_form(rows, tmp_path):
    file = tmp_path / "model.json"
    file.write_text(json.dumps(result_of(rows)))
    page = bench_markdown(read_record(file))
    assert page.isascii()
    assert "Where the time goes" in page
    assert "matmul peak in GFLOP/s" in page
    line = model_line(rows[0])
    assert line.startswith("point_mae, forward, batch 2, 1 thread(s): merged ")


def made_row(**changes):
    def side(ms, against=""):
        return {"against": against, "min_ms": ms, "median_ms": ms, "gflops": 100.0, "ratio": None}

    row = {
        "network": "point_mae",
        "kind": "forward",
        "batch": 8,
        "threads": 1,
        "route": "torch",
        "load": 1.0,
        "peak_gflops": {"torch": 100.0, "onednn": 200.0},
        "sides": {PLAIN: side(100.0), "merged": side(40.0, PLAIN)},
    }
    return {**row, **changes}


@pytest.mark.parametrize(("onednn", "goal"), [(200.0, 2.4), (120.0, 1.4)])
def test_targets_follow_what_the_processor_can_do(onednn, goal):
    result = {"rows": [made_row(peak_gflops={"torch": 100.0, "onednn": onednn})]}
    assert is_wide(result) == (onednn == 200.0)
    found = targets(result)
    assert found[0] == ("point_mae", f"merged inference, times {PLAIN}", 2.5, goal, True)
    assert found[1][1:3] == ("merged: share of the matmul peak", 100.0 / onednn)
    body = model_tables({"benchmark": "model", "rows": []})
    assert body == []


def test_a_busy_machine_and_unsteady_repeats_are_told():
    assert warnings({"rows": [made_row()]}) == []
    unsteady = made_row()
    unsteady["sides"]["merged"]["median_ms"] = 80.0
    busy, spread = warnings({"rows": [made_row(load=7.5), unsteady]})
    assert "busy with other work in 1 of 2 rows (load up to 7.5)" in busy
    assert "1 of 4 times" in spread
    assert "point_mae, merged" in spread


def test_what_takes_longer_with_two_threads_is_named():
    with_two = made_row(threads=2)
    with_two["sides"] = {**with_two["sides"], "merged": {**with_two["sides"]["merged"], "min_ms": 50.0}}
    (line,) = (line for line in model_remarks({"rows": [made_row(), with_two]}) if line.startswith("With "))
    assert line.startswith("With 2 threads 1 of 1 took longer than with one, at most 1.25 times (point_mae,")
    times = {("fps", 1): 2.0, ("fps", 2): 1.5, ("knn", 2): 9.0}
    assert thread_remarks(times)[0].startswith("With 2 threads nothing of 1 took longer")
    assert thread_remarks({("fps", 1): 2.0, ("knn", 2): 1.0}) == []


def test_words_choose_networks_and_kinds():
    assert choose((), quick=False) == (list(NETWORKS), list(bench_model.KINDS))
    assert choose(("step", "pointgpt_s"), quick=True) == (["pointgpt_s"], ["step"])
    with pytest.raises(UserValueError, match=r"'point_mea' is neither a network \(point_mae; .*step"):
        choose(("point_mea",), quick=False)


def test_all_networks_are_measured_by_the_route_of_the_first(monkeypatch):
    jobs = []

    def child(function, job, threads, isa):
        jobs.append(job)
        return iter([made_row(network=job["network"], route="onednn")])

    monkeypatch.setattr(bench_model, "in_child", child)
    bench_model.bench_model((1, 2), quick=True)
    assert [job["route"] for job in jobs] == ["", *["onednn"] * (2 * len(QUICK) - 1)]


@pytest.mark.parametrize("route", product.ROUTES if product.has_onednn() else ("torch",))
def test_a_network_is_measured_by_the_route_it_is_told(monkeypatch, route):
    seen = []
    monkeypatch.setattr(bench_model, "_step_row", lambda *_: seen.append(product.route()) or {})
    job = {"network": "point_mae", "kinds": ["step"], "quick": True, "threads": 1, "route": route}
    (row,) = bench_model.measure(job)
    assert (row["route"], seen) == (route, [route])


def test_the_command_prints_and_writes(monkeypatch, tmp_path, rows):
    monkeypatch.setattr(bench_model, "in_child", lambda function, job, threads, isa: iter(rows[:1]))
    file = tmp_path / "model.json"
    done = CliRunner().invoke(
        app, ["bench", "model", "--quick", "--json", "--threads", "1", "--out", str(file)]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(file.read_text())
    shown = CliRunner().invoke(app, ["bench", "show", str(file), "--markdown"])
    assert shown.stdout == bench_markdown(read_record(file))
    wrong = CliRunner().invoke(app, ["bench", "model", "--only", "nothing"])
    assert isinstance(wrong.exception, UserValueError)


def test_what_a_run_left_out_is_said(rows):
    page = bench_markdown({**json.loads(json.dumps(result_of(rows))), "quick": False})
    assert "Not measured in this run: point_mae_tiny; pointgpt_s; point_mae, parts." in page
    assert "Not measured" not in bench_markdown(json.loads(json.dumps(result_of(rows))))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "results" / "bench").glob("model*.json")), ids=lambda path: path.stem
)
def test_the_page_of_performance_repeats_the_committed_results(file):
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    result = read_record(file)
    assert not result["quick"]
    command = f"bench show results/bench/{file.name} --into docs/performance.md"
    shown = re.search(rf"{re.escape(command)}(?: --mark (\w+))?\)", page)
    assert shown is not None
    if not shown.group(1):  # a record with a mark of its own may be of some
        assert {row["network"] for row in result["rows"]} == set(NETWORKS)
    assert put_into(page, result, shown.group(1) or "") == page
