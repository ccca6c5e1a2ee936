"""Sound file to standardised frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from avssl.batch import Batch, Stream, item
from avssl.data.clip import AudioRequest, Clip, Request, Row, Waveform
from avssl.data.resample import mono, resample
from avssl.errors import DataError
from avssl.frontend import Frontend

from .augment import augment_wave, spec_augment
from .config import SoundConfig
from .features import FrameFeatures, standardised

if TYPE_CHECKING:
    from avssl.export.plan import SoundPlan


class SoundFrontend(Frontend):
    """Mono, resampled, cut or zero-padded to `seconds` (per item); frames and standardisation (batched).

    After `item`: audio.x (1, L) float32. After `batch`: audio.x (B, T, F). With mixup, `item` carries the partner's
    sound in stream "partner", which `batch` mixes in after standardisation and removes. What stays is "share" (B,), the
    share of the item itself, at least a half, and "other" (B,) or (B, C), the partner's target, for `avssl_tiny.loss`.
    """

    modalities = frozenset({"audio"})
    seconds_field = "seconds"
    config: SoundConfig

    def __init__(self, config: SoundConfig) -> None:
        super().__init__(config)
        self.extract = FrameFeatures(config)

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        """A random window of `seconds` in training, when the row says that it is longer; else the beginning."""
        seconds, start = self.config.seconds, 0.0
        if seconds and rng is not None and row.duration is not None and row.duration > seconds:
            start = float(rng.uniform(0, row.duration - seconds))
        mixing = rng is not None and self.config.mixup > 0
        return Request({"audio": AudioRequest(start=start, seconds=seconds or None)}, partners=int(mixing))

    def views(self, row: Row) -> Sequence[Request]:
        """Windows of `seconds` side by side; one for a clip of unknown or shorter length."""
        seconds = self.config.seconds
        if not seconds or row.duration is None or row.duration <= 1.5 * seconds:
            return [self.plan(row, None)]
        starts = [i * seconds for i in range(math.ceil(row.duration / seconds - 0.5))]
        return [Request({"audio": AudioRequest(s, seconds)}, view=f"{s:.1f}-{s + seconds:.1f} s") for s in starts]

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        clip = clips[0]
        wave = self._wave(clip, rng)
        if len(clips) == 1:
            return item(clip.id, clip.seed, clip.target, audio=torch.from_numpy(wave))
        assert rng is not None
        share = float(rng.beta(self.config.mixup, self.config.mixup))
        streams = {"partner": torch.from_numpy(self._wave(clips[1], rng)), "share": torch.tensor(max(share, 1 - share))}
        if clips[1].target is not None:
            streams["other"] = torch.as_tensor(clips[1].target)
        return item(clip.id, clip.seed, clip.target, audio=torch.from_numpy(wave), **streams)

    def _wave(self, clip: Clip, rng: np.random.Generator | None) -> np.ndarray:
        part = clip.parts.get("audio")
        if not isinstance(part, Waveform) or part.samples.shape[-1] == 0:
            raise DataError(f"{clip.id}: has no sound", fix="leave it out, or give a file with an audio track")
        wave = resample(mono(part.samples), part.rate, self.config.rate)
        if self.config.seconds:
            length = round(self.config.seconds * self.config.rate)
            wave = wave[:length] if len(wave) >= length else np.pad(wave, (0, length - len(wave)))
        return wave if rng is None else augment_wave(wave, self.config, rng)

    def batch(self, batch: Batch) -> Batch:
        frames, pad = self._frames(batch.need("audio"))
        if self.training:
            frames = spec_augment(frames, batch.seeds, self.config, pad)
        if "partner" in batch.streams:
            other, _ = self._frames(batch.streams["partner"])
            share = batch.streams["share"].x[:, None, None]
            frames = share * frames + (1 - share) * other
        streams = {k: v for k, v in batch.streams.items() if k != "partner"}
        return Batch(batch.ids, batch.seeds, {**streams, "audio": Stream(frames, pad)}, batch.targets)

    def _frames(self, stream: Stream) -> tuple[Tensor, Tensor | None]:
        lengths = None if stream.pad is None else stream.lengths
        frames = self.extract(stream.x, lengths)  # (B, T, F)
        pad = None
        if lengths is not None:
            pad = torch.arange(frames.shape[1], device=frames.device) >= self.extract.frames(lengths)[:, None]
        return standardised(frames, self.config, pad), pad

    def edge_plan(self) -> SoundPlan:
        """The tables of the evaluation path, for exporters that write their own front end."""
        from .edge import sound_plan

        return sound_plan(self.extract)
