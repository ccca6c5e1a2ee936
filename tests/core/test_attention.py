"""Both ways of computing attention are one function."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from avssl.nn.attention import attention


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_with_a_bias_that_learns_it_is_the_fused_kernel(padded: bool, scale: float | None):
    inputs = [torch.randn(2, 3, 7, 8, dtype=torch.float64) for _ in range(3)]
    bias = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    if padded:
        bias[1, :, :, 5:] = -torch.inf
    results = []
    for way in (attention, lambda q, k, v, b, scale: F.scaled_dot_product_attention(q, k, v, attn_mask=b, scale=scale)):
        leaves = [x.clone().requires_grad_() for x in (*inputs, bias)]
        out = way(*leaves, scale=scale)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for ours, fused in zip(*results, strict=True):
        torch.testing.assert_close(ours, fused)
