"""The folder of a demo space: whole, runs by itself without a network, in another process."""

import http.client
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import pcl_clora
from pcl_clora.errors import PclCloraError, UserValueError
from pcl_clora.io import save_tensors, write_points
from tests.vis.conftest import MODEL, train

ROOT = Path(__file__).resolve().parents[2]

# Refuses every connection to another machine, and writes down that one was tried.
NO_NETWORK = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    here = ("127.0.0.1", "::1", "localhost")
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in here:
        with open({log!r}, "a") as file:
            file.write(repr(address) + chr(10))
        raise OSError("there is no network")
    return _connect(self, address)
socket.socket.connect = connect
"""


@pytest.fixture(scope="module")
def space(classification_run, segmentation_run, tmp_path_factory):
    pytest.importorskip("fastapi")
    from pcl_clora.serve import write_space

    return write_space(tmp_path_factory.mktemp("spaces") / "demo", [classification_run, segmentation_run])


def test_a_space_has_what_is_uploaded(space):
    assert {path.name for path in space.iterdir()} == {
        "README.md", "app.py", "requirements.txt", "models", "pcl_clora"
    }  # fmt: skip
    _, head, text = (space / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["sdk"], told["app_file"]) == ("gradio", "app.py")
    assert [int(part) for part in told["sdk_version"].split(".")[:2]] >= [6, 25]
    assert "| classes | classification | chair, sofa, mug |" in text
    assert "| parts | part segmentation |" in text
    assert not list(space.rglob("__pycache__"))
    compile((space / "app.py").read_text(), "app.py", "exec")


def test_requirements_are_those_of_the_package(space):
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["serve"], *extras["files"]}
    assert set((space / "requirements.txt").read_text().split()) == wanted


def test_a_space_is_not_written_over_what_is_there(space, classification_run):
    from pcl_clora.serve import write_space

    with pytest.raises(UserValueError, match="is there and not empty"):
        write_space(space, [classification_run])
    with pytest.raises(PclCloraError):
        write_space(space.parent / "other", [space / "README.md"])
    assert [path.name for path in space.parent.iterdir()] == ["demo"]


def test_what_a_model_stands_on_goes_with_it(tmp_path):
    from pcl_clora.models import create_model
    from pcl_clora.serve import write_space

    base = create_model(**MODEL)
    save_tensors(tmp_path / "base.safetensors", base.state_dict())
    run = train(tmp_path / "run", MODEL, weights={"path": str(tmp_path / "base.safetensors")})
    points = np.random.default_rng(0).normal(size=(100, 3))
    expected = pcl_clora.load(run, device="cpu")(points).probability

    folder = write_space(tmp_path / "demo", [run / "best" / "adapter.safetensors"])
    (tmp_path / "base.safetensors").unlink()

    said = pcl_clora.load(folder / "models" / "run.safetensors", device="cpu")(points)
    np.testing.assert_allclose(said.probability, expected, rtol=1e-6)  # products may be rounded otherwise


@pytest.fixture(scope="module")
def stacked(classification_run, tmp_path_factory):
    """A run that stands on a copy of another one."""
    folder = tmp_path_factory.mktemp("stacked")
    shutil.copytree(classification_run, folder / "first")
    return train(folder / "second", MODEL, weights={"path": str(folder / "first")})


@pytest.mark.parametrize("weights", [False, True])
def test_a_model_on_the_folder_of_a_run_takes_its_weights_along(stacked, tmp_path, weights):
    from pcl_clora.serve import write_space

    points, first = np.random.default_rng(0).normal(size=(100, 3)), stacked.parent / "first"
    expected = pcl_clora.load(stacked, device="cpu")(points).probability

    folder = write_space(tmp_path / "demo", [stacked], weights=first if weights else "")

    first.rename(tmp_path / "gone")
    try:
        kept = next((folder / "models").glob("first-*.weights.safetensors"))
        said = pcl_clora.load(
            folder / "models" / "second.safetensors", device="cpu", weights=kept if weights else ""
        )(points)
    finally:
        (tmp_path / "gone").rename(first)
    np.testing.assert_allclose(said.probability, expected, rtol=1e-6)  # products may be rounded otherwise
    assert (f'HERE / "models" / {kept.name!r}' in (folder / "app.py").read_text()) == weights


@pytest.mark.slow
def test_a_space_runs_by_itself_without_a_network(space, predictors, tmp_path):
    pytest.importorskip("gradio")
    from pcl_clora.bench.serve import server

    own = space / "pcl_clora" / "__init__.py"  # its copy of the package is what runs
    own.write_text(own.read_text().replace(f'"{pcl_clora.__version__}"', '"of the space"'))
    log = tmp_path / "tried"
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(log)))
    write_points(tmp_path / "a.ply", np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    expected = predictors[0](tmp_path / "a.ply")
    variables = {
        "PYTHONPATH": str(tmp_path / "blocked"), "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": "0",
        "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip

    with server(program=(sys.executable, str(space / "app.py")), **variables) as (port, _):
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body, kind = (tmp_path / "a.ply").read_bytes(), {"Content-Type": "application/octet-stream"}
        line.request("POST", "/predict?name=a.ply&topk=1", body, kind)
        answer = json.loads(line.getresponse().read())
        line.request("GET", "/app/")
        page = line.getresponse().read()
        line.request("GET", "/health")
        version = json.loads(line.getresponse().read())["version"]

    assert answer["answers"][0]["best"][0]["name"] == expected.name
    assert answer["answers"][0]["best"][0]["probability"] == pytest.approx(expected.best(1)[0][1], abs=1e-5)
    assert b"gradio" in page
    assert version == "of the space"
    assert not log.exists(), log.read_text()
