"""Write a trained model as ONNX, in float32 or int8, or as a torch program; every file is checked first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pcl_clora import __version__
from pcl_clora.errors import MissingPackageError, PclCloraError, UserValueError
from pcl_clora.export.graph import FromPatches, Runner, exportable, trace, without_own_ops
from pcl_clora.io import atomic_write, explained
from pcl_clora.models.layers.product import use_route

if TYPE_CHECKING:
    from pcl_clora.predict.predictor import Predictor

Format = Literal["onnx", "torch", "int8"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "int8": ".onnx"}
BATCHES = (1, 2, 7, 32)  # numbers of clouds at which an export is compared with torch
TOLERANCE = 1e-4  # largest difference of a logit
NUM_CALIBRATION = 128  # training clouds that the ranges of int8 are taken from
NUM_JUDGED = 400  # test clouds on which int8 is compared with float32
REPEATS = 7


class ExportError(PclCloraError, RuntimeError):
    """An export that does not compute what the model computes, or is not worth having; nothing is written."""


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
    clouds and patches, and ends in logits (B, classes). The adapter is merged and BatchNorm is folded. An
    ONNX file holds classes and input rule in its metadata ("pcl_clora", json); beside it is written
    `pcl_clora_runtime.py`, numpy code that prepares and groups clouds.

    Args:
        predictor: from `pcl_clora.load`.
        out: the file; ends in .onnx, or .pt2 for a torch program.
        to: "onnx", "torch", or "int8": ONNX with weights in int8 by channel and activations in int8, by
            ranges of training clouds.

    Raises:
        UserValueError: if the model is no classifier of point patches, or the suffix is another.
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
    if predictor.segments:
        raise UserValueError("Part segmentation is not exported yet; classifiers are.")
    module = exportable(predictor.model.cpu())
    clouds, said = _clouds(predictor, "test", max(BATCHES))
    center, neighborhood = _patches(module, clouds)
    program = trace(module, center[:2], neighborhood[:2])
    if to == "torch":
        runner = program.module()
        difference = compare(module, lambda c, n: runner(c, n), center, neighborhood)
        atomic_write(out, lambda aside: torch.export.save(program, aside))
        return Exported(out, difference, said, {})
    about = _about(predictor, module)
    with explained(out, "written"):
        out.parent.mkdir(parents=True, exist_ok=True)
    whole = _onnx_bytes(without_own_ops(program), center[:2], neighborhood[:2], about)
    difference = compare(module, _runner(whole), center, neighborhood)
    facts: dict[str, float] = {}
    if to == "int8":
        whole, difference, facts, said = _quantised(predictor, module, whole, about)
    for path, content in (
        (out, whole),
        (out.with_name("pcl_clora_runtime.py"), Path(__file__).with_name("runtime.py").read_bytes()),
    ):
        atomic_write(path, partial(_write, content))
    return Exported(out, difference, said, facts)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def compare(module: FromPatches, run: Runner, center: Tensor, neighborhood: Tensor) -> float:
    """Compare a program with torch at several numbers of clouds, and with fewer patches.

    Returns:
        The largest difference of a logit.

    Raises:
        ExportError: if it is above 1e-4.
    """
    largest = 0.0
    for batch in BATCHES:
        for patches in (center.shape[1], center.shape[1] // 2):
            c, n = center[:batch, :patches], neighborhood[:batch, :patches]
            with torch.no_grad(), use_route("torch"):
                wanted = module(c, n)
            found = (run(c.contiguous(), n.contiguous()) - wanted).abs().max().item()
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


def _clouds(predictor: Predictor, split: str, count: int) -> tuple[Tensor, str]:
    """Take clouds of the run's data, spread over the split; made ones where the data are not here."""
    from pcl_clora.config import ConfigError
    from pcl_clora.data import build_dataset
    from pcl_clora.io import DataError

    rule = predictor.rule
    try:
        dataset = build_dataset(predictor.cfg.data, split)
    except (ConfigError, DataError):
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(count, rule.num_points, 3, generator=generator)
        return points / points.norm(dim=-1).amax(dim=1)[:, None, None], f"{count} made clouds"
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    seen = [rule.see_sample(dataset[int(index)].points).points for index in chosen]
    seen = [seen[index % len(seen)] for index in range(count)]
    return torch.stack(seen), f"{len(chosen)} clouds of {split}"


def _patches(module: FromPatches, clouds: Tensor) -> tuple[Tensor, Tensor]:
    groups = module.model.group(clouds)
    return groups.center, groups.neighborhood


def _about(predictor: Predictor, module: FromPatches) -> dict[str, Any]:
    config = module.model.config
    return {
        "pcl_clora": __version__,
        "model": config.name,
        "classes": list(predictor.names),
        "num_groups": config.num_groups,
        "group_size": config.group_size,
        "skip_origin": config.fps_compat == "pointnet2",
        "rule": predictor.rule.model_dump(mode="json"),
        "base_id": predictor.opened.header.base_id,
        "base_sha256": predictor.opened.header.base_sha256,
        "licence": predictor.opened.header.licence,
    }


def _onnx_bytes(program: Any, center: Tensor, neighborhood: Tensor, about: dict[str, Any]) -> bytes:
    import tempfile

    made = torch.onnx.export(
        program, (center, neighborhood), dynamo=True, optimize=True, verbose=False, external_data=False,
        input_names=["center", "neighborhood"], output_names=["logits"],
    )  # fmt: skip
    assert made is not None
    made.model.metadata_props["pcl_clora"] = json.dumps(about)
    with tempfile.TemporaryDirectory() as folder:
        made.save(str(Path(folder) / "model.onnx"), external_data=False)
        return (Path(folder) / "model.onnx").read_bytes()


def _session(model: bytes | str, threads: int = 1) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _runner(model: bytes) -> Runner:
    session = _session(model)

    def run(center: Tensor, neighborhood: Tensor) -> Tensor:
        given = {"center": center.numpy(), "neighborhood": neighborhood.numpy()}
        return torch.from_numpy(session.run(None, given)[0])

    return run


# int8


class _Calibration:
    """Gives the quantiser training clouds, one at a time."""

    def __init__(self, center: Tensor, neighborhood: Tensor) -> None:
        self._left = list(zip(*_pieces(center, neighborhood, 1), strict=True))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs; None at the end."""
        if not self._left:
            return None
        center, neighborhood = self._left.pop()
        return {"center": center.numpy(), "neighborhood": neighborhood.numpy()}


def quantise(model: bytes, center: Tensor, neighborhood: Tensor) -> bytes:
    """Turn the products of an ONNX model into int8.

    Args:
        model: in float32.
        center: (B, G, 3) of the clouds that ranges are taken from.
        neighborhood: (B, G, K, 3).

    Returns:
        A model with weights in int8, a scale a channel, and activations in int8 by the ranges met.
    """
    import tempfile

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(_Calibration, CalibrationDataReader):  # type: ignore[misc]
        pass

    with tempfile.TemporaryDirectory() as folder:
        first, second, third = (str(Path(folder) / f"{name}.onnx") for name in ("float", "ready", "int8"))
        Path(first).write_bytes(model)
        quant_pre_process(first, second, skip_symbolic_shape=True)
        quantize_static(
            second,
            third,
            Reader(center, neighborhood),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return Path(third).read_bytes()


def _quantised(
    predictor: Predictor, module: FromPatches, model: bytes, about: dict[str, Any]
) -> tuple[bytes, float, dict[str, float], str]:
    """Quantise, compare accuracy and speed with float32, and refuse what is not faster."""
    import onnx

    train, _ = _clouds(predictor, "train", NUM_CALIBRATION)
    small = quantise(model, *_patches(module, train))
    named = onnx.load_from_string(small)
    if not any(entry.key == "pcl_clora" for entry in named.metadata_props):
        named.metadata_props.add(key="pcl_clora", value=json.dumps(about))
        small = named.SerializeToString()
    speedup = _speedup(model, small, *_patches(module, train[:16]))
    if speedup <= 1:
        raise ExportError(
            f"int8 takes {1 / speedup:.2f} times the processor time of float32 on this machine (one thread, "
            "16 clouds), so it is not worth having; nothing was written. Use --to onnx."
        )
    clouds, said = _clouds(predictor, "test", NUM_JUDGED)
    center, neighborhood = _patches(module, clouds)
    logits = [_run_all(each, center, neighborhood) for each in (model, small)]
    said_by = [each.argmax(dim=1) for each in logits]
    facts = {
        "speedup": speedup,
        "agreement": float((said_by[0] == said_by[1]).double().mean()),
    }
    labels = _labels(predictor, len(clouds))
    if labels is not None:
        facts["accuracy_float32"] = float((said_by[0] == labels).double().mean())
        facts["accuracy_int8"] = float((said_by[1] == labels).double().mean())
    return small, float((logits[0] - logits[1]).abs().max()), facts, said


def _labels(predictor: Predictor, count: int) -> Tensor | None:
    """Give the labels of the clouds that `_clouds` takes of test; None where these are made."""
    from pcl_clora.config import ConfigError
    from pcl_clora.io import DataError

    try:
        dataset = predictor.dataset()
    except (ConfigError, DataError):
        return None
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    return dataset.labels[torch.from_numpy(np.resize(chosen, count))]


def _run_all(model: bytes, center: Tensor, neighborhood: Tensor) -> Tensor:
    run = _runner(model)
    pieces = zip(*_pieces(center, neighborhood, 16), strict=True)
    return torch.cat([run(c.contiguous(), n.contiguous()) for c, n in pieces])


def _pieces(center: Tensor, neighborhood: Tensor, size: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return torch.split(center, size), torch.split(neighborhood, size)


def _speedup(slow: bytes, fast: bytes, center: Tensor, neighborhood: Tensor) -> float:
    """Compare the processor time of two models, one thread, one after another; the best of several runs."""
    runs: Sequence[Runner] = [_runner(slow), _runner(fast)]
    seconds = [float("inf"), float("inf")]
    for _ in range(REPEATS):
        for which, run in enumerate(runs):
            start = time.process_time()
            run(center, neighborhood)
            seconds[which] = min(seconds[which], time.process_time() - start)
    return seconds[0] / seconds[1]
