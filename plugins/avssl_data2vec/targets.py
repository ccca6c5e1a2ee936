"""What the student regresses, and how far targets and predictions are from collapse."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from avssl.training.monitor import Collapsed
from avssl_data2vec.config import GuardConfig, TargetConfig

_OVER = {  # kind of normalisation -> the dimensions of (B, N, D) that share mean and variance
    "instance": (1,),  # each channel of an item over its tokens
    "batch": (0, 1),  # each channel over all tokens of the batch
    "layer": (2,),  # each token over its channels
    "item": (1, 2),
    "frame": (0, 2),  # fairseq's "group norm" of a time-first tensor: each time step over items and channels
    "across_items": (0,),  # fairseq's instance norm of a time-first tensor
}


def normalise(x: Tensor, kind: str, real: Tensor | None = None) -> Tensor:
    """Zero mean and unit (biased) variance, eps 1e-5, without parameters. x: (B, N, D); real: (B, N) bool, the tokens whose
    mean and variance are taken, None = all."""
    over = _OVER[kind]
    if real is None or kind == "layer":  # a token's own channels hold no padding
        var, mean = torch.var_mean(x, dim=over, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-5)
    weight = real[..., None].to(x.dtype).expand_as(x)
    count = weight.sum(over, keepdim=True).clamp_min(1)
    mean = (x * weight).sum(over, keepdim=True) / count
    var = ((x - mean).square() * weight).sum(over, keepdim=True) / count
    return (x - mean) * torch.rsqrt(var + 1e-5)


@torch.no_grad()
def average_targets(layers: Sequence[Tensor], cfg: TargetConfig, prefix: int = 0, pad: Tensor | None = None) -> Tensor:
    """(B, N, D) float32: the normalised mean of the teacher's chosen layers.

    layers: each (B, prefix + N, D), in order of depth; the first `prefix` tokens (class, registers) are left out.
    pad: (B, prefix + N) bool, True = padding.
    """
    real = None if pad is None or cfg.count_padding else ~pad[:, prefix:]
    chosen = [layers[i] for i in cfg.indices] if cfg.indices else layers[-cfg.top_k :]
    normal: list[Tensor] = []
    for layer in chosen:
        x = layer[:, prefix:].float()
        for kind in cfg.per_layer:
            x = normalise(x, kind, real)
        normal.append(x)
    mean = functools.reduce(torch.add, normal) / len(normal)
    for kind in cfg.mean:
        mean = normalise(mean, kind, real)
    return mean


@torch.no_grad()
def mean_std(x: Tensor) -> Tensor:
    """(): the mean over dimensions of sqrt(unbiased variance over the rows + 1e-6), over the rows of all processes.

    x: (M, D). The official code calls it a variance.
    """
    x = x.float()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return torch.sqrt(x.var(0) + 1e-6).mean()
    count = torch.tensor(float(len(x)), device=x.device)
    total, squares = x.sum(0), x.square().sum(0)
    for value in (count, total, squares):
        torch.distributed.all_reduce(value)
    var = squares / (count - 1) - total.square() / (count * (count - 1))
    return torch.sqrt(var + 1e-6).mean()


def guard(target: Tensor, prediction: Tensor, updates: int, cfg: GuardConfig, where: str) -> None:
    """Stop a run whose targets or predictions no longer vary. target, prediction: () from `mean_std`."""
    if updates <= cfg.after:
        return
    for what, value, least in (
        ("targets", target, cfg.min_target_std),
        ("predictions", prediction, cfg.min_prediction_std),
    ):
        if float(value) < least:
            raise Collapsed(
                f"{where}: after {updates} updates the {what} have collapsed: their mean standard deviation is"
                f" {float(value):.4g}, below {least}",
                fix="go back to an earlier checkpoint and lower optim.lr, or lengthen loss.teacher.anneal",
            )
