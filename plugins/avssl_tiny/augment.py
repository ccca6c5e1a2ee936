"""Augmentations of section 3.4 of the specification [C]: on the waveform per item, on the frames per batch."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from avssl.batch import generators

from .config import SoundConfig
from .features import hz_to_mel, mel_to_hz


def augment_wave(wave: np.ndarray, config: SoundConfig, rng: np.random.Generator) -> np.ndarray:
    """wave (L,) float32 at `config.rate` -> (L,): stretch, pitch, circular shift, gain, equaliser, noise, in this order."""
    length = len(wave)
    if config.stretch:
        wave = _fit(stretch(wave, 1 + rng.uniform(-config.stretch, config.stretch)), length)
    if config.pitch:
        # Resampling by r raises the pitch by r and shortens by r; stretching undoes the shortening.
        ratio = 2 ** (rng.uniform(-config.pitch, config.pitch) / 12)
        wave = _fit(resample_by(stretch(wave, 1 / ratio), ratio), length)
    if config.shift:
        reach = int(config.shift * length)
        wave = np.roll(wave, int(rng.integers(-reach, reach + 1)))
    if config.gain_db:
        wave = wave * np.float32(10 ** (rng.uniform(-config.gain_db, config.gain_db) / 20))
    if config.equaliser_db:
        wave = equalise(wave, rng.standard_normal(4) * config.equaliser_db, config)
    if config.noise_snr is not None and rng.random() < config.noise_probability:
        level = float(np.sqrt(np.mean(np.square(wave)))) * 10 ** (-rng.uniform(*config.noise_snr) / 20)
        wave = wave + rng.standard_normal(len(wave), dtype=np.float32) * np.float32(level)
    return wave.astype(np.float32, copy=False)


def equalise(wave: np.ndarray, gains: np.ndarray, config: SoundConfig) -> np.ndarray:
    """A smooth filter, as another microphone or room: gains in dB at equal steps of the mel scale, lines between them."""
    from scipy import fft  # twice as fast here as torch's and numpy's

    factors = np.exp(_shares(len(wave), len(gains), config) @ (gains * (math.log(10) / 20)).astype(np.float32))
    return fft.irfft(fft.rfft(wave) * factors, len(wave))


@lru_cache(maxsize=4)  # clips of one length share it
def _shares(samples: int, count: int, config: SoundConfig) -> np.ndarray:
    """(samples/2 + 1, count) float32: what each of `count` gains contributes at each frequency of the transform."""
    mels = np.linspace(hz_to_mel(config.low, config), hz_to_mel(config.high or config.rate / 2, config), 64)
    hertz = np.fft.rfftfreq(samples, 1 / config.rate)
    place = np.interp(hertz, mel_to_hz(mels, config), np.linspace(0, count - 1, len(mels)))
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count))).astype(np.float32)


def stretch(wave: np.ndarray, tempo: float) -> np.ndarray:
    """Phase vocoder: `tempo` times faster, pitch unchanged; about len/tempo samples."""
    from torchaudio.functional import phase_vocoder

    n_fft, hop = 1024, 256
    x = torch.from_numpy(np.ascontiguousarray(wave))
    if len(x) <= n_fft // 2:  # shorter than one centred frame
        return wave
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(x, n_fft, hop, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * hop, n_fft // 2 + 1)[:, None]
    out = phase_vocoder(spectrum, tempo, advance)
    return torch.istft(out, n_fft, hop, window=window, length=round(len(x) / tempo)).numpy()


def resample_by(wave: np.ndarray, ratio: float) -> np.ndarray:
    """Read the wave `ratio` times faster (pitch and tempo), linear interpolation."""
    at = np.arange(0, len(wave) - 1, ratio)
    return np.interp(at, np.arange(len(wave)), wave).astype(np.float32)


def _fit(wave: np.ndarray, length: int) -> np.ndarray:
    return wave[:length] if len(wave) >= length else np.pad(wave, (0, length - len(wave)))


def spec_augment(frames: Tensor, seeds: Tensor, config: SoundConfig, pad: Tensor | None = None) -> Tensor:
    """(B, T, F) frames with masked times and frequencies set to their mean (arXiv:1904.08779).

    That is 0 where frames are standardised, else the mean of each feature over the clip; pad: (B, T) bool, left out of it.
    """
    if not config.time_masks and not config.frequency_masks:
        return frames
    hidden = torch.zeros(frames.shape, dtype=torch.bool)
    count, bins = frames.shape[1:]
    widest = int(config.time_mask_share * count / max(config.time_masks, 1))
    for row, generator in zip(hidden, generators(seeds, salt=0x5BEC), strict=True):
        for _ in range(config.time_masks):
            start, width = _span(count, widest, generator)
            row[start : start + width] = True
        for _ in range(config.frequency_masks):
            start, width = _span(bins, min(config.frequency_mask_bins, bins), generator)
            row[:, start : start + width] = True
    hidden = hidden.to(frames.device)
    if config.standardise != "none":
        return frames.masked_fill(hidden, 0.0)
    real = frames.new_ones(frames.shape[:2]) if pad is None else (~pad).to(frames.dtype)
    mean = (frames * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
    return torch.where(hidden, mean, frames)


def _span(size: int, widest: int, generator: torch.Generator) -> tuple[int, int]:
    width = int(torch.randint(widest + 1, (), generator=generator))
    return int(torch.randint(size - width + 1, (), generator=generator)), width
