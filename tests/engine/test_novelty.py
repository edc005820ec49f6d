"""How unlike its training clouds a cloud is: scores against peers, calibration, what a prediction says."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pcl_clora
from pcl_clora.cli import app
from pcl_clora.config import build, merge
from pcl_clora.engine import RunConfig, RunFolder, Trainer
from pcl_clora.engine.novelty import SCORES, auroc, calibrate, load_novelty, novelty_file
from pcl_clora.engine.novelty.calibration import split_clouds
from pcl_clora.engine.novelty.scores import SHRINK
from pcl_clora.io import DataError
from tests.support.cli_cases import TINY
from tests.support.data_layouts import make_hdf5


def outputs(seed, count=60, width=6, classes=3, far=0.0):
    """Clouds of classes as blobs of features; `far` moves all of them away."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    middle = 4 * torch.eye(classes, width)
    features = middle[labels] + torch.randn(count, width, generator=random)
    features[:, -1] += far
    return features, features @ middle.T, labels


def naive(name, known, asked):
    """The scores once more, in numpy and in other words."""
    features, logits, labels = (part.double().numpy() for part in known)
    new, new_logits = (part.double().numpy() for part in asked[:2])
    if name == "knn":
        near = [f / np.linalg.norm(f) for f in features.astype(np.float64)]
        return [min(np.linalg.norm(x / np.linalg.norm(x) - f) for f in near) for x in new]
    if name == "knn_logit":
        near = [f / np.linalg.norm(f) for f in features]
        apart = [min(np.linalg.norm(a - b) for b in near if b is not a) for a in near]
        scale = logits.max(axis=1).mean() / np.mean(apart)
        distance = np.array(naive("knn", known, asked))
        return scale * distance - np.log(np.exp(new_logits).sum(axis=1))
    if name == "mahalanobis":
        means = {k: features[labels == k].mean(0) for k in set(labels)}
        inside = np.array([f - means[k] for f, k in zip(features, labels, strict=True)])
        cov = inside.T @ inside / len(features)
        inverse = np.linalg.inv(cov + SHRINK * np.trace(cov) / len(cov) * np.eye(len(cov)))
        return [min(np.sqrt((x - m) @ inverse @ (x - m)) for m in means.values()) for x in new]
    if name == "energy":
        return [-np.log(np.exp(row).sum()) for row in new_logits]
    return [-np.exp(row.max()) / np.exp(row).sum() for row in new_logits]


@pytest.mark.parametrize("name", ["knn_logit", "knn", "mahalanobis", "energy", "softmax"])
def test_a_score_is_that_of_its_paper(name):
    known, asked = outputs(0), outputs(1, far=3.0)

    found = SCORES[name].fit(*known)(*asked[:2])

    np.testing.assert_allclose(
        found, naive(name, known, asked), rtol=2e-3, atol=0.02
    )  # known ones are halves


def test_the_virtual_logit_grows_with_what_the_known_do_not_have():
    known = outputs(0, width=80)
    known[0][:, 70:] = 0
    near, far = outputs(1, width=80), outputs(1, width=80)
    near[0][:, 70:] = 0
    far[0][:, 70:] = 5

    score = SCORES["vim"].fit(*known)

    assert (score(far[0], near[1]) > score(near[0], near[1])).all()


@pytest.mark.parametrize("name", SCORES)
def test_a_score_comes_back_from_its_tensors(name):
    score = SCORES[name].fit(*outputs(0))

    again = SCORES[name].of(score.tensors())

    asked = outputs(1)[:2]
    torch.testing.assert_close(again(*asked), score(*asked))


@pytest.mark.parametrize("name", SCORES)
def test_the_scale_has_the_median_at_0_and_95_percent_below_1(name):
    known, held = outputs(0, 400), outputs(1, 400)

    scale = calibrate(known, held, score=name)

    own = scale(*held[:2])
    assert float(own.median()) == pytest.approx(0, abs=0.02)
    assert float((own > 1).double().mean()) == pytest.approx(0.05, abs=0.003)
    order = scale.score(*held[:2]).argsort()
    assert bool((own[order].diff() >= 0).all())


def test_auroc_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    known, novel = random.integers(0, 9, 200) / 9, random.integers(2, 11, 90) / 9

    expected = metrics.roc_auc_score(np.r_[np.zeros(200), np.ones(90)], np.r_[known, novel])

    assert auroc(torch.from_numpy(known), torch.from_numpy(novel)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="give some of both"):
        auroc(torch.ones(3), torch.ones(0))


def test_held_out_clouds_are_not_known():
    known, held = split_clouds(torch.arange(100, 200), 60, seed=1)

    assert (len(known), len(held)) == (48, 12)
    assert not set(known.tolist()) & set(held.tolist())
    assert set(known.tolist()) | set(held.tolist()) <= set(range(100, 200))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on enough clouds for a threshold."""
    folder = tmp_path_factory.mktemp("novelty")
    values = merge(TINY, {"data": {"train_size": 120, "test_size": 30}, "optim": {"epochs": 1}})
    return Trainer(build(RunConfig, values), run_dir=folder / "run").fit().run_dir


def test_every_prediction_of_a_classifier_says_how_novel_it_is(run, tmp_path):
    model = pcl_clora.load(run)
    dataset = model.dataset()
    strange = np.random.default_rng(0).normal(size=(200, 3)) ** 9

    own = model.predict([dataset[k].points for k in range(len(dataset))])
    odd = model(strange)

    assert model.novelty.facts["held_out"] == 24
    assert np.mean([said.is_novel for said in own]) < 0.35
    assert odd.novelty > np.median([said.novelty for said in own])
    assert odd.as_json()["novelty"] == pytest.approx(odd.novelty, abs=1e-3)
    shutil.copy(RunFolder(run).chosen, tmp_path / "a.safetensors")
    assert pcl_clora.load(tmp_path / "a.safetensors")(strange).novelty is None
    shutil.copy(RunFolder(run).novelty, novelty_file(tmp_path / "a.safetensors"))
    assert pcl_clora.load(tmp_path / "a.safetensors")(strange).novelty == pytest.approx(odd.novelty)


def test_the_status_of_a_row_is_novel(run, tmp_path):
    np.save(tmp_path / "odd.npy", np.random.default_rng(0).normal(size=(200, 3)) ** 9)
    model = pcl_clora.load(run)
    said = model(tmp_path / "odd.npy")

    call = ["predict", str(tmp_path / "odd.npy"), "--run", str(run), "--out", str(tmp_path / "o.jsonl")]
    CliRunner().invoke(app, call, catch_exceptions=False)

    row = json.loads((tmp_path / "o.jsonl").read_text())
    assert row["novelty"] == pytest.approx(said.novelty, abs=1e-3)
    assert row["status"] == ("novel" if said.novelty > 1 else "ok")


def test_a_calibration_of_other_weights_is_not_taken(run):
    file = RunFolder(run).chosen

    assert load_novelty(file, "another digest") is None
    assert load_novelty(file, pcl_clora.load(run).digest).score.name == "knn_logit"


@pytest.mark.parametrize("spoil", [b"torn", None])
def test_a_damaged_calibration_is_one_message(run, tmp_path, spoil):
    from pcl_clora.io import load_tensors, save_tensors

    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    file = RunFolder(copied).novelty
    header = load_tensors(file)[1]
    if spoil is None:
        save_tensors(file, {}, header)
    else:
        file.write_bytes(spoil)

    with pytest.raises(DataError, match=r"adapter\.novelty\.safetensors"):
        pcl_clora.load(copied)


def test_a_run_without_it_is_calibrated_later_to_the_same(run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    before = RunFolder(copied).novelty.read_bytes()
    RunFolder(copied).novelty.unlink()

    found = CliRunner().invoke(app, ["novelty", str(copied)], catch_exceptions=False)

    assert "knn_logit, 96 clouds known, threshold by 24 others" in found.output
    assert RunFolder(copied).novelty.read_bytes() == before


@pytest.fixture(scope="module")
def hdf5_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("novel")
    root = make_hdf5(folder / "data")
    data = {"name": "modelnet40_hdf5", "root": str(root), "num_points": 48}
    names = (root / "shape_names.txt").read_text().split()
    values = merge(
        {**TINY, "data": data},
        {
            "model": {"num_classes": len(names)},
            "optim": {"epochs": 1, "batch_size": 4},
            "output": str(folder),
        },
    )
    return Trainer(build(RunConfig, values), run_dir=folder / "run").fit().run_dir, root, names


def test_scores_are_compared_on_classes_that_a_run_does_not_know(hdf5_run, tmp_path):
    run, root, names = hdf5_run
    other = tmp_path / "other"
    shutil.copytree(root, other)
    (other / "shape_names.txt").write_text("\n".join([names[0], *(f"new{k}" for k in range(1, len(names)))]))

    found = CliRunner().invoke(
        app,
        ["novelty", str(run), "--novel", str(other), "--out", str(tmp_path / "o.json")],
        catch_exceptions=False,
    )

    assert found.exit_code == 0, found.output
    content = json.loads((tmp_path / "o.json").read_text())
    assert set(content["scores"]) == set(SCORES)
    assert names[0] not in content["novel"]["classes"]
    assert all(0 <= numbers["auroc"] <= 1 for numbers in content["scores"].values())


@pytest.mark.parametrize(
    ("known_as", "message"), [("gone", "no classes gone; there are"), ("", "the run knows all classes")]
)
def test_no_other_classes_is_one_message(hdf5_run, known_as, message):
    run, root, _ = hdf5_run

    found = CliRunner().invoke(app, ["novelty", str(run), "--novel", str(root), "--known-as", known_as])

    assert message in str(found.exception)
