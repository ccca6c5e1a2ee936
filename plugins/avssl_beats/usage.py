"""How many codes the labels use: a tokenizer that says the same of every patch teaches nothing."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from avssl_beats.quantizer import all_ranks, first_rank, histogram

DECAY = 0.99
SEEN = 5e-4  # running count of a code that came up once, 300 updates ago: older ones no longer count as used
PATIENCE = 20  # updates between two verdicts


class CodeCollapse(UserWarning):
    """The labels are as varied as a small part of the codebook could be."""


class CodeUsage(nn.Module):
    """Running histogram of the labels; buffers, so that a resumed run goes on with it."""

    counts: Tensor  # (K,)

    def __init__(self, codes: int, least: float) -> None:
        super().__init__()
        self.least = least
        self.register_buffer("counts", torch.zeros(codes))
        self._fresh: Tensor | None = None
        self._warned = False

    @torch.no_grad()
    def collect(self, labels: Tensor, valid: Tensor) -> None:
        """labels: (B, N) int64; valid: (B, N) bool, True = no padding."""
        fresh = histogram(labels, len(self.counts), valid)
        self._fresh = fresh if self._fresh is None else self._fresh + fresh

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """After an optimiser step: take in what was collected; warn, once, when the labels vary too little."""
        if self._fresh is None:
            return
        self.counts.mul_(DECAY).add_(all_ranks(self._fresh), alpha=1 - DECAY)
        self._fresh = None
        if updates % PATIENCE or self._warned:
            return
        codes, perplexity = len(self.counts), float(self.perplexity())
        if perplexity < self.least * codes:
            self._warned = True
            if not first_rank():  # all count the same codes: one says it
                return
            warnings.warn(
                f"the tokenizer has collapsed: {int(self.used())} of {codes} codes are in use, with a perplexity of "
                f"{perplexity:.1f}, below {self.least * codes:.1f} (loss.min_usage); try another normalisation, more "
                "data, or a longer tokenizer run",
                CodeCollapse,
                stacklevel=2,
            )

    def used(self) -> Tensor:
        """() number of codes that came up lately."""
        return (self._current() > SEEN).sum()

    def perplexity(self) -> Tensor:
        """() exp(entropy) of the running histogram: as many equally frequent codes would be as varied."""
        return perplexity(self._current())

    def largest(self) -> Tensor:
        """() share of the commonest code: the accuracy of always naming it."""
        counts = self._current()
        return counts.max() / counts.sum().clamp(min=1e-12)

    def metrics(self) -> dict[str, tuple[Tensor, int]]:
        """For `LossOutput.metrics`."""
        return {
            "codes_used": (self.used(), 1),
            "code_perplexity": (self.perplexity(), 1),
            "code_share_largest": (self.largest(), 1),
        }

    def _current(self) -> Tensor:
        return self.counts if self._fresh is None else self.counts * DECAY + self._fresh * (1 - DECAY)


def perplexity(counts: Tensor) -> Tensor:
    """() exp(entropy) of a histogram (K,)."""
    return torch.special.entr(counts / counts.sum().clamp(min=1e-12)).sum().exp()
