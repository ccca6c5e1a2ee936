"""Strided 1-D convolution with channels last, as matrix products on views of the input.

The waveform encoder spends half of a CPU training step in its convolutions. Channels last, the LayerNorm behind each
needs no transposition, and `stride` neighbouring frames lie next to each other in memory: the kernel's taps in groups
of `stride` are plain matrix products on views, forward and backward, without unfolding anything. CUDA has kernels of
its own, and keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def conv_last(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """x: (B, T, C), weight: (O, C, K). Returns (B, (T - K) // stride + 1, O), no padding; obeys autocast."""
    device = x.device.type
    if device != "cpu" or torch.compiler.is_compiling() or x.dtype == torch.float64:
        return F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    out = _ConvLast.apply(x.contiguous(), weight, stride)
    return out if bias is None else out + bias.to(out.dtype)


def taps_last(weight: Tensor) -> Tensor:
    """The same weight (O, C, K), laid out as `conv_last` reads it and in the type that autocast asks for: what each call
    would do, done once for many."""
    if torch.is_autocast_enabled(weight.device.type):
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)


def _groups(x: Tensor, kernel: int, stride: int, frames: int) -> Iterator[tuple[int, int, Tensor]]:
    """(first tap, taps, view) of each group of taps; view: (frames, taps * C), row t = the taps' frames of output t.

    x: (T, C), contiguous. Rows never overlap, since a group has at most `stride` taps: BLAS takes them as they are.
    """
    width = x.shape[1]
    for first in range(0, kernel, stride):
        taps = min(stride, kernel - first)
        size, step = (frames, taps * width), (stride * width, 1)
        yield first, taps, x.as_strided(size, step, x.storage_offset() + first * width)


def _flat(weight: Tensor) -> Tensor:
    """(O, C, K) -> (O, K * C): the columns of a group of taps lie next to each other."""
    return weight.permute(0, 2, 1).reshape(len(weight), -1)


class _ConvLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        kernel = weight.shape[2]
        frames = (x.shape[1] - kernel) // stride + 1
        if x.shape[2] == 1:  # few taps of one channel: unfolding costs nothing
            return x[..., 0].unfold(1, kernel, stride) @ weight[:, 0].t()
        out = x.new_empty(x.shape[0], frames, weight.shape[0])
        flat, width = _flat(weight), x.shape[2]
        for item, row in zip(x, out, strict=True):
            for first, taps, view in _groups(item, kernel, stride, frames):
                matrix = flat[:, first * width : (first + taps) * width].t()
                torch.mm(view, matrix, out=row) if first == 0 else row.addmm_(view, matrix)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        stride, kernel, frames = ctx.stride, weight.shape[2], grad.shape[1]
        grad = grad.contiguous()
        if x.shape[2] == 1:
            columns = x[..., 0].unfold(1, kernel, stride).reshape(-1, kernel)
            grad_weight = (grad.flatten(0, 1).t() @ columns)[:, None]
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = F.conv_transpose1d(grad.transpose(1, 2), weight, stride=stride)
                grad_x = F.pad(grad_x, (0, x.shape[1] - grad_x.shape[2])).transpose(1, 2)
            return grad_x, grad_weight, None
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        flat, width = _flat(weight), x.shape[2]
        grad_flat = torch.zeros(flat.shape, dtype=torch.float32)  # summed in float32, also under bf16
        for b in range(len(x)):
            for first, taps, view in _groups(x[b], kernel, stride, frames):
                columns = slice(first * width, (first + taps) * width)
                grad_flat[:, columns] += torch.mm(grad[b].t(), view)
            if grad_x is not None:
                for first, taps, view in _groups(grad_x[b], kernel, stride, frames):
                    view.addmm_(grad[b], flat[:, first * width : (first + taps) * width])
        grad_weight = grad_flat.view(len(weight), kernel, width).permute(0, 2, 1)
        return grad_x, grad_weight.to(weight.dtype), None
