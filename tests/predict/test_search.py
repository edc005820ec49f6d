"""Clouds as vectors, the nearest of them, and pages of both."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pcl_clora
from pcl_clora.adapters.share import push_adapter, write_folder
from pcl_clora.cli import app
from pcl_clora.data import build_dataset
from pcl_clora.engine import RunFolder
from pcl_clora.io import DataError, save_tensors
from pcl_clora.predict import Embedder, Predictor, ShapeIndex, load_index
from pcl_clora.predict.embedding import directions
from tests.support.fake_hub import FakeHub


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Six chairs and six mugs in folders of their own, each turned and of another size."""
    folder = tmp_path_factory.mktemp("shapes")
    data = {
        "name": "procedural",
        "classes": ["chair", "mug"],
        "train_size": 12,
        "test_size": 2,
        "num_points": 512,
    }
    dataset = build_dataset(data, "train")
    for k in range(len(dataset)):
        sample = dataset[k]
        place = folder / dataset.class_names[sample.label]
        place.mkdir(exist_ok=True)
        np.save(place / f"{k:02d}.npy", sample.points.numpy() * (k + 1) + 5)
    (folder / "chair" / "torn.npy").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def index(shapes, tmp_path_factory):
    file = tmp_path_factory.mktemp("index") / "shapes.safetensors"
    found = call("embed", shapes, "--out", file, "--dim", 64)
    assert found.exit_code == 0, found.output
    assert "torn.npy" in found.stderr
    return file


def test_vectors_of_the_backbone_are_pooled_patch_tokens(shapes):
    files = sorted(shapes.glob("*/[0-9]*.npy"))[:3]
    embedder = Embedder(dim=0)

    found = embedder(files)

    seen = embedder.see(files[1])
    with torch.inference_mode():
        tokens = embedder._backbone.tokenize(seen.points[None])
        patches = embedder._backbone.encode(tokens)[0, tokens.num_prefix :]
    expected = torch.cat([patches.amax(0), patches.mean(0)])
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    np.testing.assert_allclose(pcl_clora.embed(files, 32), found @ directions(found.shape[1], 32), atol=1e-4)


def test_vectors_of_a_run_are_what_enters_its_head(classification_run, shapes):
    files = sorted(shapes.glob("*/[0-9]*.npy"))[:3]

    found = pcl_clora.embed(files, dim=0, model=classification_run)

    expected = [said.feature for said in Predictor(classification_run).predict(files)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert pcl_clora.embed([], dim=5).shape == (0, 5)


def test_directions_are_orthonormal_and_always_the_same():
    found = directions(40, 8)

    np.testing.assert_allclose(found.T @ found, np.eye(8), atol=1e-6)
    np.testing.assert_array_equal(found, directions(40, 8))


@pytest.mark.parametrize("count", [1, 7, 500])
def test_the_nearest_are_those_of_a_naive_search(count):
    neighbors = pytest.importorskip("sklearn.neighbors")
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 12)).astype(np.float32) + 10
    index = ShapeIndex(tuple(map(str, range(300))), vectors, np.zeros((300, 1, 3), np.float16), "builtin", "")
    query = random.normal(size=12).astype(np.float32) + 10

    found = index.nearest(query, count)

    mean = vectors.astype(np.float64).mean(0)
    peer = neighbors.NearestNeighbors(n_neighbors=min(count, 300), metric="cosine", algorithm="brute")
    distance, place = peer.fit(vectors - mean).kneighbors([query - mean])
    assert [k for k, _ in found] == place[0].tolist()
    np.testing.assert_allclose([d for _, d in found], distance[0], atol=1e-9)


def test_equal_clouds_come_in_their_order():
    vectors = np.array([[0, 1], [1, 0], [1, 0], [-1, -1]], np.float32)
    index = ShapeIndex(("a", "b", "c", "d"), vectors, np.zeros((4, 1, 3), np.float16), "builtin", "")

    assert [place for place, _ in index.nearest(vectors[2], 2)] == [1, 2]


def test_a_shape_is_found_by_itself_and_among_its_kind(index, shapes, tmp_path):
    page = tmp_path / "found.html"

    found = call("search", shapes / "mug" / "01.npy", "--in", index, "--top", 4, "--out", page)

    assert found.exit_code == 0, found.output
    lines = [line.split() for line in found.stdout.splitlines()[:4]]
    assert lines[0][2] == str(shapes / "mug" / "01.npy")
    assert float(lines[0][1]) == pytest.approx(0, abs=1e-5)
    assert sum("/mug/" in line[2] for line in lines) >= 3
    text = page.read_text()
    assert "asked: " in text
    assert text.count("data:image/png;base64,iVB") == 5


def test_an_index_comes_back_as_it_was_written(index, tmp_path):
    found = load_index(index)

    found.save(tmp_path / "again.safetensors")

    again = load_index(tmp_path / "again.safetensors")
    assert again.files == found.files
    assert len(found.files) == 12
    np.testing.assert_array_equal(again.vectors, found.vectors)
    assert (found.vectors.shape, found.points.shape) == ((12, 64), (12, 512, 3))


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_a_map_has_a_point_and_a_picture_for_every_cloud(index, tmp_path, method):
    pytest.importorskip("sklearn")
    page = tmp_path / "map.html"

    found = call("features", "--in", index, "--plot", page, "--layout", method)

    assert found.exit_code == 0, found.output
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 12
    assert '"colours":{"chair":' in text
    assert "default-src 'none'" in text


def test_a_table_of_predictions_colours_the_map(index, shapes, tmp_path):
    pytest.importorskip("sklearn")
    names = load_index(index).files
    (tmp_path / "t.csv").write_text("file,label\n" + "".join(f"{name},thing\n" for name in names))

    found = call("features", "--in", index, "--plot", tmp_path / "m.html", "--labels", tmp_path / "t.csv")

    assert found.exit_code == 0, found.output
    assert '"colours":{"thing":' in (tmp_path / "m.html").read_text()


def test_a_map_reads_clouds_itself(classification_run, shapes, tmp_path):
    pytest.importorskip("sklearn")
    model = ["--model", classification_run]

    found = call("features", shapes, "--plot", tmp_path / "m.html", "--layout", "pca", *model)

    assert found.exit_code == 0, found.output
    assert "12 clouds" in (tmp_path / "m.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "Q", "--in", "gone.safetensors"], "there is no such file"),
        (["search", "Q", "--in", "INDEX", "--out", "page.txt"], "a page ends in .html"),
        (["search", "gone.npy", "--in", "INDEX"], "there is no such file"),
        (["features"], "Give point files, or an index with --in"),
        (["features", "--in", "INDEX", "--layout", "umap"], "layout='umap' is not known"),
        (["features", "--in", "INDEX", "--labels", "Q"], "Q"),
        (["embed", "Q", "--out", "o.npy"], "end its name in .safetensors"),
        (["embed", "Q", "--model", "gone"], "there is no such run folder or adapter file"),
    ],
)
def test_what_cannot_be_searched_is_one_message(index, shapes, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    query = str(shapes / "chair" / "00.npy")

    found = call(*({"Q": query, "INDEX": index}.get(word, word) for word in arguments))

    assert found.exit_code != 0
    assert message.replace("Q", query) in str(found.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_a_model_of_the_hub_or_of_a_shared_folder_is_searched(
    classification_run, shapes, tmp_path, monkeypatch
):
    FakeHub.put_in_place(tmp_path / "hub", monkeypatch)
    name = push_adapter(RunFolder(classification_run).chosen, "me/chairs")
    write_folder(RunFolder(classification_run).chosen, tmp_path / "shared")
    query = shapes / "chair" / "00.npy"
    expected = pcl_clora.embed([query], 16, model=classification_run)

    for model in (name, str(tmp_path / "shared")):
        found = call(
            "embed", shapes / "chair", "--model", model, "--dim", 16, "--out", tmp_path / "i.safetensors"
        )
        assert found.exit_code == 0, found.output
        held = load_index(tmp_path / "i.safetensors")
        assert held.model == (name if model == name else str(tmp_path / "shared" / "adapter.safetensors"))
        np.testing.assert_allclose(held.vectors[0], expected[0], atol=1e-5)
        found = call("search", query, "--in", tmp_path / "i.safetensors", "--top", 1)
        assert found.stdout.split()[2] == str(query)


def test_something_else_is_no_index(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors(file, {"vectors": torch.zeros(2, 3)}, {"format": "other"})
    with pytest.raises(DataError, match="is no index of clouds; make one"):
        load_index(file)

    header = {"format": "pcl_clora.index", "version": 1, "files": ["a"]}
    save_tensors(file, {"vectors": torch.zeros(2, 3)}, header)
    with pytest.raises(DataError, match="is a damaged index"):
        load_index(file)


def test_an_index_of_another_model_is_refused(index):
    found = load_index(index)
    other = ShapeIndex(found.files, found.vectors, found.points, "builtin", "another digest")

    with pytest.raises(DataError, match="is not the model that made the index"):
        other.embedder()


def test_a_segmenter_gives_no_vectors(segmentation_run):
    with pytest.raises(ValueError, match="segments parts; embed with a classification run"):
        Embedder(segmentation_run)
