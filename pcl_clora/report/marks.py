"""A part of a page that a command writes anew, between two marks."""

from __future__ import annotations

from pcl_clora.errors import UserValueError


def put_between_marks(page: str, name: str, text: str) -> str:
    """Replace what stands between `<!-- NAME: begin ... -->` and `<!-- NAME: end -->`; the marks stay.

    Args:
        page: all of it.
        name: of the part.
        text: whole lines.

    Raises:
        ValueError: if the page does not have both marks.
    """
    marks = (f"<!-- {name}: begin", f"<!-- {name}: end -->")
    before, begin, rest = page.partition(marks[0])
    line, newline, rest = rest.partition("\n")
    _, end, after = rest.partition(marks[1])
    if not (begin and newline and end):
        raise UserValueError(
            f"The page has no lines {marks[0]!r} and {marks[1]!r}; add them where it belongs."
        )
    return f"{before}{begin}{line}\n{text}{end}{after}"
