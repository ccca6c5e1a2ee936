"""The image encoder of data2vec 1 (arXiv:2202.03555, Sec. 4.1), after BEiT (arXiv:2106.08254)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch
from avssl.errors import DataError, check
from avssl_data2vec.config import VisionConfig
from avssl_data2vec.modules import ScaledBlock


def images(batch: Batch, channels: int, height: int, width: int) -> Tensor:
    """(B, C, H, W) pixels; a clip of one frame counts as an image. Raises DataError for any other size."""
    x = batch.need("vision").x
    if x.ndim == 5 and x.shape[1] == 1:
        x = x[:, 0]
    check(
        x.ndim == 4 and tuple(x.shape[1:]) == (channels, height, width),
        f"vision has the shape {tuple(x.shape)}, the model needs (items, {channels}, {height}, {width})",
        fix="set frontend.size to backbone.image_size, and one frame per item",
        error=DataError,
    )
    return x


class RelativePositions(nn.Module):
    """Attention biases by relative position on an h x w grid; the last three rows of the table serve the class token:
    class -> any, any -> class, class -> class."""

    def __init__(self, height: int, width: int, heads: int) -> None:
        super().__init__()
        rows = (2 * height - 1) * (2 * width - 1) + 3
        self.table = nn.Parameter(torch.zeros(rows, heads))
        self.register_buffer("index", relative_index(height, width), persistent=False)

    index: Tensor  # (1+N, 1+N)

    def forward(self, keep: Tensor | None = None) -> Tensor:
        """(1, heads, 1+N, 1+N), or (B, heads, 1+K, 1+K) for kept patches (B, K)."""
        index = self.index
        if keep is None:
            return self.table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)[None]
        place = F.pad(keep + 1, (1, 0))  # (B, 1+K), the class token first
        return self.table[index[place[:, :, None], place[:, None, :]]].permute(0, 3, 1, 2)


def relative_index(height: int, width: int) -> Tensor:
    """(1+N, 1+N) int64: the row of the bias table for each pair of tokens, the class token first."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    rows = (2 * height - 1) * (2 * width - 1) + 3
    index = torch.full((height * width + 1,) * 2, rows - 1)
    index[1:, 1:] = (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)
    index[0, 1:] = rows - 3
    index[1:, 0] = rows - 2
    return index


class VisionEncoder(Backbone):
    """Image (B, 3, H, W) -> class token and patches (B, 1+N, D): pre-norm transformer with relative positions."""

    modalities: ClassVar[frozenset[str]] = frozenset({"vision"})

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        c = config
        self.side = c.image_size // c.patch
        self.patch = nn.Conv2d(c.channels, c.dim, c.patch, stride=c.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.absolute = nn.Parameter(torch.zeros(1, 1 + self.side**2, c.dim)) if c.absolute_positions else None
        shared = c.positions in ("shared_relative", "both")
        self.relative = RelativePositions(self.side, self.side, c.heads) if shared else None
        rates = torch.linspace(0, c.drop_path, c.depth).tolist()
        self.layers = nn.ModuleList(
            ScaledBlock(
                c.dim,
                c.heads,
                c.ffn,
                eps=c.norm_eps,
                layer_scale=c.layer_scale,
                qkv_bias=c.qkv_bias,
                dropout=c.dropout,
                attention_dropout=c.attention_dropout,
                drop_path=rate,
                relative=RelativePositions(self.side, self.side, c.heads)
                if c.positions in ("relative", "both")
                else None,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        self._init()

    def _init(self) -> None:
        for parameter in (self.class_token, self.mask_token, self.absolute):
            if parameter is not None:
                _truncated(parameter)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                _truncated(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for depth, block in enumerate(self.layers, start=1):
                for name in ("attn.proj.weight", "fc2.weight"):
                    block.get_parameter(name).div_(math.sqrt(2 * depth))

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def adapt(self, tensors: dict[str, Tensor], source: VisionConfig) -> dict[str, Tensor]:
        """Resize tables of positions from another image size: bicubic in the plane, the class token keeps its rows."""
        side, old = self.side, source.image_size // source.patch
        if side == old:
            return tensors
        out = dict(tensors)
        for name, value in tensors.items():
            if name.endswith("relative.table"):
                out[name] = torch.cat([_resized(value[:-3], 2 * old - 1, 2 * side - 1), value[-3:]])
            elif name == "absolute":
                out[name] = torch.cat([value[:, :1], _resized(value[0, 1:], old, side)[None]], dim=1)
        return out

    def depth_of(self, parameter: str) -> int:
        """The shared bias table learns at the rate of the top, as BEiT assigns it."""
        return len(self.layers) + 1 if parameter == "relative.table" else super().depth_of(parameter)

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"vision": Grid((self.side, self.side), ("y", "x"), prefix=1)}

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: Layers | None = None,
        only: Collection[str] | None = None,
    ) -> Features:
        """hide and keep count patches: the class token is never hidden and always kept, and comes first."""
        c: VisionConfig = self.config
        x = self.patch(images(batch, c.channels, c.image_size, c.image_size)).flatten(2).transpose(1, 2)  # (B, N, D)
        if hide is not None and "vision" in hide:
            x = torch.where(hide["vision"][..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        if self.absolute is not None:
            x = x + self.absolute
        index = None if keep is None else keep.get("vision")
        if index is not None:
            x = x.gather(1, F.pad(index + 1, (1, 0))[..., None].expand(-1, -1, x.shape[-1]))
        x = F.dropout(x, c.dropout, self.training) if c.dropout else x
        bias = None if self.relative is None else self.relative(index)
        inner: list[Tensor] = []
        for block in self.layers:
            x, branch = block(x, bias, index)
            if layers is not None:
                inner.append(branch if layers == "ffn" else x)
        tokens = self.norm(x)
        pooled = (tokens if c.pooled_norm else x)[:, 1:].mean(1)
        return Features(
            tokens={"vision": tokens},
            pooled={"vision": pooled},
            grid=self.grid(batch),
            layers={"vision": inner} if layers else {},
        )


def _resized(table: Tensor, old: int, new: int) -> Tensor:
    """(old * old, C) -> (new * new, C)."""
    plane = table.T.reshape(1, -1, old, old)
    return F.interpolate(plane, size=(new, new), mode="bicubic", align_corners=True).flatten(2)[0].T.contiguous()


def _truncated(x: Tensor) -> None:
    """Normal of standard deviation 0.02, cut at one standard deviation: the official code passes a = -std, b = std."""
    nn.init.trunc_normal_(x, std=0.02, a=-0.02, b=0.02)
