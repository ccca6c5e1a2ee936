"""The encoder and its front end as plain arrays, for microcontrollers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from avssl.errors import check
from avssl.export.plan import Dense, EncoderLayer, EncoderPlan, SoundPlan, dense, norm

from .features import FrameFeatures
from .stem import NORM_EPS

if TYPE_CHECKING:
    from .backbone import Tiny
    from .stem import ConvStem


def encoder_plan(backbone: Tiny) -> EncoderPlan:
    """Raises UsageError for pre-norm encoders, whose residual stream has no range that int8 could hold."""
    c = backbone.config
    check(
        c.post_norm, "the C forward pass covers post-norm encoders", fix="export to ONNX, or train with post_norm=true"
    )
    layers = tuple(
        EncoderLayer(
            query=dense(b.attention.self.query),
            key=dense(b.attention.self.key),
            value=dense(b.attention.self.value),
            output=dense(b.attention.output.dense),
            attention_norm=norm(b.attention.output.LayerNorm),
            up=dense(b.intermediate.dense),
            down=dense(b.output.dense),
            output_norm=norm(b.output.LayerNorm),
        )
        for b in backbone.blocks
    )
    shift = gain = None
    if c.input_norm:
        statistics = dict(backbone.input_norm.named_buffers())
        shift = statistics["running_mean"].numpy().astype(np.float32)
        gain = (1 / np.sqrt(statistics["running_var"].numpy() + backbone.input_norm.eps)).astype(np.float32)
    learned = c.positions == "learned"
    return EncoderPlan(
        features=c.features,
        stack=c.stack,
        stem=stem_plan(backbone.stem) if c.stem else (),
        stem_bins=c.stem_bins,
        heads=c.heads,
        activation=c.activation,
        project=dense(backbone.proj),
        norm=norm(backbone.norm),
        layers=layers,
        pool="first" if backbone.prefix else "mean",
        token=backbone.cls.detach().float().numpy() if backbone.prefix else None,
        position_table=backbone.positions.detach().float().numpy() if learned else None,
        position_rates=None if learned else backbone.rates.numpy(),
        shift=shift,
        gain=gain,
        pooler=dense(backbone.pooler.dense) if c.pooler == "tanh_dense_of_cls" else None,
    )


def stem_plan(stem: ConvStem) -> tuple[Dense, ...]:
    """The convolutions with the BatchNorm behind each folded in: weights (out, 3 * 3 * in), tap by tap."""
    state, out = stem.state_dict(), []
    for i in range(len(stem.norms)):
        mean, variance = state[f"norms.{i}.running_mean"], state[f"norms.{i}.running_var"]
        gain = state[f"norms.{i}.weight"] / (variance + NORM_EPS).sqrt()
        weight = (state[f"convs.{i}.weight"] * gain[:, None, None, None]).permute(0, 2, 3, 1).flatten(1)
        bias = state[f"norms.{i}.bias"] - mean * gain
        out.append(Dense(weight.float().cpu().numpy(), bias.float().cpu().numpy()))
    return tuple(out)


def sound_plan(extract: FrameFeatures) -> SoundPlan:
    c = extract.config
    samples = round(c.seconds * c.rate) or None
    shift = gain = None
    if c.standardise == "fixed":
        shift = np.broadcast_to(np.asarray(c.mean, np.float32), c.features).copy()
        gain = np.broadcast_to(1 / np.asarray(c.std, np.float32), c.features).copy()
    standardise = "none" if c.standardise == "fixed" else c.standardise
    if c.kind == "raw":
        plan = SoundPlan(rate=c.rate, samples=samples, kind="raw", hop=c.segment)
        return replace(plan, standardise=standardise, eps=c.eps, shift=shift, gain=gain)
    return SoundPlan(
        rate=c.rate,
        samples=samples,
        kind=c.kind,
        n_fft=c.n_fft,
        hop=c.hop,
        center=c.center,
        window=extract.window.numpy(),
        bank=None if c.kind == "spectrogram" else extract.bank.numpy().T,
        dct=extract.dct.numpy().T if c.kind == "mfcc" else None,
        exponent=c.power / 2,
        floor=c.floor,
        standardise=standardise,
        eps=c.eps,
        shift=shift,
        gain=gain,
    )
