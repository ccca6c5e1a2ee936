"""The encoders of data2vec 2.0 (arXiv:2212.07525): a local encoder per modality before shared transformer blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch
from avssl.nn.activation import gelu
from avssl.nn.attention import pad_bias
from avssl.nn.drop import DropPath
from avssl_data2vec import masks
from avssl_data2vec.alibi import Alibi
from avssl_data2vec.audio import check_length, frame_pad
from avssl_data2vec.config import Audio2Config, Multi2Config, Text2Config, Vision2Config
from avssl_data2vec.modules import (
    Attention,
    ConvExtractor,
    ConvPositions,
    TokenEmbedding,
    bert_init,
    pool,
    scaled_gradient,
    skipped,
)
from avssl_data2vec.text import random_ids, token_ids
from avssl_data2vec.vision import images

_NOISE = 2  # salt of the seeds; the masks of fine-tuning have 0 and 1


class Block2(nn.Module):
    """Transformer block of data2vec 2.0; returns the output and the MLP's output, a target.

    Pre-norm as published loses the residual of the attention: the MLP's output takes its place, so that the block
    returns twice the MLP. `mend` keeps the residual.
    """

    def __init__(self, c: Multi2Config, drop_path: float) -> None:
        super().__init__()
        self.norm_first, self.mend = c.norm_first, c.mend_norm_first
        self.dropout, self.mlp_dropout, self.activation_dropout = c.dropout, c.mlp_dropout, c.activation_dropout
        self.norm1 = nn.LayerNorm(c.dim, eps=c.norm_eps, elementwise_affine=c.norm_affine)
        self.attn = Attention(c.dim, c.heads, c.attention_dropout)
        self.norm2 = nn.LayerNorm(c.dim, eps=c.norm_eps, elementwise_affine=c.norm_affine)
        self.fc1 = nn.Linear(c.dim, int(c.dim * c.mlp_ratio))
        self.fc2 = nn.Linear(int(c.dim * c.mlp_ratio), c.dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.norm_first:
            x = x + self.drop_path(self._drop(self.attn(self.norm1(x), bias), self.dropout))
            mlp = self._mlp(self.norm2(x))
            return (x if self.mend else mlp) + self.drop_path(self._drop(mlp, self.mlp_dropout)), mlp
        x = self.norm1(x + self.drop_path(self._drop(self.attn(x, bias), self.dropout)))
        mlp = self._mlp(x)
        return self.norm2(x + self.drop_path(self._drop(mlp, self.mlp_dropout))), mlp

    def _mlp(self, x: Tensor) -> Tensor:
        x = self._drop(gelu(self.fc1(x)), self.activation_dropout)
        return self._drop(self.fc2(x), self.activation_dropout)

    def _drop(self, x: Tensor, rate: float) -> Tensor:
        return F.dropout(x, rate) if rate and self.training else x


class Multi2(Backbone):
    """What the three modalities share. A subclass adds the local encoder and says where its tokens lie."""

    modality: ClassVar[str]
    local_parts: ClassVar[tuple[str, ...]]  # attributes that `local` needs

    def __init__(self, config: Multi2Config) -> None:
        super().__init__(config)
        c = config
        self.extra_tokens = nn.Parameter(torch.zeros(1, c.extra_tokens, c.dim)) if c.extra_tokens else None
        self.alibi = Alibi(c.heads, c.prenet_depth + c.depth, c.alibi) if c.alibi.use else None
        self.positions: nn.Module | None = None  # relative, from convolutions
        self.positions_norm: nn.Module | None = None
        self.positions_over_padding = True
        self.context_norm = self._norm() if not c.norm_first and self._has_context_norm() else None
        self.prenet = nn.ModuleList(Block2(c, r) for r in _rates(c.prenet_drop_path, c.prenet_depth))
        self.layers = nn.ModuleList(Block2(c, r) for r in _rates(c.drop_path, c.depth))
        self.norm = self._norm() if c.norm_first else None

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.config.dim, eps=self.config.norm_eps, elementwise_affine=self.config.norm_affine)

    def _has_context_norm(self) -> bool:
        return True

    def _init(self) -> None:
        self.apply(mae_init if self.config.mae_init else bert_init)
        if self.extra_tokens is not None:
            with torch.no_grad():
                self.extra_tokens[:, int(self.config.extra_tokens_zero) :].normal_()

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.prenet, *self.layers]

    def depth_of(self, parameter: str) -> int:
        """Layer-wise decay is for the blocks alone, as in the authors' fine-tuning: all else learns at the full rate."""
        return super().depth_of(parameter) or len(self.blocks) + 1

    def local(self, batch: Batch) -> Tensor:
        """(B, N, D) local features, before positions and masks: what a teacher may share with its student."""
        raise NotImplementedError

    def local_pad(self, batch: Batch) -> Tensor | None:
        """(B, N) bool padding of what `local` gives."""
        return None

    def places(self, tokens: int, device: torch.device) -> Tensor:
        """(N, 1 or 2) float: where the tokens lie, for the attention biases."""
        return torch.arange(tokens, dtype=torch.float32, device=device)[:, None]

    def absolute(self, x: Tensor) -> Tensor:
        """x plus fixed positions, where the modality has them."""
        return x

    def drop_local(self) -> None:
        """Leave out what `local` needs: from now on `forward` must be given local features."""
        for name in self.local_parts:
            setattr(self, name, None)

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
        clones: int = 1,
        hide_channels: Tensor | None = None,
        channels_first: bool = False,
    ) -> Features:
        """Extra tokens come first in tokens and layers; hide and keep do not count them.

        hide: hidden tokens become 0, or noise (`hidden_noise`). keep: (B * clones, K), the rows of an item's clones next to
        each other; the local features are computed once per item. local, pad: computed before, by this encoder or the
        student of a teacher. hide_channels: (B * clones, D) bool, channels set to 0, after the hidden tokens: where these are
        0 too, channels_first is the same.
        """
        c: Multi2Config = self.config
        if local is None:
            local, pad = self.local(batch), self.local_pad(batch)
        count = local.shape[1]
        x = self.absolute(local)
        if clones > 1:
            x = x.repeat_interleave(clones, 0)
            pad = None if pad is None else pad.repeat_interleave(clones, 0)
        index = None if keep is None else keep.get(self.modality)
        if hide is not None and self.modality in hide:
            x = self._hidden(x, hide[self.modality], batch.seeds)
        if hide_channels is not None:
            x = x.masked_fill(hide_channels[:, None], 0)
        if index is not None:
            rows = index[..., None].expand(-1, -1, c.dim)
            kept = x.gather(1, rows)
            if self.positions is not None:  # what is dropped must not be seen through the convolutions either
                kept = kept + self._relative(torch.zeros_like(x).scatter(1, rows, kept), pad).gather(1, rows)
            x, pad = kept, None if pad is None else pad.gather(1, index)
        elif self.positions is not None:
            x = x + self._relative(x, pad)
        alibi = None if self.alibi is None else self.alibi(self.places(count, x.device), index, c.extra_tokens)
        if self.extra_tokens is not None:
            x = torch.cat([self.extra_tokens.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
            pad = None if pad is None else F.pad(pad, (c.extra_tokens, 0))
        if self.context_norm is not None:
            x = self.context_norm(x)
        if self._has_context_norm():
            x = F.dropout(x, c.prenet_dropout, self.training) if c.prenet_dropout else x
        x, inner = self._blocks(x, pad_bias(pad, x.dtype), alibi, layers)
        if self.norm is not None:
            x = self.norm(x)
        name, extra = self.modality, c.extra_tokens
        return Features(
            tokens={name: x},
            pad={} if pad is None else {name: pad},
            grid={name: self._grid(count)},
            pooled={name: pool(x[:, extra:], None if pad is None else pad[:, extra:])},
            layers={name: inner} if layers else {},
        )

    def _blocks(
        self, x: Tensor, pad: Tensor | None, alibi: Tensor | None, layers: Layers | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Prenet, then shared blocks; the inner states of the latter."""
        c: Multi2Config = self.config
        inner: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            shared = i >= c.prenet_depth
            if i == c.prenet_depth and c.input_dropout:
                x = F.dropout(x, c.input_dropout, self.training)
            instead = skipped(x, block, c.layerdrop if shared else c.prenet_layerdrop) if self.training else None
            if instead is not None:
                x = instead
                continue
            bias = pad
            if self.alibi is not None and alibi is not None:
                own = self.alibi.of_layer(alibi, i)
                bias = own if pad is None else own + pad
            x, mlp = block(x, bias)
            if layers is not None and shared:
                inner.append(mlp if layers == "ffn" else x)
        return x, inner

    def _hidden(self, x: Tensor, hide: Tensor, seeds: Tensor) -> Tensor:
        """x (B, N, D) with zeros, or noise from the items' own seeds, in place of its hidden tokens."""
        c: Multi2Config = self.config
        if not c.hidden_noise:
            return x.masked_fill(hide[..., None], 0)
        rngs = masks.generators(seeds, _NOISE)
        noise = [rng.normal(0, c.hidden_noise, (n, c.dim)) for rng, n in zip(rngs, hide.sum(1).tolist(), strict=True)]
        return x.masked_scatter(hide[..., None], torch.from_numpy(np.concatenate(noise)).to(x))

    def _relative(self, x: Tensor, pad: Tensor | None) -> Tensor:
        assert self.positions is not None
        x = x if self.positions_norm is None else self.positions_norm(x)
        return self.positions(x, None if self.positions_over_padding else pad)

    def _grid(self, count: int) -> Grid:
        raise NotImplementedError


class AudioEncoder2(Multi2):
    """Waveform (B, L) -> extra tokens and frames at 50 Hz."""

    modalities: ClassVar[frozenset[str]] = frozenset({"audio"})
    modality = "audio"
    local_parts = ("extractor", "feature_norm", "project")

    def __init__(self, config: Audio2Config) -> None:
        super().__init__(config)
        c = config
        self.extractor = ConvExtractor(c.conv_layers, c.extractor)
        self.feature_norm = nn.LayerNorm(self.extractor.dim)
        self.project = nn.Linear(self.extractor.dim, c.dim)
        self.positions = ConvPositions(c.dim, c.positions_depth, c.positions_width, c.positions_groups)
        self.positions_norm = nn.LayerNorm(c.dim) if c.positions_norm else None
        self.positions_over_padding = c.positions_over_padding
        self._init()
        self.project.reset_parameters()

    def local(self, batch: Batch) -> Tensor:
        x = scaled_gradient(self.extractor, check_length(self.extractor, batch), self.config.local_grad)
        return self.project(self.feature_norm(x))

    def local_pad(self, batch: Batch) -> Tensor | None:
        return frame_pad(self.extractor, batch.need("audio"))

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"audio": self._grid(int(self.extractor.frames(batch.need("audio").x.shape[1])))}

    def _grid(self, count: int) -> Grid:
        return Grid((count,), ("time",), prefix=self.config.extra_tokens)


class VisionEncoder2(Multi2):
    """Image (B, 3, H, W) -> extra tokens and patches."""

    modalities: ClassVar[frozenset[str]] = frozenset({"vision"})
    modality = "vision"
    local_parts = ("patch", "project")
    sincos: Tensor | None  # (1, N, D)

    def __init__(self, config: Vision2Config) -> None:
        super().__init__(config)
        c = config
        self.side = c.image_size // c.patch
        self.patch = nn.Conv2d(c.channels, c.patch_dim or c.dim, c.patch, stride=c.patch)
        nn.init.xavier_uniform_(self.patch.weight.flatten(1))
        self.project = nn.Linear(c.patch_dim, c.dim) if c.patch_dim is not None and c.patch_dim != c.dim else None
        self._init()
        self.register_buffer("sincos", sincos_2d(self.side, c.dim)[None] if c.fixed_positions else None)

    def local(self, batch: Batch) -> Tensor:
        c: Vision2Config = self.config

        def patches(x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            return x if self.project is None else self.project(x)

        x = images(batch, c.channels, c.image_size, c.image_size)
        return scaled_gradient(patches, x, c.local_grad)

    def adapt(self, tensors: dict[str, Tensor], source: Vision2Config) -> dict[str, Tensor]:
        """Fixed positions of another image size are those of this one."""
        return {**tensors, "sincos": self.sincos} if "sincos" in tensors and self.sincos is not None else tensors

    def absolute(self, x: Tensor) -> Tensor:
        return x if self.sincos is None else x + self.sincos

    def places(self, tokens: int, device: torch.device) -> Tensor:
        at = torch.arange(tokens, device=device)
        return torch.stack([at // self.side, at % self.side], dim=1).float()

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"vision": self._grid(self.side**2)}

    def _grid(self, count: int) -> Grid:
        return Grid((self.side, self.side), ("y", "x"), prefix=self.config.extra_tokens)


class TextEncoder2(Multi2):
    """Token ids (B, N) -> extra tokens and tokens."""

    modalities: ClassVar[frozenset[str]] = frozenset({"text"})
    modality = "text"
    local_parts = ("embed",)

    def __init__(self, config: Text2Config) -> None:
        super().__init__(config)
        c = config
        self.embed = TokenEmbedding(
            c.vocabulary,
            c.dim,
            c.max_tokens,
            c.pad,
            positions=c.positions,
            norm=c.embedding_norm,
            scale=c.scale_embedding,
        )
        self._init()

    def _has_context_norm(self) -> bool:
        return self.config.prenet_depth > 0  # else the embedding's own norm is the last one

    def local(self, batch: Batch) -> Tensor:
        c: Text2Config = self.config
        ids, _ = token_ids(batch, c)

        def embed(ids: Tensor) -> Tensor:
            return F.dropout(self.embed(ids), c.embedding_dropout, self.training)

        return scaled_gradient(embed, ids, c.local_grad)

    def local_pad(self, batch: Batch) -> Tensor | None:
        return token_ids(batch, self.config)[1]

    def random_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) ids that may stand in for a token: neither special nor the mask."""
        return random_ids(self.config, rng, count)

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"text": self._grid(batch.need("text").x.shape[1])}

    def _grid(self, count: int) -> Grid:
        return Grid((count,), ("token",), prefix=self.config.extra_tokens)


def sincos_2d(side: int, dim: int) -> Tensor:
    """(side * side, dim) float32 positions as MAE computes them: sines and cosines of x, then of y, frequencies
    10000^(-4i/dim), in float64 before the cast."""
    rates = 10000.0 ** -(np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    y, x = np.divmod(np.arange(side * side), side)
    parts = []
    for place in (x, y):
        angle = place[:, None] * rates
        parts += [np.sin(angle), np.cos(angle)]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()


def _rates(ends: tuple[float, float], count: int) -> list[float]:
    return np.linspace(ends[0], ends[1], count).tolist()


def mae_init(module: nn.Module) -> None:
    """Xavier weights and zero biases of linear layers; use with `apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
