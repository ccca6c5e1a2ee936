"""Transformer layers with a gated relative position bias, shared by the encoder, the estimator and the label predictor.

BEATs (arXiv:2212.09058) takes them from WavLM (arXiv:2110.13900, section III-B) with deep norm (arXiv:2203.00555).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.nn.activation import gelu, gelu_tanh
from avssl.nn.attention import attention, pad_bias
from avssl.nn.convolution import conv_same

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "relu": F.relu,
    "tanh": torch.tanh,
    "linear": lambda x: x,
    "glu": lambda x: x,  # the gate is in the first linear layer
}


def lowered(x: Tensor) -> Tensor:
    """x in the type that autocast would give it, where it is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision raised to float32, for sums and logarithms; anything wider as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GatedLinear(nn.Module):
    """left * swish(right) of a linear layer of twice the width."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.linear(x).chunk(2, -1)
        return left * F.silu(right)


class RelativeBias(nn.Module):
    """One table for all layers: a scalar per head and bucket of the distance between two patches of the sequence."""

    def __init__(self, heads: int, buckets: int, max_distance: int) -> None:
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.table = nn.Embedding(buckets, heads)

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of key index - query index: near distances have their own, far ones share, logarithmically (T5)."""
        half = self.buckets // 2
        exact = half // 2
        far = distance.abs()
        # float32 whatever the model's dtype: the edges of the buckets are rounded there
        large = torch.log(far.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (half - exact)
        large = (exact + large.long()).clamp(0, half - 1)
        return (distance > 0) * half + torch.where(far < exact, far, large)

    def forward(self, count: int, places: Tensor | None = None) -> Tensor:
        """(1, H, N, N) for `count` consecutive patches, or (B, H, N, N) for patches at `places` (B, N)."""
        if places is not None:
            distance = places[:, None, :] - places[:, :, None]  # (B, query, key)
            return self.table(self.bucket(distance)).permute(0, 3, 1, 2)
        reach = torch.arange(1 - count, count, device=self.table.weight.device)
        line = self.table(self.bucket(reach)).t()  # (H, 2N - 1): all that N x N entries can be
        # `flip` keeps the order in memory, heads innermost; every layer would then read across rows, five times slower.
        return line.unfold(1, count, 1).flip(1).contiguous()[None]


class GatedAttention(nn.Module):
    """Multi-head self-attention whose relative bias each query scales by its own gate."""

    def __init__(self, dim: int, heads: int, gated: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout, self.gated = heads, dropout, gated
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        if gated:
            self.gate = nn.Linear(dim // heads, 8)
            self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor | None, pad: Tensor | None) -> Tensor:
        """x: (B, N, D); bias: (1 or B, H, N, N) not gated; pad: (B, N) bool. Returns (B, N, D)."""
        x = lowered(x)  # once for the three
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        gate = None
        if bias is not None and self.gated:
            reset, update = torch.sigmoid(self.gate(q).unflatten(-1, (2, 4)).sum(-1)).chunk(2, -1)  # (B, H, N, 1)
            gate = (reset * (update * self.gate_scale - 1.0) + 2.0).to(q.dtype)
        # Not where gradients or a graph are wanted: a traced loop would fix the batch size.
        eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
        if bias is not None and gate is not None and x.device.type == "cpu" and eager:
            y = self._one_by_one(q, k, v, gate, bias, pad)
        else:
            bias = bias if bias is None or gate is None else gate * bias
            if pad is not None:
                bias = pad_bias(pad, q.dtype) if bias is None else bias.masked_fill(pad[:, None, None], -torch.inf)
            y = attention(q, k, v, bias, dropout=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))

    def _one_by_one(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, bias: Tensor, pad: Tensor | None) -> Tensor:
        """The same item by item, with one gated bias (1, H, N, N) in memory instead of B: on a CPU, fresh memory for
        all of them costs more than the product itself."""
        scratch = q.new_empty(1, q.shape[1], q.shape[2], k.shape[2])
        out = torch.empty_like(v)
        for i in range(len(q)):
            row = slice(i, i + 1)
            torch.mul(gate[row], bias[row] if len(bias) > 1 else bias, out=scratch)
            if pad is not None:
                scratch.masked_fill_(pad[row, None, None], -torch.inf)
            out[row] = attention(q[row], k[row], v[row], scratch)
        return out


class Layer(nn.Module):
    """Post-norm (with deep norm's residual scale) or pre-norm transformer layer."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.pre_norm = cfg.pre_norm
        self.scale = (2 * cfg.depth) ** 0.25 if cfg.deep_norm else 1.0
        self.attention = GatedAttention(cfg.dim, cfg.heads, cfg.gated, cfg.attention_dropout)
        self.norm1 = nn.LayerNorm(cfg.dim)
        self.fc1 = GatedLinear(cfg.dim, cfg.ffn) if cfg.activation == "glu" else nn.Linear(cfg.dim, cfg.ffn)
        self.fc2 = nn.Linear(cfg.ffn, cfg.dim)
        self.norm2 = nn.LayerNorm(cfg.dim)
        self.activation = ACTIVATIONS[cfg.activation]
        self.dropout = nn.Dropout(cfg.dropout)
        self.activation_dropout = nn.Dropout(cfg.activation_dropout)

    def forward(self, x: Tensor, bias: Tensor | None, pad: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> the layer's output, and its feed-forward part before the residual."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.norm1(x), bias, pad))
            inner = self.feed(self.norm2(x))
            return x + self.dropout(inner), inner
        x = self.norm1(torch.add(self.dropout(self.attention(x, bias, pad)), x, alpha=self.scale))
        inner = self.feed(x)
        return self.norm2(torch.add(self.dropout(inner), x, alpha=self.scale)), inner

    def feed(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_dropout(self.activation(self.fc1(x))))


class Layers(nn.Module):
    """A stack of layers with one relative bias.

    cfg: has the fields of `BeatsConfig` that `Layer` and `RelativeBias` read (see `small` for other sizes).
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.layer_drop, self.gradient_decay = cfg.layer_drop, cfg.gradient_decay
        self.bias = RelativeBias(cfg.heads, cfg.buckets, cfg.max_distance) if cfg.relative_bias else None
        self.blocks = nn.ModuleList(Layer(cfg) for _ in range(cfg.depth))
        self.reset(cfg)

    @torch.no_grad()
    def reset(self, cfg: Any) -> None:
        """Initial weights: N(0, 0.02), biases 0; with deep norm Xavier, values and feed-forward scaled down."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if cfg.deep_norm:
            beta = (8 * cfg.depth) ** -0.25
            for block in (m for m in self.modules() if isinstance(m, Layer)):
                fc1 = block.fc1.linear if isinstance(block.fc1, GatedLinear) else block.fc1
                for linear, gain in (
                    (block.attention.q, 1.0),
                    (block.attention.k, 1.0),
                    (block.attention.v, beta),
                    (block.attention.out, beta),
                    (fc1, beta),
                    (block.fc2, beta),
                ):
                    nn.init.xavier_normal_(linear.weight, gain=gain)

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        places: Tensor | None = None,
        keep: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D). pad: (B, N) bool. places: (B, N) where the patches lie when they are not consecutive.
        keep: a list that receives (output, feed-forward part) of every layer."""
        bias = None if self.bias is None else self.bias(x.shape[1], places)
        bias = None if bias is None else lowered(bias)  # once, not in every layer
        for block in self.blocks:
            if self.gradient_decay != 1.0 and torch.is_grad_enabled():
                x = ScaleGradient.apply(x, self.gradient_decay)
            dropped = self.training and self.layer_drop > 0 and torch.rand(()).item() <= self.layer_drop
            x, inner = (x, torch.zeros_like(x)) if dropped else block(x, bias, pad)
            if keep is not None:
                keep.append((x, inner))
        return x


class PositionConvolution(nn.Module):
    """GELU of a grouped convolution over the patch sequence; its weight has one magnitude per tap.

    Written out instead of torch's weight norm, whose tensors cannot be deep-copied after a forward pass with gradients.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.direction = nn.Parameter(torch.empty(dim, dim // groups, kernel))
        self.magnitude = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.direction, std=math.sqrt(4 / (kernel * dim)))
        with torch.no_grad():
            self.magnitude.copy_(self.direction.norm(dim=(0, 1), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        weight = torch._weight_norm(self.direction, self.magnitude, 2)
        return gelu(conv_same(x, weight, self.bias, self.groups))


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
