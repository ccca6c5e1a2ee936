"""Log-mel, MFCC, log-spectrogram and raw segments, batched, with the numbers of librosa's defaults."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.errors import DataError

from .config import SoundConfig


class FrameFeatures(nn.Module):
    """(B, L) waveform -> (B, T, F) frames in dB (or samples), not standardised. F is `config.features`.

    Centred frames: T = 1 + L // hop; otherwise 1 + (L - n_fft) // hop. Periodic Hann window, |STFT|^power.
    Raw segments: T = ceil(L / segment), zeros at the end.
    """

    window: Tensor  # (n_fft,)
    bank: Tensor  # (n_fft/2 + 1, M)
    dct: Tensor  # (M, F)

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind == "raw":
            return
        self.register_buffer("window", torch.hann_window(config.n_fft, periodic=True), persistent=False)
        if config.kind != "spectrogram":
            self.register_buffer("bank", torch.from_numpy(mel_bank(config).T.copy()).float(), persistent=False)
        if config.kind == "mfcc":
            self.register_buffer(
                "dct",
                torch.from_numpy(dct_matrix(config.coefficients, config.n_mels).T.copy()).float(),
                persistent=False,
            )

    def frames(self, samples: Tensor) -> Tensor:
        """Frames of sounds of `samples` (any shape of int64)."""
        c = self.config
        if c.kind == "raw":
            return (samples + c.segment - 1) // c.segment
        return 1 + samples // c.hop if c.center else (1 + (samples - c.n_fft) // c.hop).clamp(min=0)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths: (B,) samples of each sound in a padded batch, so that each is reflected at its own end."""
        c = self.config
        with torch.autocast(wave.device.type, enabled=False):  # half precision would ruin the logarithm of quiet frames
            wave = wave.float()
            if c.kind == "raw":
                wave = F.pad(wave, (0, -wave.shape[-1] % c.segment))
                return wave.reshape(wave.shape[0], -1, c.segment)
            spectrum = torch.fft.rfft(self._cut(wave, lengths) * self.window)  # (B, T, n_fft/2 + 1)
            power = spectrum.real.square() + spectrum.imag.square()
            if c.power != 2.0:
                power = power.pow(c.power / 2)
            energy = power if c.kind == "spectrogram" else power @ self.bank
            out = 10 * energy.clamp_min(c.floor).log10()
            return out @ self.dct if c.kind == "mfcc" else out

    def _cut(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, T, n_fft) overlapping frames."""
        c = self.config
        least = c.n_fft // 2 + 1 if c.center else c.n_fft
        shortest = wave.shape[-1] if lengths is None else int(lengths.min())
        if shortest < least:
            raise DataError(
                f"a sound of {shortest} samples is shorter than one frame of {c.n_fft}",
                fix=f"give at least {1000 * least / c.rate:.0f} ms, or set frontend.seconds",
            )
        if c.center:
            wave = F.pad(wave, (c.n_fft // 2, c.n_fft // 2), mode="reflect")
            if lengths is not None:
                last = (lengths + c.n_fft // 2 - 1)[:, None]  # each sound's last sample; what follows mirrors it
                place = torch.arange(wave.shape[-1], device=wave.device)
                wave = wave.gather(1, torch.where(place > last, 2 * last - place, place).clamp_min(0))
        if c.n_fft % c.hop:
            return wave.unfold(-1, c.n_fft, c.hop)
        # Equal to unfold; as reshapes it exports to ONNX without a table of one index per sample and frame.
        parts = c.n_fft // c.hop
        count = (wave.shape[-1] - c.n_fft) // c.hop + 1
        blocks = wave[:, : (count + parts - 1) * c.hop].reshape(wave.shape[0], count + parts - 1, c.hop)
        return torch.cat([blocks[:, i : i + count] for i in range(parts)], -1)


def standardised(x: Tensor, config: SoundConfig, pad: Tensor | None = None) -> Tensor:
    """Zero mean and unit deviation as `config.standardise` says; padded frames are left out and set to 0.

    x: (B, T, F); pad: (B, T) bool, True = padding. Population deviation, `eps` added to it.
    """
    if config.standardise == "fixed":
        out = (x - x.new_tensor(config.mean)) / x.new_tensor(config.std)
    elif config.standardise == "none":
        out = x
    else:
        dims = (1, 2) if config.standardise == "clip" else (1,)
        if pad is None:
            mean, std = x.mean(dims, keepdim=True), x.std(dims, keepdim=True, correction=0)
        else:
            keep = (~pad)[..., None].to(x.dtype)
            count = keep.sum(1, keepdim=True) * (x.shape[2] if len(dims) == 2 else 1)
            mean = (x * keep).sum(dims, keepdim=True) / count
            std = (((x - mean) * keep).square().sum(dims, keepdim=True) / count).sqrt()
        out = (x - mean) / (std + config.eps)
    return out if pad is None else out.masked_fill(pad[..., None], 0.0)


def mel_bank(config: SoundConfig) -> np.ndarray:
    """(n_mels, n_fft/2 + 1) float64 triangles on the Slaney or HTK mel scale, of unit area with norm "slaney"."""
    top = config.high or config.rate / 2
    edges = mel_to_hz(np.linspace(hz_to_mel(config.low, config), hz_to_mel(top, config), config.n_mels + 2), config)
    bins = np.linspace(0, config.rate / 2, config.n_fft // 2 + 1)
    width = np.diff(edges)
    ramps = edges[:, None] - bins
    bank = np.maximum(0, np.minimum(-ramps[:-2] / width[:-1, None], ramps[2:] / width[1:, None]))
    return bank * (2 / (edges[2:] - edges[:-2]))[:, None] if config.mel_norm == "slaney" else bank


# Slaney's scale: linear to 1 kHz (200/3 Hz per mel), then 27 steps per factor 6.4.
_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, math.log(6.4) / 27


def hz_to_mel(hz: float, config: SoundConfig) -> float:
    if config.mel_scale == "htk":
        return 2595 * math.log10(1 + hz / 700)
    return hz / _LINEAR if hz < _KNEE else _KNEE / _LINEAR + math.log(hz / _KNEE) / _STEP


def mel_to_hz(mel: np.ndarray, config: SoundConfig) -> np.ndarray:
    if config.mel_scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    knee = _KNEE / _LINEAR
    return np.where(mel < knee, mel * _LINEAR, _KNEE * np.exp(_STEP * (np.maximum(mel, knee) - knee)))


def dct_matrix(coefficients: int, bands: int) -> np.ndarray:
    """(coefficients, bands) float64 orthonormal DCT-II."""
    k, n = np.arange(coefficients)[:, None], np.arange(bands)
    out = np.cos(np.pi * k * (2 * n + 1) / (2 * bands)) * math.sqrt(2 / bands)
    out[0] /= math.sqrt(2)
    return out
