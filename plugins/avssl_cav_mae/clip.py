"""Fine-tuning on all pictures of a clip at once, each with its window of sound (CAV-MAE Sync)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avssl.backbone import Features
from avssl.batch import Batch
from avssl.builtin.classify import supervised
from avssl.errors import DataError, check
from avssl.loss import Loss, LossOutput
from avssl_cav_mae.backbone import MODALITIES, CavMae
from avssl_cav_mae.blocks import EPS, Block, initialise
from avssl_cav_mae.config import CavMaeClipConfig


class ClipHead(nn.Module):
    """Features of a clip's pictures -> logits (arXiv:2505.01237; official CAVMAEFT, aggregate="self_attention_cls").

    Sound and picture side by side (2D wide) are their cls tokens straight from each modality's blocks; one modality
    alone is the mean over the tokens of its joint pass: the official class takes them so.
    """

    def __init__(self, config: CavMaeClipConfig, dim: int, heads: int) -> None:
        super().__init__()
        names = [m for m in MODALITIES if m in config.streams]
        self.streams = tuple(f"{m}.own" for m in names) if len(names) > 1 else (f"{names[0]}.alone",)
        width = dim * len(names)
        attentive = config.aggregate == "attention"
        self.cls = nn.Parameter(torch.randn(1, width) * 0.02) if attentive else None
        self.blocks = nn.ModuleList(
            Block(width, heads, config.mlp_ratio, spare=config.spare_norms) for _ in range(config.depth * attentive)
        )
        self.norm = nn.LayerNorm(width, EPS)
        self.linear = nn.Linear(width, config.classes)
        initialise(self)

    def forward(self, features: Features) -> Tensor:
        """(B, C) logits from tokens (B, K, D). The pictures carry no positions: their order does not matter."""
        missing = [s.split(".")[0] for s in self.streams if s not in features.tokens]
        if missing:
            raise DataError(
                f"the head reads {' and '.join(missing)}, which this item has not",
                fix="give items with it, or fine-tune with loss.streams of the other",
            )
        x = torch.cat([features.tokens[s] for s in self.streams], 2)  # (B, K, W)
        if self.cls is None:
            return self.linear(self.norm(x.mean(1)))
        x = torch.cat([self.cls.expand(len(x), -1, -1).to(x.dtype), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.linear(self.norm(x[:, 0]))


class ClipClassify(Loss[CavMae]):
    """Cross-entropy, binary cross-entropy or squared error of a `ClipHead`."""

    config: CavMaeClipConfig

    def __init__(self, backbone: CavMae, config: CavMaeClipConfig) -> None:
        super().__init__(backbone, config)
        check(
            config.classes > 0,
            "loss.classes is 0 and no labels say how many there are",
            fix="give labelled data and data.target, or set loss.classes",
        )
        lacking = [m for m in config.streams if m not in backbone.modalities]
        check(not lacking, f"loss.streams: the backbone reads no {', '.join(lacking)}", fix="--set loss.streams=...")
        heads, width = config.heads or backbone.config.heads, backbone.config.dim * len(config.streams)
        check(width % heads == 0, f"loss.heads {heads} do not divide the width {width}", fix="choose heads that do")
        self.head = ClipHead(config, backbone.config.dim, heads)
        self.exclusive = config.loss == "cross_entropy"

    def exports(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        logits = self.head(self.backbone(batch, only=self.head.streams))  # (B, C)
        return supervised(logits, batch, self.config.loss, self.config.label_smoothing)


__all__ = ["ClipClassify", "ClipHead"]
