"""Waveforms for wav2vec-2.0-like encoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from avssl.batch import Batch, Stream
from avssl.data.clip import AudioRequest, Clip, Request, Row, Waveform
from avssl.data.resample import mono, resample
from avssl.errors import DataError, check
from avssl.frontend import Frontend
from avssl_data2vec.frontends.configs import AudioFrontendConfig
from avssl_data2vec.masks import generators

EPS = 1e-5  # beside the variance
_CROP = 101  # salt: the crop of an item is independent of its masks


class AudioFrontend(Frontend):
    """audio.x (B, L) mono samples at `rate`; unequal lengths are padded with 0 at the end and carry a pad mask."""

    modalities = frozenset({"audio"})
    seconds_field = "eval_seconds"
    config: AudioFrontendConfig

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        seconds = self.config.eval_seconds if rng is None else self.config.seconds
        start = 0.0
        length = row.end - (row.start or 0.0) if row.end is not None else row.duration
        if rng is not None and seconds is not None and length is not None and length > seconds:
            start = float(rng.uniform(0, length - seconds))
        elif rng is not None and seconds is not None and length is None:
            seconds = None  # decode it all: only then a random part can be chosen
        partners = int(rng is not None and self.config.mixup is not None)
        return Request({"audio": AudioRequest(start, seconds)}, partners)

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """Raises DataError for a clip that is too short or has no sound at all."""
        clip = clips[0]
        wave, target = self._wave(clip, rng), clip.target
        if rng is not None and len(clips) > 1:
            wave, target = self._mixed(wave, clips, rng)
        targets = None if target is None else Stream(torch.as_tensor(target)[None])
        x = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))[None]
        return Batch((clip.id,), torch.tensor([clip.seed], dtype=torch.int64), {"audio": Stream(x)}, targets)

    def _mixed(
        self, wave: np.ndarray, clips: Sequence[Clip], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """A share r of the first clip and 1 - r of the second, at the loudness of one; targets likewise.

        The second is cut or padded with silence to the first one's length. The official code draws one r for a batch,
        this one an r for each item.
        """
        c, first, second = self.config, clips[0], clips[1]
        other = self._wave(second, rng)[: len(wave)]
        other = np.pad(other, (0, len(wave) - len(other)))
        share = float(rng.uniform(max(1e-6, c.mixup or 0.0), 1))
        mixed = (share * wave + (1 - share) * other) / math.sqrt(share**2 + (1 - share) ** 2)
        if first.target is None:
            return mixed, None
        for clip in clips[:2]:
            check(
                np.ndim(clip.target) == 1,
                f"{clip.id}: sounds are mixed, but the target is no vector over the classes",
                fix="--set data.target=multi_hot",
                error=DataError,
            )
        return mixed, (share * np.asarray(first.target) + (1 - share) * np.asarray(second.target)).astype(np.float32)

    def _wave(self, clip: Clip, rng: np.random.Generator | None) -> np.ndarray:
        """(L,) float32 at `rate`, cropped and normalised."""
        c = self.config
        part: Waveform = clip.parts["audio"]
        wave = np.asarray(resample(mono(part.samples), part.rate, c.rate), dtype=np.float32)
        limit = c.eval_seconds if rng is None else c.seconds
        if limit is not None and len(wave) > round(limit * c.rate):
            most = round(limit * c.rate)
            first = 0 if rng is None else int(rng.integers(len(wave) - most, endpoint=True))
            wave = wave[first : first + most]
        least = max(1, round(c.min_seconds * c.rate))
        check(
            len(wave) >= least,
            f"{clip.id} lasts {len(wave) / c.rate:.3g} s, less than {c.min_seconds} s",
            fix="leave it out, or lower frontend.min_seconds",
            error=DataError,
        )
        return self._scaled(wave)

    def _scaled(self, wave: np.ndarray) -> np.ndarray:
        if self.config.normalise:
            wave = (wave - wave.mean(dtype=np.float64)) / np.sqrt(wave.var(dtype=np.float64) + EPS)
        return wave

    def portable(self) -> AudioFrontend:
        return PortableAudioFrontend(self.config).eval() if self.config.normalise else self

    def batch(self, batch: Batch) -> Batch:
        stream = batch.streams.get("audio")
        if not self.training or self.config.crop != "shortest" or stream is None or stream.pad is None:
            return batch
        lengths = stream.lengths.tolist()
        least = min(lengths)
        starts = [
            int(rng.integers(n - least, endpoint=True))
            for n, rng in zip(lengths, generators(batch.seeds, _CROP), strict=True)
        ]
        rows = [x[s : s + least] for x, s in zip(stream.x, starts, strict=True)]
        return batch.with_streams(audio=Stream(torch.stack(rows)))


class PortableAudioFrontend(AudioFrontend):
    """At evaluation the same, but the clips are normalised in `batch`, in float32. Training mixes and crops normalised
    clips: its numbers are `AudioFrontend`'s."""

    def portable(self) -> AudioFrontend:
        return self

    def _scaled(self, wave: np.ndarray) -> np.ndarray:
        return wave

    def batch(self, batch: Batch) -> Batch:
        stream = batch.need("audio")
        if stream.pad is None:
            variance, mean = torch.var_mean(stream.x, 1, correction=0, keepdim=True)
            return batch.with_streams(audio=Stream((stream.x - mean) / (variance + EPS).sqrt()))
        there, count = ~stream.pad, stream.lengths[:, None]
        centred = (stream.x - (stream.x * there).sum(1, keepdim=True) / count) * there
        variance = centred.square().sum(1, keepdim=True) / count
        return batch.with_streams(audio=Stream(centred / (variance + EPS).sqrt(), stream.pad))
