"""Exact rewrites of published forms, and how to switch them off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Rewritten:
    """Mixed into a module that computes an exact rewrite of its published form.

    Attributes:
        published: compute the published form instead.
    """

    published: bool = False


@contextmanager
def published_form(model: nn.Module) -> Iterator[None]:
    """Run a model as it was published, without our exact rewrites: same outputs, more multiplications.

    Used to count MACs in the papers' convention, and to test that the rewrites change nothing.
    """
    switched = [module for module in model.modules() if isinstance(module, Rewritten)]
    before = [module.published for module in switched]
    for module in switched:
        module.published = True
    try:
        yield
    finally:
        for module, value in zip(switched, before, strict=True):
            module.published = value
