import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader, build_dataset, check_root, describe_root, parse_data_config
from pcl_clora.data.dataset import Sample, stack_samples
from pcl_clora.data.packed import write as pack_module
from pcl_clora.data.packed.format import read_index
from pcl_clora.data.packed.write import pack_dataset
from pcl_clora.data.registry import build_validation
from pcl_clora.io import DataError
from tests.support.data_layouts import make_folder, make_hdf5, make_text
from tests.support.scan_layouts import make_fewshot, make_raw, make_scan

PROCEDURAL = {
    "name": "procedural",
    "classes": ["chair", "mug"],
    "train_size": 10,
    "test_size": 4,
    "num_points": 24,
}
SOURCES = {
    "procedural": lambda root: PROCEDURAL,
    "modelnet40_hdf5": lambda root: {"root": str(make_hdf5(root))},
    "modelnet40_txt": lambda root: {"root": str(make_text(root)), "cache": "none"},
    "folder": lambda root: {"root": str(make_folder(root, "class/split"))},
    "scanobjectnn": lambda root: {"root": str(make_scan(root))},
    "scanobjectnn_raw": lambda root: {"root": str(make_raw(root))},
    "modelnet_fewshot": lambda root: {"root": str(make_fewshot(root)), "shots": 2},
    "fewshot": lambda root: {"source": PROCEDURAL, "ways": 2, "shots": 2, "test_per_class": 2},
}


def packed(folder, split="train", **more):
    return build_dataset({"name": "packed", "root": str(folder), "num_points": 24, **more}, split)


def assert_same(one, other):
    """Every field of a sample, bit for bit."""
    for name in ("points", "part_labels", "mask"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name
    for name in ("label", "index", "path", "category"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("name", SOURCES)
def test_a_packed_data_set_has_the_samples_of_its_source(tmp_path, name):
    config = parse_data_config({"name": name, "num_points": 24, **SOURCES[name](tmp_path / "source")})
    pack_dataset(config, tmp_path / "out", clouds_per_shard=4)
    for split in ("train", "test"):
        source, copy = build_dataset(config, split), packed(tmp_path / "out", split)
        assert copy.class_names == source.class_names
        assert torch.equal(copy.labels, source.labels)
        for index in range(len(source)):
            assert_same(copy[index], source[index])
    assert {one.level for one in check_root(tmp_path / "out")} <= {"info", "warning"}


def test_a_batch_is_the_samples_in_the_order_asked_for(tmp_path):
    pack_dataset(parse_data_config(PROCEDURAL), tmp_path, clouds_per_shard=3)
    dataset = packed(tmp_path)
    wanted = [9, 0, 3, 3]
    batch, expected = dataset.read_batch(wanted), stack_samples([dataset[index] for index in wanted])
    for name in ("points", "label", "index", "part_labels", "category"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert dataset[-1].index == 9
    with pytest.raises(IndexError):
        dataset[10]


def test_parts_and_their_taxonomy_are_kept(tmp_path):
    config = parse_data_config(PROCEDURAL)
    pack_dataset(config, tmp_path)
    source, copy = build_dataset(config, "train"), packed(tmp_path)
    assert copy.taxonomy == source.taxonomy
    assert copy[3].part_labels.dtype == torch.int64


def test_changing_what_was_read_does_not_change_the_file(tmp_path):
    pack_dataset(parse_data_config(PROCEDURAL), tmp_path)
    dataset = packed(tmp_path)
    dataset[2].points.zero_()
    dataset.read_batch([2]).points.zero_()
    assert dataset[2].points.any()


def test_fewer_points_are_the_first_ones(tmp_path):
    pack_dataset(parse_data_config(PROCEDURAL), tmp_path)
    assert torch.equal(packed(tmp_path, num_points=9)[1].points, packed(tmp_path)[1].points[:9])
    with pytest.raises(DataError, match="smallest cloud of train has 24 points, but 25 were asked for"):
        packed(tmp_path, num_points=25)


def test_a_loader_with_workers_reads_the_same_batches(tmp_path):
    pack_dataset(parse_data_config(PROCEDURAL), tmp_path, clouds_per_shard=4)
    alone, helped = (
        PointLoader(packed(tmp_path), 5, shuffle=True, num_workers=count).batches(0) for count in (0, 2)
    )
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.points, other.points)
    assert torch.equal(pickle.loads(pickle.dumps(packed(tmp_path)))[7].points, packed(tmp_path)[7].points)


class Synthetic:
    """Clouds of any sizes, made when they are asked for; sizes gives that of each."""

    class_names = ("a", "b")

    def __init__(self, sizes, fields=("part_labels", "category", "mask")):
        self.sizes, self.fields = sizes, fields
        self.labels = torch.arange(len(sizes)) % 2

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        size = self.sizes[index]
        everything = {
            "part_labels": torch.randint(0, 300, (size,), generator=generator),
            "category": index % 3,
            "mask": torch.rand(size, generator=generator) < 0.5,
        }
        return Sample(
            torch.rand(size, 3, generator=generator),
            int(self.labels[index]),
            index,
            f"\u00fcber/{index}",
            **{name: everything[name] for name in self.fields},
        )

    def read_batch(self, indices):
        return stack_samples([self[int(index)] for index in indices])


def pack_synthetic(monkeypatch, folder, sizes, **more):
    dataset = Synthetic(sizes)
    monkeypatch.setattr(pack_module, "build_dataset", lambda config, split: dataset)
    pack_dataset(parse_data_config(PROCEDURAL), folder, **more)
    return dataset


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), per_shard=st.integers(1, 5))
def test_clouds_of_any_size_come_back(sizes, per_shard, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    with pytest.MonkeyPatch.context() as monkeypatch:
        source = pack_synthetic(monkeypatch, folder, sizes, clouds_per_shard=per_shard)
    copy = packed(folder, num_points=min(sizes))
    for index in range(len(sizes)):
        assert_same(copy.whole_sample(index), source[index])
    assert torch.equal(copy.read_batch(range(len(sizes))).mask[-1], source[len(sizes) - 1].mask[: min(sizes)])
    entry = read_index(folder).splits["train"]
    assert (entry.num_points, entry.min_points, entry.max_points) == (sum(sizes), min(sizes), max(sizes))


def test_a_split_whose_samples_differ_in_kind_is_refused(tmp_path, monkeypatch):
    dataset = Synthetic([4, 4, 4])
    plain = Synthetic([4, 4, 4], fields=())
    monkeypatch.setattr(Synthetic, "__getitem__", Synthetic.__getitem__)
    monkeypatch.setattr(pack_module, "build_dataset", lambda config, split: Mixed(dataset, plain))
    with pytest.raises(DataError, match="has nothing besides points and label, the first sample part_labels"):
        pack_dataset(parse_data_config(PROCEDURAL), tmp_path)


class Mixed(Synthetic):
    def __init__(self, first, second):
        super().__init__(first.sizes)
        self.parts = (first, second)

    def __getitem__(self, index):
        return self.parts[index == 2][index]


# ---- interrupted, repeated, damaged


class Stop(Exception):
    pass


def stop_after(count):
    def told(done):
        told.seen.append((done.split, done.number, done.kept))
        if len(told.seen) == count:
            raise Stop

    told.seen = []
    return told


def digests(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_stopped_pack_goes_on_and_ends_with_the_same_files(tmp_path, count):
    config = parse_data_config(PROCEDURAL)
    pack_dataset(config, tmp_path / "whole", clouds_per_shard=4)
    with pytest.raises(Stop):
        pack_dataset(config, tmp_path / "cut", clouds_per_shard=4, on_shard=stop_after(count))
    with pytest.raises(DataError, match="this pack was not finished; run the command that packs again"):
        packed(tmp_path / "cut")
    assert check_root(tmp_path / "cut")[0].level == "error"
    again = stop_after(99)
    pack_dataset(config, tmp_path / "cut", clouds_per_shard=4, on_shard=again)
    assert [kept for _, _, kept in again.seen] == [True] * count + [False] * (4 - count)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_a_shard_that_was_cut_off_while_it_was_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(pack_module, "_saver", lambda tensors, note: fail)
    with pytest.raises(OSError, match="disk full"):
        pack_dataset(parse_data_config(PROCEDURAL), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_pack_is_left_as_it_is(tmp_path):
    config = parse_data_config(PROCEDURAL)
    pack_dataset(config, tmp_path)
    before, told = digests(tmp_path), stop_after(99)
    pack_dataset(config, tmp_path, on_shard=told)
    assert (digests(tmp_path), told.seen) == (before, [])


@pytest.mark.parametrize("finished", [True, False])
def test_the_pack_of_other_settings_is_refused_in_the_same_folder(tmp_path, finished):
    pack_dataset(parse_data_config(PROCEDURAL), tmp_path)
    if not finished:
        (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match="choose another folder"):
        pack_dataset(parse_data_config({**PROCEDURAL, "seed": 4}), tmp_path)


def test_a_kept_shard_of_other_clouds_is_refused(tmp_path):
    source = make_hdf5(tmp_path / "source")
    config = parse_data_config({"name": "modelnet40_hdf5", "root": str(source), "num_points": 24})
    pack_dataset(config, tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    import h5py

    with h5py.File(source / "ply_data_train0.h5", "a") as file:
        file["data"][0] = 0.25
    with pytest.raises(DataError, match="left by a pack of other data"):
        pack_dataset(config, tmp_path / "out")


@pytest.fixture
def folder(tmp_path):
    pack_dataset(parse_data_config(PROCEDURAL), tmp_path, clouds_per_shard=4)
    return tmp_path


def flip(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message", "at_reading"),
    [
        (flip, "SHA-256", False),
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), "bytes, index.json says", True),
        (lambda file: file.unlink(), "missing", True),
    ],
)
def test_a_damaged_shard_is_found(folder, damage, message, at_reading):
    damage(folder / "train-00001.safetensors")
    errors = [one for one in check_root(folder) if one.level == "error"]
    assert [(Path(one.file).name, message in one.message) for one in errors] == [
        ("train-00001.safetensors", True)
    ]
    if at_reading:
        with pytest.raises(DataError, match="train-00001"):
            packed(folder)


def test_all_damages_are_listed_at_once(folder):
    flip(folder / "train-00000.safetensors")
    flip(folder / "train-00002.safetensors")
    (folder / "test-00000.safetensors").unlink()
    (folder / "stray.safetensors").write_bytes(b"")
    found = check_root(folder)
    assert sum(one.level == "error" for one in found) == 3
    assert any("stray" in one.file for one in found)


def edit_index(folder, change):
    content = json.loads((folder / "index.json").read_text())
    change(content)
    (folder / "index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("splits"),
        lambda c: c.update(version=2),
        lambda c: c["splits"]["train"]["shards"][0].update(file="../outside.safetensors"),
        lambda c: c["splits"]["train"]["shards"][0].update(sha256="abc"),
        lambda c: c["taxonomy"]["ids"].pop(),
    ],
)
def test_a_wrong_index_is_refused(folder, change):
    edit_index(folder, change)
    with pytest.raises(DataError, match=r"index\.json"):
        packed(folder)
    assert check_root(folder)[0].level == "error"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02\0\0\0\0\0\0\0{}", b"12"]
)
def test_a_file_that_is_no_shard_is_refused(folder, content):
    file = folder / "train-00000.safetensors"
    file.write_bytes(content)
    edit_index(folder, lambda c: c["splits"]["train"]["shards"][0].update(bytes=max(len(content), 1)))
    with pytest.raises(DataError, match="train-00000"):
        packed(folder)


def test_labels_beyond_the_classes_are_found(folder):
    edit_index(folder, lambda c: c["class_names"].pop())
    with pytest.raises(DataError, match="labels from 0 to 1"):
        packed(folder)
    assert any("label 1, expected 0..0" in one.message for one in check_root(folder))


def test_a_missing_split_is_named(folder):
    edit_index(folder, lambda c: c["splits"].pop("test"))
    with pytest.raises(DataError, match="has no split 'test', only train"):
        packed(folder, "test")


def test_a_packed_folder_is_described(folder):
    info = describe_root(folder)
    assert (info.layout, info.num_samples, info.num_points) == ("packed", {"train": 10, "test": 4}, 24)
    assert "made of procedural" in str(info)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "packed", "root": "x"}, "packed already"),
        ({"name": "digits"}, "holds images"),
        ({"name": "scanobjectnn", "root": "x", "sampling": "paper"}, "pack with sampling=stored"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path, config, message):
    with pytest.raises(ConfigError, match=message):
        pack_dataset(parse_data_config(config), tmp_path)


def test_packed_data_take_shots_and_paper_sampling(folder):
    assert len(packed(folder, shots=2)) == 4
    shuffled, stored = packed(folder, sampling="paper")[0].points, packed(folder)[0].points
    assert not torch.equal(shuffled, stored)
    assert torch.equal(shuffled.sort(0).values, stored.sort(0).values)
    assert build_validation({"name": "packed", "root": str(folder)}) is None


# ---- many clouds


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
@pytest.mark.parametrize(
    ("count", "points", "per_shard"),
    [  # 195, 281 and 366 MiB of points
        (50_000, 1024, 1000),
        pytest.param(12_000, 2048, 500, marks=pytest.mark.long),
        pytest.param(1_000_000, 32, 0, marks=pytest.mark.long),
    ],
    ids=["many clouds", "large clouds", "a million clouds"],
)
def test_packing_and_reading_need_a_fraction_of_the_size_in_memory(tmp_path, count, points, per_shard):
    code = """
import sys, threading, torch
from pcl_clora.data import build_dataset, parse_data_config, PointLoader
from pcl_clora.data.packed import write as pack_module
from pcl_clora.data.dataset import Sample

COUNT, POINTS, PER_SHARD = map(int, sys.argv[2:])

class Clouds:
    class_names = ("a", "b")
    labels = torch.arange(COUNT) % 2
    def __len__(self): return COUNT
    def __getitem__(self, index):
        return Sample(torch.full((POINTS, 3), float(index)), index % 2, index, str(index))

def anonymous():  # memory that is not a file's, KiB
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("RssAnon")).split()[1])

peak, start, stop = 0, anonymous(), threading.Event()
def watch():
    global peak
    while not stop.wait(0.005):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch); watcher.start()
clouds = Clouds()
pack_module.build_dataset = lambda config, split: clouds
config = parse_data_config({"name": "procedural", "num_points": POINTS})
pack_module.splits_of = lambda config: ("train",)
pack_module.pack_dataset(config, sys.argv[1], clouds_per_shard=PER_SHARD)
packing, peak = peak - start, 0
dataset = build_dataset({"name": "packed", "root": sys.argv[1], "num_points": POINTS}, "train")
seen = 0
for batch in PointLoader(dataset, 1024, shuffle=True).batches(0):
    assert (batch.points[:, 0, 0].long() == batch.index).all()
    seen += len(batch)
stop.set(); watcher.join()
print(seen, packing // 1024, max(peak - start, 0) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(count), str(points), str(per_shard)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    seen, packing_mib, reading_mib = map(int, done.stdout.split())
    assert seen == count
    assert packing_mib < 120  # a shard has 12 MiB of points; copies of it, and the imports of the writer
    assert reading_mib < 120


@pytest.mark.slow
def test_a_killed_process_leaves_whole_shards_only(tmp_path):
    code = (
        "import os, sys\n"
        "from pcl_clora.data import parse_data_config\n"
        "from pcl_clora.data.packed.write import pack_dataset\n"
        "config = parse_data_config(eval(sys.argv[2]))\n"
        "told = lambda done: os.kill(os.getpid(), 9) if done.number == 1 else None\n"
        "pack_dataset(config, sys.argv[1], clouds_per_shard=4, on_shard=told)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), repr(PROCEDURAL)], check=False)
    assert done.returncode == -9
    assert {file.name for file in tmp_path.iterdir()} == {
        "train-00000.safetensors",
        "train-00001.safetensors",
    }
    pack_dataset(parse_data_config(PROCEDURAL), tmp_path, clouds_per_shard=4)
    assert {one.level for one in check_root(tmp_path)} <= {"info"}
    source = build_dataset(PROCEDURAL, "train")
    np.testing.assert_array_equal(
        packed(tmp_path).read_batch(range(10)).points, source.read_batch(range(10)).points
    )
