"""ONNX files: float32, dynamic int8, static int8 (QDQ), with the front end inside when asked."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avssl import __version__
from avssl.batch import Batch, Stream
from avssl.errors import UsageError, check
from avssl.files import replacing

OPSET = 18
INT8_OPS = ["MatMul", "Gemm", "Conv"]


class Network(nn.Module):
    """backbone [-> head] on plain tensors, one per modality in the order of `names`; what is traced."""

    def __init__(self, backbone: nn.Module, head: nn.Module | None, names: Sequence[str], stream: str) -> None:
        super().__init__()
        self.backbone, self.head, self.names, self.stream = backbone, head, tuple(names), stream

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, C) logits, or (B, D) pooled features of `stream` without a head."""
        batch = as_batch(self.names, inputs)
        if self.head is not None:
            return self.head(self.backbone(batch, only=getattr(self.head, "streams", None)))
        return self.backbone(batch, only={self.stream}).pooled[self.stream]


class Front(nn.Module):
    """`frontend.batch` on plain tensors."""

    def __init__(self, frontend: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.frontend, self.names = frontend, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        done = self.frontend(as_batch(self.names, inputs))
        return tuple(done.streams[name].x for name in self.names)


def as_batch(names: Sequence[str], inputs: Sequence[Tensor]) -> Batch:
    """Unpadded tensors as a Batch."""
    n = inputs[0].shape[0]
    return Batch(
        tuple("" for _ in range(n)),
        torch.zeros(n, dtype=torch.long),
        {name: Stream(x) for name, x in zip(names, inputs, strict=True)},
    )


def require_onnx() -> None:
    """Raise UsageError when the packages of the `export` extra are missing."""
    import importlib.util

    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
    check(not missing, f"ONNX export needs {', '.join(missing)}", fix='pip install "avssl[export]"')


def trace(
    module: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic: bool = False,
) -> Any:
    """An onnx.ModelProto of a module: opset 18, no custom operators, static shapes or a free dimension 1 ("time")."""
    shapes = None
    if dynamic:
        time = torch.export.Dim("time", min=2)
        shapes = (tuple({1: time} for _ in inputs),)  # the inputs are one *args
    quiet = logging.getLogger("onnxscript")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
            program: Any = torch.onnx.export(
                module.eval(),
                tuple(inputs),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=shapes,
                external_data=False,
            )
    except Exception as error:  # an exporter may raise anything
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{type(module).__name__} does not export to ONNX: {type(error).__name__}: {reason}",
            fix="report this with the model's recipe" if not dynamic else "export static shapes",
        ) from error
    finally:
        quiet.setLevel(level)
    return stripped(program.model_proto)


def stripped(model: Any) -> Any:
    """The model without the exporter's traces (source lines, types of inner values): half of a small file."""
    del model.graph.value_info[:]
    for holder in (model.graph, *model.functions):
        del holder.metadata_props[:]
        for node in holder.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name, model.producer_version = "avssl", __version__
    return model


def described(model: Any, about: dict[str, str]) -> Any:
    """The model with metadata (labels, sample rate, licence) that a runtime can read."""
    import onnx

    onnx.helper.set_model_props(model, about)
    return model


def joined(front: Any, network: Any, names: Sequence[str]) -> Any:
    """Front end and network as one graph; inner names are prefixed, the outer inputs and output keep theirs."""
    import onnx

    front = onnx.compose.add_prefix(front, "frontend/", rename_inputs=False, rename_outputs=False)
    network = onnx.compose.add_prefix(network, "network/", rename_inputs=False, rename_outputs=False)
    front.ir_version = network.ir_version = max(front.ir_version, network.ir_version)
    pairs = [(f"{name}_frames", name) for name in names]
    # An input and an inner value of one name: the network's input is renamed before it disappears.
    network = _renamed_inputs(network, {name: f"network/{name}" for name in names})
    return stripped(onnx.compose.merge_models(front, network, io_map=[(a, f"network/{b}") for a, b in pairs]))


def _renamed_inputs(model: Any, names: dict[str, str]) -> Any:
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    return model


def save(model: Any, path: Path) -> Path:
    """Check and write atomically."""
    import onnx

    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def quantised_dynamic(source: Path, target: Path) -> Path:
    """int8 weights; activations are quantised while it runs, with scales found on the spot (onnxruntime's advice for
    transformers)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(source), str(target), weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=INT8_OPS
        )
    return target


def quantised_static(source: Path, target: Path, feeds: Iterable[dict[str, np.ndarray]]) -> Path:
    """QDQ: symmetric int8 weights per channel, int8 activations with scales from the calibration feeds (onnxruntime's
    advice for convolutions, and what integer hardware reads)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    prepared = target.with_suffix(".prepared.onnx")
    try:
        with _quiet():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8,
                op_types_to_quantize=INT8_OPS,
                extra_options={"WeightSymmetric": True},
            )
    finally:
        prepared.unlink(missing_ok=True)
    return target


@contextlib.contextmanager
def _quiet() -> Any:
    """Without onnxruntime's advice on standard error and the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


class Session:
    """An ONNX file in onnxruntime on one thread."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> np.ndarray:
        names = [i.name for i in self.session.get_inputs()]
        return self.session.run(None, {n: x.cpu().numpy() for n, x in zip(names, inputs, strict=True)})[0]
