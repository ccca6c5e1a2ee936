"""Masked frame modelling: BERT's objective on frames of sound [C, specification 3.4]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avssl.batch import Batch, Stream, generators
from avssl.loss import Loss, LossOutput, Term

from .backbone import Tiny
from .config import MaskedConfig


@dataclass(frozen=True)
class Hidden:
    mask: Tensor  # (B, T) bool, True = frame replaced by the learned vector


class MaskedFrames(Loss[Tiny]):
    """Replace spans of frames by a learned vector; regress the standardised frames there, L1, through one Linear.

    The vector lives in the objective and in the units of the input, so that the deployed encoder has no tensor that
    only training needs.
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
        stream = batch.need("audio")
        frames, mask = stream.x, draw.mask.to(stream.x.device)
        seen = torch.where(mask[..., None], self.vector.to(frames.dtype), frames)
        features = self.backbone(batch.with_streams(audio=Stream(seen, stream.pad)))
        tokens = features.tokens["audio"][:, self.backbone.prefix :]
        guess = self._frames(tokens)  # (B, >= T, F)
        error = (guess[:, : frames.shape[1]] - frames)[mask].abs()  # (M, F)
        return LossOutput({"frames": Term(1.0, error.sum(), error.numel())})

    def _frames(self, tokens: Tensor) -> Tensor:
        return self.decoder(tokens).unflatten(-1, (self.backbone.config.frames_per_token, -1)).flatten(1, 2)

    def reconstruct(self, batch: Batch, draw: Hidden) -> dict[str, dict[str, Tensor]]:
        stream = batch.need("audio")
        mask = draw.mask.to(stream.x.device)[..., None]
        seen = torch.where(mask, self.vector, stream.x)
        tokens = self.backbone(batch.with_streams(audio=Stream(seen, stream.pad))).tokens["audio"][
            :, self.backbone.prefix :
        ]
        guess = self._frames(tokens)[:, : stream.x.shape[1]]
        return {"audio": {"original": stream.x, "masked": seen, "reconstructed": torch.where(mask, guess, stream.x)}}
