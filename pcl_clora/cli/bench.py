"""`pcl-clora bench ops | model | pretrain | methods | page | serve | show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcl_clora.cli.common import AsJson, interruptible, print_json, show

Isa = Annotated[
    str,
    typer.Option(
        help="Hold our kernels, torch, oneDNN, MKL and FBGEMM to these instructions: avx2 [all there are]."
    ),
]

app = typer.Typer(no_args_is_help=True, help="How fast this installation is, beside other libraries.")


@app.command()
def ops(
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as json.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Number of threads; may be given several times [1, 2].")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds, at most.")] = 30,
    budget: Annotated[
        float, typer.Option(min=0.01, help="Seconds per contender and size; a slow one has fewer rounds.")
    ] = 4.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="One small size per operator, to see that it works.")
    ] = False,
    isa: Isa = "",
) -> None:
    """Time sampling, neighbour search and grouping on the CPU against other exact libraries.

    The libraries are those of requirements-bench.txt; one that is missing is named. They are measured from a
    checkout of the repository; an installed wheel measures our own backends. All contenders of a size run
    turn by turn in one process, on the same points, after a check that they compute the same. The ratio
    is that of the minima of the best exact library and the native operators.
    """
    from pcl_clora.bench.harness import write_record
    from pcl_clora.bench.ops import NO_PEERS, bench_ops, has_peers
    from pcl_clora.bench.view import bench_view, row_line

    if not has_peers():
        typer.echo(NO_PEERS, err=True)
    with interruptible():
        result = bench_ops(
            threads or (1, 2),
            quick=quick,
            repeats=repeats,
            budget_s=budget,
            isa=isa,
            on_row=lambda row: None if as_json else show(row_line(row)),
        )
    if out:
        write_record(out, result)
    if as_json:
        print_json(result)
    else:
        show(bench_view(result))


@app.command()
def model(
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as json.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Number of threads; may be given several times [1, 2].")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A network, or forward, step or profile; may be given several times [all]."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds, at most.")] = 5,
    budget: Annotated[
        float, typer.Option(min=0.01, help="Seconds per form and row; a slow one has fewer rounds.")
    ] = 8.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Networks of two layers, to see that it works.")
    ] = False,
    isa: Isa = "",
) -> None:
    """Time whole networks on the CPU: the published computation in plain modules against ours.

    Both have the same weights and are handed the same patches; they run turn by turn in one process, after a
    check that they compute the same: to 1e-5 of the largest output in float32. One thread is measured in
    processor time, several on the wall. A warning tells where the machine was busy. The result also says what
    a training step keeps in memory, where the time goes by part, and what share of the matmul peak is
    reached.
    """
    from pcl_clora.bench.harness import write_record
    from pcl_clora.bench.model import bench_model
    from pcl_clora.bench.model_view import model_line, warnings
    from pcl_clora.bench.view import bench_view

    with interruptible():
        result = bench_model(
            threads or (1, 2),
            only=only or (),
            quick=quick,
            repeats=repeats,
            budget_s=budget,
            isa=isa,
            on_row=lambda row: None if as_json else show(model_line(row)),
        )
    if out:
        write_record(out, result)
    if as_json:
        print_json(result)
        for line in warnings(result):
            typer.echo(line, err=True)
    else:
        show(bench_view(result))


@app.command()
def pretrain(
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as json.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clouds a step.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds, at most.")] = 7,
    budget: Annotated[float, typer.Option(min=0.01, help="Seconds per contender.")] = 60.0,
) -> None:
    """Time a pre-training step of point_mae_tiny on one core, with and without what makes it fast.

    All contenders run turn by turn in one process from the same weights; their loss in evaluation mode is
    recorded beside the times. The generator of the corpus is timed in the same process.
    """
    from pcl_clora.bench.harness import write_record
    from pcl_clora.bench.pretraining import bench_pretraining, pretraining_lines

    with interruptible():
        result = bench_pretraining(batch_size=batch_size, repeats=repeats, budget_s=budget)
    if out:
        write_record(out, result)
    if as_json:
        print_json(result)
    else:
        show(*pretraining_lines(result))


@app.command()
def methods(
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as json.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Clouds a step.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds, at most.")] = 5,
    budget: Annotated[float, typer.Option(min=0.01, help="Seconds per method.")] = 20.0,
) -> None:
    """Measure what every fine-tuning method adds to a training step of full-size Point-MAE on one core.

    All methods run turn by turn in one process; times and memory are compared with those of a linear probe.
    """
    from pcl_clora.bench.harness import write_record
    from pcl_clora.bench.methods import bench_methods, cost_table
    from pcl_clora.report.show import plain_table

    with interruptible():
        result = bench_methods(batch_size=batch_size, repeats=repeats, budget_s=budget)
    if out:
        write_record(out, result)
    if as_json:
        print_json(result)
    else:
        show(plain_table("A training step with each method's defaults", *cost_table(result)))


@app.command()
def page(
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as json.")] = None,
    points: Annotated[
        list[int] | None, typer.Option(min=1, help="Points of a cloud; may be given several times.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Pages written and frames drawn for each.")] = 3,
    study: Annotated[
        Path | None, typer.Option(help="Measure instead how long the page of this study takes to open.")
    ] = None,
) -> None:
    """Measure the page that shows clouds: its size, the time to write it, and the time of a frame.

    Frames are drawn in software by chromium, if it is installed with chromedriver and selenium.
    """
    from pcl_clora.bench.harness import write_record
    from pcl_clora.bench.page import SIZES, bench_page, bench_study_page, page_table, study_page_line
    from pcl_clora.report.show import plain_table

    with interruptible():
        if study is None:
            result = bench_page(sizes=points or SIZES, repeats=repeats)
        else:
            result = bench_study_page(study, repeats=repeats)
    if out:
        write_record(out, result)
    if as_json:
        print_json(result)
    else:
        clouds = "One panel, labels and one number a point"
        show(study_page_line(result) if study else plain_table(clouds, *page_table(result)))


@app.command()
def serve(
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as json.")] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Clients at once; may be given several times [1, 10, 100]."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of all clients together.")] = 1000,
    points: Annotated[int, typer.Option(min=2, help="Points of a cloud.")] = 2048,
    queue: Annotated[int, typer.Option(min=1, help="Requests that the server takes at once.")] = 64,
) -> None:
    """Measure the server with the weights in the package: times, clouds a second, memory, refusals.

    The clients are threads of this process and share the machine with the server, which runs in another one.
    """
    from pcl_clora.bench.harness import write_record
    from pcl_clora.bench.serve import CLIENTS, bench_serve, serve_table
    from pcl_clora.report.show import plain_table
    from pcl_clora.serve import need_packages

    need_packages()
    with interruptible():
        result = bench_serve(clients=clients or CLIENTS, requests=requests, points=points, queue=queue)
    if out:
        write_record(out, result)
    if as_json:
        print_json(result)
    else:
        show(plain_table(f"POST /predict, clouds of {points:,} points", *serve_table(result)))


@app.command()
def predict(
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as json.")] = None,
    files: Annotated[int, typer.Option(min=1, help="Point files.")] = 1000,
    points: Annotated[int, typer.Option(min=64, help="Points of the largest one.")] = 10_000,
    scan_points: Annotated[int, typer.Option(min=64, help="Points of the scan.")] = 5_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over the files; the best counts.")] = 3,
) -> None:
    """Predict many binary ply files and one large scan with the weights in the package, on one core.

    Says what share of the processor time is loading, how much of the wall the model waits for files that a
    thread reads ahead, and the most memory that the process of the scan had.
    """
    from pcl_clora.bench.harness import write_record
    from pcl_clora.bench.predict import bench_predict, predict_lines

    with interruptible():
        result = bench_predict(files=files, points=points, scan_points=scan_points, repeats=repeats)
    if out:
        write_record(out, result)
    if as_json:
        print_json(result)
    else:
        show(*predict_lines(result))


@app.command("show")
def show_result(
    file: Annotated[Path, typer.Argument(help="A result that a benchmark wrote.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="As on the pages of docs.")] = False,
    into: Annotated[
        Path | None, typer.Option(help="Write it into this page, between its marks, instead.")
    ] = None,
    mark: Annotated[
        str, typer.Option(help="Which marks, if a page shows several records of the benchmark.")
    ] = "",
) -> None:
    """Print a result file as tables, for the terminal or as markdown, or renew it on a page."""
    from pcl_clora.bench.view import bench_markdown, bench_view, put_into, read_record
    from pcl_clora.io import refuse_overwriting_inputs, write_text

    result = read_record(file)
    if into:
        refuse_overwriting_inputs([into], [file])
        write_text(into, put_into(into.read_text(encoding="utf-8"), result, mark))
    elif markdown:
        typer.echo(bench_markdown(result), nl=False)
    else:
        show(bench_view(result))
