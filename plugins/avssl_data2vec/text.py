"""The token encoder of data2vec 1 (arXiv:2202.03555, Sec. 4.3), after RoBERTa (arXiv:1907.11692)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch
from avssl.errors import DataError, check
from avssl.nn.attention import pad_bias
from avssl_data2vec.config import Text2Config, TextConfig
from avssl_data2vec.modules import TokenEmbedding, bert_init, blocks_of, pool, through


def token_ids(batch: Batch, config: TextConfig | Text2Config) -> tuple[Tensor, Tensor | None]:
    """(B, N) ids and their padding mask: the stream's, or where the pad id stands (None when nowhere).

    Raises DataError for ids outside the vocabulary and for sequences that are too long.
    """
    stream = batch.need("text")
    ids = stream.x
    check(
        ids.shape[1] <= config.max_tokens,
        f"{ids.shape[1]} tokens, the model has {config.max_tokens} positions",
        fix="set frontend.max_tokens",
        error=DataError,
    )
    if torch.compiler.is_exporting():  # a traced graph cannot look at its values: ids as they come, nothing padded
        return ids, None
    check(
        int(ids.max()) < config.vocabulary,
        f"token id {int(ids.max())}, the vocabulary has {config.vocabulary}",
        fix="use the tokenizer that the model was trained with",
        error=DataError,
    )
    pad = ids == config.pad
    if stream.pad is not None:
        ids, pad = ids.masked_fill(stream.pad, config.pad), pad | stream.pad
    return ids, (pad if bool(pad.any()) else None)


def random_ids(config: TextConfig | Text2Config, rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) int64 ids, uniform over the vocabulary without its specials and the mask."""
    inside = config.mask >= config.specials
    ids = rng.integers(config.specials, config.vocabulary - inside, count)
    return ids + (ids >= config.mask) if inside else ids


class TextEncoder(Backbone):
    """Token ids (B, N) -> (B, N, D)."""

    modalities: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        c = config
        self.embed = TokenEmbedding(
            c.vocabulary,
            c.dim,
            c.max_tokens,
            c.pad,
            norm=c.embedding_norm,
            positions=c.positions,
            eps=c.norm_eps,
            scale=c.scale_embedding,
        )
        self.layers = blocks_of(c)
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps) if c.norm_first else None
        self.apply(bert_init)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {"text": Grid((batch.need("text").x.shape[1],), ("token",))}

    def random_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) ids that may stand in for a token: neither special nor the mask."""
        return random_ids(self.config, rng, count)

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: Layers | None = None,
        only: Collection[str] | None = None,
    ) -> Features:
        """A hidden token becomes the mask id. Kept tokens keep their positions."""
        c: TextConfig = self.config
        ids, pad = token_ids(batch, c)
        if hide is not None and "text" in hide:
            ids = ids.masked_fill(hide["text"], c.mask)
        x = self.embed(ids)
        x = F.dropout(x, c.dropout, self.training) if c.dropout else x
        index = None if keep is None else keep.get("text")
        if index is not None:
            x = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
            pad = None if pad is None else pad.gather(1, index)
        if pad is not None:
            x = x.masked_fill(pad[..., None], 0)
        x, inner = through(self.layers, x, pad_bias(pad, x.dtype), c.layerdrop, layers)
        if self.norm is not None:
            x = self.norm(x)
        return Features(
            tokens={"text": x},
            pooled={"text": pool(x, pad)},
            pad={} if pad is None else {"text": pad},
            grid=self.grid(batch),
            layers={"text": inner} if layers else {},
        )
