"""What the HTTP address answers, beside the predictor asked directly."""

import io
import json

import numpy as np
import pytest

import pcl_clora
from pcl_clora.io import read_points, write_points
from pcl_clora.predict import embed


def send(client, path, address="/predict", **query):
    with path.open("rb") as file:
        return client.post(address, files={"file": (path.name, file)}, params=query)


@pytest.mark.parametrize("suffix", ["ply", "npy", "xyz", "off", "h5", "pcd", "las"])
def test_an_upload_gets_the_answer_of_the_predictor(client, classification_run, tmp_path, points, suffix):
    pytest.importorskip({"pcd": "pypcd4", "las": "laspy"}.get(suffix, "numpy"))
    path = tmp_path / f"scan.{suffix}"
    write_points(path, points)
    expected = pcl_clora.load(classification_run, device="cpu")(path)

    answer = send(client, path, topk=2).raise_for_status().json()

    said = answer["answers"][0]
    assert (answer["file"], answer["points"]) == (path.name, 300)
    assert said["label"] == expected.name
    assert said["best"] == [
        {"name": name, "probability": round(share, 6)} for name, share in expected.best(2)
    ]
    assert said["novel"] is False


def test_all_ways_to_send_a_cloud_say_the_same(client, tmp_path, points):
    points = points.astype(np.float32).astype(np.float64)
    np.save(tmp_path / "points.npy", points)
    form = send(client, tmp_path / "points.npy").json()["answers"]
    content = (tmp_path / "points.npy").read_bytes()
    bare = client.post(
        "/predict?name=points.npy", content=content, headers={"Content-Type": "application/octet-stream"}
    )
    rows = client.post("/predict", json={"points": points.tolist()})

    assert bare.raise_for_status().json()["answers"] == form
    assert rows.raise_for_status().json()["answers"][0]["label"] == form[0]["label"]


def test_several_models_are_asked_at_once(client, predictors, tmp_path, points):
    np.save(tmp_path / "a.npy", points)
    answer = send(client, tmp_path / "a.npy", model="all", category="chair").raise_for_status().json()
    assert [one["model"] for one in answer["answers"]] == [one.name for one in predictors]
    assert sum(answer["answers"][1]["parts"].values()) == 300


def test_labels_of_parts_come_back_for_every_point(client, predictors, tmp_path, points):
    np.save(tmp_path / "a.npy", points)
    expected = predictors[1](tmp_path / "a.npy", "chair")
    query = {"model": predictors[1].name, "category": "chair"}

    listed = send(client, tmp_path / "a.npy", output="labels", **query).json()["answers"][0]
    (tmp_path / "b.ply").write_bytes(send(client, tmp_path / "a.npy", output="ply", **query).content)

    assert listed["labels"] == expected.label.tolist()
    assert listed["names"] == list(expected.names)
    found = read_points(tmp_path / "b.ply")
    np.testing.assert_array_equal(found.fields["labels"], expected.label)
    np.testing.assert_allclose(found.points, points, rtol=1e-6)
    assert "colors" in found.fields


def test_a_classified_cloud_can_be_had_as_ply(client, tmp_path, points):
    np.save(tmp_path / "a.npy", points)
    reply = send(client, tmp_path / "a.npy", output="ply")
    assert reply.headers["content-disposition"] == 'attachment; filename="a_labelled.ply"'
    (tmp_path / "b.ply").write_bytes(reply.content)
    assert len(set(read_points(tmp_path / "b.ply").fields["labels"])) == 1


def test_the_page_of_an_answer_is_our_viewer(client, tmp_path, points):
    np.save(tmp_path / "a.npy", points)
    page = send(client, tmp_path / "a.npy", output="page")
    assert page.headers["content-type"].startswith("text/html")
    assert "pclViewer" in page.text


@pytest.mark.parametrize("dim", [16, 0])
def test_vectors_are_those_of_embed(client, classification_run, tmp_path, points, dim):
    np.save(tmp_path / "a.npy", points)
    expected = embed([tmp_path / "a.npy"], dim, model=classification_run, device="cpu")[0]
    answer = send(client, tmp_path / "a.npy", "/embed", dim=dim).raise_for_status().json()
    assert (answer["model"], answer["dim"]) == ("classes", len(expected))
    np.testing.assert_allclose(answer["vector"], expected, atol=1e-6)  # another product of one row


def test_the_backbone_in_the_package_makes_vectors_too(client, tmp_path, points):
    np.save(tmp_path / "a.npy", points)
    expected = embed([tmp_path / "a.npy"], 32, device="cpu")[0]
    answer = send(client, tmp_path / "a.npy", "/embed", dim=32, model="builtin").raise_for_status().json()
    np.testing.assert_allclose(answer["vector"], expected, atol=1e-5)


def test_health_names_the_models(client, predictors):
    said = client.get("/health").raise_for_status().json()
    assert said["status"] == "ok"
    assert [one["name"] for one in said["models"]] == [one.name for one in predictors]
    assert said["models"][0]["classes"] == ["chair", "sofa", "mug"]


def test_metrics_are_text_of_prometheus(client, tmp_path, points):
    parser = pytest.importorskip("prometheus_client.parser")
    np.save(tmp_path / "a.npy", points)

    def count():
        found = parser.text_string_to_metric_families(client.get("/metrics").text)
        return {
            (sample.name, sample.labels.get("path"), sample.labels.get("status")): sample.value
            for family in found
            for sample in family.samples
        }

    before, _ = count(), send(client, tmp_path / "a.npy").raise_for_status()
    after = count()
    key = ("pcl_clora_requests_total", "/predict", "200")
    assert after[key] == before.get(key, 0) + 1
    assert after["pcl_clora_requests_held", None, None] == 0
    assert after["pcl_clora_points_held", None, None] == 0


def test_the_description_fits_the_answers(client, tmp_path, points):
    jsonschema = pytest.importorskip("jsonschema")
    api = client.get("/openapi.json").json()
    np.save(tmp_path / "a.npy", points)

    def check(name, value):
        schema = {"$ref": f"#/components/schemas/{name}", "components": api["components"]}
        jsonschema.validate(value, schema)

    check("PredictAnswer", send(client, tmp_path / "a.npy").json())
    check("EmbedAnswer", send(client, tmp_path / "a.npy", "/embed").json())
    check("Health", client.get("/health").json())
    check("FaultAnswer", client.get("/nothing").json())
    assert set(api["paths"]) == {"/predict", "/embed", "/health", "/metrics"}


def test_nothing_is_left_of_uploads(client, tmp_path, points):
    service = client.app.state.service
    np.save(tmp_path / "a.npy", points)
    send(client, tmp_path / "a.npy").raise_for_status()
    send(client, tmp_path / "a.npy", model="nobody")
    assert list(service.folder.iterdir()) == []


def test_the_axis_that_points_up_can_be_told(client, classification_run, tmp_path, points):
    points[:, 1] *= 3
    np.save(tmp_path / "a.npy", points)
    turned = pcl_clora.load(classification_run, device="cpu", up="z")(tmp_path / "a.npy")
    said = send(client, tmp_path / "a.npy", up="z", topk=1).json()["answers"][0]
    assert said["best"][0]["probability"] == round(turned.best(1)[0][1], 6)


def test_bytes_in_memory_make_a_file(client, points):
    file = io.BytesIO()
    np.save(file, points)
    reply = client.post("/predict", files={"file": ("folder/../a b.npy", file.getvalue())})
    assert json.loads(reply.text)["file"] == "a b.npy"


def raw_object(path, points):
    """A raw object of ScanObjectNN of which half is floor."""
    table = np.zeros((len(points), 11), np.float32)
    table[:, :3], table[::2, 10] = points, 12
    np.concatenate([[len(table)], table.ravel()]).astype(np.float32).tofile(path)


BARE = {  # file -> how it is written
    "scan.bin": lambda path, points: write_points(path, points),
    "scan.pcd.bin": lambda path, points: np.pad(points, ((0, 0), (0, 2))).astype(np.float32).tofile(path),
    "object.bin": raw_object,
}


@pytest.mark.parametrize("name", BARE)
def test_bare_numbers_are_told_by_their_name_and_content(client, classification_run, tmp_path, points, name):
    path = tmp_path / name
    BARE[name](path, points[:297])
    expected = pcl_clora.load(classification_run, device="cpu")(path)

    answer = send(client, path).raise_for_status().json()

    assert answer["points"] == 297
    assert answer["answers"][0]["best"][0]["probability"] == round(expected.best(1)[0][1], 6)


def test_a_gltf_that_holds_its_numbers_is_answered(client, classification_run, tmp_path, points):
    pytest.importorskip("trimesh")
    write_points(tmp_path / "a.gltf", points, faces=np.arange(300).reshape(-1, 3))
    expected = pcl_clora.load(classification_run, device="cpu")(tmp_path / "a.gltf")
    answer = send(client, tmp_path / "a.gltf").raise_for_status().json()
    assert answer["answers"][0]["label"] == expected.name


@pytest.mark.parametrize("model", ["classes", "parts"])
def test_a_mesh_gets_labels_for_its_vertices(client, tmp_path, model):
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 2.0)])
    faces = [[0, 1, 3], [0, 3, 2], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4]]
    write_points(tmp_path / "a.off", corners, faces=faces)
    query = {"model": model, "category": "chair"}

    listed = send(client, tmp_path / "a.off", output="labels", **query).raise_for_status().json()
    reply = send(client, tmp_path / "a.off", output="ply", **query).raise_for_status()
    page = send(client, tmp_path / "a.off", output="page", **query)

    (tmp_path / "b.ply").write_bytes(reply.content)
    held = read_points(tmp_path / "b.ply")
    np.testing.assert_array_equal(held.points, corners)
    assert held.fields["labels"].tolist() == listed["answers"][0]["labels"]
    assert page.status_code == 200
