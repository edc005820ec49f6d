"""Pre-training on the command line."""

import json
import statistics

import pytest
import yaml
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader, build_dataset
from pcl_clora.engine import load_run_config
from pcl_clora.engine.probes import extract_features, knn_accuracy, svm
from pcl_clora.models import create_model
from pcl_clora.models.builtin import builtin_card
from pcl_clora.report import ReportError, read_run
from tests.support.cli_cases import ROOT, TINY

CFGS = ROOT / "cfgs" / "pretrain"
SMALL = """
name: small
output: {output}
model:
  {{name: point_mae, task: pretraining, embed_dim: 24, depth: 1, num_heads: 2, num_groups: 8, group_size: 8,
    encoder_widths: [8, 16, 16], pretraining: {{decoder_depth: 1}}}}
adapter: {{method: full}}
data: {{name: procedural_corpus, train_size: 24, test_size: 8, num_points: 64}}
optim: {{epochs: 1, batch_size: 12, warmup_epochs: 0}}
train: {{device: cpu, progress: "off"}}
probe:
  {{data: {{name: procedural, train_size: 62, test_size: 31, num_points: 64}}, num_train: 20, num_test: 10}}
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(item) for item in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    path = folder / "small.yaml"
    path.write_text(SMALL.format(output=folder / "runs"), encoding="utf-8")
    return path


@pytest.mark.slow
def test_pretrain_says_loss_and_probes_and_eval_repeats_the_loss(settings):
    said = run("pretrain", "--config", settings, "--json")
    assert said.exit_code == 0
    content = json.loads(said.stdout)
    assert content["steps"] == 2
    assert [probe["epoch"] for probe in content["probes"]] == [0]
    again = json.loads(run("eval", "--run", content["run"], "--json").stdout)
    assert again["metrics"] == {"loss": pytest.approx(content["loss"]), "num_clouds": 8}
    shown = run("eval", "--run", content["run"]).stdout
    assert "reconstruction loss" in shown
    assert "cross entropy" not in shown
    shown = run("pretrain", "--config", settings).stdout
    assert "k-NN" in shown
    assert f"weights.path={content['run']}" in shown.replace("\n", "")
    with pytest.raises(ReportError, match="is a pre-training, which has no accuracy"):
        read_run(content["run"])
    with pytest.raises(ConfigError, match=r"not for task='pretraining'"):
        run("eval", "--run", content["run"], "--calibration")


def test_train_points_to_pretrain_and_pretrain_to_train(settings):
    with pytest.raises(ConfigError, match="use `pcl-clora pretrain"):
        run("train", "--config", settings)
    with pytest.raises(ConfigError, match=r"set model\.task=pretraining"):
        run("pretrain", "--config", ROOT / "cfgs" / "modelnet40" / "tiny_full.yaml")


def test_base_is_the_published_recipe():
    cfg = load_run_config(CFGS / "base.yaml")
    optim, masking = cfg.optim, cfg.model.pretraining
    assert (optim.lr, optim.weight_decay, optim.epochs, optim.warmup_epochs) == (1e-3, 0.05, 300, 10)
    assert (optim.batch_size, optim.clip_norm, cfg.data.num_points, cfg.augment) == (
        128,
        0,
        1024,
        "scale_shift",
    )
    assert (cfg.model.num_groups, cfg.model.group_size, cfg.model.embed_dim, cfg.model.depth) == (
        64,
        32,
        384,
        12,
    )
    assert (masking.mask_ratio, masking.mask, masking.loss) == (0.6, "random", "chamfer_l2")
    assert (masking.decoder_depth, masking.embed) == (4, "all")


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_size_has_a_config(size):
    cfg = load_run_config(CFGS / f"{size}.yaml")
    assert (cfg.name, cfg.model.task, cfg.data.name) == (
        f"pretrain_{size}",
        "pretraining",
        "procedural_corpus",
    )
    assert cfg.adapter.method == "full"
    assert cfg.probe is not None


def test_probe_looks_at_random_features_of_several_seeds(config, tmp_path):
    out = tmp_path / "probe.json"
    said = run("probe", "--config", config, "--seeds", "0-2", "--out", out, "--json")
    content = json.loads(said.stdout)
    assert content == json.loads(out.read_text())
    accuracies = [each["knn_acc"] for each in content["per_seed"]]
    assert content["knn_acc"] == pytest.approx(statistics.fmean(accuracies))
    assert content["knn_acc_std"] == pytest.approx(statistics.stdev(accuracies))
    assert content["data"]["num_train"] == 24
    assert content["weights"] == "random"
    shown = run("probe", "--config", config, "--no-svm").stdout
    assert "24 labelled clouds, 12 to classify" in shown
    assert "SVM" not in shown


def test_probe_looks_at_given_weights(config, tmp_path):
    run("train", "--config", config, "adapter.method=full", "optim.lr=1e-2")
    weights = f"weights.path={tmp_path / 'runs' / 'tiny'}"
    given = json.loads(run("probe", "--config", config, weights, "--json").stdout)
    loader = PointLoader(build_dataset(load_run_config(config).data, "test"), 12)
    train = PointLoader(build_dataset(load_run_config(config).data, "train"), 24, shuffle=False)
    model = create_model(**TINY["model"], weights=tmp_path / "runs" / "tiny")
    features = [extract_features(model, clouds, 48) for clouds in (train, loader)]
    assert given["knn_acc"] == pytest.approx(knn_accuracy(*features))
    again = json.loads(run("probe", "--config", config, weights, "--seeds", "0,1", "--json").stdout)
    assert again["knn_acc_std"] == 0  # a finished run leaves nothing random


def test_probe_says_which_weights_of_the_package_it_looked_at(tmp_path):
    path = tmp_path / "builtin.yaml"
    path.write_text(
        yaml.safe_dump({**TINY, "model": {"name": "point_mae_tiny", "num_classes": 3, "num_groups": 4}})
    )
    found = json.loads(run("probe", "--config", path, "weights.path=builtin", "--no-svm", "--json").stdout)
    assert found["sha256"] == builtin_card("point_mae_tiny")["sha256"]


def test_probe_without_scikit_learn_says_so_before_it_starts(config, monkeypatch):
    monkeypatch.setattr(svm, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="--no-svm"):
        run("probe", "--config", config)


def test_probe_refuses_parts(config):
    with pytest.raises(ConfigError, match="whole clouds"):
        run("probe", "--config", ROOT / "cfgs" / "partseg" / "warmup_tiny.yaml")
