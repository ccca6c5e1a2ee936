"""What every target needs of a model, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from avssl.batch import Batch
from avssl.errors import check, nearest
from avssl.export import onnx_graph


class Exportable(Protocol):
    """What an exporter reads of a model; `avssl.model.Model` is one."""

    backbone: Any
    frontend: Any
    head: nn.Module | None
    codec: Any
    licence: str


@dataclass
class Context:
    """What every target needs of a model, computed once."""

    model: Exportable
    names: tuple[str, ...]  # input modalities
    stream: str  # pooled stream of a model without a head
    inputs: tuple[Tensor, ...]  # one item as the loader makes it, e.g. the waveform (1, L)
    frames: tuple[Tensor, ...]  # the same after the frontend
    calibration: Batch | None  # after the frontend
    test: Batch | None  # before the frontend
    expected: np.ndarray | None  # PyTorch's outputs for `test`
    labels: tuple[str, ...]
    out: Path

    @property
    def network(self) -> onnx_graph.Network:
        return onnx_graph.Network(self.model.backbone, self.model.head, self.names, self.stream).eval()


def context_of(
    model: Exportable, out: Path, example: Batch, calibration: Batch | None, test: Batch | None, stream: str
) -> Context:
    for part in (model.backbone, model.frontend, model.head):
        if part is not None:
            part.eval()
    names = tuple(example.streams)
    inputs = tuple(example.streams[n].x[:1].cpu() for n in names)
    widths = model.backbone.widths()
    stream = stream or ("joint" if "joint" in widths and len(names) > 1 else names[0])
    check(
        model.head is not None or stream in widths,
        f"the backbone gives no {stream!r}",
        fix=nearest(stream, set(widths)),
    )
    with torch.inference_mode():
        front = onnx_graph.Front(model.frontend, names)
        frames = front(*inputs)
        small = None if calibration is None else model.frontend(on_cpu(calibration))
        expected = None
        if test is not None:
            network = onnx_graph.Network(model.backbone, model.head, names, stream)
            rows = [network(*front(*item)) for item in items(test, names)]
            expected = torch.cat(rows).numpy()
    labels = tuple(model.codec.classes) if model.codec is not None and model.head is not None else ()
    return Context(model, names, stream, inputs, tuple(x.clone() for x in frames), small, test, expected, labels, out)


def on_cpu(batch: Batch) -> Batch:
    return batch.to("cpu")


def items(batch: Batch, names: Sequence[str]) -> list[tuple[Tensor, ...]]:
    """The clips one by one, as a device sees them."""
    return [tuple(batch.streams[n].x[i : i + 1].cpu() for n in names) for i in range(len(batch))]
