"""The name of a set of tensors."""

from __future__ import annotations

import torch

from pcl_clora.io.digest import digest_tensors


def test_the_digest_depends_on_names_shapes_types_and_values() -> None:
    value = torch.arange(4.0)
    variants = [
        {"a": value},
        {"b": value},
        {"a": value.view(2, 2)},
        {"a": value.double()},
        {"a": value + 1},
        {},
    ]
    assert len({digest_tensors(variant) for variant in variants}) == len(variants)
    assert digest_tensors({"a": value, "b": value}) == digest_tensors(
        {"b": value.clone(), "a": value.clone()}
    )


def test_the_digest_depends_on_what_stands_before_and_between() -> None:
    value = {"a": torch.arange(4.0)}

    digests = {
        digest_tensors(value),
        digest_tensors(value, text="x"),
        digest_tensors(value, mark=";"),
    }

    assert len(digests) == 3
