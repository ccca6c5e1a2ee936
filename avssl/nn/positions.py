"""Position tables that lie on a grid: making them, and fitting them to another grid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avssl.errors import check


def sincos_2d(dim: int, rows: int, columns: int) -> Tensor:
    """(rows * columns, dim) float32 fixed table of MAE and CAV-MAE, row-major.

    w_k = 10000^(-k / (dim/4)), k < dim/4; the entry of (r, c) is [sin(c w), cos(c w), sin(r w), cos(r w)]: the column
    takes the first half. Computed in float64. Raises UsageError unless dim is a multiple of 4.
    """
    check(dim % 4 == 0, f"a 2-D sine-cosine table of width {dim} does not exist", fix="use a multiple of 4")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def half(count: int) -> Tensor:  # (count, dim/2)
        angle = torch.arange(count, dtype=torch.float64)[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], 1)

    grid = [half(columns)[None].expand(rows, -1, -1), half(rows)[:, None].expand(-1, columns, -1)]
    return torch.cat(grid, -1).reshape(rows * columns, dim).float()


def resize_grid(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], method: Literal["cut", "bilinear", "bicubic"] = "cut"
) -> Tensor:
    """Fit a table of positions on the grid `old` (rows, columns) to the grid `new`; row-major, on the grid, not flat.

    table: (..., rows * columns, dim); leading dimensions are kept. "cut" keeps the first rows and columns of an axis
    that shrinks, so that a token keeps the position it was trained with (a shorter recording), and stretches an axis
    that grows bilinearly; "bilinear" and "bicubic" resample both axes (another resolution of the same picture).
    """
    *lead, count, dim = table.shape
    check(
        count == old[0] * old[1],
        f"a table of {count} positions does not lie on a grid of {old[0]} x {old[1]}",
        fix="give the grid it was made for",
    )
    if old == new:
        return table
    grid = table.reshape(-1, *old, dim)
    if method == "cut":
        grid = grid[:, : new[0], : new[1]]
    if tuple(grid.shape[1:3]) != new:
        mode = "bilinear" if method == "cut" else method
        grid = F.interpolate(grid.permute(0, 3, 1, 2), size=new, mode=mode, align_corners=False).permute(0, 2, 3, 1)
    return grid.reshape(*lead, new[0] * new[1], dim).contiguous()
