"""Speech recognition: letters from frames (fine-tuning of arXiv:2006.11477, Sec. 4.2, and arXiv:2202.03555)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features
from avssl.batch import Batch, Stream
from avssl.loss import LossOutput, Term
from avssl_data2vec import masks
from avssl_data2vec.config import CtcConfig, SpanConfig
from avssl_data2vec.decode import distance, greedy
from avssl_data2vec.heads import FineTuned, check_classes, targets_of
from avssl_data2vec.modules import check_channels, waveform_frames


class LetterHead(nn.Module):
    """Frames -> (B, T, V) symbol logits."""

    streams = ("audio",)

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        prefix = features.grid["audio"].prefix
        return self.linear(self.dropout(features.tokens["audio"][:, prefix:]))


@dataclass(frozen=True)
class SpeechMask:
    """What training hides of a batch; None = nothing."""

    frames: Tensor | None  # (B, T) bool
    channels: Tensor | None  # (B, D) bool


def draw_mask(backbone: Backbone, batch: Batch, spans: SpanConfig, channels: SpanConfig) -> SpeechMask:
    """Frames and channels that a step of fine-tuning hides; probability 0 = none."""
    hidden = off = None
    if spans.probability > 0:
        lengths = waveform_frames(backbone, batch.need("audio"))
        size = backbone.grid(batch)["audio"].shape[0]
        hidden = torch.from_numpy(masks.spans(masks.generators(batch.seeds, 0), size, lengths, spans))
    if channels.probability > 0:
        off = masks.channels(masks.generators(batch.seeds, 1), backbone.dim, channels)
    return SpeechMask(hidden, off)


def masked_features(backbone: Backbone, batch: Batch, draw: SpeechMask, channels_first: bool = False) -> Features:
    device = batch.need("audio").x.device
    hide = None if draw.frames is None else {"audio": draw.frames.to(device)}
    extra: dict[str, Any] = {}
    if draw.channels is not None:
        extra = {"hide_channels": draw.channels.to(device), "channels_first": channels_first}
    return backbone(batch, hide=hide, only={"audio"}, **extra)


class Ctc(FineTuned):
    """CTC over letters; batch.targets.x is (B, N) symbol ids, padded, without blanks. Frames and channels are hidden in
    training as in pretraining. The sum over a batch is divided by the number of items (fairseq's `sentence_avg`)."""

    config: CtcConfig

    def __init__(self, backbone: Backbone, config: CtcConfig) -> None:
        super().__init__(backbone, config)
        check_classes(config.classes, 2, "give labelled data with data.target=characters, or set loss.classes")
        check_channels(backbone, config.channels.probability)
        self.head = LetterHead(backbone.dim, config.classes, config.final_dropout)

    def sample(self, batch: Batch) -> SpeechMask:
        if not self.training:
            return SpeechMask(None, None)
        return draw_mask(self.backbone, batch, self.config.spans, self.config.channels)

    def counts(self, batch: Batch, draw: SpeechMask) -> dict[str, int]:
        return {"ctc": len(batch)}

    def compute(self, batch: Batch, draw: SpeechMask) -> LossOutput:
        meant = targets_of(batch, "set data.target=characters, and give transcripts")
        features = masked_features(self.backbone, batch, draw, self.config.channels_first)
        logits = self.head(features)
        device = logits.device
        log_probs = logits.float().log_softmax(-1)
        pad = features.pad.get("audio")
        frames = (
            torch.full((len(batch),), logits.shape[1], device=device)
            if pad is None
            else (~pad[:, features.grid["audio"].prefix :]).sum(1)
        )
        pad_of = None if batch.targets is None else batch.targets.pad
        symbols = Stream(meant, pad_of) if meant.ndim == 2 else Stream(meant[:, None])  # (B,) are one symbol per item
        target, lengths = symbols.x, symbols.lengths
        total = F.ctc_loss(
            log_probs.transpose(0, 1),
            target,
            frames,
            lengths,
            blank=self.config.blank,
            reduction="sum",
            zero_infinity=True,
        )
        metrics = {} if self.training else self._errors(log_probs, frames, target, lengths)
        return LossOutput({"ctc": Term(1.0, total, len(batch))}, metrics)

    def _errors(
        self, log_probs: Tensor, frames: Tensor, target: Tensor, lengths: Tensor
    ) -> dict[str, tuple[Tensor, int]]:
        """Symbol error rate of greedy decoding: (edits, symbols)."""
        edits = 0
        for row, n, meant, m in zip(
            log_probs.detach().cpu().numpy(), frames.tolist(), target.tolist(), lengths.tolist(), strict=True
        ):
            edits += distance(greedy(row[:n], self.config.blank), meant[:m])
        return {"cer": (torch.tensor(float(edits)), int(lengths.sum()))}
