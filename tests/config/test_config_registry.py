"""Registries: names that settings carry."""

from __future__ import annotations

from typing import Any

import pytest

from pcl_clora.config import Config, ConfigError, Registry, unknown_name


class ShapeConfig(Config):
    name: str
    size: int = 1


@pytest.fixture
def shapes() -> Registry[ShapeConfig, type[list[int]]]:
    registry: Registry[ShapeConfig, type[list[int]]] = Registry("shape", "name", ShapeConfig)
    registry.register("ball", ShapeConfig, list)
    return registry


def test_a_name_leads_to_its_settings_and_its_maker(shapes: Registry[ShapeConfig, Any]) -> None:
    parsed = shapes.parse({"name": "ball", "size": 3})
    assert parsed == ShapeConfig(name="ball", size=3)
    assert shapes.parse(parsed) is parsed
    assert shapes.maker(parsed) is list


@pytest.mark.parametrize("values", [{}, {"size": 3}, {"name": ""}])
def test_a_missing_name_is_asked_for_with_the_names_that_exist(
    shapes: Registry[ShapeConfig, Any], values: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="no shape is named; set name to one of: ball"):
        shapes.parse(values)


def test_an_unknown_name_gets_the_nearest_one(shapes: Registry[ShapeConfig, Any]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ball'"):
        shapes.parse({"name": "bull"})


def test_names_that_hold_line_breaks_or_escapes_leave_the_message_on_one_line() -> None:
    said = unknown_name("b\n\x1b[2J", ["ball", "bo\nx", "r\u202eod"], what="row", owner="study\r\n2")

    assert said.isprintable()
    assert said.startswith(r"'b\n\x1b[2J' is not a row of 'study\r\n2'; did you mean ")
    assert said.endswith(r"Valid: ball, 'bo\nx', 'r\u202eod'.")


def test_a_name_is_registered_once(shapes: Registry[ShapeConfig, Any]) -> None:
    with pytest.raises(ValueError, match="registered already"):
        shapes.register("ball", ShapeConfig, list)
