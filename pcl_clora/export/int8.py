"""An ONNX model in int8: quantised by training clouds, judged on test clouds, timed against float32."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pcl_clora.engine import SegmentationMeter
from pcl_clora.errors import PclCloraError
from pcl_clora.export.clouds import Clouds, take_clouds
from pcl_clora.export.graph import FromPatches, Inputs, Runner

if TYPE_CHECKING:
    from pcl_clora.predict.predictor import Predictor

NUM_CALIBRATION = 128  # training clouds that the ranges of int8 are taken from
NUM_JUDGED = 400  # test clouds on which int8 is compared with float32
NUM_TIMED = 16
REPEATS = 7


class ExportError(PclCloraError, RuntimeError):
    """An export that does not compute what the model computes, or is not worth having; nothing is written."""


def onnx_runner(model: bytes, names: Sequence[str]) -> Runner:
    """Make a function of an ONNX model: its inputs, by the names of them, -> logits; one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def quantised(
    predictor: Predictor, module: FromPatches, model: bytes
) -> tuple[bytes, float, dict[str, float], str]:
    """Quantise, compare accuracy and speed with float32, and refuse what is not faster.

    Args:
        predictor: of the model, for its data.
        module: what was traced.
        model: as ONNX in float32.

    Returns:
        The model in int8, the largest difference of a logit from float32, "speedup" (processor time),
        "agreement" and accuracies, and what the clouds were.

    Raises:
        ExportError: if int8 is not faster than float32 here.
    """
    train = take_clouds(predictor, "train", NUM_CALIBRATION)
    inputs = train.inputs(module)
    small = quantise(model, [dict(zip(module.names, each, strict=True)) for each in _singly(inputs)])
    small = _with_metadata(small, model)
    runs = [onnx_runner(each, module.names) for each in (model, small)]
    gain = speedup(runs, tuple(each[:NUM_TIMED] for each in inputs))
    if gain <= 1:
        raise ExportError(
            f"int8 takes {1 / gain:.2f} times the processor time of float32 on this machine (one thread, "
            f"{min(NUM_TIMED, len(train.points))} clouds), so it is not worth having; nothing was written. "
            "Use --to onnx."
        )
    judged = take_clouds(predictor, "test", NUM_JUDGED)
    difference, facts = judge(predictor, module, runs, judged)
    return small, difference, {"speedup": gain, **facts}, judged.said


def quantise(model: bytes, clouds: Sequence[dict[str, Tensor]]) -> bytes:
    """Turn the products of an ONNX model into int8.

    Args:
        model: in float32.
        clouds: inputs by name, of the clouds that ranges are taken from, one cloud each.

    Returns:
        A model with weights in int8 (7 bits of it), a scale a channel, and activations in int8 by the
        ranges met.
    """
    import tempfile

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    left = list(clouds)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return {name: each.numpy() for name, each in left.pop().items()} if left else None

    with tempfile.TemporaryDirectory() as folder:
        first, second, third = (str(Path(folder) / f"{name}.onnx") for name in ("float", "ready", "int8"))
        Path(first).write_bytes(model)
        quant_pre_process(first, second, skip_symbolic_shape=True)
        quantize_static(
            second,
            third,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,  # 7 bits: without VNNI sums of two products of 8 bits do not fit in 16
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return Path(third).read_bytes()


def _with_metadata(small: bytes, model: bytes) -> bytes:
    import onnx

    named, known = onnx.load_from_string(small), onnx.load_from_string(model)
    del named.metadata_props[:]
    named.metadata_props.extend(known.metadata_props)
    return bytes(named.SerializeToString())


def _singly(inputs: Inputs) -> list[Inputs]:
    return [tuple(each[k : k + 1] for each in inputs) for k in range(len(inputs[0]))]


def judge(
    predictor: Predictor, module: FromPatches, runs: Sequence[Runner], clouds: Clouds
) -> tuple[float, dict[str, float]]:
    """Compare two models on clouds.

    Returns:
        The largest difference of a logit, and "agreement" of what they say of clouds or points; with labels
        also "accuracy_float32" and "accuracy_int8", and of parts "instance_miou_..." of both.
    """
    difference, said = 0.0, list[tuple[Tensor, Tensor]]()
    meters = [SegmentationMeter(predictor.taxonomy) for _ in runs] if predictor.segments else []
    for piece in clouds.pieces(16):
        inputs = piece.inputs(module)
        logits = [run(*inputs) for run in runs]
        difference = max(difference, float((logits[0] - logits[1]).abs().max()))
        if meters:
            logits = [meter.predict(each, piece.category) for meter, each in zip(meters, logits, strict=True)]
            for meter, each in zip(meters, logits, strict=True):
                if piece.label is not None:
                    meter.update(each, piece.label, piece.category)
            said.append((logits[0], logits[1]))
        else:
            said.append((logits[0].argmax(dim=1), logits[1].argmax(dim=1)))
    whole, small = (torch.cat(each) for each in zip(*said, strict=True))
    facts = {"agreement": _share(whole == small)}
    if clouds.label is not None:
        facts["accuracy_float32"] = _share(whole == clouds.label)
        facts["accuracy_int8"] = _share(small == clouds.label)
        for name, meter in zip(("float32", "int8"), meters, strict=False):
            facts[f"instance_miou_{name}"] = meter.metrics().instance_miou
    return difference, facts


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def speedup(runs: Sequence[Runner], inputs: Inputs) -> float:
    """Say how many times faster the second is: processor time, one thread, turn by turn, the best of each."""
    seconds = [float("inf"), float("inf")]
    for _ in range(REPEATS):
        for which, run in enumerate(runs):
            start = time.process_time()
            run(*inputs)
            seconds[which] = min(seconds[which], time.process_time() - start)
    return seconds[0] / seconds[1]
