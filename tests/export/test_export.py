"""Exported models against torch, the numpy runtime against the ops, the file without this package."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pcl_clora import ops
from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.share import push_adapter
from pcl_clora.cli import app
from pcl_clora.data import InputRule
from pcl_clora.engine import Trainer
from pcl_clora.errors import UserValueError
from pcl_clora.export import export_model, runtime
from pcl_clora.export.graph import exportable, fold_norms, trace, without_own_ops
from pcl_clora.export.int8 import ExportError
from pcl_clora.export.write import compare
from pcl_clora.predict import load
from tests.support import adapter_cases as cases
from tests.support.engine_cases import CLORA, tiny_config
from tests.support.fake_hub import FakeHub

BACKBONES = ("point_mae", "recon", "pointgpt_s")
METHODS = ({"method": "lora"}, {"method": "clora_geo", "neighbors": 4}, {"method": "vpt"})


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """The predictor of a tiny run on made shapes."""
    folder = tmp_path_factory.mktemp("export")
    run = Trainer(tiny_config(CLORA, {"output": str(folder), "train": {"product": "torch"}})).fit()
    return load(run.run_dir, device="cpu")


@pytest.fixture(scope="module")
def onnx_file(predictor, tmp_path_factory):
    """That run as ONNX."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return export_model(predictor, tmp_path_factory.mktemp("onnx") / "model.onnx").path


def shaken(name: str, **settings: object) -> torch.nn.Module:
    """A backbone with an adapter away from zero, and BatchNorms that have seen something."""
    torch.manual_seed(0)
    model = cases.make_backbone(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return cases.shake(attach_adapter(model, settings)).eval() if settings else model.eval()


def inputs_of(module, count: int = 32):
    return module.inputs(cases.make_points(count), torch.arange(count) % 2)


def two(inputs):
    return tuple(each[:2] for each in inputs)


@pytest.mark.parametrize("name", BACKBONES)
def test_folding_changes_no_logit_and_leaves_the_model_alone(name):
    model = shaken(name, method="clora", rank=2)
    points = cases.make_points(3)
    wanted = model(points)
    module = exportable(model)
    inputs = module.inputs(points, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(module(*inputs), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(points), wanted)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_norm_is_folded(name):
    model = shaken(name)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert fold_norms(model) == len(norms)
    left = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert all(m.eps == 0 and not m.running_mean.any() and (m.running_var == 1).all() for m in left)


@pytest.mark.slow
@pytest.mark.parametrize("settings", METHODS, ids=lambda s: s["method"])
def test_a_method_is_in_the_program_whether_it_merges_or_not(settings):
    module = exportable(shaken("point_mae", **settings))
    inputs = inputs_of(module)
    program = trace(module, two(inputs)).module()
    assert compare(module, lambda *given: program(*given), inputs) < 1e-5


def test_neighbours_are_plain_torch_for_other_programs():
    pytest.importorskip("onnxruntime")
    module = exportable(shaken("point_mae", method="clora_geo", neighbors=4))
    inputs = inputs_of(module)
    program = without_own_ops(trace(module, two(inputs)))
    assert not any("pcl_clora" in str(node.target) for node in program.graph.nodes)
    run = program.module()
    assert compare(module, lambda *given: run(*given), inputs) < 1e-5


def test_an_onnx_file_says_what_it_is(onnx_file, predictor):
    about = runtime.Model(onnx_file).about
    assert about["classes"] == list(predictor.names)
    assert InputRule.model_validate(about["rule"]) == predictor.rule
    assert (onnx_file.parent / "pcl_clora_runtime.py").is_file()


def test_the_runtime_predicts_what_the_predictor_predicts(onnx_file, predictor):
    clouds = [np.random.default_rng(seed).normal(size=(64 + seed, 3)) * 7 + 100 for seed in range(5)]
    found = runtime.Model(onnx_file)(clouds)
    wanted = np.stack([predictor(cloud).probability for cloud in clouds])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_file_is_used_without_this_package_and_without_torch(onnx_file, predictor, tmp_path):
    points = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    np.save(tmp_path / "scan.npy", points)
    program = (
        "import sys, json, numpy as np\n"
        f"sys.path.insert(0, {str(onnx_file.parent)!r})\n"
        "from pcl_clora_runtime import Model\n"
        f"model = Model({str(onnx_file)!r})\n"
        f"shares = model([np.load({str(tmp_path / 'scan.npy')!r})])[0]\n"
        "assert not {'torch', 'pcl_clora'} & set(sys.modules)\n"
        "print(json.dumps([model.classes[shares.argmax()], float(shares.max())]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    name, share = json.loads(done.stdout)
    said = predictor(points)
    assert name == said.name
    assert share == pytest.approx(float(max(said.probability)), abs=1e-4)


@pytest.mark.slow
def test_a_torch_program_takes_any_number_of_clouds(predictor, tmp_path):
    written = export_model(predictor, tmp_path / "model.pt2", "torch")
    assert written.difference < 1e-5
    program = torch.export.load(written.path).module()
    module = exportable(predictor.model)
    inputs = inputs_of(module, 5)
    torch.testing.assert_close(program(*inputs), module(*inputs))


@pytest.mark.slow
def test_int8_is_written_where_it_is_faster_and_refused_where_it_is_not(
    predictor, onnx_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("pcl_clora.export.write._onnx_bytes", lambda *_: onnx_file.read_bytes())  # the same
    monkeypatch.setattr("pcl_clora.export.int8.speedup", lambda *_: 0.5)
    with pytest.raises(ExportError, match=r"int8 takes 2\.00 times"):
        export_model(predictor, tmp_path / "model.onnx", "int8")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("pcl_clora.export.int8.speedup", lambda *_: 1.5)
    written = export_model(predictor, tmp_path / "model.onnx", "int8")
    assert written.facts["agreement"] > 0.7
    assert 0 < written.difference < 2
    assert runtime.Model(written.path).classes == list(predictor.names)


def test_a_program_that_differs_is_refused(predictor):
    module = exportable(predictor.model)
    with pytest.raises(ExportError, match=r"differs from torch by 1\.00e-02"):
        compare(module, lambda *given: module(*given) + 0.01, inputs_of(module))


def test_another_suffix_is_refused_with_the_name_to_give(predictor, tmp_path):
    with pytest.raises(UserValueError, match=r"ends in \.onnx; name it model\.onnx"):
        export_model(predictor, tmp_path / "model.pt", "onnx")


def test_what_is_no_classifier_of_patches_is_refused():
    with pytest.raises(UserValueError, match="classifiers and part segmenters of point patches are"):
        exportable(torch.nn.Linear(3, 3))


@pytest.mark.parametrize("compat", ["none", "pointnet2"])
@pytest.mark.parametrize("shape", [(64, 8, 8), (1024, 64, 32), (300, 100, 3)])
def test_numpy_cuts_the_same_patches_bit_for_bit(compat, shape):
    count, num_groups, group_size = shape
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(count)) * 0.4
    points[count // 2 :] = points[: count - count // 2].clone()  # ties
    wanted = ops.group_points(points[None], num_groups, group_size, compat=compat)
    center, neighborhood = runtime.group(points.numpy(), num_groups, group_size, compat == "pointnet2")
    assert np.array_equal(center, wanted.center[0].numpy())
    assert np.array_equal(neighborhood, wanted.neighborhood[0].numpy())


RULES = [
    {},
    {"read_points": 200},
    {"cut": "random", "draw": ("seed", 3), "read_points": 100},
    {"centre_on": "cut"},
    {"up": "z"},
    {"up": "-x", "frame": "file"},
    {"fps": "pointnet2", "read_points": 256},
    {"stored_points": 128},
]


@pytest.mark.parametrize("settings", RULES, ids=str)
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_numpy_prepares_clouds_as_the_rule_does(settings, count):
    rule = InputRule(**{"num_points": 100, "read_points": 100, **settings})
    points = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    if count == 1000:
        points = points[np.argsort(points[:, 0])]  # a scan: its first points lie on one side
    wanted = rule.see(points, name="cloud.npy").points.numpy()
    found = runtime.prepare(points, rule.model_dump(mode="json"), "cloud.npy")
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("wrong", [np.zeros((0, 3)), np.zeros((3, 2)), np.full((4, 3), np.nan)], ids=str)
def test_the_runtime_refuses_what_is_no_cloud(wrong):
    with pytest.raises(ValueError, match=r"expected \(N, 3\) finite numbers"):
        runtime.prepare(wrong, InputRule().model_dump(mode="json"))


@pytest.mark.slow
def test_the_command_prints_the_difference_of_a_model_of_the_hub(predictor, tmp_path, monkeypatch):
    FakeHub.put_in_place(tmp_path / "hub", monkeypatch)
    name = push_adapter(predictor.opened.file, "me/shapes")
    command = ["export", name, "--to", "torch", "--out", str(tmp_path / "m.pt2")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "largest difference of a logit from torch" in done.stdout
