"""Small example files of the built-in modalities, for the conformance suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def audio(folder: Path, number: int) -> str:
    """Two seconds of a noisy tone, 16 kHz."""
    import soundfile

    rng = np.random.default_rng(number)
    time = np.arange(32_000) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * (220 + 110 * number) * time) + 0.05 * rng.standard_normal(len(time))
    path = folder / f"sample-{number}.wav"
    soundfile.write(path, wave.astype(np.float32), 16_000)
    return str(path)


def vision(folder: Path, number: int) -> str:
    """A coloured picture with structure."""
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    path = folder / f"sample-{number}.png"
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(path)
    return str(path)


def text(folder: Path, number: int) -> str:
    """A short sentence."""
    return ("a dog barks twice", "rain falls on a tin roof", "someone speaks slowly", "the crowd cheers")[number % 4]
