"""The mask samplers of data2vec 1 and 2.0, drawn item by item from the items' seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avssl.errors import UsageError
from avssl_data2vec.config import BlockConfig, Mask2Config, SpanConfig, TokenConfig

UNTOUCHED, MASKED, RANDOM, UNCHANGED = range(4)  # kinds of token corruption


def generators(seeds: Tensor, salt: int) -> list[np.random.Generator]:
    """One generator per item; `salt` keeps two uses of a seed apart."""
    return [np.random.default_rng((seed & 0xFFFFFFFFFFFFFFFF, salt)) for seed in seeds.tolist()]


# -- spans -----------------------------------------------------------------------------------------------------------
def spans(rngs: Sequence[np.random.Generator], size: int, lengths: Sequence[int], cfg: SpanConfig) -> np.ndarray:
    """(B, size) bool, True = hidden: random spans within each item's first lengths[i] frames.

    Rounds probability * frames / length up or down at random, draws that many different starts in [0, frames - length)
    (so static spans never reach the last frame) and joins the spans. With `same_count` all items end with the same
    count, as fairseq batches need it: the draw then depends on the other items of the batch.
    Raises UsageError when a whole item would be hidden.
    """
    mask = np.zeros((len(rngs), size), dtype=bool)
    chosen = [_one_item(rng, length, cfg) for rng, length in zip(rngs, lengths, strict=True)]
    target = None
    if cfg.same_count and chosen:
        target = (max if cfg.add else min)(len(c) for c in chosen)
    for row, rng, hidden in zip(mask, rngs, chosen, strict=True):
        if target is not None and len(hidden) > target:
            hidden = rng.choice(hidden, target, replace=False)
        row[hidden] = True
        if target is not None and len(hidden) < target:
            row[rng.choice(np.flatnonzero(~row), target - len(hidden), replace=False)] = True
        if cfg.dropout > 0:
            now = np.flatnonzero(row)
            row[rng.choice(now, round(len(now) * cfg.dropout), replace=False)] = False
    return mask


def channels(rngs: Sequence[np.random.Generator], dim: int, cfg: SpanConfig) -> Tensor:
    """(B, dim) bool, True = off: spans of channels."""
    return torch.from_numpy(spans(rngs, dim, [dim] * len(rngs), cfg))


def _one_item(rng: np.random.Generator, size: int, cfg: SpanConfig) -> np.ndarray:
    """Sorted indices of the hidden frames of one item."""
    count = max(cfg.min_spans, int(cfg.probability * size / cfg.length + rng.random()))
    widths = _widths(rng, count, size, cfg)
    if len(widths) == 0:
        return np.zeros(0, dtype=np.int64)
    hidden = _overlapping(rng, size, widths) if cfg.overlap else _apart(rng, size, widths, cfg.min_space)
    hidden = np.unique(hidden[hidden < size])
    if len(hidden) >= size:
        raise UsageError(
            f"all {size} frames of an item would be hidden",
            fix="lower loss.spans.probability or loss.spans.length, or leave out such short clips",
        )
    return hidden


def _widths(rng: np.random.Generator, count: int, size: int, cfg: SpanConfig) -> np.ndarray:
    if cfg.selection == "static":
        return np.full(count, cfg.length)
    if cfg.selection == "uniform":
        widths = rng.integers(int(cfg.other), cfg.length * 2 + 1, count)
    elif cfg.selection == "normal":
        widths = np.maximum(1, np.rint(rng.normal(cfg.length, cfg.other, count)).astype(np.int64))
    else:
        widths = rng.poisson(cfg.length, count)
    return widths if widths.sum() > 0 or count == 0 else np.array([min(cfg.length, size - 1)])


def _overlapping(rng: np.random.Generator, size: int, widths: np.ndarray) -> np.ndarray:
    least = int(widths.min())
    if size - least <= len(widths):
        least = size - len(widths) - 1
    starts = rng.choice(size - least, len(widths), replace=False)
    return np.concatenate([np.arange(s, s + w) for s, w in zip(starts, widths, strict=True)])


def _apart(rng: np.random.Generator, size: int, widths: np.ndarray, space: int) -> np.ndarray:
    """Spans that keep `space` frames between them; the longest first, those that no gap can take are left out."""
    gaps, hidden, least = [(0, size)], [], int(widths.min())
    for width in sorted(widths.tolist(), reverse=True):
        room = np.array([e - s if e - s >= width + space else 0 for s, e in gaps], dtype=np.float64)
        if room.sum() == 0:
            break
        start, end = gaps.pop(int(rng.choice(len(gaps), p=room / room.sum())))
        first = int(rng.integers(start, end - width))
        hidden.append(np.arange(first, first + width))
        if first - start - space >= least:
            gaps.append((start, first - space + 1))
        if end - first - width - space > least:
            gaps.append((first + width + space, end))
    return np.concatenate(hidden) if hidden else np.zeros(0, dtype=np.int64)


# -- rectangles ------------------------------------------------------------------------------------------------------
def rectangles(rng: np.random.Generator, height: int, width: int, cfg: BlockConfig) -> np.ndarray:
    """(height, width) bool, True = hidden: rectangles until `count` patches are hidden or ten tries in a row failed."""
    wanted = round(cfg.count * height * width) if cfg.count < 1 else int(cfg.count)
    most = wanted if cfg.max_patches is None else cfg.max_patches
    mask = np.zeros((height, width), dtype=bool)
    hidden = 0
    while hidden < wanted:
        gained = _rectangle(rng, mask, cfg, min(wanted - hidden, most))
        if gained == 0:
            break
        hidden += gained
    if cfg.dropout > 0:
        mask &= rng.random(mask.shape) >= cfg.dropout
    return mask


def _rectangle(rng: np.random.Generator, mask: np.ndarray, cfg: BlockConfig, most: int) -> int:
    """Hide one more rectangle in place; how many patches that adds (0: ten tries failed)."""
    height, width = mask.shape
    for _ in range(10):
        area = cfg.min_patches + (most - cfg.min_patches) * rng.random()  # `most` may be the smaller one
        aspect = math.exp(rng.uniform(math.log(cfg.min_aspect), -math.log(cfg.min_aspect)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h >= height or w >= width:
            continue
        top, left = rng.integers(0, height - h, endpoint=True), rng.integers(0, width - w, endpoint=True)
        part = mask[top : top + h, left : left + w]
        gained = h * w - int(part.sum())
        if 0 < gained <= most:
            part[:] = True
            return gained
    return 0


# -- tokens ----------------------------------------------------------------------------------------------------------
def corruption(rng: np.random.Generator, size: int, cfg: TokenConfig) -> np.ndarray:
    """(size,) int64 of UNTOUCHED, MASKED, RANDOM, UNCHANGED."""
    count = int(cfg.probability * size / cfg.span + rng.random())
    starts = rng.choice(size, count, replace=False)
    if cfg.span_std > 0:
        widths = np.maximum(0, np.rint(rng.normal(cfg.span, cfg.span_std, count)).astype(np.int64))
    else:
        widths = np.full(count, cfg.span)
    chosen = np.zeros(size, dtype=bool)
    for start, width in zip(starts, widths, strict=True):
        chosen[start : start + width] = True
    kind = np.where(chosen, MASKED, UNTOUCHED)
    other = cfg.random + cfg.unchanged
    if other > 0:
        spared = chosen & (rng.random(size) < other)
        kind[spared] = np.where(rng.random(size) < cfg.unchanged / other, UNCHANGED, RANDOM)[spared]
    return kind


# -- data2vec 2.0 ----------------------------------------------------------------------------------------------------
def multi(rng: np.random.Generator, shape: tuple[int, ...], cfg: Mask2Config) -> np.ndarray:
    """(clones, tokens) bool, True = hidden: several masks of one item, each of exactly the same count.

    shape: (time,) or (height, width), padding included. "blocks": centres with replacement, each filling `length` per
    side (clamped at the border), then random single changes until the count is exact.
    """
    size = math.prod(shape)
    rows = []
    for _ in range(cfg.clones):
        if cfg.kind == "random" or cfg.length <= 1:
            row = np.ones(size, dtype=bool)
            row[rng.permutation(size)[: max(1, int(size * (1 - cfg.probability)))]] = False
        else:
            row = _block_row(rng, shape, cfg)
        rows.append(row)
    return np.stack(rows)


def multi_padded(
    rngs: Sequence[np.random.Generator], size: int, lengths: Sequence[int], cfg: Mask2Config
) -> np.ndarray:
    """(items * clones, size) bool: the masks of items of unequal lengths in time, each drawn over the item alone.

    All rows keep the same number of tokens, as a batch must: those of shorter items keep padding too. (The official code
    draws over the padding as well, so that a short item may keep nothing.)
    """
    drawn = [multi(rng, (n,), cfg) for rng, n in zip(rngs, lengths, strict=True)]
    kept = [int((~rows[0]).sum()) for rows in drawn]
    out = np.ones((len(drawn), cfg.clones, size), dtype=bool)
    for item, rows, n, own in zip(out, drawn, lengths, kept, strict=True):
        item[:, :n] = rows
        item[:, n : n + max(kept) - own] = False
    return out.reshape(-1, size)


def _block_row(rng: np.random.Generator, shape: tuple[int, ...], cfg: Mask2Config) -> np.ndarray:
    size = math.prod(shape)
    share = 1 - cfg.probability if cfg.inverse else cfg.probability
    per_block = cfg.length ** len(shape)
    centres = rng.integers(0, size, int(size * ((share + cfg.adjust) / per_block) * (1 + cfg.dropout)))
    marked = np.zeros(shape, dtype=bool)
    offsets = np.arange(cfg.length) - cfg.length // 2
    at = np.unravel_index(centres, shape)
    if len(shape) == 1:
        marked[np.clip(at[0][:, None] + offsets, 0, shape[0] - 1)] = True
    else:
        rows = np.clip(at[0][:, None, None] + offsets[:, None], 0, shape[0] - 1)
        columns = np.clip(at[1][:, None, None] + offsets, 0, shape[1] - 1)
        marked[rows, columns] = True
    marked = marked.reshape(-1)
    extra = int(marked.sum()) - int(size * share)
    if extra > 0:
        marked[rng.choice(np.flatnonzero(marked), extra, replace=False)] = False
    elif extra < 0:
        marked[rng.choice(np.flatnonzero(~marked), -extra, replace=False)] = True
    return ~marked if cfg.inverse else marked
