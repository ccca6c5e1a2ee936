"""The codebook of a trained tokenizer: nearest unit vectors, moved by a running average of directions.

The rules are those of the released quantizer (microsoft/unilm, beats/quantizer.py): the paper's second term is replaced
by the average (section 3.2.2), as in BEiT v2 (arXiv:2208.06366).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.errors import CheckpointError, check


def l2(x: Tensor) -> Tensor:
    """Unit length along the last axis."""
    return F.normalize(x, dim=-1)


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """(..., D), (K, D) -> (...) int64: the code of the smallest squared distance, the first of equals.

    The whole distance counts: codes need not have unit length.
    """
    flat = x.reshape(-1, x.shape[-1])
    distance = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.t()
    return distance.argmin(1).view(x.shape[:-1])


@torch.no_grad()
def kmeans(samples: Tensor, means: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Spherical k-means of unit vectors (N, D) from initial means (K, D): the means, and the counts of the last round.
    An empty cluster keeps its mean."""
    counts = torch.zeros(len(means), dtype=torch.long, device=samples.device)
    for _ in range(iterations):
        bucket = (samples @ means.t()).argmax(1)
        counts = torch.bincount(bucket, minlength=len(means))
        sums = torch.zeros_like(means).index_add_(0, bucket, samples)
        means = torch.where((counts == 0)[:, None], means, l2(sums / counts.clamp(min=1)[:, None]))
    return means, counts


@dataclass(frozen=True)
class Quantised:
    """What a codebook makes of vectors (..., D)."""

    unit: Tensor  # (..., D) the vectors, of unit length
    chosen: Tensor  # (..., D) the nearest codes, no gradient
    indices: Tensor  # (...) int64

    @property
    def passed(self) -> Tensor:
        """The codes, with the gradient of the vectors (straight-through)."""
        return self.unit + (self.chosen - self.unit).detach()


class Codebook(nn.Module):
    """K unit codes of D dimensions, as buffers: no optimiser may touch them.

    A forward pass changes nothing; `collect` remembers what it saw and `update` applies it, once per optimiser step,
    over all micro-batches and processes.
    """

    weight: Tensor  # (K, D)
    usage: Tensor  # (K,) running count of each code per step
    started: Tensor  # (1,) 1 once the codes were set by k-means or loaded

    def __init__(self, codes: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("weight", torch.zeros(codes, dim))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("started", torch.zeros(1))
        self._counts: Tensor | None = None
        self._sums: Tensor | None = None
        self._ready = False  # what `started` said last, to ask the device only once

    def forward(self, x: Tensor) -> Quantised:
        """(..., D) -> Quantised. Raises CheckpointError when the codes were never set."""
        self._ready = self._ready or bool(self.started)
        check(
            self._ready,
            "the codebook of this tokenizer was never started",
            fix="train it first (loss beats_tokenizer), or load a trained one",
            error=CheckpointError,
        )
        with torch.autocast(x.device.type, enabled=False):  # distances of near codes drown in half precision
            unit = l2(x.to(self.weight.dtype))
            indices = nearest(unit.detach(), self.weight)
        return Quantised(unit, F.embedding(indices, self.weight), indices)

    @torch.no_grad()
    def collect(self, quantised: Quantised, where: Tensor | None = None) -> None:
        """Remember which codes were chosen by which vectors, for `update`. where: (...) bool, True = takes part."""
        unit = quantised.unit if where is None else quantised.unit * where[..., None]
        if self._counts is None or self._sums is None:
            self._counts, self._sums = torch.zeros_like(self.usage), torch.zeros_like(self.weight)
        self._counts += histogram(quantised.indices, len(self.usage), where)
        self._sums.index_add_(0, quantised.indices.flatten(), unit.flatten(0, -2))

    @torch.no_grad()
    def update(self, move: bool = True) -> None:
        """Apply what was collected since the last call; `move` False: count only (the released code at evaluation)."""
        if self._counts is None or self._sums is None:
            return
        counts, sums = all_ranks(self._counts), all_ranks(self._sums)
        self._counts = self._sums = None
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        if move:
            mean = torch.where((counts == 0)[:, None], self.weight, l2(sums / counts.clamp(min=1)[:, None]))
            self.weight.copy_(l2(self.weight.mul(self.decay).add_(mean, alpha=1 - self.decay)))

    @torch.no_grad()
    def start(self, vectors: Tensor, iterations: int, generator: torch.Generator) -> None:
        """k-means over (N, D): from distinct random rows, or rows with repetition when there are fewer than codes."""
        samples, codes = l2(vectors.to(self.weight.dtype)), len(self.weight)
        if len(samples) >= codes:
            rows = torch.randperm(len(samples), generator=generator)[:codes]
        else:
            rows = torch.randint(len(samples), (codes,), generator=generator)
        means, _ = kmeans(samples, samples[rows.to(samples.device)], iterations)
        self.weight.copy_(means)
        self.started.fill_(1)


def histogram(indices: Tensor, size: int, where: Tensor | None = None) -> Tensor:
    """(size,) float32: how often each index comes up where `where` (same shape, bool) holds. No wait for the device."""
    flat = indices.flatten()
    ones = torch.ones_like(flat, dtype=torch.float32) if where is None else where.flatten().float()
    return torch.zeros(size, device=flat.device).scatter_add_(0, flat, ones)


def first_rank() -> bool:
    """Whether this is the first of the processes, or the only one."""
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not grouped or torch.distributed.get_rank() == 0


def all_ranks(x: Tensor) -> Tensor:
    """The sum over all processes; x itself in a single one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x
