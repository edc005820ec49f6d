"""What the committed results are: one row a study, with the section that shows it, its command and commit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_clora.report.shapes import ReportError
from pcl_clora.report.units import markdown_table

FIRST_PAGE = "results.md"
_COMMAND = re.compile(r"(?:pcl-clora|make) [^`\n]+")
_BLOCK = re.compile(r"^```\n.*?^```|^    \S.*?$", re.S | re.M)
_NO_COMMAND = (
    "pcl-clora report table",
    "pcl-clora bench show",
    "pcl-clora compare table",
)  # print what is there


@dataclass(frozen=True)
class Section:
    """A section of a page of docs.

    Attributes:
        page: name of the file.
        title: its heading.
        text: what stands below.
    """

    page: str
    title: str
    text: str

    @property
    def link(self) -> str:
        """Where it is, seen from results/."""
        words = re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")
        return f"[{self.title}](../docs/{self.page}#{words})"

    def command(self, study: str) -> str:
        """Find what makes a study: a command that names its file, or one of a block, or one in the text.

        Trainings come first, and what they start from (a warm-up) comes last.

        Raises:
            ReportError: if the section has none.
        """
        blocks = _commands("\n".join(_BLOCK.findall(self.text)))
        known = [line for line in _commands(self.text) if not line.startswith(_NO_COMMAND)]
        if not known:
            raise ReportError(f"docs/{self.page}, {self.title!r} shows results/{study} and names no command.")
        return min(
            known,
            key=lambda line: (
                f"results/{study}" not in line,
                line not in blocks,
                re.search(r"--config \S*warmup", line) is not None,
                not line.startswith("pcl-clora train"),
            ),
        )


def _commands(text: str) -> list[str]:
    """List the commands in a text, each without what is remarked behind it."""
    return [line.partition("   #")[0].rstrip(" \\") for line in _COMMAND.findall(text)]


def studies_page(results: Path, docs: Path) -> str:
    """Write the page of a folder of results: study, section, command, commit.

    Args:
        results: the folder; every folder in it is a study, of `bench` every file, of `compare` every folder.
        docs: the pages that show them, each naming its folder as `results/...`.

    Raises:
        ReportError: if a study stands on no page.
    """
    pages = sorted(docs.glob("*.md"), key=lambda page: (page.name != FIRST_PAGE, page.name))
    sections = [section for page in pages for section in _sections(page)]
    rows = []
    for place in _studies(results):
        study = place.relative_to(results).as_posix()
        shown = [section for section in sections if re.search(rf"results/{study}\b", section.text)]
        if not shown:
            raise ReportError(f"{place} stands on no page of {docs}; name results/{study} where it is shown.")
        rows.append((study, shown[0], ", ".join(_commits(place)) or "not recorded"))
    cells = [(study, section.title, section.command(study), commits) for study, section, commits in rows]
    table = markdown_table(("study", "shown in", "command", "commit"), cells)
    for _, section, _ in rows:
        table = table.replace(f"| {section.title} |", f"| {section.link} |")
    return (
        "# Results\nThe files behind the numbers of the pages; this list is written by `python "
        "tools/list_results.py`. A run has its\nsettings (config.yaml), its machine and versions (env.json) "
        "and its numbers (result.json).\n\n"
        f"{table}\n"
    )


def _studies(results: Path) -> Iterator[Path]:
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        if folder.name == "bench":
            yield from sorted(folder.glob("*.json"))
        elif folder.name == "compare":
            yield from sorted(path for path in folder.iterdir() if path.is_dir())
        else:
            yield folder


def _sections(page: Path) -> Iterator[Section]:
    parts = re.split(r"^##+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        yield Section(page.name, title, text)


def _commits(place: Path) -> Sequence[str]:
    files = [place] if place.is_file() else sorted(place.rglob("*.json"))
    contents: list[Any] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    found = [content.get("git") or content.get("environment", {}).get("git") for content in contents]
    known = [commit for one in found for commit in ([one] if isinstance(one, str) else one or ())]
    return sorted({commit[:12] for commit in known})
