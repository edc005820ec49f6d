"""The command line: `pcl-clora train | pretrain | probe | eval | predict | view | compare | convert | ...`.

Commands live in modules of their own and import what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from pcl_clora.cli import (
    adapters,
    bench,
    compare,
    convert,
    data,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    fewshot,
    fit,
    methods,
    novelty,
    predict,
    pretrain,
    probe,
    report,
    serve,
    train,
    tune,
    view,
    weights,
)
from pcl_clora.cli.common import WarningFormatter, complain
from pcl_clora.errors import PclCloraError

DEBUG = "--debug"

app = typer.Typer(
    name="pcl-clora",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("fit")(fit.fit)
app.command("train")(train.train)
app.command("pretrain")(pretrain.pretrain)
app.command("probe")(probe.probe)
app.command("eval")(evaluate.evaluate)
app.command("fewshot")(fewshot.fewshot)
app.command("tune")(tune.tune)
app.command("export")(export.export)
app.command("predict")(predict.predict)
app.command("embed")(embed.embed)
app.command("search")(embed.search)
app.command("features")(embed.features)
app.command("novelty")(novelty.novelty)
app.command("view")(view.view)
app.command("serve")(serve.serve)
app.add_typer(compare.app, name="compare")
app.add_typer(report.app, name="report")
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(adapters.app, name="adapters")
app.command("convert")(convert.convert)
app.command("methods")(methods.methods)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from pcl_clora import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show where an error came from. May stand anywhere on the line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Point cloud analysis with frozen transformers and collaborative low-rank adaptation (CLoRA).

    Settings are yaml files (folder cfgs) and key=value pairs on the command line, for example optim.lr=1e-3.
    """


def main(arguments: Sequence[str] | None = None, *, prog_name: str = "pcl-clora") -> NoReturn:
    """Run a command line and leave with its exit code.

    What a user can cause (a wrong setting, a missing file, a package that is not installed) is one message on
    standard error and exit code 2; --debug shows the traceback. Anything else is our mistake and is shown
    whole.

    Args:
        arguments: without the program's name; those of the process by default.
        prog_name: how help and messages call the program.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(WarningFormatter())
    try:
        app(args=[item for item in given if item != DEBUG], prog_name=prog_name)
    except Exception as error:
        if DEBUG in given or not _is_for_user(error):
            raise
        complain(f"error: {str(error) or type(error).__name__}\n({DEBUG} shows where this came from)")
        sys.exit(2)
    sys.exit(0)


def _is_for_user(error: Exception) -> bool:
    """Tell messages for a user from mistakes of ours."""
    return isinstance(error, PclCloraError)
