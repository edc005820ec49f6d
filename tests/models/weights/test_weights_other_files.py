"""Files that are no weights of a network: each is called by its name wherever weights are asked for."""

import gzip
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pcl_clora.adapters import attach_adapter
from pcl_clora.cli import app
from pcl_clora.engine import save_checkpoint
from pcl_clora.models import WeightsError, create_model, load_weights
from pcl_clora.models.weights.convert import convert_weights
from pcl_clora.models.weights.inspect import inspect_weights

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_groups": 16, "group_size": 8}


def make(**changes):
    torch.manual_seed(0)
    return create_model("point_mae", num_classes=3, **SIZES, **changes)


@pytest.fixture
def adapter(tmp_path):
    """Write an adapter file: adapter("lora")."""

    def write(method):
        attach_adapter(make(), {"method": method}).save_adapter(tmp_path / f"{method}.safetensors")
        return tmp_path / f"{method}.safetensors"

    return write


@pytest.mark.parametrize("method", ["lora", "clora", "linear_probe"])
@pytest.mark.parametrize("allow_partial", [False, True])
def test_an_adapter_given_as_weights_is_sent_to_load_adapter(adapter, method, allow_partial):
    file = adapter(method)
    said = rf"is an adapter of pcl_clora \({method}\): use load_adapter\(\)"
    with pytest.raises(WeightsError, match=said):
        load_weights(make(), file, allow_partial=allow_partial)
    with pytest.raises(WeightsError, match=said):
        make(weights=file)


def test_an_adapter_that_trained_the_whole_backbone_is_as_good_as_weights(adapter):
    assert not load_weights(make(), adapter("full")).missing


def test_the_command_line_says_what_an_adapter_is(adapter):
    made = CliRunner().invoke(app, ["weights", "inspect", str(adapter("lora"))])
    assert "an adapter of pcl_clora (lora)" in " ".join(made.output.split())


def test_an_adapter_is_not_converted(adapter, tmp_path):
    with pytest.raises(WeightsError, match=r"an adapter of pcl_clora \(lora\): use load_adapter\(\)"):
        convert_weights(adapter("lora"), tmp_path / "made.safetensors", to="native")


def test_the_checkpoint_of_a_run_is_sent_to_its_folder(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.safetensors", {"model": dict(make().state_dict())}, {})
    with pytest.raises(WeightsError, match=r"is the checkpoint of a run.*: give the folder of the run"):
        load_weights(make(), tmp_path / "checkpoint.safetensors")
    assert "the checkpoint of a run" in inspect_weights(tmp_path / "checkpoint.safetensors").holds


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path):
    hostile = "\x1b[2J\u202e[red]"
    state = {**make().state_dict(), f"{hostile}.weight": torch.ones(1)}
    torch.save({"model": state, hostile: hostile}, tmp_path / "a.pth")
    save_file(make().state_dict(), tmp_path / "b.safetensors")
    said = [str(load_weights(make(), tmp_path / "a.pth"))]
    for command in ("inspect", "diff"):
        files = [str(tmp_path / name) for name in ("a.pth", "b.safetensors")][: 1 + (command == "diff")]
        made = CliRunner().invoke(app, ["weights", command, *files])
        assert made.exit_code == 0
        said.append(made.output)
    assert all("\x1b" not in text and "\u202e" not in text for text in said)
    assert all("[red]" in text for text in said)


def test_the_state_of_an_optimizer_is_named(tmp_path):
    optimizer = torch.optim.AdamW(make().parameters())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pth")
    with pytest.raises(WeightsError, match=r"is the state of an optimizer; give the weights"):
        load_weights(make(), tmp_path / "optimizer.pth")


def test_an_adapter_of_peft_is_named(tmp_path):
    key = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
    save_file({key: torch.zeros(4, 48)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"is an adapter of peft: merge it"):
        load_weights(make(), tmp_path / "adapter_model.safetensors")


def test_a_shard_of_a_packed_data_set_is_named(tmp_path):
    shard = {"points": torch.zeros(4, 3), "offsets": torch.tensor([0, 4]), "label": torch.tensor([0])}
    save_file(shard, tmp_path / "shard.safetensors")
    with pytest.raises(WeightsError, match=r"is a shard of a packed data set: name its folder as data\.root"):
        load_weights(make(), tmp_path / "shard.safetensors")


def test_a_whole_pickled_model_is_refused_with_the_way_to_save_it(tmp_path):
    torch.save(make(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"asks to run code.*PointMAE.*[Ss]ave its state dict"):
        load_weights(make(), tmp_path / "model.pth")


CONTENT = {
    "gz": (gzip.compress(b"x" * 100), "a compressed file; unpack it"),
    "tar": (b"a.pth".ljust(257, b"\0") + b"ustar\x0000", "a tar archive; unpack it"),
    "h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "an HDF5 file"),
    "ply": (b"ply\nformat ascii 1.0\n", "a point cloud"),
    "off": (b"OFF\n8 6 0\n", "a point cloud"),
    "png": (b"\x89PNG\r\n\x1a\n", "a picture"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "yaml": (b"name: run\nmodel:\n  name: point_mae\n", "text, such as settings"),
    "json": (json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "b"}}).encode(), "the index of"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", CONTENT)
def test_other_content_is_named_whatever_the_suffix(tmp_path, kind, suffix):
    content, said = CONTENT[kind]
    (tmp_path / f"file{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"is not a torch or safetensors file: it is {said}"):
        load_weights(make(), tmp_path / f"file{suffix}")


def test_arrays_of_numpy_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "a.npz", w=np.zeros(3))
    with pytest.raises(WeightsError, match="it is a numpy array"):
        load_weights(make(), tmp_path / "a.npy")
    with pytest.raises(WeightsError, match=r"is a numpy archive \(.npz\) of 1 arrays"):
        load_weights(make(), tmp_path / "a.npz")


def test_an_archive_names_the_weights_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("release/pretrain.pth", b"x")
    with pytest.raises(WeightsError, match=r"an archive that holds release/pretrain\.pth; unpack it"):
        load_weights(make(), tmp_path / "all.zip")


def test_a_folder_says_what_it_holds_and_what_to_give(tmp_path):
    for name in ("runs/seed_0/best", "files", "nothing"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs/seed_0/config.yaml").write_text("name: a")
    save_file(make().state_dict(), tmp_path / "files/a.safetensors")
    for folder, said in {
        "runs": r"holds 1 run\(s\); give one of them, such as .*seed_0",
        "runs/seed_0/best": "part of a run; give the folder of the run, .*seed_0",
        "files": r"holds 1 weights file\(s\); give one of them, such as .*a\.safetensors",
        "nothing": "is a folder; expected a weights file, or the folder of a finished run",
    }.items():
        with pytest.raises(WeightsError, match=said):
            load_weights(make(), tmp_path / folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match="is a device or a pipe"):
        load_weights(make(), tmp_path / "pipe.pth")


def test_a_model_without_memory_is_refused():
    with torch.device("meta"):
        empty = make()
    with pytest.raises(WeightsError, match=r"has no values in the model \(device meta\)"):
        load_weights(empty, make().state_dict())


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(WeightsError, match=r"cannot be read|does not exist"):
        load_weights(make(), name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights_is_refused_by_name(tmp_path):
    save_file(make().state_dict(), tmp_path / "mine.safetensors")
    (tmp_path / "mine.safetensors").chmod(0)
    with pytest.raises(WeightsError, match=r"mine\.safetensors.* cannot be read .*check its name and rights"):
        load_weights(make(), tmp_path / "mine.safetensors")
