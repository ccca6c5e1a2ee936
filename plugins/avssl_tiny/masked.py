"""Masked frame modelling: BERT's objective on frames of sound [C, specification 3.4]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avssl.batch import Batch, generators
from avssl.loss import Loss, LossOutput, Term

from .backbone import Tiny
from .config import MaskedConfig


@dataclass(frozen=True)
class Hidden:
    mask: Tensor  # (B, T) bool, True = frame replaced by the learned vector


class MaskedFrames(Loss[Tiny]):
    """Replace spans of frames by a learned vector; regress the standardised frames there, L1, through one Linear.

    Frames are standardised by the frontend, or by the encoder's `input_norm`. The vector lives in the objective, so that
    the deployed encoder has no tensor that only training needs.
    """

    config: MaskedConfig

    def __init__(self, backbone: Tiny, config: MaskedConfig) -> None:
        super().__init__(backbone, config)
        self.vector = nn.Parameter(torch.zeros(backbone.config.features))
        self.decoder = nn.Linear(backbone.dim, backbone.config.features * backbone.config.frames_per_token)

    def sample(self, batch: Batch) -> Hidden:
        stream = batch.need("audio")
        mask = torch.zeros(stream.x.shape[:2], dtype=torch.bool)
        for row, length, generator in zip(
            mask, stream.lengths.tolist(), generators(batch.seeds, salt=0x7A5C), strict=True
        ):
            span = min(self.config.span, length)
            spans = max(1, round(self.config.ratio * length / span))
            for start in torch.randint(length - span + 1, (spans,), generator=generator).tolist():
                row[start : start + span] = True
        return Hidden(mask)

    def compute(self, batch: Batch, draw: Hidden) -> LossOutput:
        frames, mask, _, guess = self._guess(batch, draw)
        error = (guess - frames)[mask].abs()  # (M, F)
        return LossOutput({"frames": Term(1.0, error.sum(), error.numel())})

    def _guess(self, batch: Batch, draw: Hidden) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Standardised frames, the mask (B, T), what the encoder sees, what it says: three times (B, T, F)."""
        frames = self.backbone.standardised(batch)
        mask = draw.mask.to(frames.device)
        seen = torch.where(mask[..., None], self.vector.to(frames.dtype), frames)
        tokens = self.backbone(batch, frames=seen).tokens["audio"][:, self.backbone.prefix :]
        guess = self.decoder(tokens).unflatten(-1, (self.backbone.config.frames_per_token, -1)).flatten(1, 2)
        return frames, mask, seen, guess[:, : frames.shape[1]]

    def reconstruct(self, batch: Batch, draw: Hidden) -> dict[str, dict[str, Tensor]]:
        frames, mask, seen, guess = self._guess(batch, draw)
        mended = torch.where(mask[..., None], guess, frames)
        return {"audio": {"original": frames, "masked": seen, "reconstructed": mended}}
