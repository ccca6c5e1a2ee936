"""The convolutional decoder of data2vec 2.0: from kept tokens and noise to predictions at every place."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.nn.activation import gelu
from avssl_data2vec.config import DecoderConfig


class Decoder(nn.Module):
    """Grouped convolutions over time or over a plane, each with a LayerNorm without parameters and GELU, then linear.

    A layer adds its input where the widths agree: the first one only when the decoder is as wide as the model.
    """

    def __init__(self, dim: int, plane: bool, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        conv = nn.Conv2d if plane else nn.Conv1d
        widths = [dim] + [config.dim] * config.layers
        self.convs = nn.ModuleList(
            conv(a, b, config.kernel, padding=config.kernel // 2, groups=config.groups) for a, b in pairwise(widths)
        )
        parts: list[nn.Module] = []
        width = config.dim
        for i in range(0 if plane else config.projection_layers - 1):
            wider = int(width * config.projection_ratio) if i == 0 else width
            parts += [nn.Linear(width, wider), nn.GELU()]
            width = wider
        self.project = nn.Sequential(*parts, nn.Linear(width, dim))

    def forward(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x: (B, N, D), N = product of shape (time, or rows and columns). Returns (B, N, D)."""
        for conv in self.convs:
            y = conv(x.transpose(1, 2).unflatten(2, shape))
            y = y[(..., *(slice(0, n) for n in shape))].flatten(2).transpose(1, 2)  # an even kernel gives one too many
            y = gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if self.config.residual and x.shape == y.shape else y
        return self.project(x)


def with_noise(kept: Tensor, noise: Tensor, restore: Tensor) -> Tensor:
    """(B, N, D): the kept tokens at their places and noise at the others, in the order that `restore` says.

    kept: (B, K, D), noise: (B, N - K, D), restore: (B, N) indices into the two, one after the other.
    """
    both = torch.cat([kept, noise.to(kept.dtype)], dim=1)
    return both.gather(1, restore[..., None].expand(-1, -1, both.shape[-1]))
