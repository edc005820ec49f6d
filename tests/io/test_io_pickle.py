import contextlib
import os
import pickle
import subprocess
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pcl_clora.io import DataError, load_pickled_arrays

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def same(a, b):
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.float32).reshape(4, 3),
        np.asfortranarray(np.arange(12.0).reshape(4, 3)),
        np.arange(10)[::2],
        np.array([], dtype=np.int32),
        np.zeros((0, 3)),
        np.array(3.5),
        np.array([True, False]),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.float64(2.5),
        np.int32(7),
        [[np.ones((5, 6), np.float32)] * 2, [np.array([3], dtype=np.int32)]],
        {"train": [(np.ones(3), 1, "x")], "n": None, "b": b"\xff\x00", "f": 1.5, "t": True},
    ],
    ids=repr,
)
def test_arrays_in_plain_containers_come_back(tmp_path, value, protocol):
    file = tmp_path / "a.dat"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    assert same(load_pickled_arrays(file), value)


@settings(max_examples=60, deadline=None)
@given(
    value=arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": False},
    ),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_any_array_of_numbers_comes_back(tmp_path_factory, value, protocol):
    file = tmp_path_factory.mktemp("any") / "a.dat"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    assert same(load_pickled_arrays(file), value)


def test_the_other_byte_order_becomes_that_of_this_machine(tmp_path):
    value = np.arange(5, dtype=np.float32)
    (tmp_path / "a.dat").write_bytes(pickle.dumps(value.astype(value.dtype.newbyteorder("S"))))
    assert same(load_pickled_arrays(tmp_path / "a.dat"), value)


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_files_of_old_and_new_numpy_are_read(tmp_path, core):
    value = np.arange(6, dtype=np.float32)
    content = pickle.dumps(value, protocol=0)
    names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert any(name in content for name in names)
    for name in names:
        content = content.replace(name, core)
    (tmp_path / "a.dat").write_bytes(content)
    assert same(load_pickled_arrays(tmp_path / "a.dat"), value)


def test_a_file_of_python_2_is_read(tmp_path):
    # What Python 2.7 wrote for array([1.0, 2.5], float32) by protocol 2: the bytes are a short string.
    data = np.array([1.0, 2.5], np.float32).tobytes()
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"
        b"K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data + b"tb."
    )
    (tmp_path / "a.dat").write_bytes(content)
    assert same(load_pickled_arrays(tmp_path / "a.dat"), np.array([1.0, 2.5], np.float32))


def test_arrays_own_their_memory(tmp_path):
    (tmp_path / "a.dat").write_bytes(pickle.dumps(np.ones(4)))
    array = load_pickled_arrays(tmp_path / "a.dat")
    array[0] = 2.0
    assert array.flags.owndata


class Runs:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def marker(tmp_path):
    return str(tmp_path / "was_run")


HOSTILE = {
    "os.system": lambda path: Runs(os.system, f"touch {path}"),
    "subprocess": lambda path: Runs(subprocess.check_call, ["touch", path]),
    "eval": lambda path: Runs(eval, f"open({path!r}, 'w')"),
    "exec": lambda path: Runs(exec, f"open({path!r}, 'w')"),
    "open": lambda path: Runs(open, path, "w"),
    "getattr": lambda path: Runs(getattr, "text", "upper"),
    "numpy.save": lambda path: Runs(np.save, path, np.ones(1)),
    "numpy.load": lambda path: Runs(np.load, path),
    "numpy.fromfile": lambda path: Runs(np.fromfile, path),
    "memmap": lambda path: Runs(np.memmap, path, "u1", "w+", 0, (1,)),
    "import": lambda path: Runs(__import__, "os"),
    "fraction": lambda path: Fraction(1, 2),
    "ordered": lambda path: OrderedDict(a=1),
    "set": lambda path: {1, 2},
    "objects": lambda path: np.array([{}, []], dtype=object),
    "record": lambda path: np.zeros(2, dtype=[("a", "f4")]),
    "time": lambda path: np.array(["2024-01-01"], dtype="datetime64[D]"),
    "dtype": lambda path: np.dtype("f4"),
    "function": lambda path: os.getcwd,
    "class": lambda path: np.ndarray,
    "hidden in an array": lambda path: np.array([Runs(os.system, f"touch {path}")], dtype=object),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_anything_but_arrays_is_refused_and_never_run(tmp_path, name, protocol):
    file = tmp_path / "a.dat"
    file.write_bytes(pickle.dumps([np.ones(2), HOSTILE[name](marker(tmp_path))], protocol=protocol))
    with pytest.raises(DataError, match=r"a\.dat: the pickle asks for .*only numpy arrays"):
        load_pickled_arrays(file)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.dat"]


def test_the_refusal_names_what_was_asked_for(tmp_path):
    (tmp_path / "a.dat").write_bytes(pickle.dumps(Runs(os.system, "true")))
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.system"):
        load_pickled_arrays(tmp_path / "a.dat")


def array_stream(shape=b"(I1\nt", dtype=b"cnumpy\ndtype\n(S'f4'\ntR", data=b"S'abcd'\n"):
    """What protocol 0 writes for an array of one float32, with parts replaced."""
    return b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n" + shape + dtype + b"I00\n" + data + b"tb."


# Streams that use admitted names in ways that numpy never does.
CRAFTED = {
    "a call of the array type": b"cnumpy\nndarray\n(I3\ntR.",
    "a type as a value": b"cnumpy\nndarray\n.",
    "state of a wrong length": b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\nI2\ntb.",
    "state that is no tuple": b"cnumpy.core.multiarray\n_reconstruct\n(tRI1\nb.",
    "a negative shape": array_stream(shape=b"(I-1\nt"),
    "a shape of text": array_stream(shape=b"S'x'\n"),
    "too few bytes": array_stream(shape=b"(I9\nt"),
    "a huge shape": array_stream(shape=b"(I1000000000000\nI1000000000000\nt"),
    "objects by name": array_stream(dtype=b"cnumpy\ndtype\n(S'O8'\ntR", data=b"S'abcdefgh'\n"),
    "a dtype of numbers": array_stream(dtype=b"cnumpy\ndtype\n(I4\ntR"),
    "an unknown dtype": array_stream(dtype=b"cnumpy\ndtype\n(S'zz'\ntR"),
    "a dtype that is none": array_stream(dtype=b"S'f4'\n"),
    "data that is a list": array_stream(data=b"(l"),
    "bytes of a size": b"c__builtin__\nbytes\n(I1000000000\ntR.",
    "an encoding that runs": b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
    "a name with dots": b"\x80\x04\x8c\x05numpy\x8c\x0ccore.os.path\x93.",
    "an object kept elsewhere": b"Pelsewhere\n.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a new default of a function": b"c_codecs\nencode\n(N(dS'__defaults__'\n(Vx\ntstb.",
    "an attribute of a type": b"cnumpy\nndarray\n(N(dS'x'\nI1\nstb.",
    "an attribute of a function": b"cnumpy._core.multiarray\nscalar\n(dS'x'\nI1\nsb.",
    "nothing": b"",
    "noise": bytes(range(256)),
    "a list that holds itself": b"]q\x00h\x00a.",
    "a mark without an end": b"(I1\n",
}


@pytest.mark.parametrize(
    "name", ["a new default of a function", "an attribute of a type", "an attribute of a function"]
)
def test_a_file_cannot_change_what_a_name_means(tmp_path, name):
    (tmp_path / "a.dat").write_bytes(CRAFTED[name])
    with pytest.raises(DataError, match="a change of what a name means"):
        load_pickled_arrays(tmp_path / "a.dat")


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_stream_is_refused(tmp_path, name):
    (tmp_path / "a.dat").write_bytes(CRAFTED[name])
    with pytest.raises(DataError, match=r"a\.dat"):
        load_pickled_arrays(tmp_path / "a.dat")


def test_the_stream_that_the_crafted_ones_spoil_is_read(tmp_path):
    (tmp_path / "a.dat").write_bytes(array_stream())
    assert same(load_pickled_arrays(tmp_path / "a.dat"), np.frombuffer(b"abcd", np.float32))


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), end=st.integers(0, 10**6))
def test_a_damaged_file_gives_arrays_or_an_error_of_ours(tmp_path_factory, position, value, end):
    content = bytearray(
        pickle.dumps([[np.arange(6, dtype=np.float32)], [np.array([1], np.int32)]], protocol=2)
    )
    content[position % len(content)] = value
    file = tmp_path_factory.mktemp("damaged") / "a.dat"
    file.write_bytes(content[: end % len(content) + 1])
    with contextlib.suppress(DataError):  # anything else fails the test
        load_pickled_arrays(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_pickled_arrays(tmp_path / "a.dat")


def test_deep_nesting_is_refused(tmp_path):
    (tmp_path / "a.dat").write_bytes(b"]" * 5000 + b"a" * 4999 + b".")
    with pytest.raises(DataError, match="nested"):
        load_pickled_arrays(tmp_path / "a.dat")


def test_a_pickle_asks_for_no_more_room_than_it_is_long(tmp_path):
    hostile = {
        "memory": b"\x80\x02]r\xff\xff\xff\xff.",
        "bytes": b"\x80\x05\x8e" + (10**12).to_bytes(8, "little") + b"x.",
        "bytearray": b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b"x.",
        "text": b"\x80\x04\x8d" + (10**12).to_bytes(8, "little") + b"x.",
        "frame": b"\x80\x04\x95" + (10**12).to_bytes(8, "little") + b"].",
    }
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            load_pickled_arrays(tmp_path / name)


def test_what_stands_twice_is_built_once(tmp_path):
    value = [np.arange(3)]
    for _ in range(60):
        value = [value, value]
    (tmp_path / "a").write_bytes(pickle.dumps(value))
    found = load_pickled_arrays(tmp_path / "a")
    assert found[0] is found[1]
