"""What a size costs before anything is trained: parameters, multiply-accumulates, memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from avssl.schema import structure

from .config import PRESETS, TinyCnnConfig, TinyConfig


def cost(config: TinyConfig, classes: int, frames: int) -> dict[str, Any]:
    """Numbers of the formulas of the specification (3.1, 4.2) for one clip of `frames` input frames.

    scores: elements of one layer's attention matrices. bytes_*: of the weights alone.
    ram_*: bytes of the C forward pass (float, int8), which attends row by row.
    """
    c = config
    prefix = 0 if c.pooler == "mean" else 1
    tokens = -(-frames // c.frames_per_token)
    n = tokens + prefix
    maps = c.maps(frames)
    taps = [9 * i * o for (*_, i), (*_, o) in itertools.pairwise(maps)]
    pooler = c.dim**2 + c.dim if c.pooler == "tanh_dense_of_cls" else 0
    layer = 4 * (c.dim**2 + c.dim) + 4 * c.dim + 2 * c.dim * c.ff + c.ff + c.dim
    parameters = (
        sum(taps)
        + 2 * sum(c.stem)
        + c.token_features * c.dim
        + c.dim
        + c.dim * prefix
        + 2 * c.dim
        + c.layers * layer
        + pooler
        + c.dim * classes
        + classes
        + (c.max_tokens * c.dim if c.positions == "learned" else 0)
    )
    macs = (
        sum(t * b * weights for (t, b, _), weights in zip(maps[1:], taps, strict=True))
        + tokens * c.token_features * c.dim
        + c.layers * (n * (4 * c.dim**2 + 2 * c.dim * c.ff) + 2 * n * n * c.dim)
        + (c.dim**2 if pooler else 0)
        + c.dim * classes
    )
    inputs, buffers = c.token_features, 4 * (4 * c.dim + c.ff + n)  # floats: rows in work, one row of scores
    between = 0  # numbers kept: three rows of each map between two layers of the stem, and what it gives
    if c.stem:
        between = sum(3 * b * o for _, b, o in maps[1:-1]) + maps[-1][0] * c.token_features // c.stack
        buffers += 4 * (max(c.stem) + c.token_features // c.stack)
    return {
        "parameters": parameters,
        "macs": macs,
        "tokens": n,
        "scores": c.heads * n * n,
        "bytes_float32": 4 * parameters,
        "bytes_int8": parameters,
        "ram_float32": 12 * n * c.dim + buffers + 4 * (inputs + between),
        "ram_int8": 3 * n * c.dim + buffers + inputs + c.ff + c.dim + between,
    }


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
