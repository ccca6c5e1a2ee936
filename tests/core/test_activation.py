"""GELU in place of its input is GELU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from avssl.nn.activation import gelu, gelu_tanh


@pytest.mark.parametrize(("ours", "approximate"), [(gelu, "none"), (gelu_tanh, "tanh")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_only_without_a_gradient_is_the_input_overwritten(ours, approximate: str, dtype: torch.dtype):
    x = torch.randn(5, 7, dtype=dtype)
    wanted = F.gelu(x, approximate=approximate)

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ours(leaf).sum(), leaf)
    (wanted_slope,) = torch.autograd.grad(F.gelu(leaf, approximate=approximate).sum(), leaf)
    assert torch.equal(slope, wanted_slope) and torch.equal(leaf, x)

    with torch.inference_mode():
        out = ours(x)
    assert torch.equal(out, wanted) and out.data_ptr() == x.data_ptr()
