"""Which patches the encoder sees (paper, Sec. 2.2 and appendix; official random_masking_*)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avssl.batch import generators
from avssl_cav_mae.config import MaskMode

TF_SHARE = 0.7  # of the ratio, for each axis of time_frequency: together they remove about the ratio


@dataclass(frozen=True)
class Masks:
    """One draw: modality -> (B, N) int64, a permutation of its patches whose first `kept` are visible."""

    order: Mapping[str, Tensor]
    kept: Mapping[str, int]

    def visible(self, modality: str) -> Tensor:
        """(B, K) in the order in which the encoder gets them."""
        return self.order[modality][:, : self.kept[modality]]

    def hidden(self, modality: str) -> Tensor:
        """(B, N - K)."""
        return self.order[modality][:, self.kept[modality] :]

    def mask(self, modality: str) -> Tensor:
        """(B, N) float, 1 = hidden, in patch order."""
        order = self.order[modality]
        out = torch.ones(order.shape, device=order.device)
        return out.scatter_(1, self.visible(modality), 0.0)


def keep_count(patches: int, ratio: float) -> int:
    """How many of the patches stay visible: rounded down, at least one."""
    return max(1, int(patches * (1 - ratio)))


def draw_order(grid: tuple[int, int], ratio: float, mode: MaskMode, generator: torch.Generator) -> Tensor:
    """(N,) int64 permutation for one item: those to keep come first.

    Structured modes put whole columns (time) and rows (frequency) of the grid last, int(columns * ratio) and
    int(rows * ratio) of them, with time_frequency 0.7 of the ratio for either. Where the lines hold more or fewer
    patches than must go, chance decides about the rest.
    """
    rows, columns = grid
    noise = torch.rand(rows, columns, generator=generator)
    share = ratio * (TF_SHARE if mode == "time_frequency" else 1.0)
    last = torch.zeros(rows, columns, dtype=torch.bool)
    if mode in ("time", "time_frequency"):
        last[:, torch.randperm(columns, generator=generator)[: int(columns * share)]] = True
    if mode in ("frequency", "time_frequency"):
        last[torch.randperm(rows, generator=generator)[: int(rows * share)]] = True
    return (noise + last).flatten().argsort()  # the lines to remove lie in [1, 2)


def draw_masks(
    seeds: Tensor, grids: Mapping[str, tuple[int, int]], ratios: Mapping[str, float], modes: Mapping[str, MaskMode]
) -> Masks:
    """Masks of a batch, item by item from its seeds (B,): the same for an item in any batch and on any device."""
    order: dict[str, list[Tensor]] = {m: [] for m in grids}
    for generator in generators(seeds, salt=1):
        for m, grid in grids.items():
            order[m].append(draw_order(grid, ratios[m], modes[m], generator))
    kept = {m: keep_count(rows * columns, ratios[m]) for m, (rows, columns) in grids.items()}
    return Masks({m: torch.stack(o) for m, o in order.items()}, kept)
