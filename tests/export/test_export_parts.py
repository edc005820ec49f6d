"""Exported part segmenters against torch, and their numpy runtime against the predictor."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pcl_clora.adapters import attach_adapter
from pcl_clora.cli import app
from pcl_clora.data import build_dataset
from pcl_clora.engine import Trainer
from pcl_clora.errors import UserValueError
from pcl_clora.export import export_model, runtime
from pcl_clora.export.graph import exportable, trace, without_own_ops
from pcl_clora.export.int8 import onnx_runner
from pcl_clora.export.write import _onnx_bytes, compare
from pcl_clora.models import create_model
from pcl_clora.models.layers.part_segmentation import interpolation_weights
from pcl_clora.predict import load
from tests.support import adapter_cases as cases
from tests.support.engine_cases import CLORA, SEGMENTATION, tiny_config

BACKBONES = ("point_mae", "recon", "pointgpt_s", "point_bert")
SIZES = {
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "num_groups": 8,
    "group_size": 8,
    "fetch_layers": [0, 1, 2],
    "propagation_widths": [16, 24],
    "segmentation_widths": [16, 8],
}
HEADS = {"point_bert": {"num_upsampled": [32, 16]}}


def segmenter(name: str) -> torch.nn.Module:
    """A segmenter of 6 parts in 2 categories, whose BatchNorms have seen something."""
    torch.manual_seed(0)
    sizes = {**SIZES, **HEADS.get(name, {}), "num_parts": 6, "num_categories": 2}
    model = create_model(name, task="part_segmentation", **sizes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def clouds(count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    points = torch.randn(count, 64, 3, generator=torch.Generator().manual_seed(1)) * 0.4
    return points, torch.arange(count) % 2


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """The predictor of a tiny run on the parts of made shapes."""
    folder = tmp_path_factory.mktemp("parts")
    sizes = {"model": {"num_parts": build_dataset(tiny_config().data, "test").taxonomy.num_parts}}
    changes = {
        "output": str(folder),
        "optim": {"epochs": 1, "warmup_epochs": 0},
        "train": {"product": "torch"},
    }
    cfg = tiny_config(CLORA, SEGMENTATION, sizes, changes)
    return load(Trainer(cfg).fit().run_dir, device="cpu")


@pytest.fixture(scope="module")
def onnx_file(predictor, tmp_path_factory):
    """That run as ONNX."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return export_model(predictor, tmp_path_factory.mktemp("onnx") / "parts.onnx").path


@pytest.mark.parametrize("name", BACKBONES)
def test_places_chosen_outside_and_folded_norms_change_no_logit(name):
    model = segmenter(name)
    points, category = clouds(3)
    wanted = model(points, category)
    module = exportable(model)
    torch.testing.assert_close(module(*module.inputs(points, category)), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(points, category), wanted)


@pytest.fixture(scope="module")
def traced():
    """Point-BERT, the one with further inputs, as a program of torch's operators, traced on two clouds."""
    module = exportable(segmenter("point_bert"))
    two = tuple(each[:2] for each in module.inputs(*clouds()))
    return module, two, without_own_ops(trace(module, two))


def check_parts(module, run):
    """Assert that a program computes the parts for any number of clouds and patches."""
    assert compare(module, run, module.inputs(*clouds())) < 1e-5
    fewer = module.inputs(clouds(2)[0][:, :50], clouds(2)[1])
    torch.testing.assert_close(run(*fewer), module(*fewer), rtol=1e-4, atol=1e-5)


def test_a_program_of_parts_takes_any_number_of_clouds_and_patches(traced):
    module, _, program = traced
    assert not any("pcl_clora" in str(node.target) for node in program.graph.nodes)
    run = program.module()
    check_parts(module, lambda *given: run(*given))


@pytest.mark.long
def test_onnx_computes_the_parts_for_any_number_of_clouds_and_patches(traced):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, two, program = traced
    check_parts(module, onnx_runner(_onnx_bytes(program, module, two, {}), module.names))


def test_a_method_with_a_head_of_its_own_is_refused_by_name():
    model = attach_adapter(segmenter("point_mae"), {"method": "gft", "cross_blocks": [0, 1], "neighbors": 4})
    with pytest.raises(UserValueError, match="only the heads of the backbones themselves"):
        exportable(model)


def test_a_method_that_does_not_merge_stays_in_the_graph():
    model = cases.shake(attach_adapter(segmenter("point_mae"), {"method": "vpt"})).eval()
    points, category = clouds(3)
    wanted = model(points, category)
    module = exportable(model)
    torch.testing.assert_close(module(*module.inputs(points, category)), wanted, rtol=1e-4, atol=1e-5)


def test_the_runtime_labels_every_point_as_the_predictor_does(onnx_file, predictor):
    model = runtime.Model(onnx_file)
    category = predictor.taxonomy.categories[1]
    scans = [np.random.default_rng(seed).normal(size=(64 + 40 * seed, 3)) * 7 + 100 for seed in range(4)]
    for scan, (labels, confidence) in zip(scans, model.parts(scans, category), strict=True):
        wanted = predictor(scan, category)
        assert len(labels) == len(scan)
        sure = np.sort(wanted.probability, axis=1)[:, -2:]
        clear = sure[:, 1] - sure[:, 0] > 1e-4
        assert np.array_equal(labels[clear], wanted.label[clear])
        np.testing.assert_allclose(confidence, wanted.confidence, atol=1e-4)
        assert {model.classes[k] for k in labels} <= {n for n in model.classes if n.startswith(category)}


def test_the_file_labels_points_without_this_package_and_without_torch(onnx_file, predictor, tmp_path):
    np.save(tmp_path / "scan.npy", np.random.default_rng(1).normal(size=(90, 3)))
    program = (
        "import sys, json, numpy as np\n"
        f"sys.path.insert(0, {str(onnx_file.parent)!r})\n"
        "from pcl_clora_runtime import Model\n"
        f"model = Model({str(onnx_file)!r})\n"
        f"labels, _ = model.parts([np.load({str(tmp_path / 'scan.npy')!r})], list(model.categories)[0])[0]\n"
        "assert not {'torch', 'pcl_clora'} & set(sys.modules)\n"
        "print(json.dumps(labels.tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = predictor(tmp_path / "scan.npy", predictor.taxonomy.categories[0])
    assert np.mean(np.array(json.loads(done.stdout)) == said.label) > 0.98  # ties of rounding


def test_numpy_finds_the_same_places_and_weights():
    points, _ = clouds(1)
    points[0, 32:] = points[0, :32].clone()  # ties
    center = points[:, 20:40]
    idx, weight = interpolation_weights(points, center)
    near, shares = runtime.three_nearest(points[0].numpy(), center[0].numpy())
    assert np.array_equal(near, idx[0].numpy())
    np.testing.assert_allclose(shares, weight[0].numpy(), rtol=1e-6)


def test_the_runtime_says_which_call_and_category_it_wants(onnx_file):
    model = runtime.Model(onnx_file)
    scan = np.random.default_rng(0).normal(size=(64, 3))
    with pytest.raises(ValueError, match=r"call model\.parts"):
        model([scan])
    with pytest.raises(ValueError, match="category 'lamp' is not known; give one of"):
        model.parts([scan], "lamp")


@pytest.mark.slow
def test_int8_says_what_it_costs_in_instance_miou(predictor, onnx_file, tmp_path, monkeypatch):
    monkeypatch.setattr("pcl_clora.export.write._onnx_bytes", lambda *_: onnx_file.read_bytes())  # the same
    monkeypatch.setattr("pcl_clora.export.int8.speedup", lambda *_: 1.5)
    facts = export_model(predictor, tmp_path / "parts.onnx", "int8").facts
    assert facts["agreement"] > 0.7
    assert abs(facts["instance_miou_float32"] - facts["instance_miou_int8"]) < 0.2


@pytest.mark.slow
def test_the_command_writes_a_torch_program_of_parts(predictor, tmp_path):
    run = predictor.opened.file.parent.parent
    command = ["export", str(run), "--to", "torch", "--out", str(tmp_path / "m.pt2")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "largest difference of a logit from torch" in done.stdout
    program = torch.export.load(tmp_path / "m.pt2").module()
    module = exportable(predictor.model)
    inputs = module.inputs(*clouds(5))
    torch.testing.assert_close(program(*inputs), module(*inputs))
