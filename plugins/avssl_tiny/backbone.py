"""BERT-style encoder over frames of sound (specification 3.1). State dict names are BERT's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch, Stream
from avssl.errors import UsageError, check
from avssl.nn.activation import gelu, gelu_tanh
from avssl.nn.attention import attention, pad_bias

from .config import TinyConfig
from .cost import cost
from .stem import ConvStem

if TYPE_CHECKING:
    from avssl.export.plan import EncoderPlan

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": F.relu}


class SelfAttention(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(config.dim, config.dim)
        self.value = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        out = attention(q, k, v, bias, dropout=self.dropout if self.training else 0.0)  # (B, H, N, D/H)
        return out.transpose(1, 2).flatten(2)


class Projected(nn.Module):
    """`dense` and the `LayerNorm` of its residual sum."""

    def __init__(self, width: int, config: TinyConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)


class Attention(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Projected(config.dim, config)


class Intermediate(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.ff)


class Layer(nn.Module):
    """One BERT layer. Post-norm: x = LN(x + branch(x)); pre-norm: x = x + branch(LN(x)), with the same two norms."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Projected(config.ff, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> the layer's output, and its feed-forward before the residual sum."""
        activation, post = ACTIVATIONS[self.config.activation], self.config.post_norm
        norm = self.attention.output.LayerNorm
        seen = self.attention.self(x if post else norm(x), bias)
        x = x + self.dropout(self.attention.output.dense(seen))
        x = norm(x) if post else x
        norm = self.output.LayerNorm
        inner = self.output.dense(activation(self.intermediate.dense(x if post else norm(x))))
        x = x + self.dropout(inner)
        return (norm(x) if post else x), inner


class Encoder(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))


class Pooler(nn.Module):
    """tanh of a dense layer of the class token."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)

    def forward(self, token: Tensor) -> Tensor:
        return torch.tanh(self.dense(token))


def normalised(norm: nn.BatchNorm1d, stream: Stream) -> Tensor:
    """(B, T, F) frames through a BatchNorm over frames; padded ones are 0, and in training they do not count."""
    if stream.pad is not None and norm.training:
        out = torch.zeros_like(stream.x)
        out[~stream.pad] = norm(stream.x[~stream.pad]).to(out.dtype)
        return out
    x = norm(stream.x.transpose(1, 2)).transpose(1, 2)
    return x if stream.pad is None else x.masked_fill(stream.pad[..., None], 0.0)


class Tiny(Backbone):
    """Frames -> tokens -> class token (or mean). `pooled["audio"]` is what the classifier reads.

    audio.x: (B, T, F); T need not be a multiple of `stack`: the last token is filled with zeros, the mean of
    standardised frames. tokens["audio"]: (B, [1 +] ceil(T / frames_per_token), dim).
    """

    modalities = frozenset({"audio"})
    config: TinyConfig
    rates: Tensor  # (dim / 2,) of the sine positions

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        if config.input_norm:
            self.input_norm = nn.BatchNorm1d(config.features, affine=False, momentum=None)  # None: plain average
        if config.stem:
            self.stem = ConvStem(config)
        self.proj = nn.Linear(config.token_features, config.dim)
        if self.prefix:
            self.cls = nn.Parameter(torch.empty(config.dim))
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(config.max_tokens, config.dim))
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config)
        if config.pooler == "tanh_dense_of_cls":
            self.pooler = Pooler(config)
        # Computed, not stored.
        rates = config.position_base ** (-torch.arange(0, config.dim, 2, dtype=torch.float64) / config.dim)
        self.register_buffer("rates", rates.float(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """BERT's normal(0, 0.02) is too small for 16 dimensions: Xavier for matrices, 0.02 for the free vectors."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name != "positions":
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name in ("cls", "positions"):
                nn.init.normal_(parameter, std=0.02)

    @property
    def prefix(self) -> int:
        """Tokens before the frames: the class token, unless the mean is pooled."""
        return 0 if self.config.pooler == "mean" else 1

    @property
    def blocks(self) -> Sequence[Layer]:
        return cast("Sequence[Layer]", self.encoder.layer)

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        tokens = -(-batch.need("audio").x.shape[1] // self.config.frames_per_token)
        return {"audio": Grid((tokens,), ("time",), prefix=self.prefix)}

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: Layers | None = None,
        only: Collection[str] | None = None,
        *,
        frames: Tensor | None = None,
    ) -> Features:
        """hide: masks over the tokens of the grid, the class token not among them; hidden tokens become zeros before
        positions are added. keep: indices of such tokens; the class token always stays. frames: (B, T, F), what to read
        instead of `standardised(batch)`."""
        pad = batch.need("audio").pad
        x = self.standardised(batch) if frames is None else frames
        x, pad = self._stacked(x, pad, self._unseen(batch, hide, keep))
        x = self.proj(x)  # (B, N, D)
        if hide and "audio" in hide:
            x = x.masked_fill(hide["audio"][..., None], 0.0)
        x = x + self._positions(x)
        if keep and "audio" in keep:
            index = keep["audio"]
            x = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
            pad = None if pad is None else pad.gather(1, index)
        if self.prefix:
            first = self.cls + self._position_of_cls()
            x = torch.cat([first.expand(x.shape[0], 1, -1), x], 1)
            pad = None if pad is None else F.pad(pad, (1, 0), value=False)
        x = self.dropout(self.norm(x))
        bias = pad_bias(pad, x.dtype)
        inner_states = []
        for block in self.blocks:
            x, inner = block(x, bias)
            inner_states.append(x if layers == "blocks" else inner)
        return Features(
            tokens={"audio": x},
            pooled={"audio": self._pooled(x, pad)},
            pad={} if pad is None else {"audio": pad},
            grid=self.grid(batch),
            layers={"audio": inner_states} if layers else {},
        )

    def standardised(self, batch: Batch) -> Tensor:
        """(B, T, F) frames as the first layer reads them: with `input_norm` by the statistics of the training batches, to
        which padded frames add nothing; padding is 0."""
        stream = batch.need("audio")
        if stream.x.shape[-1] != self.config.features:
            raise UsageError(
                f"the backbone reads {self.config.features} features per frame, the frontend gives {stream.x.shape[-1]}",
                fix=f"--set backbone.features={stream.x.shape[-1]}, or change the frontend",
            )
        return normalised(self.input_norm, stream) if self.config.input_norm else stream.x

    def _unseen(
        self, batch: Batch, hide: Mapping[str, Tensor] | None, keep: Mapping[str, Tensor] | None
    ) -> Tensor | None:
        """(B, T) bool: frames of tokens that are hidden or left out. A stem would show them to their neighbours."""
        if not self.config.stem or not ((hide and "audio" in hide) or (keep and "audio" in keep)):
            return None
        x = batch.need("audio").x
        unseen = torch.zeros(len(x), self.grid(batch)["audio"].shape[0], dtype=torch.bool, device=x.device)
        if keep and "audio" in keep:
            unseen = ~unseen.scatter(1, keep["audio"], True)
        if hide and "audio" in hide:
            unseen = unseen | hide["audio"]
        return unseen.repeat_interleave(self.config.frames_per_token, 1)[:, : x.shape[1]]

    def _stacked(self, x: Tensor, pad: Tensor | None, unseen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, T, F) -> (B, N, token_features); a token is padding when all of its frames are. unseen: (B, T) bool."""
        if self.config.stem:
            x, pad = self.stem(x if unseen is None else x.masked_fill(unseen[..., None], 0.0), pad)
        k = self.config.stack
        if k == 1:
            return x, pad
        missing = -x.shape[1] % k
        x = F.pad(x, (0, 0, 0, missing))
        if pad is not None:
            pad = F.pad(pad, (0, missing), value=True).unflatten(1, (-1, k)).all(-1)
        return x.unflatten(1, (-1, k)).flatten(2), pad

    def _positions(self, x: Tensor) -> Tensor:
        """(N, D) for the frame tokens; position 0 is the class token's."""
        count = x.shape[1]
        if self.config.positions == "learned":
            check(
                count + self.prefix <= self.config.max_tokens,
                f"{count + self.prefix} tokens for a table of {self.config.max_tokens} learned positions",
                fix=f"--set backbone.max_tokens={count + self.prefix}, or positions=sine",
            )
            return self.positions[self.prefix : self.prefix + count]
        place = torch.arange(self.prefix, self.prefix + count, device=x.device, dtype=torch.float32)
        return self._sine(place).to(x.dtype)

    def _position_of_cls(self) -> Tensor:
        if self.config.positions == "learned":
            return self.positions[0]
        return self._sine(torch.zeros(1, device=self.cls.device))[0].to(self.cls.dtype)

    def _sine(self, place: Tensor) -> Tensor:
        """(N,) -> (N, D): sines on even channels, cosines on odd ones."""
        angle = place[:, None] * self.rates
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

    def _pooled(self, x: Tensor, pad: Tensor | None) -> Tensor:
        if self.config.pooler == "mean":
            if pad is None:
                return x.mean(1)
            seen = (~pad)[..., None].to(x.dtype)
            return (x * seen).sum(1) / seen.sum(1).clamp_min(1)
        return self.pooler(x[:, 0]) if self.config.pooler == "tanh_dense_of_cls" else x[:, 0]

    def adapt(self, tensors: dict[str, Tensor], source: TinyConfig) -> dict[str, Tensor]:
        """Learned positions are interpolated to another number of tokens; the class token's row stays."""
        table = tensors.get("positions")
        if table is None or self.config.positions != "learned" or len(table) == self.config.max_tokens:
            return tensors
        first, rest = table[: self.prefix], table[self.prefix :]
        rest = F.interpolate(
            rest.T[None], size=self.config.max_tokens - self.prefix, mode="linear", align_corners=False
        )
        return {**tensors, "positions": torch.cat([first, rest[0].T])}

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of a clip of `frames` frames without the classifier (specification 3.1)."""
        return int(cost(self.config, 0, frames)["macs"])

    def edge_plan(self) -> EncoderPlan:
        """The network as plain arrays, for exporters that write their own forward pass."""
        from .edge import encoder_plan

        return encoder_plan(self)
