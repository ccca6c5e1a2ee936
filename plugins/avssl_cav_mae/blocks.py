"""The transformer block of CAV-MAE and its initial values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from avssl.nn.activation import gelu
from avssl.nn.attention import attention

STREAMS = ("joint", "audio", "vision")
EPS = 1e-5  # LayerNorm's default, although the ImageNet-MAE weights were trained with 1e-6


class Block(nn.Module):
    """Pre-norm block with one attention and one MLP, and a pair of LayerNorms for each stream that passes through it.

    x = x + Attn(LN1_s(x)); x = x + MLP(LN2_s(x)), exact GELU, no dropout (ViT, arXiv:2010.11929; paper, Sec. 2.3).
    spare: further norms that no pass uses; they never train.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, streams: Sequence[str] = ("joint",), spare: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        hidden = int(dim * mlp_ratio)
        names = STREAMS if spare else streams
        self.norm1 = nn.ModuleDict({s: nn.LayerNorm(dim, EPS) for s in names})
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.ModuleDict({s: nn.LayerNorm(dim, EPS) for s in names})
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        for name in set(names) - set(streams):
            self.norm1[name].requires_grad_(False)
            self.norm2[name].requires_grad_(False)

    def forward(self, x: Tensor, stream: str = "joint", start: int = 0, ffn: list[Tensor] | None = None) -> Tensor:
        """x: (B, N, D) -> (B, N - start, D): tokens before `start` are attended to but get no output.

        ffn: collects the MLP's output before its residual.
        """
        x = x[:, start:] + self._attend(self.norm1[stream](x), start)
        inner = self.fc2(gelu(self.fc1(self.norm2[stream](x))))
        if ffn is not None:
            ffn.append(inner)
        return x + inner

    def _attend(self, x: Tensor, start: int) -> Tensor:
        b, n, d = x.shape
        if start == 0:
            q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, H, N, d/H)
        else:  # the first rows of the fused weight make the queries
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, start:], weight[:d], bias[:d]).view(b, n - start, self.heads, -1).transpose(1, 2)
            k, v = F.linear(x, weight[d:], bias[d:]).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(b, n - start, d))


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases of every Linear below `module` (official initialize_weights)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
