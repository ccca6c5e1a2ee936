"""A convolutional start for the smallest encoders, after the Compact Convolutional Transformer (arXiv:2104.05704)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .config import TinyConfig

NORM_EPS = 1e-5  # of the BatchNorms


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2 over time and frequency, BatchNorm and ReLU; then the mean of each of a few bands.

    (B, T, F) -> (B, ceil(T / 2^n), bins * channels): shorter sequences of frames that know their surroundings. Padded
    frames are invisible to a clip, except in training, where BatchNorm counts them.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.bins = config.stem_bins
        widths = (1, *config.stem)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o, eps=NORM_EPS) for o in config.stem)

    def forward(self, x: Tensor, pad: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x: (B, T, F); pad: (B, T) bool. Returns the shorter frames and their padding."""
        x = x[:, None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
            if pad is not None:  # zeros again, as a convolution sees beyond the end of a clip on its own
                pad = pad[:, ::2]
                x = x.masked_fill(pad[:, None, :, None], 0.0)
        x = x.unflatten(3, (self.bins, -1)).mean(4)  # (B, C, T', bins)
        return x.permute(0, 2, 3, 1).flatten(2), pad
