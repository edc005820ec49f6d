"""Damaged and hostile containers: an error that names the file, never a traceback or a huge request."""

import io
import json
import pickle
import random
import re
import struct
import sys
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pcl_clora.models import WeightsError
from pcl_clora.models.builtin import list_builtin
from pcl_clora.models.weights._containers import open_checkpoint
from pcl_clora.models.weights.inspect import inspect_weights

resource = pytest.importorskip("resource", reason="limits of memory need a posix system")
MUTATIONS = 120  # of each kind of file
HUGE = (b"\xff" * 4, b"\xff" * 8, struct.pack("<Q", 1 << 40), struct.pack("<I", 1 << 30), b"\x00" * 8)


@pytest.fixture(autouse=True)
def _little_memory():
    """Let the process ask for 1 GiB more than it has, and no more."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def tensors():
    made = torch.Generator().manual_seed(0)
    state = OrderedDict((f"blocks.{i}.weight", torch.rand(4, 5, generator=made)) for i in range(3))
    return state | {"norm.num_batches_tracked": torch.tensor(7)}


def torch_bytes(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


CONTENT = {"base_model": tensors(), "epoch": 3, "metrics": {"acc": 0.5}, "best": np.float64(0.5)}
FILES = {
    "zip.pth": torch_bytes(CONTENT),
    "legacy.pth": torch_bytes(CONTENT, _use_new_zipfile_serialization=False),
    "plain.safetensors": save(tensors(), {"format": "pt"}),
}


def deflated(content):
    """Pack the parts of a zip file again, compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return file.getvalue()


def mutate(content, draw):
    """Damage a file in one of the ways that copies, disks and attackers do."""
    content, place = bytearray(content), draw.randrange(len(content))
    way = draw.choice(["flip", "cut", "zero", "huge", "insert", "remove", "swap", "digit"])
    if way == "flip":
        for _ in range(draw.choice([1, 1, 4, 40])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif way == "cut":
        del content[place:]
    elif way == "zero":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif way == "huge":
        number = draw.choice(HUGE)
        content[place : place + len(number)] = number
    elif way == "insert":
        content[place:place] = draw.randbytes(draw.choice([1, 8, 100]))
    elif way == "remove":
        del content[place : place + draw.choice([1, 8, 100])]
    elif way == "swap":
        other = draw.randrange(len(content))
        content[place], content[other] = content[other], content[place]
    else:
        found = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
        if found:
            content[draw.choice(found)] = ord(draw.choice("0123456789"))
    return bytes(content)


def answer(path):
    """Read everything of a file; return its tensors, or the words of its refusal."""
    start, said = time.perf_counter(), ""
    try:
        checkpoint = open_checkpoint(path)
        found = {key: checkpoint.tensors[key].clone() for key in checkpoint.tensors}
    except WeightsError as error:
        said = str(error)
    assert time.perf_counter() - start < 10
    if not said:
        return found
    assert path.name in said
    assert not re.search(r"MemoryError|allocate|alloc\b|weights_only", said)
    return said


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_read_right_or_refused_by_name(tmp_path, kind):
    draw, expected, refused = random.Random(0), tensors(), 0
    for number in range(MUTATIONS):
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(mutate(FILES[kind], draw))
        found = answer(path)
        refused += isinstance(found, str)
        if kind == "zip.pth" and isinstance(found, dict):  # its checksums cover every value
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert refused > MUTATIONS // 4


def test_a_torch_file_whose_parts_were_compressed_reads_as_before(tmp_path):
    (tmp_path / "small.pth").write_bytes(deflated(FILES["zip.pth"]))
    found = answer(tmp_path / "small.pth")
    assert all(torch.equal(found[key], value) for key, value in tensors().items())


def test_a_changed_value_in_a_torch_file_is_found_by_its_checksum(tmp_path):
    content = bytearray(FILES["zip.pth"])
    place = content.find(tensors()["blocks.1.weight"].numpy().tobytes())
    content[place + 3] ^= 0x40
    (tmp_path / "flipped.pth").write_bytes(content)
    assert "Bad CRC-32" in answer(tmp_path / "flipped.pth")


def test_an_archive_that_inflates_without_end_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        with archive.open("archive/data/0", "w") as part:
            for _ in range(64):
                part.write(bytes(1 << 20))
        archive.writestr("archive/version", "3")
    with zipfile.ZipFile(tmp_path / "bomb.pth") as archive:  # deflate alone stays just within the bound
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    content = (tmp_path / "bomb.pth").read_bytes()
    real, claimed = struct.pack("<I", sizes["archive/data/0"]), struct.pack("<I", 0xF0000000)
    (tmp_path / "bomb.pth").write_bytes(content.replace(real, claimed))
    assert re.search(r"declares a content of 4,026,\d{3},\d{3}", answer(tmp_path / "bomb.pth"))


def header_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


FOUR = b"\0" * 4
HEADERS = {
    "longer than the file": ((1 << 62).to_bytes(8, "little") + b"{}", "its header claims 4,611,"),
    "deep": (header_file(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "a list": (header_file([1]), "is json text|its header is a list"),
    "no json": (header_file(b"{a"), "its header: "),
    "not utf-8": (header_file(b'{"\xff": 1}'), "its header: "),
    "a name twice": (header_file(b'{"a": 1, "a": 2}'), "a name stands there twice"),
    "metadata of numbers": (header_file({"__metadata__": {"a": 1}}), "its metadata are no text"),
    "no shape": (header_file({"w": {"dtype": "F32"}}), "has no dtype, shape and data_offsets"),
    "true as a size": (header_file({"w": entry((True,))}, FOUR), "has no dtype, shape"),
    "negative size": (header_file({"w": entry((-1,))}, FOUR), "has no dtype, shape"),
    "huge size": (header_file({"w": entry((10**12,))}, FOUR), r"of shape \[1000000000000\] has 4 bytes"),
    "huge and empty": (header_file({"w": entry((0, 1 << 59, 1 << 59), (0, 0))}), "has no dtype, shape"),
    "huge and cut": (header_file({"w": entry((10**9,), (0, 4 * 10**9))}, FOUR), "take 4,000,000,000 bytes"),
    "overlap": (header_file({"a": entry(), "b": entry()}, FOUR), "begins at byte 0, expected 4"),
    "gap": (header_file({"a": entry((1,), (4, 8))}, FOUR * 2), "begins at byte 4, expected 0"),
    "more behind": (header_file({"a": entry()}, FOUR * 2), "take 4 bytes, the file has 8"),
    "number of 5,000 digits": (header_file(b'{"a": ' + b"9" * 5000 + b"}"), "its header: |has no dtype"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_cannot_be_is_refused_with_what_is_wrong(tmp_path, case):
    content, said = HEADERS[case]
    (tmp_path / "bad.safetensors").write_bytes(content)
    assert re.search(said, answer(tmp_path / "bad.safetensors"))


def test_a_deep_header_of_an_adapter_is_no_adapter(tmp_path):
    metadata = {"header": "[" * 100_000}
    (tmp_path / "deep.safetensors").write_bytes(save(tensors(), metadata))
    assert inspect_weights(tmp_path / "deep.safetensors").holds == "a network that is not known here"


class Call:
    """Pickled as the call of a name with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "bytes by number": (Call(bytearray, 1 << 40), "asks to run code while loading"),
    "a tensor by size": (Call(torch.Tensor, 1 << 20, 1 << 20), "asks to run code while loading"),
    "a sparse tensor": (torch.eye(3).to_sparse(), "expected dense, unquantised tensors"),
    "a tensor without values": (torch.empty(1 << 20, 1 << 20, device="meta"), "expected dense"),
    "a text type of 1 GB": (np.dtype("S1000000000"), "holds a numpy number of type 'S1000000000'"),
    "a tensor spread over one value": (torch.zeros(1).expand(1 << 20, 1 << 20), "over 1 values"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", CALLS)
def test_what_a_pickle_claims_is_never_reserved(tmp_path, case, legacy):
    content, said = CALLS[case]
    made = torch_bytes({"model": tensors(), "x": content}, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "claims.pth").write_bytes(made)
    assert re.search(said, answer(tmp_path / "claims.pth"))


def test_what_stands_beside_the_weights_is_shown_in_bounded_time(tmp_path):
    inner = {"a": 1}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    content = {"model": tensors(), "deep": inner, "long": 10**500, "text": "x" * 10**6}
    (tmp_path / "beside.pth").write_bytes(torch_bytes(content))
    extras = open_checkpoint(tmp_path / "beside.pth").extras
    assert len(str(extras)) < 5000
    assert extras["long"] == "int"


@pytest.mark.parametrize("damage", ["", "{", "[" * 100_000, "[]", '{"sizes": 3}'])
def test_a_damaged_card_in_the_package_is_an_error_that_names_it(tmp_path, monkeypatch, damage):
    from pcl_clora.models import builtin

    name, file = next(iter(list_builtin().items()))
    (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / f"{name}.json").write_text(damage)
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    with pytest.raises(WeightsError, match=rf"{name}\.json is damaged.*install"):
        builtin.builtin_file(type("Config", (), {"name": name})())
