"""What is deployed: a network from a Batch to Features."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from avssl.batch import Batch

Layers = Literal["blocks", "ffn"]  # inner states: the output of each block, or of each feed-forward before its residual


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the tokens of a modality lie: row-major over `shape`, after `prefix` tokens (class, registers) of no place.

    axes names the dimensions: "time", "frequency", "y", "x", "frame", "token". shape is the padded batch's.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    prefix: int = 0

    @property
    def places(self) -> int:
        """Tokens that lie somewhere: what `hide` and `keep` count."""
        return math.prod(self.shape)

    @property
    def tokens(self) -> int:
        """All tokens, those of the prefix included."""
        return self.prefix + self.places


@dataclass(frozen=True, slots=True)
class Features:
    """What a backbone gives. Keys are modality names; "joint" is a stream that fuses several."""

    tokens: Mapping[str, Tensor] = field(default_factory=dict)  # (B, N, D)
    pooled: Mapping[str, Tensor] = field(default_factory=dict)  # (B, D), padding left out
    pad: Mapping[str, Tensor] = field(default_factory=dict)  # (B, N) bool, True = padding; absent = none
    grid: Mapping[str, Grid] = field(default_factory=dict)
    layers: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)  # each (B, N, D), when asked for

    def __repr__(self) -> str:
        parts = [
            f"{what} of {name} {' x '.join(map(str, x.shape))}"
            for what, values in (("tokens", self.tokens), ("pooled", self.pooled))
            for name, x in values.items()
        ]
        parts += [f"{len(x)} layers of {name}" for name, x in self.layers.items()]
        return f"<Features: {', '.join(parts) or 'none'}>"


class Backbone(nn.Module):
    """Base of every backbone.

    A subclass takes its config dataclass as the only argument of `__init__`, calls `super().__init__(config)`, sets
    `modalities` and `dim`, and implements `forward` and `grid`.
    """

    modalities: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[tuple[str, ...]] = ()  # keys of Features.pooled it can give; empty: its modalities

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def dim(self) -> int:
        """Width of pooled features."""
        return self.config.dim

    def widths(self) -> Mapping[str, int]:
        """Width of pooled features of each stream; all `dim` unless a backbone says otherwise."""
        return dict.fromkeys(self.streams or sorted(self.modalities), self.dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Transformer blocks in order of depth: units of checkpointing, sharding, compilation and layer-wise decay."""
        return ()

    def depth_of(self, parameter: str) -> int:
        """Depth of a parameter (named as in `named_parameters`) for layer-wise decay: 0 = embeddings, i + 1 = block i,
        len(blocks) + 1 = what comes after, which is told by its name beginning with norm, head, pooler or final."""
        names = {module: name for name, module in self.named_modules()}
        for depth, block in enumerate(self.blocks):
            if parameter.startswith(names[block] + "."):
                return depth + 1
        return len(self.blocks) + 1 if parameter.startswith(("norm", "head", "pooler", "final")) else 0

    def adapt(self, tensors: dict[str, Tensor], source: Any) -> dict[str, Tensor]:
        """Fit another size's state dict to this one, e.g. resize position tables; `source` is the other's config.
        Default: unchanged, so that a difference is an error that names the tensor."""
        return tensors

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        """Where the tokens of each modality of this (device-side) batch will lie; cheap, no forward pass."""
        raise NotImplementedError

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: Layers | None = None,
        only: Collection[str] | None = None,
    ) -> Features:
        """Encode a batch that went through `frontend.batch`.

        hide: modality -> (B, P) bool over the grid's places, True = replaced by a mask embedding (positions stay).
        keep: modality -> (B, K) int64 places to encode, in this order; the others are dropped. Prefix tokens (class,
        registers) are not counted by either and always there.
        layers: also return inner states. only: compute just these streams (e.g. {"audio"} or {"joint"});
        None means every stream whose modalities are present in the batch.
        """
        raise NotImplementedError
