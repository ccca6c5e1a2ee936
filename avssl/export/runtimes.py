"""ExecuTorch and LiteRT, where their packages are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from avssl.errors import UsageError, check
from avssl.files import replacing

Run = Callable[..., np.ndarray]


PACKAGES = {"executorch": ("executorch",), "litert": ("litert_torch", "ai_edge_torch")}


def require(target: str) -> str:
    """The package that serves a target. Raises UsageError when none is installed."""
    names = PACKAGES[target]
    found = next((n for n in names if importlib.util.find_spec(n) is not None), None)
    check(
        found is not None,
        f"export to {target} needs the package {names[0].replace('_', '-')}, which is not installed",
        fix=f"pip install {names[0].replace('_', '-')} (it may ask for another torch), or export to onnx",
    )
    return str(found)


def to_executorch(module: nn.Module, inputs: Sequence[Tensor], path: Path) -> Run:
    """`model.pte` for the XNNPACK backend (phones). Returns a function that runs the file."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module.eval(), tuple(inputs))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        except Exception as error:  # a converter may raise anything
            raise _failed("ExecuTorch", error) from error
    with replacing(path) as temporary:
        temporary.write_bytes(lowered.buffer)
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")

    def run(*x: Tensor) -> np.ndarray:
        try:
            return method.execute([t.contiguous() for t in x])[0].numpy().copy()
        except RuntimeError as error:  # an operator that it converts and has no kernel for
            raise _failed("ExecuTorch", error) from error

    return run


def to_litert(module: nn.Module, inputs: Sequence[Tensor], path: Path) -> Run:
    """`model.tflite`, float32. Returns a function that runs the file."""
    converter = importlib.import_module(require("litert"))
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            model = converter.convert(module.eval(), tuple(inputs))
            model.export(str(path))
        except Exception as error:  # a converter may raise anything
            raise _failed("LiteRT", error) from error
    return lambda *x: np.asarray(model(*x))


def _failed(package: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:300]
    return UsageError(f"{package} does not convert this model: {type(error).__name__}: {reason}", fix="export to onnx")
