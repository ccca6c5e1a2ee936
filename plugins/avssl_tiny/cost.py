"""What a size costs before anything is trained: parameters, multiply-accumulates, memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.schema import structure

from .config import PRESETS, TinyCnnConfig, TinyConfig

if TYPE_CHECKING:
    from avssl.export.plan import EncoderPlan


def cost(config: TinyConfig, classes: int, frames: int) -> dict[str, Any]:
    """Numbers of the specification (3.1, 4.2) for one clip of `frames` input frames.

    scores: elements of one layer's attention matrices. bytes_*: of the weights alone.
    ram_*: bytes of the C forward pass (float, int8), which attends row by row.
    """
    from avssl.export.c_code import memory

    plan = shapes(config, classes)
    n, need = plan.tokens(frames), memory(plan, None, frames)
    tables = [plan.token, plan.position_table, *(part for x in plan.norms().values() for part in (x.weight, x.bias))]
    parameters = (
        sum(d.weight.size + d.bias.size for d in plan.dense().values())
        + sum(t.size for t in tables if t is not None)
        + sum(config.stem)  # the plan has one bias for weight and bias of each BatchNorm
    )
    return {
        "parameters": parameters,
        "macs": plan.macs(frames),
        "tokens": n,
        "scores": config.heads * n * n,
        "bytes_float32": 4 * parameters,
        "bytes_int8": parameters,
        "ram_float32": need.ram_float32,
        "ram_int8": need.ram_int8,
    }


def shapes(c: TinyConfig, classes: int) -> EncoderPlan:
    """The plan of an encoder with a linear head, all zeros that take no memory."""
    from avssl.export.plan import Dense, EncoderLayer, EncoderPlan, Norm

    def zeros(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.float32(0), shape)

    def dense(outputs: int, inputs: int) -> Dense:
        return Dense(zeros(outputs, inputs), zeros(outputs))

    square, norm = dense(c.dim, c.dim), Norm(zeros(c.dim), zeros(c.dim), c.layer_norm_eps)
    layer = EncoderLayer(square, square, square, square, norm, dense(c.ff, c.dim), dense(c.dim, c.ff), norm)
    return EncoderPlan(
        features=c.features,
        stack=c.stack,
        stem=tuple(dense(o, 9 * i) for i, o in itertools.pairwise((1, *c.stem))),
        stem_bins=c.stem_bins,
        heads=c.heads,
        activation=c.activation,
        project=dense(c.dim, c.token_features),
        norm=norm,
        layers=(layer,) * c.layers,
        pool="mean" if c.pooler == "mean" else "first",
        token=None if c.pooler == "mean" else zeros(c.dim),
        position_rates=zeros(c.dim // 2) if c.positions == "sine" else None,
        position_table=zeros(c.max_tokens, c.dim) if c.positions == "learned" else None,
        pooler=square if c.pooler == "tanh_dense_of_cls" else None,
        head=dense(classes, c.dim),
    )


Presets = Mapping[str, Mapping[str, Any]]


def rows(frames: int = 216, classes: int = 50, presets: Presets = PRESETS) -> list[dict[str, Any]]:
    """The presets with their costs for a clip of `frames` frames; "patches": with four frames per token.

    "others": what else differs from the defaults, as in --set backbone.KEY=VALUE.
    """
    out = []
    for name, sizes in presets.items():
        c = structure(TinyConfig, sizes)
        plain, patches = cost(c, classes, frames), cost(replace(c, stack=4), classes, frames)
        sized = {"features": c.features, "dim": c.dim, "layers": c.layers, "heads": c.heads, "ff": c.ff}
        costs = {"MACs": plain["macs"], "MACs, patches": patches["macs"], "float32 bytes": plain["bytes_float32"]}
        others = {"others": " ".join(f"{k}={v}" for k, v in sizes.items() if k not in sized) or "-"}
        made_for = {"frames": frames, "classes": classes}
        costs = {"parameters": plain["parameters"], **costs, "RAM int8": plain["ram_int8"]}
        out.append({"preset": name, **sized, **others, **made_for, **costs})
    return out


def cnn_rows(frames: int = 216, classes: int = 50) -> list[dict[str, Any]]:
    """The CNN at its default size."""
    c = TinyCnnConfig()
    parameters = cnn_parameters(c, classes)
    costs = {"parameters": parameters, "MACs": cnn_macs(c, frames) + c.dim * classes, "float32 bytes": 4 * parameters}
    sized = {"features": c.features, "dim": c.dim, "layers": len(c.widths) + len(c.dense)}
    return [{"preset": "cnn-4m", **sized, "frames": frames, "classes": classes, **costs}]


def cnn_parameters(c: TinyCnnConfig, classes: int) -> int:
    convolutions = sum(9 * i * o + 2 * o for i, o in itertools.pairwise((1, *c.widths)))
    return convolutions + sum((i + 1) * o for i, o in itertools.pairwise((c.widths[-1], *c.dense, classes)))


def cnn_macs(c: TinyCnnConfig, frames: int) -> int:
    """Multiply-accumulates of a clip of `frames` frames without the classifier."""
    total, time, height = 0, frames, c.features
    for i, o in itertools.pairwise((1, *c.widths)):
        total += time * height * 9 * i * o
        time, height = time // 2, height // 2
    return total + sum(i * o for i, o in itertools.pairwise((c.widths[-1], *c.dense)))
