"""Inputs as patches: (row, column, channel) inside a patch, the channel fastest, in targets and projections."""

from __future__ import annotations

import torch
from torch import Tensor

from avssl.backbone import Grid
from avssl.batch import Batch
from avssl.errors import DataError

AXES = {"audio": ("frequency", "time"), "vision": ("y", "x")}
CHANNELS = {"audio": 1, "vision": 3}


def planes(batch: Batch, modality: str) -> Tensor:
    """(B, C, rows, columns): the picture, or the spectrogram with mel rows. Raises DataError for another shape."""
    x = batch.need(modality).x
    if modality == "audio":
        if x.ndim != 3:
            raise DataError(f"audio {tuple(x.shape)} is no log-mel (B, T, F)", fix="apply frontend.batch first")
        return x.transpose(1, 2)[:, None]
    if x.ndim != 4:
        raise DataError(f"vision {tuple(x.shape)} is no picture (B, 3, H, W)", fix="apply frontend.batch first")
    return x


def grid_of(batch: Batch, modality: str, patch: int) -> Grid:
    """Where the patches of a modality lie. Raises DataError when they do not fill it."""
    rows, columns = planes(batch, modality).shape[2:]
    if rows % patch or columns % patch:
        raise DataError(
            f"{modality} of {rows} x {columns} does not divide into patches of {patch}",
            fix="set the frontend's frames and image_size to multiples of the patch",
        )
    return Grid((rows // patch, columns // patch), AXES[modality])


def patches(x: Tensor, patch: int, ids: Tensor | None = None) -> Tensor:
    """(B, C, rows, columns) -> (B, K, patch * patch * C).

    ids: (B, K) which patches, row-major, in this order; None = all. Only those are copied out of the input.
    """
    b, c, rows, columns = x.shape
    h, w = rows // patch, columns // patch
    view = x.reshape(b, c, h, patch, w, patch).permute(0, 2, 4, 3, 5, 1)  # (B, h, w, p, p, C), not copied
    if ids is None:
        return view.reshape(b, h * w, -1)
    return view[torch.arange(b, device=ids.device)[:, None], ids // w, ids % w].flatten(2)


def unpatch(x: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `patches` with all of them: (B, h * w, patch * patch * C) -> (B, C, rows, columns)."""
    h, w = grid
    b, _, size = x.shape
    c = size // patch**2
    return x.view(b, h, w, patch, patch, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h * patch, w * patch)


def normalised(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches with mean 0 and variance 1, their means and deviations: unbiased variance, eps 1e-6 inside the root. A
    constant patch (padding) becomes exactly 0."""
    mean = target.mean(-1, keepdim=True)
    std = (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (target - mean) / std, mean, std
