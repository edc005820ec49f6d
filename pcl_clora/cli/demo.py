"""`pcl-clora demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, Overrides, interruptible, print_json


def demo(
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="Folder that is written; what an earlier demo left is replaced.")
    ] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Adapt a frozen backbone with CLoRA in two minutes, on two CPU cores, with nothing to download.

    The weights in the package, pre-trained without labels, are adapted to twelve classes of furniture: linear
    probe, CLoRA, full fine-tuning. Prints a table, merges the CLoRA adapter and compares logits and latency.
    """
    from pcl_clora.demo import run_demo

    with interruptible("Stopped. The demo begins anew when it is run again."):
        result = run_demo(overrides or [], out)
    if as_json:
        print_json(result)
