"""Convolution over a sequence with channels last."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def conv_same(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """x: (B, T, C), weight: (O, C / groups, K). Returns (B, T, O), with zeros around x; obeys autocast.

    In two dimensions, (B, T, C) is already what a CPU's channels-last kernels want: nothing is transposed.
    """
    plane = weight[:, :, None]
    if not torch.compiler.is_exporting():  # an order in memory means nothing to ONNX, and other runtimes refuse it
        plane = plane.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x[:, None].permute(0, 3, 1, 2), plane, bias, padding=(0, weight.shape[2] // 2), groups=groups)
    return y.permute(0, 2, 3, 1)[:, 0, : x.shape[1]]  # an even kernel gives one too many
