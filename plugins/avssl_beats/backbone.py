"""BEATs: bidirectional encoder over 16 x 16 patches of a log-mel spectrogram (arXiv:2212.09058, section 3.3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from avssl.backbone import Backbone, Features, Grid
from avssl.backbone import Layers as InnerStates
from avssl.batch import Batch
from avssl.errors import DataError
from avssl_beats.config import BeatsConfig
from avssl_beats.encoder import Layers, PositionConvolution
from avssl_beats.padding import patch_padding


class Beats(Backbone):
    """audio.x (B, T, F) normalised log-mel -> tokens (B, N, dim), N = (T // patch) * (F // patch), time-major:
    patch p = bands * t + k lies at step t and mel band k (low to high)."""

    modalities = frozenset({"audio"})
    config: BeatsConfig

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        c = config
        self.patch = nn.Conv2d(1, c.patch_dim, c.patch, stride=c.patch, bias=c.patch_bias)
        self.patch_norm = nn.LayerNorm(c.patch_dim)
        self.project = nn.Linear(c.patch_dim, c.dim) if c.patch_dim != c.dim else nn.Identity()
        self.input_dropout = nn.Dropout(c.input_dropout)
        self.dropout = nn.Dropout(c.dropout)
        self.position = PositionConvolution(c.dim, c.position_kernel, c.position_groups)
        self.norm = nn.LayerNorm(c.dim)
        self.layers = Layers(c)
        self.mask_token = nn.Parameter(torch.empty(c.dim).normal_(std=0.02)) if c.mask_token else None

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers.blocks)

    def depth_of(self, parameter: str) -> int:
        if parameter.startswith("layers.blocks."):
            return int(parameter.split(".")[2]) + 1
        return self.config.depth + 1 if self.config.pre_norm and parameter.startswith("norm.") else 0

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"audio": Grid(self._shape(batch), ("time", "frequency"))}

    def _shape(self, batch: Batch) -> tuple[int, int]:
        _, frames, mels = batch.need("audio").x.shape
        size = self.config.patch
        if frames < size or mels < size:
            raise DataError(
                f"{batch.ids[0]!r}: {frames} frames of {mels} bins hold no patch of {size} x {size}",
                fix=f"give at least {400 + 160 * (size - 1)} samples at 16 kHz",
            )
        return frames // size, mels // size

    def padding(self, batch: Batch) -> Tensor | None:
        """(B, N) bool, True = padded patch; None when nothing is padded."""
        pad = batch.need("audio").pad
        return None if pad is None else patch_padding(pad, self._shape(batch), self.config.patch, self.config.padding)

    def patches(self, batch: Batch) -> Tensor:
        """(B, N, dim) patch embeddings, before anything tells where they are."""
        x = self.patch(batch.need("audio").x[:, None])  # (B, patch_dim, steps, bands)
        return self.project(self.patch_norm(x.flatten(2).transpose(1, 2)))

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: InnerStates | None = None,
        only: Collection[str] | None = None,
    ) -> Features:
        if only is not None and "audio" not in only:
            return Features()
        grid, pad = self.grid(batch), self.padding(batch)
        x = self.patches(batch)
        if hide is not None:
            token = x.new_zeros(x.shape[-1]) if self.mask_token is None else self.mask_token.to(x.dtype)
            x = torch.where(hide["audio"].to(x.device)[..., None], token, x)
        kept = None if keep is None else keep["audio"].to(x.device)
        states: list[tuple[Tensor, Tensor]] | None = None if layers is None else []
        x, pad = self.encode(x, pad, kept, states)
        inner = {} if states is None else {"audio": [s[0 if layers == "blocks" else 1] for s in states]}
        return Features(
            tokens={"audio": x},
            pooled={"audio": pooled(x, pad)},
            grid=grid,
            layers=inner,
            pad={} if pad is None else {"audio": pad},
        )

    def encode(
        self,
        x: Tensor,
        pad: Tensor | None,
        kept: Tensor | None = None,
        states: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Patch embeddings (B, N, dim) -> encoded (B, N or K, dim) and their mask.

        kept: (B, K) indices of the patches to encode, in this order. With `kept_positions` "sequence" the positions
        are those among the kept patches: the paper does not say, and the public re-implementation does so.
        """
        placed = kept if self.config.kept_positions == "grid" else None
        x = self.input_dropout(x)
        if pad is not None:
            x = x.masked_fill(pad[..., None], 0.0)
        if placed is not None:  # the convolution sees the kept patches where they lie, zeros between them
            x = x + self.position(torch.zeros_like(x).scatter(1, _rows(placed, x), _gather(x, placed)))
        if kept is not None:
            x = _gather(x, kept)
            pad = None if pad is None else pad.gather(1, kept)
        if placed is None:
            x = x + self.position(x)
        x = x if self.config.pre_norm else self.norm(x)
        x = self.layers(self.dropout(x), pad, placed, states)
        return (self.norm(x) if self.config.pre_norm else x), pad


def pooled(x: Tensor, pad: Tensor | None) -> Tensor:
    """(B, N, D) -> (B, D): the mean over the patches that are not padding."""
    if pad is None:
        return x.mean(1)
    return x.masked_fill(pad[..., None], 0.0).sum(1) / (~pad).sum(1, keepdim=True)


def _rows(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _rows(index, x))
