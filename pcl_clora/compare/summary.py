"""What came out of a study: study.json with every row, whatever state its runs are in."""

from __future__ import annotations

from typing import Any

from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.study import Run, Study, describe, differing
from pcl_clora.io import write_json


def summarise(study: Study, folder: StudyFolder) -> dict[str, Any]:
    """Write study.json: what the study is, what was chosen, and the state of every run."""
    rows: dict[str, Any] = {}
    for name, row in study.rows.items():
        choice = folder.read(folder.choice(row.chooser)) if row.chooser else None
        states = {run.name: _state(study, folder, run) for run in (Run(name, seed) for seed in row.seeds)}
        rows[name] = {"settings": differing(study, row), "choice": choice, "runs": states}
    content = {**describe(study), "rows": rows}
    write_json(folder.study, content)
    return content


def _state(study: Study, folder: StudyFolder, run: Run) -> str:
    """Say the state of a run: finished, failed with the reason, or missing."""
    if folder.check(study, run) is not None:
        return "finished" if folder.is_finished(study, run) else "finished, corruptions missing"
    failure = folder.read(folder.failure(run))
    return f"failed: {failure['error']}" if failure else "missing"
