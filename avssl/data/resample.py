"""The one resampler and the one stereo policy; both are part of what a model was trained with."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

ZEROS = 6  # zero crossings of the sinc on each side, in periods of the lower rate
ROLLOFF = 0.99  # cut-off as a share of the lower Nyquist frequency
KERNEL_LIMIT = 4_000_000  # elements of a polyphase kernel; beyond it the taps are computed as they are needed
CANCELLED = 1e-6  # power of the mean of the channels over their mean power: -60 dB


def mono(samples: np.ndarray) -> np.ndarray:
    """(C, L) to (L,) float32: the mean of the channels."""
    return samples[0] if samples.shape[0] == 1 else samples.mean(axis=0, dtype=np.float32)


def cancels(samples: np.ndarray) -> bool:
    """Whether channels of (C, L) that are not silent cancel out in their mean (antiphase stereo)."""
    power = float(np.square(samples, dtype=np.float64).mean()) if samples.size else 0.0
    return power > 0 and float(np.square(mono(samples), dtype=np.float64).mean()) < CANCELLED * power


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """(..., L) float32 at `from_rate` Hz to (..., ceil(L * to_rate / from_rate)) float32 at `to_rate`.

    Band-limited sinc interpolation with a Hann window, 6 zero crossings, roll-off 0.99: the numbers of
    `torchaudio.functional.resample` with its defaults in float64. Deterministic. Rates without a useful common divisor
    (44,099 to 16,000, say) take the same taps one output at a time, in bounded memory.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"rates must be positive, not {from_rate} and {to_rate}")
    if from_rate == to_rate or samples.shape[-1] == 0:
        return np.ascontiguousarray(samples, dtype=np.float32)
    divisor = math.gcd(from_rate, to_rate)
    source, target = from_rate // divisor, to_rate // divisor
    width = math.ceil(ZEROS * source / (min(source, target) * ROLLOFF))
    if target * (2 * width + source) > KERNEL_LIMIT:
        return _direct(samples, source, target)
    import torch

    with torch.no_grad():
        return _polyphase(source, target)(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))).numpy()


@lru_cache(maxsize=32)
def _polyphase(source: int, target: int) -> Any:
    import torch
    from torchaudio.transforms import Resample

    # its own default computes the kernel in float32, where 11,025 to 16,000 Hz is off by 6e-5
    return Resample(source, target, lowpass_filter_width=ZEROS, rolloff=ROLLOFF, dtype=torch.float64).float()


def _direct(samples: np.ndarray, source: int, target: int) -> np.ndarray:
    """The same interpolation with taps computed for each output sample; memory is bounded by the block."""
    base = min(source, target) * ROLLOFF
    width = math.ceil(ZEROS * source / base)
    length = samples.shape[-1]
    total = -(-length * target // source)
    padded = np.pad(np.asarray(samples, np.float32), [(0, 0)] * (samples.ndim - 1) + [(width, width + 1)])
    out = np.empty((*samples.shape[:-1], total), np.float32)
    taps = np.arange(-width, width + 1)
    block = max(1, KERNEL_LIMIT // len(taps))
    for begin in range(0, total, block):
        n = np.arange(begin, min(begin + block, total), dtype=np.int64)
        whole, rest = np.divmod(n * source, target)
        t = np.clip((taps[None] - (rest / target)[:, None]) * (base / source), -ZEROS, ZEROS)  # in zero crossings
        weights = (np.sinc(t) * np.cos(t * (math.pi / ZEROS / 2)) ** 2 * (base / source)).astype(np.float32)
        windows = padded[..., (whole[:, None] + taps[None]) + width]
        out[..., begin : begin + len(n)] = (windows * weights).sum(-1)
    return out
