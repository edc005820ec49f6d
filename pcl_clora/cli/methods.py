"""`pcl-clora methods`."""

from __future__ import annotations

from pcl_clora.cli.common import AsJson, print_json, show


def methods(as_json: AsJson = False) -> None:
    """Say of every fine-tuning method what it trains and costs, whether it merges, and who takes it.

    Found by attaching every method to full-size backbones without values, and running them once.
    """
    from dataclasses import asdict

    from pcl_clora.report.methods import describe_methods, methods_view

    rows = describe_methods()
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        show(methods_view(rows))
