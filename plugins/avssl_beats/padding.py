"""Which frames and patches are padding: the authors' rule, and two that follow the geometry.

official  reproduces the released code: a mask is shortened by cutting its remainder and reducing equal blocks, so that
          the frequency band of a patch decides which two of its frames are looked at. A padded clip keeps up to eight
          patches more than the clip alone, and its features differ from those of the clip alone.
exact     a frame is sound when its window lies wholly inside the clip, a patch when all its frames are: the padded
          clip has the patches, and the features, of the clip alone.
centre    a frame is sound when the centre of its window is, a patch when any of its frames is: nothing is lost at the
          end, at the price of patches that see some padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avssl.errors import check
from avssl_beats.config import Padding

WINDOW, SHIFT = 400, 160  # samples at 16 kHz


def frame_padding(pad: Tensor, frames: int, rule: Padding, window: int = WINDOW, shift: int = SHIFT) -> Tensor:
    """(B, L) bool sample mask (True = padding) -> (B, frames) bool."""
    if rule == "official":
        return _blocks(pad, frames)
    lengths = (~pad).sum(1, keepdim=True)  # (B, 1)
    reach = window if rule == "exact" else (window + 1) // 2
    starts = torch.arange(frames, device=pad.device) * shift
    return starts + reach > lengths


def patch_padding(pad: Tensor, grid: tuple[int, int], size: int, rule: Padding) -> Tensor:
    """(B, T) bool frame mask -> (B, N) bool for N = steps x bands patches of `size` frames, time-major."""
    steps, bands = grid
    if rule == "official":
        check(
            steps * bands <= pad.shape[1],
            f"the official padding rule hides everything when {steps * bands} patches share {pad.shape[1]} frames",
            fix="set backbone.padding=exact; import an official file with --option padding=exact",
        )
        return _blocks(pad, steps * bands)
    framed = pad[:, : steps * size].unflatten(1, (steps, size))
    padded = framed.any(-1) if rule == "exact" else framed.all(-1)
    return padded.repeat_interleave(bands, 1)


def _blocks(mask: Tensor, length: int) -> Tensor:
    """Shorten a mask (B, L) to (B, length) as the released code does, length <= L."""
    extra = mask.shape[1] % length
    mask = mask[:, : mask.shape[1] - extra]
    return mask.reshape(mask.shape[0], length, mask.shape[1] // length).all(-1)
