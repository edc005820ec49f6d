"""yaml files, overrides and validation: what composes, what is refused, and what the message says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import PositiveInt

from pcl_clora.config import (
    Config,
    ConfigError,
    build,
    config_hash,
    dump_yaml,
    load,
    merge,
    parse_overrides,
    read_yaml,
)


class InnerConfig(Config):
    method: str = "plain"
    rank: PositiveInt = 8
    scale: float = 1.0


class OuterConfig(Config):
    name: str = "outer"
    sizes: tuple[int, ...] = (1, 2)
    inner: InnerConfig = InnerConfig()


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_file_lies_over_its_bases_and_later_bases_over_earlier_ones(tmp_path: Path) -> None:
    write(tmp_path, "parts/one.yaml", {"inner": {"rank": 1, "scale": 1.0}, "sizes": [1]})
    write(tmp_path, "parts/two.yaml", {"inner": {"rank": 2}})
    top = write(tmp_path, "top.yaml", {"_base_": ["parts/one.yaml", "parts/two.yaml"], "sizes": [3]})
    assert read_yaml(top) == {"inner": {"rank": 2, "scale": 1.0}, "sizes": [3]}


def test_two_bases_may_share_a_base(tmp_path: Path) -> None:
    write(tmp_path, "ground.yaml", {"inner": {"rank": 3}})
    write(tmp_path, "left.yaml", {"_base_": "ground.yaml"})
    write(tmp_path, "right.yaml", {"_base_": "ground.yaml", "sizes": [4]})
    top = write(tmp_path, "top.yaml", {"_base_": ["left.yaml", "right.yaml"]})
    assert load(OuterConfig, top) == OuterConfig(sizes=(4,), inner=InnerConfig(rank=3))


def test_a_cycle_of_bases_is_refused_and_named_in_order(tmp_path: Path) -> None:
    for here, there in (("a", "b"), ("b", "c"), ("c", "a")):
        write(tmp_path, f"{here}.yaml", {"_base_": f"{there}.yaml"})
    with pytest.raises(ConfigError, match=r"cycle: .*a\.yaml -> .*b\.yaml -> .*c\.yaml -> .*a\.yaml"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "not valid yaml"),
        ("- 1\n- 2", "holds a list; expected a mapping"),
        ("inner:\n  rank: 1\n  rank: 2", "'rank' is given twice"),
        ("? [1, 2]\n: 3", "unhashable key"),
        ("_base_: 3", "_base_ is 3; expected a file name"),
        ("_base_: gone.yaml", r"gone\.yaml does not exist \(named by .*top\.yaml\)"),
        ("!!python/object/apply:os.getcwd []", "not valid yaml"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, "top.yaml", content))


def test_a_yaml_merge_key_still_works(tmp_path: Path) -> None:
    path = write(tmp_path, "top.yaml", "x: &x {a: 1, b: 1}\ny: {<<: *x, b: 2}\n")
    assert read_yaml(path)["y"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(("part", "key"), [("model", "name"), ("data", "name"), ("adapter", "method")])
def test_a_section_of_another_kind_starts_afresh(part: str, key: str) -> None:
    below = {part: {key: "lora", "rank": 4}}
    assert merge(below, {part: {key: "clora", "spaces": 2}}) == {part: {key: "clora", "spaces": 2}}
    assert merge(below, {part: {key: "lora", "spaces": 2}})[part]["rank"] == 4
    assert merge(below, {part: {"rank": 5}}) == {part: {key: "lora", "rank": 5}}


def test_another_protocol_keeps_the_settings_beside_its_name() -> None:
    below = {"protocol": {"name": "honest", "votes": 3}}
    assert merge(below, {"protocol": {"name": "paper"}}) == {"protocol": {"name": "paper", "votes": 3}}


def test_another_name_at_the_top_keeps_all_settings() -> None:
    assert merge({"name": "a", "inner": {"rank": 2}}, {"name": "b"}) == {"name": "b", "inner": {"rank": 2}}


def test_merging_changes_neither_input() -> None:
    below, above = {"inner": {"rank": 1}}, {"inner": {"scale": 2}}
    merge(below, above)["inner"]["rank"] = 9
    assert (below, above) == ({"inner": {"rank": 1}}, {"inner": {"scale": 2}})


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("a.b=1", 1),
        ("a.b=1e-3", 1e-3),
        ("a.b=true", True),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b={c: 1}", {"c": 1}),
        ("a.b=/data/x=y", "/data/x=y"),
        ("a.b=", ""),
        ("a.b='1e-3'", "1e-3"),
    ],
)
def test_an_override_is_read_as_yaml(item: str, value: Any) -> None:
    assert parse_overrides([item]) == {"a": {"b": value}}


@pytest.mark.parametrize("item", ["a.b", "=1", "a..b=1", ".a=1"])
def test_an_override_without_key_or_value_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="not of the form key=value"):
        parse_overrides([item])


def test_a_key_that_is_both_value_and_section_is_refused() -> None:
    with pytest.raises(ConfigError, match="'a' was given a plain value"):
        parse_overrides(["a=1", "a.b=2"])


def test_overrides_come_last(tmp_path: Path) -> None:
    path = write(tmp_path, "top.yaml", {"inner": {"rank": 2, "scale": 3.0}})
    assert load(OuterConfig, path, ["inner.rank=5", "sizes=[7]"]) == OuterConfig(
        sizes=(7,), inner=InnerConfig(rank=5, scale=3.0)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rnak": 1}}, r"inner: 'rnak' is not a setting of InnerConfig; did you mean 'rank'\?"),
        ({"iner": {}}, r"\(top level\): 'iner' is not a setting of OuterConfig; did you mean 'inner'\?"),
        ({"inner": {"rank": 0}}, r"inner\.rank: .*greater than 0 \(given: 0\)"),
        ({"inner": {"scale": float("nan")}}, r"inner\.scale: .*finite"),
        ({"sizes": [1, "x"]}, r"sizes\.1: .*integer.*\(given: 'x'\)"),
    ],
)
def test_a_wrong_setting_is_named_with_its_key_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(OuterConfig, values)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build(OuterConfig, {"sizes": 3, "inner": {"rank": -1, "scale": "x"}}, source="here.yaml")
    assert str(caught.value).startswith("here.yaml: 3 problem(s)")
    assert [where for where, _ in caught.value.problems] == ["sizes", "inner.rank", "inner.scale"]


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        OuterConfig().name = "other"  # type: ignore[misc]


@settings(max_examples=30, deadline=None)  # a clock on a busy machine proves nothing
@given(
    rank=st.integers(1, 10**6),
    scale=st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
    sizes=st.lists(st.integers()),
)
def test_a_dumped_config_builds_to_the_same_config(
    rank: int, scale: float, name: str, sizes: list[int]
) -> None:
    config = OuterConfig(name=name, sizes=tuple(sizes), inner=InnerConfig(rank=rank, scale=scale))
    again = build(OuterConfig, yaml.safe_load(dump_yaml(config)))
    assert again == config
    assert config_hash(again) == config_hash(config)


def test_the_hash_depends_on_values_and_not_on_the_order_of_keys() -> None:
    one = build(InnerConfig, {"rank": 2, "scale": 3.0})
    two = build(InnerConfig, {"scale": 3.0, "rank": 2})
    assert config_hash(one) == config_hash(two)
    assert config_hash(one) != config_hash(InnerConfig(rank=3, scale=3.0))


class Later(Config):
    old: int = 1
    new: int = 0

    def left_out(self):
        return self.at_default("new")


@pytest.mark.parametrize(("new", "written"), [(0, {"old": 1}), (2, {"old": 1, "new": 2})])
def test_a_later_setting_is_written_only_where_it_differs_from_its_default(new, written):
    later = Later(new=new)
    assert later.model_dump() == written
    assert build(Later, written) == later


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ("a: " * 3000, "not valid yaml"),
        ("- " * 5000 + "1", "nested deeper than 64"),
        ("k0: &k0 [1]\n" + "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 12)),
         "too large"),
        ("a: &a [*a]\n", "too large"),
        ("a: " + "9" * 5000, "not valid yaml"),
        ("a: 2001-99-99", "not valid yaml"),
        ("a: !!python/object:os.system {}", "not valid yaml"),
    ],
    ids=["open", "colons", "lists", "references", "itself", "digits", "date", "object"],
)  # fmt: skip
def test_yaml_that_is_hostile_is_refused_at_once(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_config_files_that_the_system_refuses_are_an_error_for_the_user(tmp_path):
    (tmp_path / "a.yaml").symlink_to("a.yaml")
    for path in (tmp_path / "a.yaml", tmp_path / ("n" * 300 + ".yaml"), tmp_path):
        with pytest.raises(ConfigError):
            read_yaml(path)
