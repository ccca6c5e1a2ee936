"""The forward pass of a plan in torch, float or int8: the definition that the C code repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avssl.errors import check
from avssl.export.plan import Dense, EncoderPlan, Norm

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}
TOP = 127  # symmetric int8: -127 ... 127
BIAS_TOP = 2**30  # of the int32 sum ...
MOST_INPUTS = (2**31 - 1 - BIAS_TOP) // TOP**2 - 1  # ... beside which the products of so many inputs fit
WEIGHT_TOP = 255  # unsigned int8 of the attention weights, relative to the largest of their row


@dataclass
class Ranges:
    """Largest absolute value seen at each point where int8 rounds."""

    top: dict[str, float] = field(default_factory=dict)

    def see(self, point: str, x: Tensor) -> None:
        self.top[point] = max(self.top.get(point, 0.0), float(x.abs().max()))

    def scales(self) -> dict[str, np.float32]:
        """Step of each point: float32(top / 127); 1 where nothing but zeros was seen."""
        return {point: np.float32(top / TOP) if top > 0 else np.float32(1) for point, top in self.top.items()}


@dataclass(frozen=True)
class QuantisedDense:
    """int8 weights with one scale per output; the bias at the scale of the accumulator."""

    weight: np.ndarray  # (out, in) int8
    bias: np.ndarray  # (out,) int32
    scale: np.ndarray  # (out,) float32: accumulator -> real, = input scale * weight scale
    weight_scale: np.ndarray  # (out,) float32


def quantise_dense(layer: Dense, input_scale: np.float32) -> QuantisedDense:
    """Round-to-nearest, symmetric, per output channel.

    A row of very small weights has its scale from its bias, which must leave the int32 sum room for the products.
    """
    top = np.abs(layer.weight).max(1)
    from_bias = np.abs(layer.bias.astype(np.float64)) / (float(input_scale) * BIAS_TOP)
    weight_scale = np.maximum(top / TOP, from_bias).astype(np.float32)
    weight_scale[weight_scale * input_scale < np.finfo(np.float32).tiny] = 1  # nothing but zeros
    weight = np.rint(layer.weight / weight_scale[:, None]).clip(-TOP, TOP).astype(np.int8)
    scale = (weight_scale * input_scale).astype(np.float32)
    bias = np.rint(layer.bias.astype(np.float64) / scale).astype(np.int32)
    return QuantisedDense(weight, bias, scale, weight_scale)


@dataclass(frozen=True)
class Quantised:
    """A plan with its int8 matrices and activation scales."""

    plan: EncoderPlan
    scales: Mapping[str, np.float32]
    dense: Mapping[str, QuantisedDense]


# Which point's scale a matrix reads its input with.
def input_point(name: str) -> str:
    if name == "project":
        return "input"
    if name in ("pooler", "head") or name.startswith("stem"):
        return name
    layer, _, part = name.partition("_")
    return f"{layer}_" + {"query": "x", "key": "x", "value": "x", "output": "context", "up": "y", "down": "h"}[part]


def calibrate(plan: EncoderPlan, inputs: Iterable[Tensor]) -> Quantised:
    """Scales from the ranges over calibration frames (each (B, T, F), standardised), then int8 weights."""
    ranges = Ranges()
    for frames in inputs:
        forward(plan, frames, ranges)
    check(bool(ranges.top), "int8 needs calibration clips and got none", fix="give --data, e.g. the training clips")
    scales = ranges.scales()
    return Quantised(plan, scales, {n: quantise_dense(d, scales[input_point(n)]) for n, d in plan.dense().items()})


@torch.inference_mode()
def forward(plan: EncoderPlan, frames: Tensor, ranges: Ranges | None = None) -> Tensor:
    """(B, T, F) standardised frames -> (B, outputs) float32; `ranges` records what int8 would have to hold."""
    return _Pass(plan, ranges, None).run(frames)


@torch.inference_mode()
def forward_int8(quantised: Quantised, frames: Tensor) -> Tensor:
    """The same with int8 matrices and activations, int32 sums, float32 norms, softmax and activation function."""
    return _Pass(quantised.plan, None, quantised).run(frames)


class _Pass:
    def __init__(self, plan: EncoderPlan, ranges: Ranges | None, quantised: Quantised | None) -> None:
        self.plan, self.ranges, self.q = plan, ranges, quantised

    def point(self, name: str, x: Tensor) -> Tensor:
        """Where int8 rounds: integers (as float64) with int8, else x itself."""
        if self.ranges is not None:
            self.ranges.see(name, x)
        if self.q is None:
            return x
        inverse = float(np.float32(1) / self.q.scales[name])
        return (x * inverse).round().clamp(-TOP, TOP).double()

    def real(self, name: str, x: Tensor) -> Tensor:
        """What `point` stored, as float32."""
        return x if self.q is None else (x.float() * float(self.q.scales[name]))

    def dense(self, name: str, x: Tensor) -> Tensor:
        if self.q is None:
            layer = self.plan.dense()[name]
            return F.linear(x, torch.from_numpy(layer.weight), torch.from_numpy(layer.bias))
        q = self.q.dense[name]
        total = F.linear(x, torch.from_numpy(q.weight).double(), torch.from_numpy(q.bias).double())  # exact integers
        return total.float() * torch.from_numpy(q.scale)

    def stem(self, x: Tensor) -> Tensor:
        """(B, T, F) -> (B, T', bins * C)."""
        x = x[..., None]  # (B, T, F, 1)
        for i in range(len(self.plan.stem)):
            x = F.relu(self.dense(f"stem{i}", patches(self.point(f"stem{i}", x))))
        return x.unflatten(2, (self.plan.stem_bins, -1)).mean(3).flatten(2)

    def run(self, frames: Tensor) -> Tensor:
        p = self.plan
        x = frames.float()
        if p.shift is not None and p.gain is not None:
            x = (x - torch.from_numpy(p.shift)) * torch.from_numpy(p.gain)
        x = self.stem(x) if p.stem else x
        x = F.pad(x, (0, 0, 0, -x.shape[1] % p.stack)).unflatten(1, (-1, p.stack)).flatten(2)
        x = self.dense("project", self.point("input", x))  # (B, N, D)
        if p.token is not None:
            x = torch.cat([torch.from_numpy(p.token).expand(x.shape[0], 1, -1), x], 1)
        x = norm(x + positions(p, x.shape[1]), p.norm)
        for i, layer in enumerate(p.layers):
            name = f"layer{i}"
            stored = self.point(f"{name}_x", x)
            context = self.point(f"{name}_context", self.attend(name, stored))
            y = norm(self.real(f"{name}_x", stored) + self.dense(f"{name}_output", context), layer.attention_norm)
            h = ACTIVATIONS[p.activation](self.dense(f"{name}_up", self.point(f"{name}_y", y)))
            x = norm(y + self.dense(f"{name}_down", self.point(f"{name}_h", h)), layer.output_norm)
        x = x[:, 0] if p.pool == "first" else x.mean(1)
        if p.pooler is not None:
            x = torch.tanh(self.dense("pooler", self.point("pooler", x)))
        if p.head_norm is not None:
            x = norm(x, p.head_norm)
        return x if p.head is None else self.dense("head", self.point("head", x))

    def attend(self, name: str, x: Tensor) -> Tensor:
        """Context rows (B, N, D): int8 queries, keys and values; weights relative to the largest of the row."""
        heads = self.plan.heads
        width = self.plan.dim // heads

        def split(part: str) -> Tensor:
            out = self.point(f"{name}_{part}", self.dense(f"{name}_{part}", x))
            return out.unflatten(-1, (heads, width)).transpose(1, 2)

        q, k, v = split("query"), split("key"), split("value")  # (B, H, N, D/H)
        score = q @ k.transpose(-2, -1)
        if self.q is None:
            context = (score / math.sqrt(width)).softmax(-1) @ v
        else:
            s = self.q.scales
            factor = np.float32(s[f"{name}_query"] * s[f"{name}_key"] / np.float32(math.sqrt(width)))
            score = score.float() * float(factor)
            weight = ((score - score.amax(-1, keepdim=True)).exp() * WEIGHT_TOP).round().double()
            context = (weight @ v).float() / weight.sum(-1, keepdim=True).float() * float(s[f"{name}_value"])
        return context.transpose(1, 2).flatten(2)


def patches(x: Tensor) -> Tensor:
    """(B, T, F, C) -> (B, ceil(T / 2), ceil(F / 2), 9 * C): what each 3x3 tap of a convolution of stride 2 sees."""
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    return x.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3).flatten(3)


def norm(x: Tensor, layer: Norm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], torch.from_numpy(layer.weight), torch.from_numpy(layer.bias), layer.eps)


def positions(plan: EncoderPlan, count: int) -> Tensor:
    """(count, D)."""
    if plan.position_table is not None:
        check(
            count <= len(plan.position_table),
            f"{count} tokens for {len(plan.position_table)} learned positions",
            fix="export a shorter clip",
        )
        return torch.from_numpy(plan.position_table[:count])
    if plan.position_rates is None:
        return torch.zeros(count, plan.dim)
    angle = torch.arange(count, dtype=torch.float32)[:, None] * torch.from_numpy(plan.position_rates)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
