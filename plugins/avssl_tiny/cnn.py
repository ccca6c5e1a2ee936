"""The convolutional baseline: "the state-of-the-art MFCC-based CNN" in size, not in its authors' layout (unknown)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch
from avssl.errors import UsageError

from .backbone import normalised
from .config import TinyCnnConfig
from .cost import cnn_macs


class Block(nn.Sequential):
    """3x3 convolution, BatchNorm, ReLU, 2x2 max-pooling: halves time and frequency."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
        )


class TinyCnn(Backbone):
    """audio.x (B, T, F) coefficients -> pooled["audio"] (B, dense[-1]); tokens: (B, T/16, widths[-1]), time only.

    Padded frames are invisible to a clip, except in training, where the BatchNorm of the blocks counts them: train on one
    length.
    """

    modalities = frozenset({"audio"})
    config: TinyCnnConfig

    def __init__(self, config: TinyCnnConfig) -> None:
        super().__init__(config)
        if config.input_norm:
            self.input_norm = nn.BatchNorm1d(config.features, affine=False, momentum=None)  # None: plain average
        self.convolutions = nn.ModuleList(Block(i, o) for i, o in itertools.pairwise((1, *config.widths)))
        dense: list[nn.Module] = []
        for i, o in itertools.pairwise((config.widths[-1], *config.dense)):
            dense += [nn.Dropout(config.dropout), nn.Linear(i, o), nn.ReLU()]
        self.dense = nn.Sequential(*dense)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.convolutions)

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"audio": Grid((batch.need("audio").x.shape[1] >> len(self.convolutions),), ("time",))}

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: Layers | None = None,
        only: Collection[str] | None = None,
    ) -> Features:
        if hide or keep or layers:
            raise UsageError("the CNN has no tokens to hide, keep or look into", fix="use backbone.name=tiny")
        stream = batch.need("audio")
        x, pad = stream.x, stream.pad
        if self.config.input_norm:
            x = normalised(self.input_norm, stream)
        x = x[:, None]  # (B, 1, T, F)
        for block in self.convolutions:
            if pad is not None:  # what a convolution sees beyond the end of a clip on its own
                x = x.masked_fill(pad[:, None, :, None], 0.0)
            x = block(x)
            if pad is not None:  # pooling drops an incomplete pair of frames
                pad = pad[:, : 2 * x.shape[2]].unflatten(1, (-1, 2)).any(-1)
        tokens = x.mean(-1).transpose(1, 2)  # (B, T', C)
        if pad is None:
            average = tokens.mean(1)
        else:
            seen = (~pad)[..., None].to(x.dtype)
            average = (tokens * seen).sum(1) / seen.sum(1).clamp_min(1)
        return Features(
            tokens={"audio": tokens},
            pooled={"audio": self.dense(average)},
            pad={} if pad is None else {"audio": pad},
            grid=self.grid(batch),
        )

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of a clip of `frames` frames without the classifier."""
        return cnn_macs(self.config, frames)
