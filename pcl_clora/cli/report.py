"""`pcl-clora report cost | table | run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, ConfigPath, Overrides, print_json, show

app = typer.Typer(no_args_is_help=True, help="What a model costs, what runs reached.")


@app.command()
def cost(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; the median counts.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Clouds at once, for memory and latency.")] = 8,
    fast: Annotated[
        bool, typer.Option("--fast", help="Count only; measure neither memory nor time.")
    ] = False,
    modules: Annotated[bool, typer.Option("--modules", help="Also break it down by module.")] = False,
) -> None:
    """Report what the model of a config costs: parameters, multiply-adds, memory, latency.

    Both counting conventions are printed: that of the papers (linear and convolution layers of the published
    architecture) and what is really executed. Needs neither data nor weights.
    """
    from pcl_clora.report.cost import cost_report
    from pcl_clora.report.records import build_for_cost

    model, num_points = build_for_cost(config, overrides or [])
    measured = cost_report(
        model,
        num_points,
        repeats=repeats,
        batch_size=batch_size,
        with_memory=not fast,
        with_latency=not fast,
    )
    if as_json:
        print_json(measured)
        return
    from pcl_clora.report.show import cost_view

    show(cost_view(measured, title=str(config), with_modules=modules))


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path | None, typer.Option(help="Also write it here: .md, .csv or .json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put runs into one table; runs that differ only in their seed become one row with mean and deviation.

    Runs of different protocols or data sets are refused, and so is a number that was chosen on the test set
    under the honest protocol.
    """
    from pcl_clora.report import make_table
    from pcl_clora.report.show import run_table_view

    made = make_table(runs)
    if out:
        made.write(out)
    if as_json:
        print_json(made.as_json())
    else:
        show(run_table_view(made))


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
) -> None:
    """Write report.md, curve.csv and, with matplotlib, curve.png into a run folder."""
    from pcl_clora.report import write_report

    show(f"Report: {write_report(folder)}")
