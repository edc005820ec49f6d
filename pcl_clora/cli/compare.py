"""`pcl-clora compare`: a study of many runs, its tables and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pcl_clora.cli.common import AsJson, ConfigPath, Overrides, interruptible, print_json, show

if TYPE_CHECKING:
    from pcl_clora.compare import Study
    from pcl_clora.compare.folder import StudyFolder

FAILED = 1  # exit code where runs failed
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder of the study [runs/compare/<name of the file>].")
]


class RunByDefault(TyperGroup):
    """A group whose command `run` needs no name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front of what names no command."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Many runs under one protocol: `pcl-clora compare --config NAME.yaml` carries out a study.",
)


@app.command("run")
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    out: OutFolder = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the runs with an estimate of hours and MiB; train nothing."),
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; threads are divided among them.")] = 1,
    shard: Annotated[
        str, typer.Option(help="Only a part of the rows, like 2/8; `compare merge` puts the parts together.")
    ] = "1/1",
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Only this row; may be given again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a study: settings are chosen on validation clouds, every row runs with every seed.

    What is finished is skipped, what was killed goes on, a run that fails is named and the others go on. The
    folder gets study.json, a small file for every run, tables, pictures and a page.
    """
    from pcl_clora.compare import load_study
    from pcl_clora.compare.folder import StudyFolder
    from pcl_clora.compare.runner import parse_shard, shard_rows

    study = load_study(config, overrides or [])
    folder = StudyFolder(out or Path("runs") / "compare" / study.name)
    for name in rows or ():
        study.row(name)
    mine = shard_rows(study, rows or (), parse_shard(shard))
    if dry_run:
        _dry_run(study, folder, mine, jobs, as_json)
        return
    failed = _carry_out(study, folder, mine, jobs, shard, quiet=as_json)
    if as_json:
        print_json(folder.read(folder.study))
    if failed:
        raise typer.Exit(FAILED)


def _carry_out(
    study: Study, folder: StudyFolder, rows: list[str], jobs: int, shard: str, *, quiet: bool
) -> dict[str, str]:
    """Do the runs of some rows, and say which failed."""
    from pcl_clora.compare.estimate import Estimator
    from pcl_clora.compare.runner import StudyRunner
    from pcl_clora.compare.summary import report, write_study
    from pcl_clora.engine.run.lock import RunLock

    runs = study.runs(rows) if rows else []
    with interruptible(), RunLock(folder.path / f"shard-{shard.replace('/', '-of-')}"):
        folder.open(study)
        write_study(study, folder)
        missing = [run for run in runs if not folder.is_finished(study, run)]
        estimates = Estimator(study).known(missing)  # scaled by the runner, from what it sees
        runner = StudyRunner(
            study,
            folder,
            jobs=jobs,
            tell=(lambda line: None) if quiet else (lambda line: print(line, flush=True)),
            estimate=lambda run: estimates[run].seconds if run in estimates else 1.0,
        )
        outcome = runner.run(runs)
        write_study(study, folder)
    report(folder.path, partial=True)
    failed = {str(run): error for run, error in outcome.failed.items()}
    if not quiet:
        show(f"{len(outcome.finished)} of {len(runs)} runs are finished: {folder.path}")
        for name, error in failed.items():
            show(f"failed: {name}: {error}")
    return failed


def _dry_run(study: Study, folder: StudyFolder, rows: list[str], jobs: int, as_json: bool) -> None:
    """List the runs of a study, and what they take."""
    from pcl_clora.cli.train import missing_files
    from pcl_clora.compare.estimate import Estimator, total
    from pcl_clora.report.show import plain_table
    from pcl_clora.report.units import duration

    runs = study.runs(rows) if rows else []
    missing = missing_files(study.base)
    estimator = Estimator(study, folder)
    estimates = {} if missing else estimator.known(runs)
    finished = [run for run in runs if folder.is_finished(study, run)]
    cells = [
        [
            str(run),
            "finished" if run in finished else "to do",
            duration(estimates[run].seconds) if run in estimates else "?",
            f"{estimates[run].kept_mib:.2f}" if run in estimates else "?",
        ]
        for run in runs
    ]
    unknown = {run.row: why for run, why in estimator.unknown.items()}
    sums = total(estimates, finished)
    if as_json:
        listed = [{"run": line[0], "state": line[1]} for line in cells]
        made = estimator.made_from() if estimates else ""
        told = {**vars(sums), "made_from": made, "runs": listed}
        print_json({**told, "missing_files": missing, "not_estimated": unknown})
        return
    missing += [f"row {name} is not in the estimate: {why}" for name, why in unknown.items()]
    hours = sums.seconds / 3600
    show(
        plain_table(f"Study {study.name}", ("run", "state", "processor time", "MiB kept"), cells),
        f"{len(runs)} runs, {len(runs) - len(finished)} to do"
        + (
            f": about {hours:.2f} hours of one core, with --jobs {jobs} {hours / jobs:.2f} "
            f"({estimator.made_from()}); "
            f"{sums.kept_mib:.1f} MiB are kept in rows/, the largest run folder has {sums.run_mib:.1f} MiB "
            "while it trains."
            if estimates
            else ""
        )
        + ("; what is missing:\n" + "\n".join(f"  {line}" for line in missing) if missing else ""),
    )


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="Folder of a study; run folders need not be there.")],
    baseline: Annotated[
        str, typer.Option(help="Test against this row instead of the study's baseline.")
    ] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Also show rows of which no run is there yet.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="Also write a table of what is there into this page, between its marks."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the tables, the pictures and the page of a study anew from its files."""
    from pcl_clora.compare.summary import put_into, report
    from pcl_clora.io import explained, read_json, write_text

    page = None
    if into is not None:
        with explained(into, "read"):
            page = into.read_text(encoding="utf-8")
    results = report(folder, partial=partial, baseline=baseline)
    if into is not None and page is not None:
        write_text(into, put_into(page, results))
    if as_json:
        print_json(read_json(folder / "table.json"))
        return
    show((folder / "table.md").read_text(encoding="utf-8"), f"Page: {folder / 'index.html'}")


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="Folder of the whole; may hold a part already.")],
    parts: Annotated[list[Path], typer.Argument(help="Folders of the parts (--shard 1/2, 2/2, ...).")],
) -> None:
    """Put the parts of a study together, and write its tables and its page.

    Records are copied; run folders stay where they are.
    """
    from pcl_clora.compare.merge import merge_studies
    from pcl_clora.compare.summary import report

    merge_studies(out, parts)
    report(out, partial=True)
    show((out / "table.md").read_text(encoding="utf-8"), f"Page: {out / 'index.html'}")


@app.command()
def cost(
    config: ConfigPath,
    overrides: Overrides = None,
    out: OutFolder = None,
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Only this row; may be given again.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; the median counts.")] = 5,
) -> None:
    """Measure memory, time of a training step and latency of every row, one after another.

    Refused while runs of the study go on: what is timed must have the machine for itself.
    """
    from pcl_clora.compare import load_study
    from pcl_clora.compare.cost import measure_cost
    from pcl_clora.compare.folder import StudyFolder
    from pcl_clora.compare.summary import report, write_study

    study = load_study(config, overrides or [])
    folder = StudyFolder(out or Path("runs") / "compare" / study.name)
    folder.open(study)
    with interruptible():
        measure_cost(study, folder, rows or (), repeats=repeats, tell=lambda line: print(line, flush=True))
    write_study(study, folder)
    report(folder.path, partial=True)
