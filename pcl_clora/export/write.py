"""Write a trained model as ONNX, in float32 or int8, or as a torch program; every file is checked first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pcl_clora import __version__
from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.export.clouds import take_clouds
from pcl_clora.export.graph import (
    FromPatches,
    Inputs,
    PartsFromPatches,
    Runner,
    exportable,
    trace,
    without_own_ops,
)
from pcl_clora.export.int8 import ExportError, onnx_runner, quantised
from pcl_clora.io import atomic_write, explained
from pcl_clora.models.layers.product import use_route

if TYPE_CHECKING:
    from pcl_clora.predict.predictor import Predictor

Format = Literal["onnx", "torch", "int8"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "int8": ".onnx"}
BATCHES = (1, 2, 7, 32)  # numbers of clouds at which an export is compared with torch
TOLERANCE = 1e-4  # largest difference of a logit


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        difference: largest difference of a logit from torch, over clouds at each number in `BATCHES`; of
            int8 from float32 over the judged clouds.
        clouds: what they were compared on.
        facts: of int8: "agreement", "accuracy_float32", "accuracy_int8", "speedup" (processor time).
    """

    path: Path
    difference: float
    clouds: str
    facts: dict[str, float]


def export_model(predictor: Predictor, out: str | Path, to: Format = "onnx") -> Exported:
    """Write the model of a predictor for other programs.

    The graph starts behind the grouping, at patch centres (B, G, 3) and patches (B, G, K, 3), any number of
    clouds and patches, and ends in logits (B, classes). That of a part segmenter also takes the points
    (B, N, 3), the categories (B,) and the places that features are carried from, see `PartsFromPatches`, and
    ends in logits (B, N, parts). The adapter is merged and BatchNorm is folded. An ONNX file holds classes
    and input rule in its metadata ("pcl_clora", json); beside it is written `pcl_clora_runtime.py`, numpy
    code that prepares and groups clouds.

    Args:
        predictor: from `pcl_clora.load`.
        out: the file; ends in .onnx, or .pt2 for a torch program.
        to: "onnx", "torch", or "int8": ONNX with weights in int8 by channel and activations in int8, by
            ranges of training clouds.

    Raises:
        UserValueError: if the model is no network over point patches, or the suffix is another.
        ExportError: if logits differ from torch by more than 1e-4, or int8 is not faster than float32 here.
        MissingPackageError: if a package is missing; the message has the command.
    """
    out = Path(out)
    if out.suffix != SUFFIXES[to]:
        raise UserValueError(
            f"{out}: a file for {to} ends in {SUFFIXES[to]}; name it {out.stem}{SUFFIXES[to]}."
        )
    if to != "torch":
        _require("onnx", "onnxscript", "onnxruntime")
    module = exportable(predictor.model.cpu())
    clouds = take_clouds(predictor, "test", max(BATCHES), repeat=True)
    inputs = clouds.inputs(module)
    program = without_own_ops(trace(module, tuple(each[:2] for each in inputs)))
    if to == "torch":
        runner = program.module()
        difference = compare(module, lambda *given: runner(*given), inputs)
        with explained(out, "written"):
            out.parent.mkdir(parents=True, exist_ok=True)
        memory = BytesIO()  # on a full disk torch's own writer would end the process
        torch.export.save(program, memory)
        atomic_write(out, partial(_write, memory.getvalue()))
        return Exported(out, difference, clouds.said, {})
    with explained(out, "written"):
        out.parent.mkdir(parents=True, exist_ok=True)
    whole = _onnx_bytes(program, module, tuple(each[:2] for each in inputs), _about(predictor, module))
    difference = compare(module, onnx_runner(whole, module.names), inputs)
    facts: dict[str, float] = {}
    said = clouds.said
    if to == "int8":
        whole, difference, facts, said = quantised(predictor, module, whole)
    for path, content in (
        (out, whole),
        (out.with_name("pcl_clora_runtime.py"), Path(__file__).with_name("runtime.py").read_bytes()),
    ):
        atomic_write(path, partial(_write, content))
    return Exported(out, difference, said, facts)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def compare(module: FromPatches, run: Runner, inputs: Inputs) -> float:
    """Compare a program with torch at several numbers of clouds, and with fewer patches.

    Args:
        module: what `exportable` returned.
        run: the program.
        inputs: of at least 32 clouds.

    Returns:
        The largest difference of a logit.

    Raises:
        ExportError: if it is above 1e-4.
    """
    largest = 0.0
    for clouds in BATCHES:
        for patches in (inputs[0].shape[1], inputs[0].shape[1] // 2):
            given = module.fewer(inputs, clouds, patches)
            with torch.no_grad(), use_route("torch"):
                wanted = module(*given)
            found = (run(*given) - wanted).abs().max().item()
            largest = max(largest, found) if np.isfinite(found) else float("inf")
    if not largest <= TOLERANCE:
        raise ExportError(
            f"The exported program differs from torch by {largest:.2e} in a logit, more than {TOLERANCE:g}; "
            "nothing was written. Please report it with the versions that `pcl-clora doctor` prints."
        )
    return largest


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"The export needs {', '.join(missing)}, not installed here: pip install 'pcl-clora[export]', or "
            f"pip install {' '.join(missing)}."
        )


def _about(predictor: Predictor, module: FromPatches) -> dict[str, Any]:
    config = module.model.config
    about = {
        "pcl_clora": __version__,
        "model": config.name,
        "task": config.task,
        "classes": list(predictor.names),
        "num_groups": config.num_groups,
        "group_size": config.group_size,
        "skip_origin": config.fps_compat == "pointnet2",
        "rule": predictor.rule.model_dump(mode="json"),
        "base_id": predictor.opened.header.base_id,
        "base_sha256": predictor.opened.header.base_sha256,
        "licence": predictor.opened.header.licence,
    }
    if isinstance(module, PartsFromPatches):
        taxonomy = predictor.taxonomy
        about["categories"] = dict(zip(taxonomy.categories, map(list, taxonomy.ids), strict=True))
        about["levels"] = list(module.levels)
    return about


def _onnx_bytes(program: Any, module: FromPatches, inputs: Inputs, about: dict[str, Any]) -> bytes:
    import tempfile

    made = torch.onnx.export(
        program, inputs, dynamo=True, optimize=True, verbose=False, external_data=False,
        input_names=module.names, output_names=["logits"],
    )  # fmt: skip
    assert made is not None
    made.model.metadata_props["pcl_clora"] = json.dumps(about)
    with tempfile.TemporaryDirectory() as folder:
        made.save(str(Path(folder) / "model.onnx"), external_data=False)
        return (Path(folder) / "model.onnx").read_bytes()
