"""Tensors in a frontend's units as pictures: spectrograms and frames, with what is hidden left transparent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avssl.report import media

GLOW = (255, 150, 64)
SIDE = 160  # pixels, at least, of the short side of a drawn picture


def drawn(modality: str, tensors: Mapping[str, np.ndarray], config: Any) -> dict[str, str] | None:
    """{name: data URI} of one item's "original", "masked", "reconstructed" (or any of them), drawn on one scale.

    Understood: (T, F) spectrograms, (3, H, W) or (K, 3, H, W) pictures (the middle one of K), (L,) and (1, L)
    waveforms; None for another shape. config: the frontend's, whose `image_mean` and `image_std` undo a normalisation.
    """
    original = np.asarray(tensors["original"], dtype=np.float32)
    if original.ndim == 4 and original.shape[1] == 3:
        return drawn(modality, {k: np.asarray(v)[len(v) // 2] for k, v in tensors.items()}, config)
    if original.ndim == 3 and original.shape[0] == 3:
        draw = _frame_drawer(original, config)
    elif original.ndim == 2 and original.shape[0] > 1:
        draw = _spectrogram_drawer(original)
    elif original.size > 1 and original.size == original.shape[-1]:
        draw = _wave_drawer(original.ravel())
    else:
        return None
    out = {}
    for name, value in tensors.items():
        value = np.asarray(value, dtype=np.float32).reshape(original.shape)
        hidden = hidden_of(original, value) if name == "masked" else None
        out[name] = media.png(*draw(value, hidden))
    return out


def hidden_of(original: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Where the masked version differs from the original, in the original's shape (any channel counts)."""
    differs = original != masked
    return differs.any(0, keepdims=True).repeat(3, 0) if original.ndim == 3 else differs


def _scale(height: int, width: int) -> int:
    return max(1, round(SIDE / min(height, width)))


def _frame_drawer(original: np.ndarray, config: Any) -> Any:
    """Undo the frontend's normalisation where its config states it, else stretch the original to the full range."""
    mean, std = (np.asarray(getattr(config, name, None) or (), np.float32) for name in ("image_mean", "image_std"))
    if mean.shape == std.shape == (3,):
        factor, offset = std[:, None, None], mean[:, None, None]
    else:
        low, high = float(original.min()), float(original.max())
        factor = np.full(1, 1 / max(high - low, 1e-12), np.float32)
        offset = -low * factor

    def draw(value: np.ndarray, hidden: np.ndarray | None) -> tuple[np.ndarray, int]:
        pixels = (np.clip(value * factor + offset, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        return _with_alpha(pixels, None if hidden is None else hidden[0]), _scale(*pixels.shape[:2])

    return draw


def _spectrogram_drawer(original: np.ndarray) -> Any:
    low, high = np.percentile(original, (1, 99.8))

    def draw(value: np.ndarray, hidden: np.ndarray | None) -> tuple[np.ndarray, int]:
        pixels = media.colours(value.T[::-1], float(low), float(high))  # time to the right, pitch upwards
        return _with_alpha(pixels, None if hidden is None else hidden.T[::-1]), _scale(*pixels.shape[:2])

    return draw


def _wave_drawer(original: np.ndarray, width: int = 480, height: int = 120) -> Any:
    top = max(float(np.abs(original).max()), 1e-12)

    def columns(value: np.ndarray) -> np.ndarray:
        return np.stack([value[a:b] for a, b in _cuts(len(value), min(width, len(value)))])

    def draw(value: np.ndarray, hidden: np.ndarray | None) -> tuple[np.ndarray, int]:
        parts = columns(value.ravel())
        y = np.linspace(1, -1, height)[:, None] * top
        inside = (y >= parts.min(1) - top / height) & (y <= parts.max(1) + top / height)
        pixels = np.where(inside[..., None], media.RAMP[150], 0).astype(np.uint8)
        shown = inside if hidden is None else inside & ~columns(hidden.ravel()).any(1)
        return _with_alpha(pixels, ~shown), 1

    return draw


def _cuts(length: int, parts: int) -> list[tuple[int, int]]:
    """Equal parts; what does not divide is left at the end."""
    step = length // parts
    return [(i * step, (i + 1) * step) for i in range(parts)]


def _with_alpha(pixels: np.ndarray, hidden: np.ndarray | None) -> np.ndarray:
    if hidden is None:
        return pixels
    return np.concatenate([pixels, np.where(hidden, 0, 255).astype(np.uint8)[..., None]], -1)


def under(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8, in grey, with a map (h, w) of numbers in [0, 1] glowing over it."""
    from PIL import Image

    height, width = picture.shape[:2]
    glow = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    share = 0.82 * np.clip(np.asarray(glow), 0, 1)[..., None] ** 1.5
    grey = 20 + 0.72 * picture.astype(np.float32).mean(-1, keepdims=True)
    return np.clip(grey * (1 - share) + np.asarray(GLOW, np.float32) * share, 0, 255).astype(np.uint8)


def rgb(x: np.ndarray, config: Any) -> np.ndarray | None:
    """The picture (H, W, 3) uint8 that an item's vision or audio tensor shows; None for another shape."""
    if x.ndim == 4 and x.shape[1] == 3:
        x = x[len(x) // 2]
    if x.ndim == 3 and x.shape[0] == 3:
        drawer = _frame_drawer(x, config)
    elif x.ndim == 2 and x.shape[0] > 1:
        drawer = _spectrogram_drawer(x)
    else:
        return None
    pixels, scale = drawer(x, None)
    return pixels.repeat(scale, 0).repeat(scale, 1)


__all__: Sequence[str] = ("drawn", "hidden_of", "rgb", "under")
