"""`pcl-clora data check | info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, print_json, show

app = typer.Typer(no_args_is_help=True, help="Look at data folders.")

Root = Annotated[Path, typer.Argument(help="Folder of one data set.")]
Name = Annotated[str, typer.Option(help="Data set (data.name of a config); found from the files by default.")]


@app.command()
def check(root: Root, as_json: AsJson = False) -> None:
    """Check the files of a data folder; exit code 1 if something is wrong.

    Every finding names the file, what was expected, and what to do.
    """
    from dataclasses import asdict

    from pcl_clora.data import check_data

    findings = check_data(root)
    errors = [finding for finding in findings if finding.level == "error"]
    if as_json:
        print_json({"root": str(root), "ok": not errors, "findings": [asdict(item) for item in findings]})
    else:
        for finding in findings:
            show(f"{finding.level}: {finding.file}: {finding.message}")
        show(f"{root}: {len(errors)} error(s)." if errors else f"{root}: everything is as expected.")
    if errors:
        raise typer.Exit(1)
