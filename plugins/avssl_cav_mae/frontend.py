"""Sound to log-mel, frames to a picture (official src/dataloader.py), and the same for any folder of videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avssl.batch import Batch, Stream, generators
from avssl.builtin import IMAGE
from avssl.data.clip import AudioRequest, Clip, Frames, FramesRequest, Request, Row, Source, Waveform
from avssl.data.resample import mono, resample
from avssl.errors import DataError, UsageError
from avssl.frontend import Frontend
from avssl.nn.mel import KaldiFbank
from avssl_cav_mae.config import CavMaeFrontendConfig


@dataclass(frozen=True)
class Augment:
    """One draw of the spectrogram augmentations, a row per item; None where one is off."""

    freq_band: Tensor | None = None  # (B, 2) int64: bins [lo, hi) become 0 before normalisation
    time_band: Tensor | None = None  # (B, 2) int64: frames
    noise: Tensor | None = None  # (B, T, F): added after normalisation
    roll: Tensor | None = None  # (B,) int64: frames to roll by, after the noise


class CavMaeFrontend(Frontend):
    """audio.x (B, T, F) normalised log-mel of a fixed number of frames, vision.x (B, 3, S, S) normalised colours.

    The waveform's own mean is not subtracted from all of it, as the authors do, but from what is used: every frame of
    the filter bank removes its own mean anyway.
    """

    modalities = frozenset({"audio", "vision"})
    fixed = frozenset({"audio"})  # every spectrogram has `frames` frames
    config: CavMaeFrontendConfig

    def __init__(self, config: CavMaeFrontendConfig) -> None:
        super().__init__(config)
        self.fbank = KaldiFbank(config.rate, config.mel_bins, "hann")
        self.samples = self.fbank.size + (config.frames - 1) * self.fbank.shift  # what the frames cover
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(3, 1, 1), persistent=False)

    # -- what to decode ---------------------------------------------------------------------------------------------
    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        """Training: a random window of longer sound and a random picture of it. Evaluation: the beginning, and the
        configured or middle picture."""
        c = self.config
        picture = c.picture if c.picture is not None else c.pictures // 2
        start = 0.0
        if rng is not None:
            picture = int(rng.integers(c.pictures))
            length = row.seconds
            if c.crop == "random" and not c.span and length is not None and length > self.seconds:
                start = float(rng.uniform(0, length - self.seconds))
        partners = int(rng is not None and c.mixup > 0 and rng.random() < c.mixup)
        return self._request(row, picture, start, partners)

    def views(self, row: Row) -> Sequence[Request]:
        """One view for each picture (frame ensemble), where the row has more than one picture."""
        c = self.config
        if not c.ensemble or not _several(row.parts.get("vision")) or "vision" not in c.modalities:
            return [self.plan(row, None)]
        return [self._request(row, i, 0.0, 0, f"frame {i}") for i in range(c.pictures)]

    @property
    def seconds(self) -> float:
        """Length of the window of sound."""
        return self.samples / self.config.rate

    def _request(self, row: Row, picture: int, start: float, partners: int, view: str = "") -> Request:
        c = self.config
        whole = self.seconds
        offset = 0.0
        if c.span:  # Sync: the window lies around the picture, inside the clip
            shift = self.fbank.shift / c.rate
            whole = c.span * shift
            middle = round(picture * c.span / c.pictures)
            offset = min(max(middle - c.frames // 2, 0), c.span - c.frames) * shift
        parts: dict[str, Any] = {}
        if "audio" in c.modalities and "audio" in row.parts:
            parts["audio"] = AudioRequest(start + offset, self.seconds)
        if "vision" in c.modalities and "vision" in row.parts:
            parts["vision"] = self._frames(row, picture / c.pictures, picture, start, whole)
        if not parts:
            has = ", ".join(row.parts) or "nothing"
            raise DataError(f"{row.id}: has no {' or '.join(c.modalities)} (it has {has})", fix="leave it out")
        return Request(parts, partners, view)

    def _frames(self, row: Row, share: float, picture: int, start: float, seconds: float) -> FramesRequest:
        source = row.parts["vision"]
        if not isinstance(source, str):
            return FramesRequest(indices=(existing(source, picture * len(source) // self.config.pictures),))
        # A still keeps its size, so that scaling gives the authors' numbers; a video is scaled while it is decoded.
        size = None if PurePath(source).suffix.lower() in IMAGE else self.config.image_size
        length = row.seconds
        if length is None:
            return FramesRequest(fractions=(share,), within=seconds, size=size)
        return FramesRequest(times=(start + share * min(seconds, length - start),), size=size)

    # -- one item ---------------------------------------------------------------------------------------------------
    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """audio.x (1, L) samples at `rate`; vision.x (1, 3, S, S) in 0..255, uint8 unless items are mixed."""
        c, first = self.config, clips[0]
        weight = float(rng.beta(c.mixup_beta, c.mixup_beta)) if rng is not None and len(clips) > 1 else 1.0
        streams: dict[str, Stream] = {}
        if "audio" in first.parts:
            waves = [self._wave(clip) for clip in clips if "audio" in clip.parts]
            streams["audio"] = Stream(torch.from_numpy(mix_waves(waves, weight))[None])
        if "vision" in first.parts:
            pictures = [self._picture(clip) for clip in clips if "vision" in clip.parts]
            streams["vision"] = Stream(self._mixed(pictures, weight)[None])
        target = None
        if first.target is not None:
            smoothing = c.label_smoothing if rng is not None else 0.0
            target = Stream(torch.as_tensor(soft_targets([clip.target for clip in clips], weight, smoothing))[None])
        return Batch((first.id,), torch.tensor([first.seed], dtype=torch.int64), streams, target)

    def _wave(self, clip: Clip) -> np.ndarray:
        """(L,) float32, at most `samples` long. Raises DataError for less than one frame: silence is not invented."""
        part: Waveform = clip.parts["audio"]
        wave = resample(mono(part.samples), part.rate, self.config.rate)[: self.samples]
        if len(wave) < self.fbank.size:
            raise DataError(f"{clip.id}: {len(wave)} samples of sound are less than one frame of {self.fbank.size}",
                            fix="leave it out, or give a longer recording")
        return wave

    def _picture(self, clip: Clip) -> np.ndarray:
        """(3, S, S) uint8: short side to S, bicubic with antialiasing, then the centre."""
        part: Frames = clip.parts["vision"]
        return fit(part.pixels[0], self.config.image_size)

    def _mixed(self, pictures: Sequence[np.ndarray], weight: float) -> Tensor:
        if self.config.mixup == 0:
            return torch.from_numpy(pictures[0])
        first = torch.from_numpy(pictures[0]).float()  # normalising is linear: mixing before it gives the same
        return first if len(pictures) == 1 else first.mul(weight).add_(torch.from_numpy(pictures[1]), alpha=1 - weight)

    # -- a batch, on its device -------------------------------------------------------------------------------------
    def batch(self, batch: Batch) -> Batch:
        streams = {}
        if "audio" in batch.streams:
            draw = self.draw(batch.seeds) if self.training else Augment()
            streams["audio"] = Stream(self.augmented(self.log_mel(batch.streams["audio"]), draw))
        if "vision" in batch.streams:
            x = batch.streams["vision"].x
            streams["vision"] = Stream((x.float() / 255 - self.image_mean) / self.image_std)
        return batch.with_streams(**streams)

    def log_mel(self, sound: Stream) -> Tensor:
        """(B, L) samples -> (B, frames, F), not normalised; longer sound is cut, shorter padded with zeros."""
        mel = self.fbank(sound.x[:, : self.samples], None if sound.pad is None else sound.lengths)
        return torch.nn.functional.pad(mel, (0, 0, 0, self.config.frames - mel.shape[1]))

    def draw(self, seeds: Tensor) -> Augment:
        """SpecAug bands as torchaudio's FrequencyMasking and TimeMasking draw them, noise and roll; by item."""
        c = self.config
        rows = [self._draw_one(g) for g in generators(seeds, salt=3)]

        def stack(name: str, on: bool) -> Tensor | None:
            return torch.stack([row[name] for row in rows]) if on else None

        return Augment(stack("freq", c.freq_mask > 0), stack("time", c.time_mask > 0), stack("noise", c.noise),
                       stack("roll", c.noise))

    def _draw_one(self, g: torch.Generator) -> dict[str, Tensor]:
        c = self.config
        out = {}
        for name, widest, size in (("freq", c.freq_mask, c.mel_bins), ("time", c.time_mask, c.frames)):
            if widest:
                width = torch.rand((), generator=g) * min(widest, size)
                low = torch.rand((), generator=g) * (size - width)
                out[name] = torch.stack([low.long(), low.long() + width.long()])
        if c.noise:
            scale = torch.rand((), generator=g) / 10
            out["noise"] = torch.rand(c.frames, c.mel_bins, generator=g) * scale
            out["roll"] = torch.randint(-c.frames, c.frames, (), generator=g)
        return out

    def augmented(self, mel: Tensor, draw: Augment) -> Tensor:
        """(B, T, F) raw log-mel -> normalised, with the draw applied in the official order: bands to 0 before
        normalisation (so that they become what padding is), then noise, then the roll."""
        c, device = self.config, mel.device
        for band, axis in ((draw.freq_band, 2), (draw.time_band, 1)):
            if band is not None:
                low, high = band.to(device)[:, :, None].unbind(1)  # each (B, 1)
                at = torch.arange(mel.shape[axis], device=device)
                inside = (at >= low) & (at < high)
                mel = mel.masked_fill(inside[:, None, :] if axis == 2 else inside[:, :, None], 0.0)
        mel = (mel - c.mean) / c.std
        if draw.noise is not None:
            mel = mel + draw.noise.to(device)
        if draw.roll is not None:
            at = (torch.arange(mel.shape[1], device=device) - draw.roll.to(device)[:, None]) % mel.shape[1]
            mel = mel.gather(1, at[..., None].expand_as(mel))
        return mel


# -- the rules, as functions of plain values -----------------------------------------------------------------------
def mix_waves(waves: Sequence[np.ndarray], weight: float) -> np.ndarray:
    """(L,) float32 with mean 0: the only wave, or weight * first + (1 - weight) * second, the second cut or zero-padded
    to the first's length, each with its mean removed before."""
    first, *others = [wave - wave.mean(dtype=np.float64).astype(np.float32) for wave in waves]
    for second in others:
        mixed = weight * first
        n = min(len(first), len(second))
        mixed[:n] += (1 - weight) * second[:n]
        first = mixed - mixed.mean(dtype=np.float64).astype(np.float32)
    return np.ascontiguousarray(first, dtype=np.float32)


def soft_targets(targets: Sequence[Any], weight: float, smoothing: float) -> Any:
    """Multi-hot (C,) labels of one item, or of two that are mixed; other targets pass when nothing is to be done.

    One item: a floor of s/C, positives assigned 1 - s. Mixed: the floor plus weight * (1 - s) for the first's labels
    and (1 - weight) * (1 - s) for the second's, added up.
    """
    first = targets[0]
    if len(targets) == 1 and smoothing == 0:
        return first
    if np.ndim(first) != 1 or np.asarray(first).dtype.kind != "f":
        raise UsageError("mixup and frontend.label_smoothing need class targets that can be mixed",
                         fix="--set data.target=multi_hot, or frontend.mixup=0 and frontend.label_smoothing=0")
    floor = smoothing / len(first)
    if len(targets) == 1:
        return np.where(first > 0, np.float32(1 - smoothing), np.float32(floor)).astype(np.float32)
    mixed = floor + (1 - smoothing) * (weight * first + (1 - weight) * targets[1])
    return mixed.astype(np.float32)


def fit(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, size, size): short side to `size`, bicubic with antialiasing, then the centre."""
    height, width = pixels.shape[:2]
    if height <= width:
        new = (size, int(size * width / height))
    else:
        new = (int(size * height / width), size)
    if new != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize(new[::-1], Image.Resampling.BICUBIC))
    top, left = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size].transpose(2, 0, 1))


def existing(files: Sequence[str], index: int) -> int:
    """The frame at `index`, or the nearest before it that exists (official randselect_img); 0 when none does."""
    while index > 0 and not os.path.exists(files[index]):
        index -= 1
    return index


def _several(source: Source | None) -> bool:
    """Whether a part has more than one picture: a video or several frames."""
    if source is None:
        return False
    return PurePath(source).suffix.lower() not in IMAGE if isinstance(source, str) else len(source) > 1


__all__ = ["Augment", "CavMaeFrontend", "existing", "fit", "mix_waves", "soft_targets"]
