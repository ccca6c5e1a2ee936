"""Small pictures and sounds as data URIs: what a page needs to be looked at and listened to without a network."""

from __future__ import annotations

import base64
import io
from itertools import pairwise

import numpy as np

PICTURE = 128  # pixels, long side of a thumbnail
STRIP = (112, 84)  # pixels, width and height of a spectrogram thumbnail
RATE = 16000  # Hz of the sounds on the page
WINDOW, HOP = 512, 160  # samples of a spectrogram thumbnail's transform
RANGE = 70.0  # dB shown below the loudest point

# Dark blue to cream through violet and coral; lightness rises evenly, so that it also reads in grey.
_ANCHORS = (
    (10, 14, 38),
    (44, 36, 98),
    (105, 50, 128),
    (172, 66, 120),
    (224, 101, 95),
    (246, 158, 92),
    (252, 214, 145),
    (254, 246, 222),
)


def _ramp() -> np.ndarray:
    anchors = np.asarray(_ANCHORS, dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    return (
        np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)], axis=1)
        .round()
        .astype(np.uint8)
    )


RAMP = _ramp()  # (256, 3) uint8


def colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(..., ) numbers -> (..., 3) uint8; `low` and below is the darkest, not-a-number too."""
    scaled = (np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12)
    return RAMP[(np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)]


def jpeg(pixels: np.ndarray, long_side: int | None = None, quality: int = 72) -> str:
    """(H, W, 3) uint8 -> data URI, scaled down to `long_side`."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    if long_side is not None:
        picture.thumbnail((long_side, long_side), Image.Resampling.BICUBIC)
    return _picture_uri(picture, "JPEG", quality=quality, optimize=True)


def png(pixels: np.ndarray, scale: int = 1) -> str:
    """(H, W, 3 or 4) uint8 -> lossless data URI, each pixel drawn `scale` times."""
    from PIL import Image

    return _picture_uri(Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)), "PNG", optimize=True)


def _picture_uri(picture, format: str, **options) -> str:  # type: ignore[no-untyped-def]
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return _uri(f"image/{format.lower()}", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def sound(wave: np.ndarray, rate: int) -> str:
    """(L,) float -> MP3 data URI: mono, 16 kHz, about 3 KB a second; every browser and phone plays it."""
    import soundfile

    wave = resampled(wave, rate)
    loudest = float(np.abs(wave).max(initial=0.0))
    buffer = io.BytesIO()
    soundfile.write(
        buffer, wave / max(1.0, loudest), RATE, format="MP3", compression_level=0.8, bitrate_mode="VARIABLE"
    )
    return _uri("audio/mpeg", buffer.getvalue())


def resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    """(L,) at `rate` Hz -> (L',) float32 at the page's rate."""
    from avssl.data.resample import resample

    return resample(np.asarray(wave, dtype=np.float32), rate, RATE)


def strip(wave: np.ndarray, rate: int, scale: int = 1) -> str:
    """(L,) float -> a small spectrogram as data URI: time to the right, pitch upwards on a mel-like scale."""
    from PIL import Image

    levels = _levels(resampled(wave, rate))
    top = float(levels.max())
    picture = Image.fromarray(colours(levels[::-1], top - RANGE, top))
    size = (STRIP[0] * scale, STRIP[1] * scale)
    return _picture_uri(picture.resize(size, Image.Resampling.BILINEAR), "JPEG", quality=78, optimize=True)


def _levels(wave: np.ndarray) -> np.ndarray:
    """(bands, frames) in dB."""
    if len(wave) < WINDOW:
        wave = np.pad(wave, (0, WINDOW - len(wave)))
    hop = max(HOP, len(wave) // (2 * STRIP[0]))
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), STRIP[1] + 1) / 2595) - 1)
    bins = np.clip((edges / (RATE / 2) * power.shape[1]).astype(int), 0, power.shape[1] - 1)
    bands = np.stack([power[:, a : max(a + 1, b)].mean(1) for a, b in pairwise(bins)])
    return 10 * np.log10(bands + 1e-10)
