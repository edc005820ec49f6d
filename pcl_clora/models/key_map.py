"""How the tensors of one naming are called in another: rules as data, read in both directions.

And of what kind the reason is where a tensor has no name on the other side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pcl_clora.errors import UserValueError


@dataclass(frozen=True)
class Rule:
    """One line of a key map.

    Attributes:
        first: name on the first side of the map, in most maps the official one. A name that ends in a dot
            stands for everything below it, any other for one tensor. `*` stands for one component between
            dots and is carried over to the other side.
        second: name on the second side, in most maps that of our model; the same `*` and the same ending.
        conv: how many kernel dimensions of size 1 their weight has on the first side, behind its (out, in):
            1 or True for a Conv1d that is a linear layer on the second side, 2 for a Conv2d. Tensors that
            are no matrix there (biases) keep their shape.
    """

    first: str
    second: str
    conv: int = 0

    def __post_init__(self) -> None:
        if not self.first or not self.second:
            raise UserValueError(
                f"{self} has an empty side; write out the name, also where it stays the same."
            )
        if self.first.endswith(".") != self.second.endswith("."):
            raise UserValueError(f"{self} is a prefix on one side only; end both names in a dot, or neither.")
        if _stars(self.first) != _stars(self.second):
            raise UserValueError(f"{self} has another number of '*' on each side; each must be carried over.")


LeftOutKind = Literal[
    "pretraining", "unused", "branch", "token", "head", "method", "scalar", "second", "unknown"
]


class LeftOut(str):
    """Why a tensor of a file has no place in a network: a text for people, and of what kind the reason is.

    Args:
        kind: "pretraining" (used there only), "unused" (by any network), "branch" (of ReCon), "token" and
            "head" (of another task or other classes), "method" (added by a fine-tuning method), "scalar" (of
            PointLoRA, where a weight used to be), "second" (tensor for one name) or "unknown".
        text: the reason in words.
    """

    __slots__ = ("kind",)
    kind: LeftOutKind

    def __new__(cls, kind: LeftOutKind, text: str) -> LeftOut:
        """Make the text, and note its kind."""
        made = super().__new__(cls, text)
        made.kind = kind
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Give what copies and pickles are made from."""
        return self.kind, str(self)


def _stars(pattern: str) -> int:
    return pattern.split(".").count("*")


class KeyMap:
    """A list of rules between two namings; the first rule that fits decides.

    A key translates only if its name translates back to it, so that the map is one to one on everything it
    accepts, whatever the rules are. A key that fits no rule is unknown: names that stay the same have a rule
    too.

    Args:
        rules: more special rules before more general ones.
        sides: what the namings are called that the two names of a rule belong to, in the rule's order.
    """

    def __init__(self, rules: tuple[Rule, ...], *, sides: tuple[str, str] = ("official", "ours")) -> None:
        self.rules, self.sides = rules, sides
        patterns = [(_pattern(rule.first), _pattern(rule.second)) for rule in rules]
        templates = [(_template(rule.first), _template(rule.second)) for rule in rules]
        self._tables = tuple(
            [
                (pattern[1 - side], template[side])
                for pattern, template in zip(patterns, templates, strict=True)
            ]
            for side in (0, 1)
        )

    def translate(self, key: str, *, to: str) -> str | None:
        """Name on the side `to` of what the other side calls `key`; None if the map does not know it.

        Raises:
            ValueError: if the map has no side of that name.
        """
        side = self._side(to)
        name, _ = _translate(key, self._tables[side])
        return name if name is not None and _translate(name, self._tables[1 - side])[0] == key else None

    def translate_tensor(self, key: str, tensor: Tensor, *, to: str) -> Tensor:
        """View a tensor in the shape of the side `to`: where `conv` says so, (O, I, 1) <-> (O, I).

        Args:
            key: its name on the other side.
            tensor: as the other side has it.
            to: a name of `sides`.

        Raises:
            ValueError: if the map has no side of that name.
        """
        side = self._side(to)
        number = _translate(key, self._tables[side])[1]
        kernel = int(self.rules[number].conv) if number >= 0 else 0
        if side == 0:
            return tensor.reshape(*tensor.shape, *(1,) * kernel) if kernel and tensor.dim() == 2 else tensor
        if kernel and tensor.dim() == 2 + kernel and tensor.shape[2:] == (1,) * kernel:
            return tensor.reshape(tensor.shape[:2])
        return tensor

    def _side(self, to: str) -> int:
        if to not in self.sides:
            raise UserValueError(f"to={to!r} is no side of this map; choose {' or '.join(self.sides)}.")
        return self.sides.index(to)


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
