"""`pcl-clora export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, print_json, show


class Target(str, Enum):
    """What to write."""

    onnx = "onnx"
    torch = "torch"
    int8 = "int8"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, an adapter file, or hub:user/name.")],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 for torch.")],
    to: Annotated[
        Target, typer.Option(help="onnx; torch (a program of torch.export); int8 (ONNX).")
    ] = Target.onnx,
    weights: Annotated[str, typer.Option(help="What an adapter file stands on, if it does not say so.")] = "",
    record: Annotated[
        Path | None, typer.Option(help="Also write what was found here, as json, with machine and versions.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained model for other programs: adapter merged, norms folded, any number of clouds.

    The graph takes patches; pcl_clora_runtime.py beside an ONNX file is numpy code that makes them. What was
    written is compared with torch and refused beyond 1e-4; int8 is refused where it is not faster.
    """
    from pcl_clora.engine import RunFolder
    from pcl_clora.export import export_model
    from pcl_clora.io.safe import refuse_overwriting_inputs
    from pcl_clora.predict import load

    outputs = [out, out.with_name("pcl_clora_runtime.py"), *([record] if record else [])]
    refuse_overwriting_inputs(outputs, [run, *RunFolder(run).files])
    predictor = load(run, weights=weights, device="cpu")
    written = export_model(predictor, out, to.value)
    told = {"path": str(written.path), "difference": written.difference, "clouds": written.clouds}
    if record:
        from pcl_clora.bench.harness import record as with_machine
        from pcl_clora.bench.harness import write_record

        row = {"run": predictor.name, "to": to.value, **told, **written.facts}
        row["path"], row["mib"] = written.path.name, written.path.stat().st_size / 2**20
        write_record(record, with_machine("export", (), [row]))
    if as_json:
        print_json({**told, **written.facts})
        return
    of = "float32" if to is Target.int8 else "torch"
    facts = "".join(f"; {name} {value:.4g}" for name, value in written.facts.items())
    show(
        f"{written.path}: largest difference of a logit from {of} {written.difference:.2e} "
        f"({written.clouds}){facts}"
    )
