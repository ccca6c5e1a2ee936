"""The mean and standard deviation a frontend should normalise with, measured on the data it will see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.data.clip import Limits, Row
from avssl.errors import DataError, UsageError


@dataclass
class Moments:
    """Running sums over values in float64, one of each for every channel."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """values: (C, N)."""
        values = values.double()
        self.count += values.shape[1]
        self.total = self.total + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    @property
    def mean(self) -> list[float]:
        return (torch.as_tensor(self.total) / self.count).tolist()

    @property
    def std(self) -> list[float]:
        variance = torch.as_tensor(self.squares) / self.count - (torch.as_tensor(self.total) / self.count) ** 2
        return variance.clamp_min(0).sqrt().tolist()


def pairs(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (mean, std) keys of a frontend's table: `mean` and `std`, `image_mean` and `image_std`, and the like."""
    found = [(key, key.replace("mean", "std")) for key in table if "mean" in key.split("_")]
    return [(mean, std) for mean, std in found if std in table]


def frontend_stats(
    recipe: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    stream: str = "audio",
    workers: int = 0,
    limits: Limits = Limits(),
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Mean and standard deviation of `stream` after the frontend, before its normalisation, over all items.

    A spectrogram (B, T, F) gives one number each, pictures (..., C, H, W) one for each channel. recipe: its plain
    tables. The frontend is built with mean 0 and with mean 1: the difference tells what it divides by besides std (one
    divides by twice the standard deviation), so that the result is in the units of its own config. Padding (masked, or
    whole spectrogram frames of exactly 0) does not count.
    Raises UsageError when the frontend has no such constants or normalises each item by itself.
    """
    from avssl.data.loader import evaluation_batches
    from avssl.model import build_frontend

    table = dict(recipe.get("frontend", {}))
    keys = pairs(table)
    if not keys:
        raise UsageError("this frontend has no mean and std to measure", fix="choose a recipe whose frontend has them")
    zero = build_frontend(_with(recipe, table, keys, 0.0), Path()).eval()
    one = build_frontend(_with(recipe, table, keys, 1.0), Path()).eval()
    moments, factor, done, channels = Moments(), 0.0, 0, 1
    for indices, _, batch in evaluation_batches(
        rows, zero, batch_size=8, workers=workers, modalities=[stream], views=False, limits=limits
    ):
        with torch.no_grad():
            x = zero(batch).need(stream)
            if not factor:
                factor = _factor(x.x, one(batch).need(stream).x)
        values = _values(x.x, x.pad) * factor
        channels = values.shape[0]
        moments.add(values)
        done += len(indices)
        if progress is not None:
            progress(done)
    if moments.count == 0:
        raise DataError(f"no item gives any {stream}", fix="`avssl data scan` shows what the files carry")
    many = [k for k in keys if isinstance(table[k[0]], (list, tuple))]
    single = [k for k in keys if k not in many]
    key = (many or keys)[0] if channels > 1 else (single or keys)[0]
    mean, std = moments.mean, moments.std
    return {
        "stream": stream,
        "mean_key": key[0],
        "std_key": key[1],
        "mean": mean if channels > 1 else mean[0],
        "std": std if channels > 1 else std[0],
        "items": done,
        "values": moments.count * channels,
    }


def _values(x: Tensor, pad: Tensor | None) -> Tensor:
    """(C, N): the channels of pictures, or all numbers of a spectrogram's frames that are not padding."""
    if x.ndim >= 4:
        return x.movedim(-3, 0).flatten(1)
    kept = x if pad is None or pad.shape != x.shape[:2] else x[~pad]
    frames = kept.reshape(-1, kept.shape[-1])
    return frames[(frames != 0).any(-1)].reshape(1, -1)


def _with(
    recipe: Mapping[str, Any], table: Mapping[str, Any], keys: Sequence[tuple[str, str]], mean: float
) -> dict[str, Any]:
    """The recipe with every mean at one value and every std at 1."""
    changed = dict(table)
    for mean_key, std_key in keys:
        for key, value in ((mean_key, mean), (std_key, 1.0)):
            changed[key] = [value] * max(1, len(table[key])) if isinstance(table[key], (list, tuple)) else value
    return {**recipe, "frontend": changed}


def _factor(at_zero: Tensor, at_one: Tensor) -> float:
    """What the frontend divides by besides std, from one batch at mean 0 and at mean 1."""
    steps = (at_zero - at_one).double()
    step = float(steps.median())
    if abs(step) < 1e-6:
        raise UsageError(
            "this frontend normalises each item by itself, there is nothing to measure",
            fix="choose its fixed normalisation first, with --set",
        )
    return 1.0 / step
