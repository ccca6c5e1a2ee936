"""From a sound to the normalised log-mel spectrogram that BEATs reads (arXiv:2212.09058, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avssl.batch import Batch, Stream, generators
from avssl.batch import item as batch_of_one
from avssl.data.clip import AudioRequest, Clip, Request, Row, Waveform
from avssl.data.resample import mono, resample
from avssl.errors import UsageError
from avssl.frontend import Frontend
from avssl.nn.mel import KaldiFbank
from avssl_beats.augment import spec_augment
from avssl_beats.config import BeatsFrontendConfig
from avssl_beats.padding import frame_padding

SCALE = 2.0**15  # the statistics belong to samples in the range of int16
STEP_FRAMES = 16  # frames of a patch: the least that gives a token


class BeatsFrontend(Frontend):
    """item: audio.x (1, L) waveform at 16 kHz. batch: audio.x (B, T, 128), T = 1 + (L - 400) // 160, and pad (B, T).

    A clip shorter than one patch (2800 samples, 175 ms) is extended with silence, which then counts as sound: the
    authors' code fails there.
    """

    modalities = frozenset({"audio"})
    seconds_field = "seconds"
    config: BeatsFrontendConfig

    def __init__(self, config: BeatsFrontendConfig) -> None:
        super().__init__(config)
        self.fbank = KaldiFbank(config.rate, config.mels, "povey")
        self.shortest = self.fbank.size + self.fbank.shift * (STEP_FRAMES - 1)

    # -- what to decode --------------------------------------------------------------------------------------------
    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        seconds, length = self.config.seconds, _length(row)
        start = 0.0
        if rng is not None and seconds and length is not None and length > seconds:
            start = float(rng.uniform(0, length - seconds))
        partners = int(rng is not None and self.config.mixup > 0 and rng.random() < self.config.mixup)
        # An unknown length is decoded whole in training: `item` then chooses the excerpt.
        known = rng is None or length is not None
        return Request({"audio": AudioRequest(start, (seconds or None) if known else None)}, partners)

    def views(self, row: Row) -> Sequence[Request]:
        """One excerpt; or, with `window`, consecutive windows of a long recording, the last one ending with it."""
        window, length = self.config.window, _length(row)
        if window is None or length is None or length <= window:
            return [self.plan(row, None)]
        starts = [*np.arange(0, length - window, window).tolist(), length - window]
        return [Request({"audio": AudioRequest(s, window)}, view=f"{s:.1f}-{s + window:.1f} s") for s in starts]

    # -- one item, in a worker -------------------------------------------------------------------------------------
    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        wave, target = self._wave(clips[0], rng), clips[0].target
        if rng is not None and self.config.roll is not None:
            wave = self._rolled(wave, rng)
        if rng is not None and len(clips) > 1:
            wave, target = self._mixed(wave, target, clips[1], rng)
        if len(wave) < self.shortest:
            wave = np.pad(wave, (0, self.shortest - len(wave)))
        return batch_of_one(clips[0].id, clips[0].seed, target, audio=torch.from_numpy(np.ascontiguousarray(wave)))

    def _wave(self, clip: Clip, rng: np.random.Generator | None) -> np.ndarray:
        sound: Waveform = clip.parts["audio"]
        wave = resample(mono(sound.samples), sound.rate, self.config.rate)
        limit = self.config.seconds if not clip.view else self.config.window
        most = round(limit * self.config.rate) if limit else len(wave)
        spare = len(wave) - most
        start = int(rng.integers(spare + 1)) if rng is not None and spare > 0 else 0
        return wave[start : start + most]

    def _rolled(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        step = max(1, round(self.config.roll * self.config.rate)) if self.config.roll else 1
        return np.roll(wave, int(rng.integers(max(1, len(wave) // step))) * step)

    def _mixed(self, wave: np.ndarray, target: Any, partner: Clip, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """Waveforms and targets, mixed in the same proportion (arXiv:1710.09412). The item keeps its length."""
        share = np.float32(rng.beta(self.config.mixup_alpha, self.config.mixup_alpha))
        other = self._wave(partner, rng)[: len(wave)]
        mixed = share * wave
        mixed[: len(other)] += (1 - share) * other
        if target is None:
            return mixed, None
        if np.ndim(target) != 1:
            raise UsageError(
                "frontend.mixup mixes targets, and class indices do not mix",
                fix="--set data.target=multi_hot, or frontend.mixup=0",
            )
        return mixed, share * np.asarray(target, np.float32) + (1 - share) * np.asarray(partner.target, np.float32)

    # -- the batch, on the device ----------------------------------------------------------------------------------
    def batch(self, batch: Batch) -> Batch:
        audio = batch.need("audio")
        mel = self.normalise(self.fbank(audio.x * SCALE))
        c, pad = self.config, audio.pad
        if pad is not None:
            pad = frame_padding(pad, mel.shape[1], c.padding, self.fbank.size, self.fbank.shift)
        if self.training and (c.time_warp or c.time_mask or c.mel_mask):
            lengths = [mel.shape[1]] * len(batch) if pad is None else (~pad).sum(1).tolist()
            rows = zip(mel, lengths, generators(batch.seeds, salt=0x5BEC), strict=True)
            mel = torch.stack([spec_augment(x, n, c, g) for x, n, g in rows])
        return batch.with_streams(audio=Stream(mel, pad))

    def normalise(self, mel: Tensor) -> Tensor:
        """Log-mel energies to mean 0 and standard deviation 0.5 over the data whose statistics they are."""
        return (mel - self.config.mean) / (2 * self.config.std)


def _length(row: Row) -> float | None:
    """Seconds of a row's window, when they are known."""
    return None if row.seconds is None else max(0.0, row.seconds)
