"""How the tensors of one naming are called in another: rules as data, read in both directions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from pcl_clora.errors import UserValueError


@dataclass(frozen=True)
class Rule:
    """One line of a key map.

    Attributes:
        theirs: name in the file. A name that ends in a dot stands for everything below it, any other for one
            tensor. `*` stands for one component between dots and is carried over to the other side.
        ours: name in our model, with the same `*` and the same ending.
        conv: how many kernel dimensions of size 1 their weight has behind its (out, in): 1 or True for a
            Conv1d that is a linear layer here, 2 for a Conv2d. Tensors that are no matrix here (biases)
            keep their shape.
    """

    theirs: str
    ours: str
    conv: int = 0

    def __post_init__(self) -> None:
        if not self.theirs or not self.ours:
            raise UserValueError(
                f"{self} has an empty side; write out the name, also where it stays the same."
            )
        if self.theirs.endswith(".") != self.ours.endswith("."):
            raise UserValueError(f"{self} is a prefix on one side only; end both names in a dot, or neither.")
        if _stars(self.theirs) != _stars(self.ours):
            raise UserValueError(f"{self} has another number of '*' on each side; each must be carried over.")


def _stars(pattern: str) -> int:
    return pattern.split(".").count("*")


class KeyMap:
    """A list of rules; the first that fits decides.

    A key translates only if its name translates back to it, so that the map is one to one on everything it
    accepts, whatever the rules are. A key that fits no rule is unknown: names that stay the same have a rule
    too.

    Args:
        rules: more special rules before more general ones.
    """

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self._to_ours = [(_pattern(rule.theirs), _template(rule.ours)) for rule in rules]
        self._to_theirs = [(_pattern(rule.ours), _template(rule.theirs)) for rule in rules]

    def to_ours(self, key: str) -> str | None:
        """Name in our model of a tensor that the file calls `key`; None if the map does not know it."""
        name, _ = _translate(key, self._to_ours)
        return name if name is not None and _translate(name, self._to_theirs)[0] == key else None

    def to_theirs(self, name: str) -> str | None:
        """Name in the file of the tensor that our model calls `name`; None if the map does not know it."""
        key, _ = _translate(name, self._to_theirs)
        return key if key is not None and _translate(key, self._to_ours)[0] == name else None

    def tensor_to_ours(self, key: str, tensor: Tensor) -> Tensor:
        """View a tensor of the file in our shape: (O, I, 1) -> (O, I) where `conv` says so."""
        kernel = self._kernel(_translate(key, self._to_ours)[1])
        if kernel and tensor.dim() == 2 + kernel and tensor.shape[2:] == (1,) * kernel:
            return tensor.reshape(tensor.shape[:2])
        return tensor

    def tensor_to_theirs(self, name: str, tensor: Tensor) -> Tensor:
        """View a tensor of our model in their shape: (O, I) -> (O, I, 1) where `conv` says so."""
        kernel = self._kernel(_translate(name, self._to_theirs)[1])
        return tensor.reshape(*tensor.shape, *(1,) * kernel) if kernel and tensor.dim() == 2 else tensor

    def _kernel(self, rule: int) -> int:
        return int(self.rules[rule].conv) if rule >= 0 else 0


def _pattern(text: str) -> re.Pattern[str]:
    """Compile one side of a rule; the groups are the components that `*` stands for, and the tail."""
    parts = [r"([^.]+)" if part == "*" else re.escape(part) for part in text.split(".")]
    return re.compile(r"\.".join(parts) + (r"(.+)" if text.endswith(".") else ""))


def _template(text: str) -> str:
    """Turn the other side into a template for str.format, filled with the groups in order."""
    parts = ["{}" if part == "*" else part for part in text.split(".")]
    return ".".join(parts) + ("{}" if text.endswith(".") else "")


def _translate(key: str, table: list[tuple[re.Pattern[str], str]]) -> tuple[str | None, int]:
    """Return (the translated key, number of the rule), or (None, -1)."""
    for number, (pattern, template) in enumerate(table):
        fits = pattern.fullmatch(key)
        if fits:
            return template.format(*fits.groups()), number
    return None, -1
