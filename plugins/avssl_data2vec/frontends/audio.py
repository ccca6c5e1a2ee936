"""Waveforms for wav2vec-2.0-like encoders."""

from __future__ import annotations

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

_CROP = 101  # salt: the crop of an item is independent of its masks


class AudioFrontend(Frontend):
    """audio.x (B, L) mono samples at `rate`; unequal lengths are padded with 0 at the end and carry a pad mask."""

    modalities = frozenset({"audio"})
    config: AudioFrontendConfig

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        seconds = self.config.eval_seconds if rng is None else self.config.seconds
        start = 0.0
        length = row.end - (row.start or 0.0) if row.end is not None else row.duration
        if rng is not None and seconds is not None and length is not None and length > seconds:
            start = float(rng.uniform(0, length - seconds))
        elif rng is not None and seconds is not None and length is None:
            seconds = None  # decode it all: only then a random part can be chosen
        return Request({"audio": AudioRequest(start, seconds)})

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """Raises DataError for a clip that is too short or has no sound at all."""
        clip, c = clips[0], self.config
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
        if c.normalise:
            wave = (wave - wave.mean(dtype=np.float64)) / np.sqrt(wave.var(dtype=np.float64) + 1e-5)
        target = None if clip.target is None else Stream(torch.as_tensor(clip.target)[None])
        x = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))[None]
        return Batch((clip.id,), torch.tensor([clip.seed], dtype=torch.int64), {"audio": Stream(x)}, target)

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
