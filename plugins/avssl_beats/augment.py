"""SpecAugment (arXiv:1904.08779) of one normalised spectrogram; every draw from the item's own generator."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from avssl_beats.config import BeatsFrontendConfig


def spec_augment(mel: Tensor, length: int, cfg: BeatsFrontendConfig, rng: Generator) -> Tensor:
    """mel: (T, F), of which the first `length` frames are sound. Returns (T, F): warped in time, then masked with 0,
    the mean of normalised features."""
    mel = mel.clone()
    if cfg.time_warp:
        mel[:length] = time_warp(mel[:length], cfg.time_warp, rng)
    for _ in range(cfg.time_masks if cfg.time_mask else 0):
        start, end = _stretch(length, int(length * cfg.time_mask), rng)
        mel[start:end] = 0
    for _ in range(cfg.mel_masks if cfg.mel_mask else 0):
        start, end = _stretch(mel.shape[1], cfg.mel_mask, rng)
        mel[:, start:end] = 0
    return mel


def time_warp(mel: Tensor, window: int, rng: Generator) -> Tensor:
    """Move a random frame by up to `window` frames and stretch what lies on either side, bicubically. (T, F)."""
    frames, bins = mel.shape
    if frames <= 2 * window:
        return mel
    centre = _integer(window, frames - window, rng)
    moved = _integer(centre - window, centre + window, rng) + 1
    if moved >= frames:
        return mel

    def stretched(part: Tensor, size: int) -> Tensor:
        return F.interpolate(part[None, None], (size, bins), mode="bicubic", align_corners=False)[0, 0]

    return torch.cat([stretched(mel[:centre], moved), stretched(mel[centre:], frames - moved)])


def _stretch(size: int, most: int, rng: Generator) -> tuple[int, int]:
    """A random interval of 0 to `most` places among `size`."""
    width = _integer(0, min(most, size) + 1, rng)
    start = _integer(0, max(1, size - width + 1), rng)
    return start, start + width


def _integer(low: int, high: int, rng: Generator) -> int:
    return int(torch.randint(low, high, (), generator=rng))
