"""The waveform encoder of data2vec 1 (arXiv:2202.03555, Sec. 4.2), after wav2vec 2.0 (arXiv:2006.11477)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch, Stream
from avssl.errors import DataError, check
from avssl.nn.attention import pad_bias
from avssl_data2vec.config import AudioConfig
from avssl_data2vec.modules import (
    ConvExtractor,
    ConvPositions,
    WeightNormPositions,
    bert_init,
    blocks_of,
    pool,
    scaled_gradient,
    through,
)


def frame_pad(extractor: ConvExtractor, stream: Stream) -> Tensor | None:
    """(B, T) bool padding of the frames, from that of the samples; None stays None."""
    if stream.pad is None:
        return None
    count = extractor.frames(stream.lengths)
    frames = torch.arange(int(extractor.frames(stream.x.shape[1])), device=stream.x.device)
    return frames[None] >= count[:, None]


def check_length(extractor: ConvExtractor, batch: Batch) -> Tensor:
    """The (B, L) waveform. Raises DataError when an item is shorter than one window of the convolutions."""
    stream = batch.need("audio")
    # Plain numbers where nothing is padded: a traced graph (ONNX) cannot branch on a tensor's values.
    lengths = [stream.x.shape[1]] * len(batch) if stream.pad is None else stream.lengths.tolist()
    shortest = min(lengths)
    check(
        stream.x.ndim == 2,
        f"audio has the shape {tuple(stream.x.shape)}, not (items, samples)",
        fix="use the frontend of this backbone",
        error=DataError,
    )
    check(
        shortest >= extractor.window,
        f"{batch.ids[lengths.index(shortest)]!r} has {shortest} samples, one frame needs {extractor.window}",
        fix="leave out shorter clips, or set frontend.min_seconds",
        error=DataError,
    )
    return stream.x


class AudioEncoder(Backbone):
    """Waveform (B, L) -> frames (B, T, D) at 50 Hz: convolutions, positions from convolutions, transformer."""

    modalities: ClassVar[frozenset[str]] = frozenset({"audio"})

    def __init__(self, config: AudioConfig) -> None:
        super().__init__(config)
        c = config
        self.extractor = ConvExtractor(c.conv_layers, c.extractor, c.conv_bias)
        self.feature_norm = nn.LayerNorm(self.extractor.dim, eps=c.norm_eps)
        self.project = nn.Linear(self.extractor.dim, c.dim) if c.project else None
        self.mask_token = nn.Parameter(torch.rand(c.dim))
        self.positions = (
            ConvPositions(c.dim, c.positions_depth, c.positions_width, c.positions_groups)
            if c.positions_depth
            else WeightNormPositions(c.dim, c.positions_width, c.positions_groups)
        )
        self.layers = blocks_of(c)
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        self.layers.apply(bert_init)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"audio": Grid((int(self.extractor.frames(batch.need("audio").x.shape[1])),), ("time",))}

    def local(self, batch: Batch) -> Tensor:
        """(B, T, D) projected convolutional features: what a teacher may share with its student."""
        wave = check_length(self.extractor, batch)
        x = self.feature_norm(scaled_gradient(self.extractor, wave, self.config.feature_grad))
        return x if self.project is None else self.project(x)

    def local_pad(self, batch: Batch) -> Tensor | None:
        """(B, T) bool padding of the frames that `local` gives."""
        return frame_pad(self.extractor, batch.need("audio"))

    def drop_local(self) -> None:
        """Leave out what `local` needs: from now on `forward` must be given local features."""
        del self.extractor, self.feature_norm, self.project, self.mask_token

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: Layers | None = None,
        only: Collection[str] | None = None,
        *,
        local: Tensor | None = None,
        pad: Tensor | None = None,
        hide_channels: Tensor | None = None,
        channels_first: bool = False,
    ) -> Features:
        """local, pad: features and frame padding computed before, by this encoder or by the student of a teacher.
        hide_channels: (B, D) bool, channels set to 0 in all frames, after the hidden frames or before (channels_first).
        """
        c: AudioConfig = self.config
        if local is None:
            local, pad = self.local(batch), self.local_pad(batch)
        x = F.dropout(local, c.input_dropout, self.training) if c.input_dropout else local
        shown = None if hide_channels is None else ~hide_channels[:, None]
        if shown is not None and channels_first:
            x = x * shown
        if hide is not None and "audio" in hide:
            x = torch.where(hide["audio"][..., None], self.mask_token.to(x.dtype), x)
        if shown is not None and not channels_first:
            x = x * shown
        if pad is not None:
            x = x.masked_fill(pad[..., None], 0)
        index = None if keep is None else keep.get("audio")
        blind = None if c.positions_over_padding else pad
        if index is None:
            x = x + self.positions(x, blind)
        else:  # the others must not be seen through the convolutions either
            rows = index[..., None].expand(-1, -1, x.shape[-1])
            shown_only = torch.zeros_like(x).scatter(1, rows, x.gather(1, rows))
            x = x.gather(1, rows) + self.positions(shown_only, blind).gather(1, rows)
            pad = None if pad is None else pad.gather(1, index)
        if not c.norm_first:
            x = self.norm(x)
        x = F.dropout(x, c.dropout, self.training) if c.dropout else x
        x, inner = through(self.layers, x, pad_bias(pad, x.dtype), c.layerdrop, layers)
        if c.norm_first:
            x = self.norm(x)
        return Features(
            tokens={"audio": x},
            pooled={"audio": pool(x, pad)},
            pad={} if pad is None else {"audio": pad},
            grid={"audio": Grid((local.shape[1],), ("time",))},
            layers={"audio": inner} if layers else {},
        )
