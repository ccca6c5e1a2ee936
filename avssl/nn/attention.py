"""The one place that decides how softmax(q k^T) v is computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(scale * q k^T + bias) v.

    q, k, v: (B, H, N, d); bias: broadcastable to (B, H, N, N), added after the scaling, -inf = never attend;
    scale: d^-0.5 by default; dropout on the weights (pass 0 at evaluation). Returns (B, H, N, d).
    On CPU the plain products are spelled out where they train faster than the fused kernel (see tests/benchmarks): in
    bf16, whose backward pass is several times slower fused, and with a bias that learns, for which torch has no fused
    kernel and looks for rows without any key in three further passes. Such rows do not occur here: an item is never
    all padding.
    """
    learns = torch.is_grad_enabled() and q.requires_grad
    if q.device.type == "cpu" and learns and (q.dtype == torch.bfloat16 or (bias is not None and bias.requires_grad)):
        weights = torch.matmul(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-2, -1))
        if bias is not None:
            weights = weights + bias
        weights = weights.softmax(-1)
        if dropout:
            weights = F.dropout(weights, dropout)
        return torch.matmul(weights, v)
    if bias is not None and bias.dtype != q.dtype:
        bias = bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def pad_bias(pad: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, N) bool padding mask -> (B, 1, 1, N) additive bias with -inf at padded keys; None stays None."""
    if pad is None:
        return None
    return torch.zeros(pad.shape, dtype=dtype, device=pad.device).masked_fill_(pad, float("-inf"))[:, None, None]
