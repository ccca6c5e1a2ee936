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
from avssl.embedding.rows import looked_up
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
    """audio.x (B, T, F) normalised log-mel of a fixed number of frames, vision.x (B, 3, S, S) normalised colours; with
    `together` (B, K, T, F) and (B, K, 3, S, S), the K pictures of a clip and the window of sound around each.

    The waveform's own mean is not subtracted from all of it, as the authors do, but from what is used: every frame of
    the filter bank removes its own mean anyway.
    """

    modalities = frozenset({"audio", "vision"})
    fixed = frozenset({"audio"})  # every spectrogram has `frames` frames
    config: CavMaeFrontendConfig
    image_mean: Tensor  # (3, 1, 1)
    image_std: Tensor

    def __init__(self, config: CavMaeFrontendConfig) -> None:
        super().__init__(config)
        self.fbank = KaldiFbank(config.rate, config.mel_bins, "hann")
        self.extent = config.span or config.frames  # spectrogram frames of the whole clip
        self.decoded = self.extent if config.together else config.frames  # those that one item is cut from
        self.samples = self.fbank.size + (self.decoded - 1) * self.fbank.shift  # what they cover
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(3, 1, 1), persistent=False)

    # -- what to decode ---------------------------------------------------------------------------------------------
    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        """Training: a random window of longer sound and a random picture of it. Evaluation: the beginning, and the
        configured or middle picture."""
        c, row = self.config, self._measured(row)
        picture = c.picture if c.picture is not None else c.pictures // 2
        start = 0.0
        if rng is not None:
            picture = int(rng.integers(c.pictures))
            length, whole = row.seconds, self.clip_seconds
            if c.crop == "random" and length is not None and length > whole:
                start = float(rng.uniform(0, length - whole))
        partners = int(rng is not None and c.mixup > 0 and rng.random() < c.mixup)
        return self._request(row, picture, start, partners)

    def views(self, row: Row) -> Sequence[Request]:
        """One view for each picture (frame ensemble), where the row has more than one picture, or a window of sound
        for each (`span`)."""
        c, row = self.config, self._measured(row)
        pictures = "vision" in c.modalities and _several(row.parts.get("vision"))
        longer = row.seconds is None or row.seconds > self.seconds
        windows = c.span > c.frames and longer and "audio" in c.modalities and "audio" in row.parts
        if not c.ensemble or c.together or not (pictures or windows):
            return [self.plan(row, None)]
        return [self._request(row, i, 0.0, 0, f"frame {i}") for i in range(c.pictures)]

    @property
    def seconds(self) -> float:
        """Length of the sound that is decoded, which the position table fixes."""
        return self.samples / self.config.rate

    @property
    def clip_seconds(self) -> float:
        """Length of the part of a recording that an item is about."""
        return self.config.span * self.fbank.shift / self.config.rate if self.config.span else self.seconds

    def _measured(self, row: Row) -> Row:
        """With `span`, windows depend on a recording's length: its header tells it where the row does not."""
        known = not self.config.span or row.seconds is not None
        return row if known else looked_up(row, self.config.modalities)

    def _request(self, row: Row, picture: int, start: float, partners: int, view: str = "") -> Request:
        c = self.config
        parts: dict[str, Any] = {}
        if "audio" in c.modalities and "audio" in row.parts:
            offset = 0.0
            if c.span and not c.together:  # Sync: the window lies around the picture, inside the clip
                length = (row.seconds or self.clip_seconds) - start
                there = torch.tensor([self.fbank.frames(int(length * c.rate))])
                offset = laid(c.pictures, c.span, c.frames, there)[0, picture].item() * self.fbank.shift / c.rate
            parts["audio"] = AudioRequest(start + offset, self.seconds)
        if "vision" in c.modalities and "vision" in row.parts:
            parts["vision"] = self._frames(row, range(c.pictures) if c.together else (picture,), start)
        if not parts:
            has = ", ".join(row.parts) or "nothing"
            raise DataError(f"{row.id}: has no {' or '.join(c.modalities)} (it has {has})", fix="leave it out")
        return Request(parts, partners, view)

    def _frames(self, row: Row, pictures: Sequence[int], start: float) -> FramesRequest:
        source, count, seconds = row.parts["vision"], self.config.pictures, self.clip_seconds
        if not isinstance(source, str):
            return FramesRequest(indices=tuple(existing(source, i * len(source) // count) for i in pictures))
        # A still keeps its size, so that scaling gives the authors' numbers; a video is scaled while it is decoded.
        size = None if PurePath(source).suffix.lower() in IMAGE else self.config.image_size
        length = row.seconds
        if length is None:
            return FramesRequest(fractions=tuple(i / count for i in pictures), within=seconds, size=size)
        return FramesRequest(times=tuple(start + i / count * min(seconds, length - start) for i in pictures), size=size)

    # -- one item ---------------------------------------------------------------------------------------------------
    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """audio.x (1, L) samples at `rate`; vision.x (1, 3, S, S), or (1, K, 3, S, S) with `together`, in 0..255, uint8
        unless items are mixed."""
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
            raise DataError(
                f"{clip.id}: {len(wave)} samples of sound are less than one frame of {self.fbank.size}",
                fix="leave it out, or give a longer recording",
            )
        return wave

    def _picture(self, clip: Clip) -> np.ndarray:
        """(3, S, S) or (K, 3, S, S) uint8: short side to S, bicubic with antialiasing, then the centre."""
        part: Frames = clip.parts["vision"]
        size, count = self.config.image_size, self.config.pictures
        if not self.config.together:
            return fit(part.pixels[0], size)
        if len(part.pixels) == 1:  # a still stands for all pictures
            return np.repeat(fit(part.pixels[0], size)[None], count, axis=0)
        return np.stack([fit(picture, size) for picture in part.pixels])

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
            sound = batch.streams["audio"]
            mel = self.augmented(self.log_mel(sound), draw)
            streams["audio"] = Stream(self.windows(mel, sound.lengths) if self.config.together else mel)
        if "vision" in batch.streams:
            x = batch.streams["vision"].x
            streams["vision"] = Stream((x.float() / 255 - self.image_mean) / self.image_std)
        return batch.with_streams(**streams)

    def log_mel(self, sound: Stream) -> Tensor:
        """(B, L) samples -> (B, T, F), not normalised, T = frames or, with `together`, those of the clip; longer sound is
        cut, shorter padded with zeros."""
        mel = self.fbank(sound.x[:, : self.samples], None if sound.pad is None else sound.lengths)
        return torch.nn.functional.pad(mel, (0, 0, 0, self.decoded - mel.shape[1]))

    def windows(self, mel: Tensor, samples: Tensor) -> Tensor:
        """(B, extent, F) clips -> (B, K, frames, F): the window around each picture. samples: (B,) of each clip's sound,
        which says how long it is."""
        c = self.config
        starts = laid(c.pictures, self.extent, c.frames, self.fbank.frames(samples.to(mel.device)))
        at = starts[:, :, None] + torch.arange(c.frames, device=mel.device)  # (B, K, T)
        return mel[torch.arange(len(mel), device=mel.device)[:, None, None], at]

    def draw(self, seeds: Tensor) -> Augment:
        """SpecAug bands as torchaudio's FrequencyMasking and TimeMasking draw them, noise and roll; by item."""
        c = self.config
        rows = [self._draw_one(g) for g in generators(seeds, salt=3)]

        def stack(name: str, on: bool) -> Tensor | None:
            return torch.stack([row[name] for row in rows]) if on else None

        return Augment(
            stack("freq", c.freq_mask > 0),
            stack("time", c.time_mask > 0),
            stack("noise", c.noise),
            stack("roll", c.noise),
        )

    def _draw_one(self, g: torch.Generator) -> dict[str, Tensor]:
        c = self.config
        out = {}
        for name, widest, size in (("freq", c.freq_mask, c.mel_bins), ("time", c.time_mask, self.decoded)):
            if widest:
                width = torch.rand((), generator=g) * min(widest, size)
                low = torch.rand((), generator=g) * (size - width)
                out[name] = torch.stack([low.long(), low.long() + width.long()])
        if c.noise:
            scale = torch.rand((), generator=g) / 10
            out["noise"] = torch.rand(c.frames, c.mel_bins, generator=g) * scale  # not with `together`: see the config
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
        raise UsageError(
            "mixup and frontend.label_smoothing need class targets that can be mixed",
            fix="--set data.target=multi_hot, or frontend.mixup=0 and frontend.label_smoothing=0",
        )
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


def laid(pictures: int, span: int, window: int, there: Tensor) -> Tensor:
    """(B, pictures) int64: first frames of the windows of `window` frames around each of a clip's pictures, inside its
    `span` frames (official map_frame_to_spectrogram).

    there: (B,) frames that each recording has; one that is more than a tenth shorter than the span is laid out by its
    own length (the official windows would end in padding, or hold nothing else).
    """
    whole = torch.where(there < 0.9 * span, there.clamp(min=window), span)[:, None]  # (B, 1)
    middle = (torch.arange(pictures, device=there.device) * whole / pictures).round().long()
    return (middle - window // 2).clamp(min=0).minimum(whole - window)


def existing(files: Sequence[str], index: int) -> int:
    """The frame at `index`, or the nearest before it that exists (official randselect_img); 0 when none does. Frames
    without a name are in memory."""
    while index > 0 and files[index] and not os.path.exists(files[index]):
        index -= 1
    return index


def _several(source: Source | None) -> bool:
    """Whether a part has more than one picture: a video or several frames."""
    if source is None:
        return False
    return PurePath(source).suffix.lower() not in IMAGE if isinstance(source, str) else len(source) > 1


__all__ = ["Augment", "CavMaeFrontend", "existing", "fit", "laid", "mix_waves", "soft_targets"]
