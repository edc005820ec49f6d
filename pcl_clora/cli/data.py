"""`pcl-clora data check | info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, print_json, show

app = typer.Typer(no_args_is_help=True, help="Look at data folders.")

Root = Annotated[Path, typer.Argument(help="Folder of one data set.")]


@app.command()
def check(
    root: Root,
    manifest: Annotated[
        Path | None, typer.Option(help="Also compare with a manifest, a yaml file of data/manifests.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every file of a data folder and say what is wrong; exit code 1 if there is an error.

    Every finding names the file, what was found and expected, and the remedy.
    """
    from dataclasses import asdict

    from pcl_clora.data import check_manifest, check_root

    findings = [*check_root(root), *(check_manifest(root, manifest) if manifest else ())]
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        print_json({"root": str(root), "ok": not errors, "findings": [asdict(item) for item in findings]})
    else:
        more = len(findings) - errors
        show(
            *map(str, findings),
            f"{root}: {errors} error(s), {more} other finding(s)." if findings else f"{root}: fine.",
        )
    if errors:
        raise typer.Exit(1)


@app.command()
def info(root: Root, as_json: AsJson = False) -> None:
    """Say what a data folder holds, from names and headers only: layout, splits, classes, points."""
    from dataclasses import asdict

    from pcl_clora.data import describe_root

    found = describe_root(root)
    if as_json:
        print_json(asdict(found))
        return
    show(str(found), f"read it with: data.name={found.layout} data.root={root}", ", ".join(found.class_names))
