"""`pcl-clora probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, ConfigPath, Overrides, interruptible, print_json, show


def probe(
    config: ConfigPath,
    overrides: Overrides = None,
    seeds: Annotated[
        str,
        typer.Option(help="Seeds of what the weights leave random, for example 0,1,2; mean and deviation."),
    ] = "",
    svm: Annotated[
        bool, typer.Option("--svm/--no-svm", help="Also a linear SVM, which needs scikit-learn.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this json file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what frozen features are worth: nearest neighbours and a linear SVM on labelled clouds.

    Takes the settings of a classification run and looks at the backbone that it would start from; nothing is
    trained. 'weights.path=""' probes a random initialisation.
    """
    from pcl_clora.engine import load_run_config
    from pcl_clora.engine.probes.of_weights import probe_weights
    from pcl_clora.engine.several_seeds import parse_seeds
    from pcl_clora.io import refuse_overwriting_inputs, write_json

    cfg = load_run_config(config, overrides or [])
    read = [str(config), *([str(cfg.weights.path)] if cfg.weights.path else [])]
    refuse_overwriting_inputs([out] if out else [], read)
    with interruptible():
        content = probe_weights(cfg, parse_seeds(seeds) if seeds else None, svm=svm)
    if out:
        write_json(out, content)
    if as_json:
        print_json(content)
        return
    data = content["data"]
    show(
        f"{content['model']}, weights: {content['weights']}; {data['name']}, {data['num_train']:,} labelled "
        f"clouds, {data['num_test']:,} to classify",
        probe_numbers(content),
    )


def probe_numbers(found: dict[str, Any]) -> str:
    """Say the accuracies of a probe: "k-NN 71.20 %, linear SVM 80.00 +- 0.40 %"."""
    told = []
    for key, name in (("knn_acc", "k-NN"), ("svm_acc", "linear SVM")):
        if key in found:
            deviation = f" +- {100 * found[f'{key}_std']:.2f}" if f"{key}_std" in found else ""
            told.append(f"{name} {100 * found[key]:.2f}{deviation} %")
    return ", ".join(told)
