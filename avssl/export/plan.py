"""A network as plain arrays: what a backbone hands to exporters that write their own forward pass.

A backbone that is an encoder of this shape offers `edge_plan() -> EncoderPlan`; a frontend that a microcontroller can
compute offers `edge_plan() -> SoundPlan`. Nothing here knows a system.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import nn

from avssl.errors import UsageError

Array = np.ndarray


@dataclass(frozen=True)
class Dense:
    """y = W x + b."""

    weight: Array  # (out, in) float32
    bias: Array  # (out,) float32

    @property
    def macs(self) -> int:
        return self.weight.size


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the channels."""

    weight: Array  # (D,) float32
    bias: Array
    eps: float


@dataclass(frozen=True)
class EncoderLayer:
    """x = norm(x + output(attention(x))); x = norm(x + down(activation(up(x))))."""

    query: Dense
    key: Dense
    value: Dense
    output: Dense
    attention_norm: Norm
    up: Dense
    down: Dense
    output_norm: Norm


@dataclass(frozen=True)
class EncoderPlan:
    """[affine,] [stem,] stack frames, project, [prepend,] add positions, norm, layers, pool, [tanh dense,] [norm,] head.

    stem: 3x3 convolutions of stride 2 over time and frequency with zeros around, ReLU after each; the mean of each of
    `stem_bins` equal bands of the last map, channels innermost, is a frame of what follows.
    """

    features: int  # numbers per frame
    stack: int  # frames per token; the last token is filled with zeros
    heads: int
    activation: Literal["gelu", "gelu_tanh", "relu"]
    project: Dense
    norm: Norm
    layers: tuple[EncoderLayer, ...]
    pool: Literal["first", "mean"]
    token: Array | None = None  # (D,) prepended at position 0
    position_rates: Array | None = None  # (D/2,) sine positions: sin(t * rate), cos(t * rate) interleaved
    position_table: Array | None = None  # (N, D) learned ones
    shift: Array | None = None  # (F,) subtracted from each frame ...
    gain: Array | None = None  # (F,) ... before it is multiplied by this
    pooler: Dense | None = None  # tanh follows
    head_norm: Norm | None = None
    head: Dense | None = None  # None: the pooled features are the output
    stem: tuple[Dense, ...] = ()  # (out, 3 * 3 * in): time tap, frequency tap, channel
    stem_bins: int = 1

    @property
    def dim(self) -> int:
        return self.project.weight.shape[0]

    @property
    def ff(self) -> int:
        return self.layers[0].up.weight.shape[0]

    @property
    def outputs(self) -> int:
        return self.dim if self.head is None else self.head.weight.shape[0]

    def maps(self, frames: int) -> list[tuple[int, int, int]]:
        """(frames, bands, channels) of what enters the stem and of what each of its layers gives."""
        out = [(frames, self.features, 1)]
        for layer in self.stem:
            frames, bands, _ = out[-1]
            out.append((-(-frames // 2), -(-bands // 2), len(layer.weight)))
        return out

    @property
    def frame_features(self) -> int:
        """Numbers per frame after the stem."""
        return self.stem_bins * len(self.stem[-1].weight) if self.stem else self.features

    def tokens(self, frames: int) -> int:
        """Tokens of a clip, the prepended one included."""
        return -(-self.maps(frames)[-1][0] // self.stack) + (self.token is not None)

    def dense(self) -> dict[str, Dense]:
        """Every matrix by name, in the order in which the forward pass meets them."""
        out = {f"stem{i}": layer for i, layer in enumerate(self.stem)} | {"project": self.project}
        for i, layer in enumerate(self.layers):
            for name in ("query", "key", "value", "output", "up", "down"):
                out[f"layer{i}_{name}"] = getattr(layer, name)
        for name in ("pooler", "head"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        return out

    def norms(self) -> dict[str, Norm]:
        out = {"norm": self.norm}
        for i, layer in enumerate(self.layers):
            out[f"layer{i}_attention_norm"], out[f"layer{i}_output_norm"] = layer.attention_norm, layer.output_norm
        if self.head_norm is not None:
            out["head_norm"] = self.head_norm
        return out

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of the textbook forward pass: every layer computes every token."""
        n = self.tokens(frames)
        total = (n - (self.token is not None)) * self.project.macs
        total += sum(t * b * layer.macs for layer, (t, b, _) in zip(self.stem, self.maps(frames)[1:], strict=True))
        for layer in self.layers:
            total += n * sum(getattr(layer, k).macs for k in ("query", "key", "value", "output", "up", "down"))
            total += 2 * n * n * self.dim
        return total + sum(d.macs for d in (self.pooler, self.head) if d is not None)

    def macs_executed(self, frames: int) -> int:
        """Of the C forward pass, whose last layer computes only the token that is pooled."""
        if self.pool != "first":
            return self.macs(frames)
        n, last = self.tokens(frames), self.layers[-1]
        per_row = sum(getattr(last, k).macs for k in ("query", "output", "up", "down")) + 2 * n * self.dim
        return self.macs(frames) - (n - 1) * per_row


@dataclass(frozen=True)
class SoundPlan:
    """PCM to standardised frames: a centred or plain STFT, energies, decibels."""

    rate: int
    samples: int | None  # of a clip; None = any
    kind: Literal["mel", "mfcc", "spectrogram", "raw"]
    n_fft: int = 0
    hop: int = 0  # raw: samples of a segment
    center: bool = True
    window: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    bank: Array | None = None  # (M, n_fft/2 + 1)
    dct: Array | None = None  # (F, M)
    exponent: float = 1.0  # of the power spectrum
    floor: float = 1e-10
    standardise: Literal["clip", "coefficient", "none"] = "none"
    eps: float = 1e-5
    shift: Array | None = None  # (F,) subtracted, then multiplied by gain: fixed statistics
    gain: Array | None = None

    def frames(self, samples: int) -> int:
        if self.kind == "raw":
            return -(-samples // self.hop)
        return 1 + samples // self.hop if self.center else 1 + (samples - self.n_fft) // self.hop

    def samples_of(self, frames: int) -> int:
        """The fewest samples that make so many frames."""
        if self.kind == "raw":
            return (frames - 1) * self.hop + 1
        return (frames - 1) * self.hop + (0 if self.center else self.n_fft)


def dense(layer: nn.Linear) -> Dense:
    """A Linear as arrays."""
    weight = layer.weight.detach().float().cpu().numpy()
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().float().cpu().numpy()
    return Dense(weight, bias)


def norm(layer: nn.LayerNorm) -> Norm:
    """A LayerNorm as arrays."""
    return Norm(
        layer.weight.detach().float().cpu().numpy(), layer.bias.detach().float().cpu().numpy(), float(layer.eps)
    )


def with_head(plan: EncoderPlan, head: nn.Module | None) -> EncoderPlan:
    """The plan with a classification head: a Linear, or a module with `linear` and an optional LayerNorm `norm`."""
    if head is None:
        return plan
    if isinstance(head, nn.Linear):
        return replace(plan, head=dense(head))
    linear, before = getattr(head, "linear", None), getattr(head, "norm", None)
    if isinstance(linear, nn.Linear) and (before is None or isinstance(before, (nn.LayerNorm, nn.Identity))):
        return replace(plan, head=dense(linear), head_norm=norm(before) if isinstance(before, nn.LayerNorm) else None)
    raise UsageError(f"a head of type {type(head).__name__} cannot be written in C", fix="fine-tune with a linear head")


def plan_of(model: Any) -> tuple[EncoderPlan, SoundPlan | None]:
    """The plans of a model's backbone (with its head) and frontend. Raises UsageError when the backbone offers none."""
    if not hasattr(model.backbone, "edge_plan"):
        raise UsageError(
            f"a {type(model.backbone).__name__} has no plan for microcontrollers",
            fix="export it with --to onnx, or give its class an `edge_plan()` (avssl.export.plan)",
        )
    offer = getattr(model.frontend, "edge_plan", None)
    return with_head(model.backbone.edge_plan(), model.head), offer() if offer else None


def folded(plan: EncoderPlan, sound: SoundPlan | None) -> tuple[EncoderPlan, SoundPlan | None]:
    """The plan without its affine on the frames: it moves to the end of the front end, where int8 rounds after it.

    Raises UsageError when there is no front end to take it.
    """
    if plan.shift is None or plan.gain is None:
        return plan, sound
    if sound is None:
        raise UsageError(
            "the frontend has no plan for microcontrollers, and the backbone standardises its frames",
            fix="export it with --to onnx",
        )
    shift, gain = plan.shift, plan.gain
    if sound.shift is not None and sound.gain is not None:  # ((x - a) g - b) h = (x - (a + b / g)) g h
        shift, gain = sound.shift + plan.shift / sound.gain, sound.gain * plan.gain
    return replace(plan, shift=None, gain=None), replace(sound, shift=shift, gain=gain)
