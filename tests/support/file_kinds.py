"""One small file of every kind that a user hands in, and the reader that takes it.

A reader either gives an answer that it checks here, or raises a `PclCloraError`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

from pcl_clora.adapters import attach_adapter, load_adapter
from pcl_clora.config import dump_yaml
from pcl_clora.data import build_dataset, parse_data_config
from pcl_clora.data.checks import check_root
from pcl_clora.data.checks.manifest import check_manifest
from pcl_clora.data.packed.write import pack_dataset
from pcl_clora.engine import load_run_config, read_metrics
from pcl_clora.engine.run.checkpoint import load_checkpoint, save_checkpoint
from pcl_clora.io import format_of, read_json, read_points, write_points
from pcl_clora.io.formats import ANY
from pcl_clora.models import build_model, load_weights, parse_model_config
from tests.support.copc import write_copc
from tests.support.data_layouts import make_folder, make_hdf5, make_text
from tests.support.engine_cases import VALUES, tiny_config
from tests.support.part_layouts import make_part_hdf5, make_part_text
from tests.support.scan_layouts import make_fewshot, make_raw, make_scan

FACES = np.stack([np.arange(38), np.arange(1, 39), np.arange(2, 40)], axis=1)
TABLE = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: fills a folder and says which file in it is broken.
        read: reads that file as a user's command would, and checks what it gets.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


def _points(name: str, write: Callable[[Path], object]) -> Kind:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    def read(file: Path) -> None:
        content = read_points(file)
        assert content.points.ndim == 2
        assert content.points.shape[1] == 3
        assert np.isfinite(content.points).all()
        assert content.faces is None or (
            content.faces.min() >= 0 and content.faces.max() < len(content.points)
        )

    return Kind(make, read)


def _mesh_ply(order: str) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        header = (
            f"ply\nformat {order} 1.0\ncomment made\nelement vertex 40\nproperty float x\nproperty float y\n"
            "property float z\nelement face 2\nproperty list uchar int vertex_indices\nend_header\n"
        ).encode()
        if order == "ascii":
            body = "".join(f"{x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in TABLE) + "3 0 1 2\n4 3 4 5 6\n"
            file.write_bytes(header + body.encode())
        else:
            mark = "<" if "little" in order else ">"
            faces = [
                bytes([len(face)]) + np.array(face, f"{mark}i4").tobytes()
                for face in ([0, 1, 2], [3, 4, 5, 6])
            ]
            file.write_bytes(header + TABLE.astype(f"{mark}f4").tobytes() + b"".join(faces))

    return write


def _off(file: Path) -> None:
    rows = "".join(f"{x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in TABLE)
    file.write_text(f"OFF\n40 2 0\n{rows}3 0 1 2\n4 3 4 5 6\n")


def _obj(file: Path) -> None:
    rows = "".join(f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in TABLE)
    file.write_text(f"# made\n{rows}vn 0 0 1\nf 1//1 2//1 3//1\nf 4/1 5/1 6/2 7/3\nf -1 -2 -3\n")


def _of_library(suffix: str) -> Kind:
    """Make a kind of file that another library reads, with all fields that it can hold; none without it."""

    def write(file: Path) -> None:
        kind = format_of(file)
        assert kind is not None
        fields = {
            "colors": np.full((40, 3), 7, np.uint8),
            "intensity": np.arange(40),
            "labels": np.arange(40) % 4,
        }
        held = {
            name: values
            for name, values in fields.items()
            if kind.fields in (ANY, (name,)) or name in kind.fields
        }
        write_points(file, TABLE, held, None if kind.faces == "no" else FACES)

    return _points(f"a{suffix}", write)


def _pcd(file: Path, encoding: str) -> None:
    import pypcd4

    pypcd4.PointCloud.from_xyz_points(TABLE).save(file, encoding=pypcd4.Encoding(encoding))


def _h5(file: Path) -> None:
    with h5py.File(file, "w") as content:
        content["points"] = TABLE
        content["label"] = np.arange(40)
        content.create_dataset("group/packed", data=TABLE, compression="gzip", chunks=(10, 3))


def _data(make: Callable[[Path], Path], name: str, values: dict[str, Any]) -> Kind:
    """Make a kind of one file of a data set, which is read as training and `data check` read it."""

    def made(folder: Path) -> Path:
        return make(folder / "set") / name

    def read(file: Path) -> None:
        root = next(parent for parent in file.parents if parent.name == "set")
        list(check_root(root))
        dataset = build_dataset(parse_data_config({"root": str(root), **values}), "train")
        for index in range(len(dataset)):
            sample = dataset[index]
            assert torch.isfinite(sample.points).all()
            assert 0 <= int(sample.label) < max(1, len(dataset.class_names))

    return Kind(made, read)


def _packed(folder: Path) -> Path:
    config = {
        "name": "procedural",
        "classes": ["chair", "mug"],
        "train_size": 4,
        "test_size": 2,
        "num_points": 24,
    }
    pack_dataset(parse_data_config(config), folder, clouds_per_shard=4)
    return folder


def _model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(parse_model_config(VALUES["model"]))


def _adapter(folder: Path) -> Path:
    model = attach_adapter(_model(), {"method": "lora", "rank": 1})
    model.save_adapter(folder / "a.safetensors")
    return folder / "a.safetensors"


def _read_adapter(file: Path) -> None:
    model = load_adapter(file, _model())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def _checkpoint(folder: Path) -> Path:
    tree = {"step": 3, "values": [torch.arange(5.0), {"a": None, "b": "text"}]}
    save_checkpoint(folder / "c.safetensors", tree, {"name": "x"})
    return folder / "c.safetensors"


def _weights(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from safetensors.torch import save_file

        state = {key: value.contiguous() for key, value in _model().state_dict().items()}
        torch.save({"model": state}, folder / name) if name.endswith("pth") else save_file(
            state, folder / name
        )
        return folder / name

    return make


def _read_weights(file: Path) -> None:
    model = _model()
    load_weights(model, file, allow_partial=True)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def _config(folder: Path) -> Path:
    (folder / "config.yaml").write_text(dump_yaml(tiny_config()))
    return folder / "config.yaml"


def _json(folder: Path) -> Path:
    (folder / "plan.json").write_text(json.dumps({"a": [1, 2, {"b": None}], "c": "x"}))
    return folder / "plan.json"


def _metrics(folder: Path) -> Path:
    lines = [
        {"kind": "epoch", "epoch": n, "loss": 1.5, "oa": 0.5, "lr": 0.1, "step": 5 * n} for n in range(3)
    ]
    lines += [{"kind": "eval", "epoch": n, "loss": 1.5, "oa": 0.5, "split": "test"} for n in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "metrics.jsonl"


def _read_curve(file: Path) -> None:
    from pcl_clora.report.curve import read_curve

    read_curve(file)
    read_metrics(file)


def _result(folder: Path) -> Path:
    import shutil

    source = next(Path(__file__).parents[2].glob("results/**/result.json"))
    for name in ("result.json", "config.yaml"):
        shutil.copy(source.with_name(name), folder / name)
    return folder / "result.json"


def _read_result(file: Path) -> None:
    from pcl_clora.report.records import read_run

    read_run(file.parent)


def _manifest(folder: Path) -> Path:
    (folder / "x").write_text("x")
    (folder / "m.yaml").write_text(
        yaml.safe_dump({"files": [{"path": "x", "bytes": 1}, {"path": "y", "optional": True}]})
    )
    return folder / "m.yaml"


def _pickle(folder: Path) -> Path:
    (folder / "a.pkl").write_bytes(
        pickle.dumps({"train": [(TABLE, 1, "x")], "test": [(TABLE, 2, "y")]}, protocol=2)
    )
    return folder / "a.pkl"


def _read_pickle(file: Path) -> None:
    from pcl_clora.io import load_pickled_arrays

    load_pickled_arrays(file)


MODELNET = {"name": "modelnet40_hdf5", "num_points": 32}
LIBRARIES = ("las", "laz", "pcd", "e57", "stl", "glb", "gltf", "3mf")
OTHER_ENDINGS = ("xyz", "asc", "xyzn", "xyzrgb", "hdf5")  # by readers that stand above under another ending
PARTS = {"name": "shapenetpart_hdf5", "num_points": 16}

KINDS: dict[str, Kind] = {
    "ply of text": _points("a.ply", _mesh_ply("ascii")),
    "ply little": _points("a.ply", _mesh_ply("binary_little_endian")),
    "ply big": _points("a.ply", _mesh_ply("binary_big_endian")),
    "off": _points("a.off", _off),
    "npy": _points("a.npy", lambda file: np.save(file, TABLE)),
    "npz": _points("a.npz", lambda file: np.savez(file, points=TABLE, labels=np.arange(40))),
    "npz packed": _points("a.npz", lambda file: np.savez_compressed(file, points=TABLE, label=np.ones(40))),
    "h5": _points("a.h5", _h5),
    "txt": _points("a.txt", lambda file: np.savetxt(file, TABLE, fmt="%.6f")),
    "csv": _points("a.csv", lambda file: np.savetxt(file, TABLE, "%.6f", ",", header="x,y,z", comments="")),
    "pts": _points("a.pts", lambda file: np.savetxt(file, TABLE, "%.6f", header="40", comments="")),
    "obj": _points("a.obj", _obj),
    **{f"{kind} file": _of_library(f".{kind}") for kind in LIBRARIES},
    **{kind: _of_library(f".{kind}") for kind in OTHER_ENDINGS},
    "copc": _points("a.copc.laz", lambda file: write_copc(file, TABLE.astype(np.float64), chunk=9)),
    "pcd of text": _points("a.pcd", lambda file: _pcd(file, "ascii")),
    "pcd packed": _points("a.pcd", lambda file: _pcd(file, "binary_compressed")),
    "kitti": _points("a.bin", lambda file: np.hstack([TABLE, abs(TABLE[:, :1])]).tofile(file)),
    "npy records": _points("a.npy", lambda file: write_points(file, TABLE, {"labels": np.arange(40)})),
    "h5 mesh": _points("a.h5", lambda file: write_points(file, TABLE, None, FACES)),
    "config": Kind(_config, load_run_config),
    "json": Kind(_json, read_json),
    "result.json": Kind(_result, _read_result),
    "metrics.jsonl": Kind(_metrics, _read_curve),
    "manifest": Kind(_manifest, lambda file: list(check_manifest(file.parent, file))),
    "adapter": Kind(_adapter, _read_adapter),
    "checkpoint": Kind(_checkpoint, load_checkpoint),
    "weights.pth": Kind(_weights("w.pth"), _read_weights),
    "weights.safetensors": Kind(_weights("w.safetensors"), _read_weights),
    "pickle": Kind(_pickle, _read_pickle),
    "few-shot fold": _data(
        lambda root: make_fewshot(root, folds=1, test=1), "5way_2shot/0.pkl",
        {"name": "modelnet_fewshot", "ways": 5, "shots": 2, "num_points": 24},
    ),
    "packed index": _data(_packed, "index.json", {"name": "packed", "num_points": 24}),
    "packed shard": _data(_packed, "train-00000.safetensors", {"name": "packed", "num_points": 24}),
    "scanobjectnn.h5": _data(
        make_scan, "main_split/training_objectdataset.h5",
        {"name": "scanobjectnn", "variant": "obj_bg", "num_points": 32},
    ),
    "scanobjectnn.bin": _data(
        lambda root: make_raw(root, count=20), "object_dataset/ant/000_00000.bin",
        {"name": "scanobjectnn_raw", "num_points": 8},
    ),
    "scanobjectnn list": _data(
        lambda root: make_raw(root, count=20), "main_split.txt", {"name": "scanobjectnn_raw", "num_points": 8}
    ),
    "shapenetpart.txt": _data(
        make_part_text, "02954340/00000001.txt", {"name": "shapenetpart_txt", "num_points": 16}
    ),
    "shapenetpart.json": _data(
        make_part_text, "train_test_split/shuffled_train_file_list.json",
        {"name": "shapenetpart_txt", "num_points": 16},
    ),
    "shapenetpart.h5": _data(make_part_hdf5, "ply_data_train0.h5", PARTS),
    "modelnet.h5": _data(make_hdf5, "ply_data_train0.h5", MODELNET),
    "modelnet ids": _data(make_hdf5, "ply_data_train_0_id2file.json", MODELNET),
    "modelnet list": _data(make_hdf5, "train_files.txt", MODELNET),
    "modelnet.txt": _data(
        make_text, "modelnet40_train.txt", {"name": "modelnet40_txt", "num_points": 32, "cache": "none"}
    ),
    "modelnet.dat": _data(
        lambda root: make_text(root, dat=True), "modelnet40_train_8192pts_fps.dat",
        {"name": "modelnet40_txt", "source": "dat", "num_points": 32, "cache": "none"},
    ),
    "folder": _data(
        lambda root: make_folder(root, "split/class"), "train/ant/train0.npy",
        {"name": "folder", "num_points": 16},
    ),
}  # fmt: skip
