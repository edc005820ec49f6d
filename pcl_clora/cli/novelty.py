"""`pcl-clora novelty`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, print_json, show


def novelty(
    run: Annotated[Path, typer.Argument(help="Folder of a finished classification run.")],
    novel: Annotated[
        Path | None,
        typer.Option(help="Folder of clouds of other classes, in the layout of the run: compares scores."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of these clouds: train or test.")] = "test",
    known_as: Annotated[
        str, typer.Option(help="Classes there, by commas, that the run knows by another name; left out.")
    ] = "",
    most: Annotated[int, typer.Option(min=20, help="Training clouds for the calibration.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="json file to write the comparison to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate how unlike its training clouds a cloud is, for a run that was trained without it.

    Writes best/adapter.novelty.safetensors; predictions then say it. With --novel nothing is written there:
    all published scores are compared on clouds of classes that the run was not trained on.

    Example: pcl-clora novelty runs/modelnet40_shots20_clora --novel data/infomr --known-as Car,Bottle
    """
    from pcl_clora.engine import RunFolder
    from pcl_clora.engine.novelty import calibrate_run
    from pcl_clora.engine.novelty.measure import measure_novelty
    from pcl_clora.io import refuse_overwriting_inputs, write_json

    if novel is None:
        scale = calibrate_run(run, most=most)
        facts = scale.facts
        told = {"score": scale.score.name, "known": facts["known"], "held_out": facts["held_out"]}
        if as_json:
            print_json(told)
        else:
            show(
                f"{run}: {told['score']}, {told['known']} clouds known, threshold by {told['held_out']} "
                "others"
            )
        return
    refuse_overwriting_inputs([out] if out is not None else [], RunFolder(run).files)
    names = [name.strip() for name in known_as.split(",") if name.strip()]
    found = measure_novelty(run, novel, split=split, known_as=names, most=most)
    if out is not None:
        write_json(out, found)
    if as_json:
        print_json(found)
        return
    show(
        f"{found['novel']['clouds']} clouds of {len(found['novel']['classes'])} other classes, "
        f"{found['known']['test']} test clouds of the run"
    )
    for name, numbers in found["scores"].items():
        show(
            f"{name:12s} AUROC {numbers['auroc']:.3f}  flagged: {100 * numbers['flagged_known']:.1f} % of "
            f"the known, {100 * numbers['flagged_novel']:.1f} % of the novel"
        )
