"""Parts of the data2vec encoders: attention, blocks, waveform convolutions, convolutional positions, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Layers
from avssl.batch import Stream
from avssl.errors import check
from avssl.nn.activation import gelu, gelu_tanh
from avssl.nn.attention import attention
from avssl.nn.convolution import conv_same
from avssl.nn.drop import DropPath
from avssl_data2vec.config import AudioConfig, TextConfig
from avssl_data2vec.convolution import conv_last, taps_last

NORM_EPS = 1e-5  # of torch's norms
PIECE = 250  # frames (5 s) of the waveform encoder at once, where no gradient is recorded
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu, "gelu_fast": gelu_tanh, "gelu_accurate": gelu_tanh,
    "relu": F.relu, "swish": F.silu, "tanh": torch.tanh, "linear": lambda x: x,
}  # fmt: skip


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    key_bias False: queries and values have biases and keys none (BEiT), kept as `q_bias` and `v_bias`.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, *, bias: bool = True, key_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias and key_bias)
        split = bias and not key_bias
        self.q_bias = nn.Parameter(torch.zeros(dim)) if split else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if split else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: (B, N, D); bias: broadcastable to (B, heads, N, N), -inf = never attend. Returns (B, N, D)."""
        b, n, d = x.shape
        qkv_bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        y = attention(q, k, v, bias, dropout=self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """The transformer block of fairseq: norms after each residual sum (post-norm), or before each branch (pre-norm).

    Returns the output and the feed-forward's output before its dropout and residual: a data2vec target.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn: int,
        *,
        norm_first: bool = False,
        eps: float = 1e-5,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, attention_dropout)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, ffn)
        self.fc2 = nn.Linear(ffn, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.activation = ACTIVATIONS[activation]
        self.norm_first, self.dropout, self.activation_dropout = norm_first, dropout, activation_dropout

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.norm_first:
            x = x + self._drop(self.attn(self.norm1(x), bias))
            ffn = self._feed_forward(self.norm2(x))
            return x + self._drop(ffn), ffn
        x = self.norm1(x + self._drop(self.attn(x, bias)))
        ffn = self._feed_forward(x)
        return self.norm2(x + self._drop(ffn)), ffn

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        if self.activation_dropout and self.training:
            x = F.dropout(x, self.activation_dropout)
        return self.fc2(x)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


def blocks_of(c: AudioConfig | TextConfig) -> nn.ModuleList:
    """The transformer of data2vec 1 for sounds and text, as torch draws it."""
    return nn.ModuleList(
        Block(
            c.dim,
            c.heads,
            c.ffn,
            norm_first=c.norm_first,
            eps=c.norm_eps,
            activation=c.activation,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
            activation_dropout=c.activation_dropout,
        )
        for _ in range(c.depth)
    )


def through(
    blocks: nn.ModuleList, x: Tensor, bias: Tensor | None, layerdrop: float, layers: Layers | None
) -> tuple[Tensor, list[Tensor]]:
    """x (B, N, D) after the blocks, and the inner states that `layers` asks for; a dropped block has none."""
    inner: list[Tensor] = []
    for block in blocks:
        instead = skipped(x, block, layerdrop) if block.training else None
        if instead is not None:
            x = instead
            continue
        x, ffn = block(x, bias)
        if layers is not None:
            inner.append(ffn if layers == "ffn" else x)
    return x, inner


class ScaledBlock(nn.Module):
    """The pre-norm block of BEiT: layer scale, stochastic depth, an optional table of relative positions of its own.

    The second value is what the feed-forward adds to the stream (after layer scale and stochastic depth).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn: int,
        *,
        eps: float,
        layer_scale: float,
        qkv_bias: bool,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
        relative: nn.Module | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, attention_dropout, bias=qkv_bias, key_bias=False)
        self.relative = relative
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, ffn)
        self.fc2 = nn.Linear(ffn, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop_path)
        self.dropout = dropout

    def forward(self, x: Tensor, bias: Tensor | None = None, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.relative is not None:
            own = self.relative(keep)
            bias = own if bias is None else bias + own
        y = self._drop(self.attn(self.norm1(x), bias))
        x = x + self.drop_path(y if self.gamma1 is None else self.gamma1 * y)
        y = self._drop(self.fc2(gelu(self.fc1(self.norm2(x)))))
        branch = self.drop_path(y if self.gamma2 is None else self.gamma2 * y)
        return x + branch, branch

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


Count = TypeVar("Count", Tensor, int)
Weights = Sequence[tuple[Tensor, Tensor | None]]  # and the bias, of each convolution


class ConvExtractor(nn.Module):
    """The waveform convolutions of wav2vec 2.0 (arXiv:2006.11477, Sec. 2): (B, L) samples -> (B, T, C) frames.

    mode "layer_norm": convolution, LayerNorm over channels, GELU, in each layer; "default": a group norm with one group
    per channel after the first convolution alone. Frames: L -> (L - kernel) // stride + 1 in each layer.
    """

    def __init__(self, layers: Sequence[tuple[int, int, int]], mode: str, bias: bool = False) -> None:
        super().__init__()
        self.mode = mode
        self.layers = tuple(tuple(layer) for layer in layers)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        width = 1
        for i, (channels, kernel, stride) in enumerate(self.layers):
            conv = nn.Conv1d(width, channels, kernel, stride=stride, bias=bias)
            nn.init.kaiming_normal_(conv.weight)
            self.convs.append(conv)
            if mode == "layer_norm":
                self.norms.append(nn.LayerNorm(channels))
            elif i == 0:
                self.norms.append(nn.GroupNorm(channels, channels))
            width = channels

    @property
    def dim(self) -> int:
        return self.layers[-1][0]

    def frames(self, samples: Count) -> Count:
        """How many frames a number of samples gives (not positive when the clip is shorter than one window)."""
        for _, kernel, stride in self.layers:
            samples = (samples - kernel) // stride + 1
        return samples

    @property
    def window(self) -> int:
        """Samples that one frame sees: the shortest clip it takes."""
        window, hop = 1, 1
        for _, kernel, stride in self.layers:
            window += (kernel - 1) * hop
            hop *= stride
        return window

    def forward(self, wave: Tensor) -> Tensor:  # (B, L) -> (B, T, C)
        weights = [_weights(conv) for conv in self.convs]
        recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if recorded or self.mode != "layer_norm" or wave.device.type != "cpu":
            return self._convolve(wave, weights)
        return self._in_pieces(wave, [(taps_last(weight), bias) for weight, bias in weights])

    def _in_pieces(self, wave: Tensor, weights: Weights) -> Tensor:
        """The same frames from pieces of the waveform that stay in a processor's cache: a minute of sound makes 400 MB
        in the first layer alone, which convolution, norm and GELU would each write to memory and read again."""
        frames, hop = self.frames(wave.shape[1]), math.prod(stride for *_, stride in self.layers)
        starts = range(0, frames, PIECE)
        spans = [slice(first * hop, (min(first + PIECE, frames) - 1) * hop + self.window) for first in starts]
        clips = wave.split(max(1, PIECE // frames))
        return torch.cat([torch.cat([self._convolve(some[:, span], weights) for span in spans], 1) for some in clips])

    def _convolve(self, wave: Tensor, weights: Weights) -> Tensor:
        x = wave[..., None]  # (B, L, 1); channels stay last: the norms need them there
        for i, ((weight, bias), (_, _, stride)) in enumerate(zip(weights, self.layers, strict=True)):
            x = conv_last(x, weight, bias, stride)
            if self.mode == "layer_norm":
                x = F.layer_norm(x, x.shape[-1:], *_weights(self.norms[i]), NORM_EPS)
            elif i == 0:
                x = self.norms[0](x.transpose(1, 2).float()).transpose(1, 2).to(x.dtype)
            x = gelu(x)
        return x


class ConvPositions(nn.Module):
    """Positions from `depth` grouped convolutions, each followed by a LayerNorm without parameters and GELU."""

    def __init__(self, dim: int, depth: int, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        kernel = max(3, width // depth)
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:  # (B, T, D) -> (B, T, D)
        """pad: (B, T) bool, frames that every layer sees as zeros, as it sees what lies before and after the clip."""
        for conv in self.convs:
            x = x if pad is None else x.masked_fill(pad[..., None], 0)
            y = conv_same(x, *_weights(conv), self.groups)
            x = gelu(F.layer_norm(y, y.shape[-1:]))
        return x


class WeightNormPositions(nn.Module):
    """Positions from one weight-normalised grouped convolution and GELU (wav2vec 2.0); g: (1, 1, kernel)."""

    def __init__(self, dim: int, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.v = nn.Parameter(torch.randn(dim, dim // groups, width) * math.sqrt(4 / (width * dim)))
        self.g = nn.Parameter(self.v.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:  # (B, T, D) -> (B, T, D); pad as above
        x = x if pad is None else x.masked_fill(pad[..., None], 0)
        weight = self.v * (self.g / self.v.norm(dim=(0, 1), keepdim=True))
        return gelu(conv_same(x, weight, self.bias, self.groups))


class TokenEmbedding(nn.Module):
    """Tokens plus positions, then LayerNorm. The position of a token is pad + its rank among the tokens that are no
    padding (from 1), as RoBERTa counts; padding has position `pad`, whose row is zero."""

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        max_tokens: int,
        pad: int,
        *,
        positions: str = "learned",
        norm: bool = True,
        scale: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.pad, self.scale, self.max_tokens = pad, math.sqrt(dim) if scale else 1.0, max_tokens
        self.tokens = nn.Embedding(vocabulary, dim, padding_idx=pad)
        self.positions = nn.Embedding(max_tokens + pad + 1, dim, padding_idx=pad) if positions == "learned" else None
        self.sinusoid = positions == "sinusoidal"
        self.norm = nn.LayerNorm(dim, eps=eps) if norm else None

    def forward(self, ids: Tensor) -> Tensor:  # (B, N) -> (B, N, D)
        x = self.tokens(ids)
        if self.scale != 1.0:
            x = x * self.scale
        real = ids != self.pad
        where = real.cumsum(1) * real + self.pad
        if self.positions is not None:
            x = x + self.positions(where)
        elif self.sinusoid:
            x = x + sinusoids(ids.shape[1] + self.pad + 1, x.shape[-1], self.pad).to(x)[where]
        return x if self.norm is None else self.norm(x)


def sinusoids(count: int, dim: int, zero: int) -> Tensor:
    """(count, dim) table: sines, then cosines, of positions at geometric frequencies; row `zero` is 0 (fairseq's)."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(count, dtype=torch.float32)[:, None] * rates
    table = torch.cat([angles.sin(), angles.cos(), torch.zeros(count, dim % 2)], dim=1)
    table[zero] = 0
    return table


class GradScale(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


def scaled_gradient(module: Callable[[Tensor], Tensor], x: Tensor, scale: float) -> Tensor:
    """module(x), whose gradient into the module is multiplied by `scale`; at 0 nothing is recorded."""
    if scale == 1.0:
        return module(x)
    if scale > 0:
        return GradScale.apply(module(x), scale)
    with torch.no_grad():
        return module(x)


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, where it has one."""
    own = dict(module.named_parameters())
    return own["weight"], own.get("bias")


def waveform_frames(backbone: nn.Module, stream: Stream) -> list[int]:
    """Frames of each waveform that are no padding; backbone: one with an `extractor`."""
    extractor = backbone.get_submodule("extractor")
    assert isinstance(extractor, ConvExtractor)
    return [int(n) for n in extractor.frames(stream.lengths)]


def check_channels(backbone: nn.Module, probability: float) -> None:
    """Raises UsageError for channel masks with a backbone that has none."""
    check(
        probability == 0 or "hide_channels" in signature(backbone.forward).parameters,
        f"{type(backbone).__name__} cannot hide channels",
        fix="set loss.channels.probability=0",
    )


def skipped(x: Tensor, block: nn.Module, rate: float) -> Tensor | None:
    """Layer drop: None when the block runs, else what comes out instead of it (x).

    Under data parallelism every parameter must take part in each step, so a skipped block adds its parameters times 0.
    """
    if rate == 0.0 or torch.rand(()).item() > rate:
        return None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return x + 0.0 * sum(p.sum() for p in block.parameters() if p.requires_grad)
    return x


def bert_init(module: nn.Module) -> None:
    """N(0, 0.02) weights and zero biases of linear layers and embeddings (padding rows zero); use with `apply`."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


def pool(x: Tensor, pad: Tensor | None) -> Tensor:
    """(B, N, D) -> (B, D): the mean of the tokens that are no padding."""
    if pad is None:
        return x.mean(1)
    real = (~pad)[..., None].to(x.dtype)
    return (x * real).sum(1) / real.sum(1).clamp(min=1)
