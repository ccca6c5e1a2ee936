"""Attention biases that fall linearly with distance (ALiBi, arXiv:2108.12409), symmetric as data2vec 2.0 uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl_data2vec.config import AlibiConfig


def slopes(heads: int) -> list[float]:
    """2^(-8(h+1)/heads) for a power of two; else those of the power below, then every second of the power above."""
    if heads & (heads - 1) == 0:
        return [2.0 ** (-8 * (h + 1) / heads) for h in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


class Alibi(nn.Module):
    """Biases for tokens on a line or in a plane, with a learned scale of 0 or more (one, or per head, or per layer)."""

    slopes: Tensor  # (heads, 1, 1)

    def __init__(self, heads: int, layers: int, config: AlibiConfig) -> None:
        super().__init__()
        self.config = config
        shape = (layers if config.per_layer else 1, 1, heads if config.per_head else 1, 1, 1)
        self.scale = nn.Parameter(torch.full(shape, config.scale), requires_grad=config.learned_scale)
        self.register_buffer("slopes", torch.tensor(slopes(heads))[:, None, None], persistent=False)

    def forward(self, places: Tensor, keep: Tensor | None, prefix: int) -> Tensor:
        """Biases before the scale: (1, heads, N, N), or (B, heads, K, K) for kept tokens (B, K).

        places: (N, 1) or (N, 2) float positions of all tokens; `prefix` tokens before them attend without bias.
        """
        bias = self._distances(places[None] if keep is None else places[keep]) * -self.slopes
        return F.pad(bias, (prefix, 0, prefix, 0))

    def of_layer(self, bias: Tensor, layer: int) -> Tensor:
        """The biases of one layer, scaled."""
        return bias * self.scale.clamp(min=0)[layer if len(self.scale) > 1 else 0]

    def _distances(self, places: Tensor) -> Tensor:  # (B, N, 1 or 2) -> (B, 1, N, N)
        apart = places[:, :, None] - places[:, None]
        euclidean = self.config.distance == "euclidean" and places.shape[-1] > 1
        return (apart.square().sum(-1).sqrt() if euclidean else apart.abs().sum(-1))[:, None]
