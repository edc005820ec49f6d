"""Names of users, shown so that they can do nothing: on a terminal, in markdown, in a spreadsheet."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable

# Controls, what is invisible or turns the direction of writing, and ends of lines; halves of pairs and what
# has no meaning too, since a terminal that gets them may stop.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"[&<]|(?<!-)>")  # an arrow stays readable, and ends nothing that was not begun
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_FORMULA = ("=", "+", "-", "@")


def visible(text: str, *, keep: str = "") -> str:
    r"""Show control, invisible and bidirectional characters as escapes: "a\x1b[2J" -> "a\\x1b[2J".

    Args:
        text: what somebody else wrote, such as a name of a class or of a file.
        keep: characters that stay, such as the line breaks of a text of several lines.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        mark if mark in keep or unicodedata.category(mark) not in _HIDDEN else _escape(mark) for mark in text
    )


def _escape(mark: str) -> str:
    return mark.encode("unicode_escape").decode("ascii")


def line_of(names: Iterable[object], most: int = 0) -> str:
    """List names of classes, parts, files or runs in a message, on one line: line breaks are escapes, too.

    Args:
        names: in the order to show.
        most: how many to show; how many more there are is said. 0 for all.
    """
    shown = [visible(str(name)) for name in names]
    more = f" and {len(shown) - most} more" if 0 < most < len(shown) else ""
    return ", ".join(shown[: most or None]) + more


def markdown(text: str) -> str:
    """Show a text as it is on a page of markdown: no markup, no html, no line of its own."""
    marked = _MARKDOWN.sub(r"\\\g<0>", visible(text))
    return _ENTITY.sub(lambda found: _ENTITIES[found[0]], marked)


def shell(text: str) -> str:
    r"""Quote a word of a command line, on one line: "a;b" -> "'a;b'", with hidden characters as $'\n'."""
    if visible(text) == text:
        return shlex.quote(text)
    inside = visible(text.replace("\\", "\\\\")).replace("'", "\\'")
    return f"$'{inside}'"


def spreadsheet(text: str) -> str:
    """Show a text in a csv cell that no program takes for a formula."""
    shown = visible(text)
    if not shown.lstrip().startswith(_FORMULA) or _is_number(shown):
        return shown
    return f"'{shown}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
