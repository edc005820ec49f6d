"""Files that must not or cannot be loaded: each is refused in words that help, and nothing is changed."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import WeightsError, create_model, load_weights
from pcl_clora.models.weights._containers import open_checkpoint, read_state_dict

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_groups": 16, "group_size": 8}


def make(name="point_mae", **changes):
    torch.manual_seed(0)
    return create_model(name, num_classes=15, **{**SIZES, **changes}).eval()


def refused(model, source, match, **options):
    """Load, expect a refusal, and compare every tensor with what it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=match):
        load_weights(model, source, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Evil:
    """Unpickling it would make a file."""

    def __reduce__(self):
        return open, ("executed", "w")


WRITERS = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle 2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "pickle 5": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=5)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", ["at the top", "beside", "inside"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pickle_that_would_make_a_file_makes_none(tmp_path, monkeypatch, writer, place):
    monkeypatch.chdir(tmp_path)
    content = {"at the top": Evil(), "beside": {"model": {}, "x": Evil()}, "inside": {"model": {"w": Evil()}}}
    WRITERS[writer](content[place], tmp_path / "evil.pth")
    refused(make(), tmp_path / "evil.pth", r"evil\.pth (asks to run code|is not|is a bare pickle)")
    assert not (tmp_path / "executed").exists()


def test_a_bare_pickle_is_named_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=4))
    refused(make(), tmp_path / "evil.pth", "is a bare pickle, .* could run code, and it was refused")


def test_what_a_hostile_file_asked_for_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "x": Evil()}, tmp_path / "evil.pth")
    refused(make(), tmp_path / "evil.pth", r"asks to run code while loading \((_io|io|builtins)\.open\)")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("keep", [0, 1, 9, 64, 2000, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix, keep):
    path = tmp_path / f"torn{suffix}"
    if suffix == ".pth":
        torch.save({"model": make().state_dict()}, path)
    else:
        save_file(make().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refused(make(), path, r"torn\.(pth|safetensors) is (empty|not)")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page: the download asked for a login"),
        ("\ufeff<html><body>404</body></html>", "is a web page"),
        ("<!-- saved --><html></html>", "is a web page"),
        ("\n <html><body>404</body></html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of git-lfs"),
        ('{"error": "not found"}', "is json text"),
        ("", "is empty"),
        ("hello", "is not a torch file"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_content_under_the_name_of_a_weights_file_is_recognised(tmp_path, suffix, content, match):
    path = tmp_path / f"page{suffix}"
    path.write_text(content)
    if content == "hello" and suffix == ".safetensors":
        match = "is not a complete safetensors file"
    refused(make(), path, match)


def test_a_header_that_promises_more_than_the_file_has_is_refused(tmp_path):
    path = tmp_path / "liar.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    refused(make(), path, "is not a complete safetensors file")


def test_a_type_that_torch_files_do_not_have_is_named(tmp_path):
    path = tmp_path / "small.safetensors"
    save_file({"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, path)
    refused(make(), path, r"holds tensors of type F8_E4M3; expected one of F64")


def test_the_content_decides_and_not_the_suffix(tmp_path):
    model = make()
    save_file(model.state_dict(), tmp_path / "really_safetensors.pth")
    assert len(load_weights(make(), tmp_path / "really_safetensors.pth").matched) == len(model.state_dict())


def test_a_folder_without_a_run_is_named(tmp_path):
    refused(make(), tmp_path, "is a folder; expected a weights file, or the folder of a finished run")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("as_file", [False, True])
def test_values_that_are_no_numbers_are_refused_and_counted(tmp_path, bad, as_file):
    state = {name: value.clone() for name, value in make().state_dict().items()}
    state["blocks.1.mlp.fc2.weight"][:2, 0] = bad
    if as_file:
        save_file(state, tmp_path / "bad.safetensors")
    source = tmp_path / "bad.safetensors" if as_file else state
    refused(
        make(), source, r"1 tensor\(s\) hold nan or infinity, first blocks\.1\.mlp\.fc2\.weight \(2 of 9216"
    )


def test_bad_values_in_what_is_left_out_do_no_harm():
    state = dict(make().state_dict()) | {"mask_token": torch.full((1, 1, 48), float("nan"))}
    assert load_weights(make(), state).unexpected == {"mask_token": "used in pre-training only"}


@pytest.mark.parametrize(("kind", "wide"), [("float16", "float32"), ("float32", "float64")])
def test_values_too_large_for_the_type_of_the_model_are_refused(kind, wide):
    model, state = (
        make().to(getattr(torch, kind)),
        {
            name: value.to(getattr(torch, wide)) if value.is_floating_point() else value
            for name, value in make().state_dict().items()
        },
    )
    state["norm.weight"][3] = 2.0 * torch.finfo(getattr(torch, kind)).max
    refused(
        model, state, rf"norm\.weight \(torch\.{wide}\) holds values up to .*{kind} of the model cannot hold"
    )


def test_a_sparse_tensor_is_named():
    state = make().state_dict()
    state["norm.weight"] = state["norm.weight"].to_sparse()
    refused(make(), state, "norm.weight is torch.sparse_coo; save its to_dense")


def test_the_base_of_an_adapted_model_is_refused_even_in_part():
    base = make()
    attach_adapter(base, {"method": "clora"})
    refused(base, make().state_dict(), r"carries an adapter.*the AdaptedModel around it", allow_partial=True)


def test_whole_numbers_where_weights_belong_are_refused():
    state = {name: value.to(torch.int8) for name, value in make().state_dict().items()}
    refused(make(), state, r"holds torch\.int8 where the model has torch\.float32; quantised")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_said(dtype):
    state = make().state_dict()
    given = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    model = make()
    report = load_weights(model, given)
    assert sum(report.cast.values()) == sum(v.is_floating_point() for v in state.values())
    assert all(torch.equal(v, given[n].to(v.dtype)) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"embed_dim": 96},
            r"embed_dim 96 in the file, 48 in the model\); create_model\(\"point_mae\", .*embed_dim=96",
        ),
        ({"encoder_widths": (64, 128, 256)}, r"encoder_widths \(64, 128, 256\) in the file"),
        ({"mlp_ratio": 2.0}, r"mlp_ratio 2\.0 in the file, 4\.0 in the model"),
    ],
)
def test_wrong_widths_are_named_with_the_config_that_fits(changes, said):
    refused(make(), make(**changes).state_dict(), said)


def test_a_file_with_more_blocks_is_refused_unless_told():
    deep = make(depth=3).state_dict()
    refused(
        make(), deep, r"11 tensors are of blocks that the model does not have .*depth 3 in the file, 2 in the"
    )
    assert len(load_weights(make(), deep, allow_partial=True).unexpected) == 11


def test_a_file_with_fewer_blocks_is_refused_unless_told():
    shallow = make(depth=1).state_dict()
    refused(
        make(), shallow, r"tensors of the backbone are not in the file .*depth 1 in the file, 2 in the model"
    )
    assert load_weights(make(), shallow, allow_partial=True).missing


def test_another_network_is_named():
    refused(
        make(), make("pcp_mae").state_dict(), "The file is PCP-MAE, classification, the model is point_mae"
    )


def test_an_image_transformer_is_named():
    state = {"patch_embed.proj.weight": torch.ones(8, 3, 16, 16), "blocks.0.attn.qkv.bias": torch.ones(24)}
    refused(make(), state, r"The file is an image transformer \(timm\); expected a file of point_mae")


def test_what_is_read_is_not_tied_to_the_file(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "a.safetensors")
    state, container = read_state_dict(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    assert container == ""
    assert state["w"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_lazy_reading_equals_the_library(tmp_path, dtype):
    from safetensors.torch import load_file

    made = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randint(0, 2, (3, 5), generator=made).to(dtype),
        "scalar": torch.ones((), dtype=dtype),
        "empty": torch.ones((0, 4), dtype=dtype),
    }
    save_file(tensors, tmp_path / "t.safetensors")
    ours, theirs = open_checkpoint(tmp_path / "t.safetensors"), load_file(tmp_path / "t.safetensors")
    assert set(ours.tensors) == set(theirs)
    assert all(torch.equal(ours.tensors[key], theirs[key]) for key in theirs)
    assert all(ours.like(key).shape == theirs[key].shape for key in theirs)
