"""Masked label prediction: the encoder sees a quarter of the patches, a predictor names the codes of the others
(arXiv:2212.09058, section 3.3.2). Targets come from the clean, complete clip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.batch import Batch, generators
from avssl.errors import UsageError
from avssl.loss import Loss, LossOutput, Term, to_device
from avssl_beats.backbone import Beats
from avssl_beats.config import BeatsConfig, BeatsLossConfig, BeatsRandomConfig, EstimatorConfig, PredictorConfig
from avssl_beats.encoder import Layers, at_least_float32
from avssl_beats.tokenizers import RandomTokenizer, Tokenizer, load_tokenizer
from avssl_beats.usage import CodeUsage, histogram

NOT_SCORED = -100  # a label that cross_entropy leaves out: no selection by mask, which would stall a GPU


@dataclass(frozen=True)
class Hidden:
    """Which patches an encoder sees, and which it is asked for. Padded patches are neither."""

    keep: Tensor  # (B, K) int64 ascending; items that keep fewer are filled up with padded patches
    masked: Tensor  # (B, N) bool, True = hidden and scored


def choose(noise: Tensor, valid: Tensor, ratio: float, count: str) -> Hidden:
    """Keep the valid patches of smallest noise. noise: (B, N); valid: (B, N) bool.

    count: "floor" hides int(ratio n) of n valid patches; "round" keeps round-half-to-even((1 - ratio) n). At least one
    is kept.
    """
    sizes = valid.sum(1).tolist()
    kept_sizes = [max(1, n - int(ratio * n) if count == "floor" else round((1 - ratio) * n)) for n in sizes]
    rank = noise.masked_fill(~valid, torch.inf).argsort(stable=True, dim=1).argsort(dim=1)
    kept = (rank < torch.tensor(kept_sizes)[:, None]) & valid
    masked = valid & ~kept
    total = noise.shape[1]
    order = torch.arange(total) + total * (~kept) + total * masked  # kept, then padded, then masked; each ascending
    return Hidden(order.argsort(1)[:, : max(kept_sizes)], masked)


def small(cfg: BeatsConfig, own: PredictorConfig | EstimatorConfig) -> BeatsConfig:
    """The encoder's kind of layers in another size. They always have a relative bias: nothing else tells positions."""
    return replace(
        cfg,
        depth=own.depth,
        dim=own.dim or cfg.dim,
        heads=own.heads or cfg.heads,
        ffn=own.ffn or cfg.ffn,
        dropout=own.dropout,
        position_groups=1,
        relative_bias=True,
        layer_drop=0.0,
        gradient_decay=1.0,
    )


class LabelPredictor(nn.Module):
    """Encoded patches at their places, the hidden ones filled, to logits over the codes at every place."""

    def __init__(self, backbone: BeatsConfig, cfg: PredictorConfig, codes: int) -> None:
        super().__init__()
        layers = small(backbone, cfg)
        self.enter = nn.Linear(backbone.dim, layers.dim) if layers.dim != backbone.dim else nn.Identity()
        self.token = nn.Parameter(torch.empty(layers.dim).normal_(std=0.02)) if cfg.fill == "token" else None
        self.layers = Layers(layers)
        self.norm = nn.LayerNorm(layers.dim)
        self.head = nn.Linear(layers.dim, codes)

    def forward(self, encoded: Tensor, hidden: Hidden, pad: Tensor | None) -> Tensor:
        """encoded: (B, K, dim); pad: (B, N) bool. Returns (B, N, codes) logits."""
        x = self.enter(self.place(encoded, hidden))  # (B, N, dim)
        if self.token is not None:
            x = torch.where(hidden.masked[..., None], self.token.to(x.dtype), x)
        return self.head(self.norm(self.layers(x, pad)))

    @staticmethod
    def place(encoded: Tensor, hidden: Hidden) -> Tensor:
        """(B, K, D) -> (B, N, D): every patch where it lies, zeros at the others."""
        out = encoded.new_zeros(*hidden.masked.shape, encoded.shape[-1])
        return out.scatter(1, hidden.keep[..., None].expand_as(encoded), encoded)


def label_loss(logits: Tensor, labels: Tensor, masked: Tensor, smoothing: float = 0.0) -> Term:
    """Cross-entropy of (B, N, K) logits at the masked places, summed, with their number."""
    wanted = labels.masked_fill(~masked, NOT_SCORED).flatten()
    total = F.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        wanted,
        reduction="sum",
        ignore_index=NOT_SCORED,
        label_smoothing=smoothing,
    )
    return Term(1.0, total, masked.sum())


def accuracy(guesses: Tensor, labels: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the chosen patches are named rightly, and how many are chosen."""
    return ((guesses == labels) & where).sum(), where.sum()


class MaskedLabels(Loss[Beats]):
    """What both objectives share; a subclass brings the tokenizer."""

    config: BeatsRandomConfig | BeatsLossConfig
    tokenizer: RandomTokenizer | Tokenizer | None

    def _build(self, tokenizer: RandomTokenizer | Tokenizer, codes: int) -> None:
        self.tokenizer = tokenizer
        self.predictor = LabelPredictor(self.backbone.config, self.config.predictor, codes)
        self.usage = CodeUsage(codes, self.config.min_usage)

    def sample(self, batch: Batch) -> Hidden:
        grid, pad = self.backbone.grid(batch)["audio"], self.backbone.padding(batch)
        valid = torch.ones(len(batch), grid.tokens, dtype=torch.bool) if pad is None else ~pad.cpu()
        noise = torch.zeros(valid.shape)
        for row, mask, rng in zip(noise, valid, generators(batch.seeds, salt=0xBEA7), strict=True):
            row[mask] = torch.rand(int(mask.sum()), generator=rng)  # padding does not change what an item draws
        return choose(noise, valid, self.config.mask_ratio, self.config.mask_count)

    def compute(self, batch: Batch, draw: Hidden) -> LossOutput:
        assert self.tokenizer is not None, "sample refuses first"
        draw = to_device(draw, batch.need("audio").x.device)
        labels = self.tokenizer.labels(batch)  # (B, N)
        features = self.backbone(batch, keep={"audio": draw.keep})
        pad = self.backbone.padding(batch)
        logits = self.predictor(features.tokens["audio"], draw, pad)  # (B, N, codes)
        term = label_loss(logits, labels, draw.masked, self.config.label_smoothing)
        valid = torch.ones_like(draw.masked) if pad is None else ~pad
        if torch.is_grad_enabled():
            self.usage.collect(labels, valid)
        guesses, kept = logits.detach().argmax(-1), valid & ~draw.masked
        metrics: dict[str, tuple[Tensor, Tensor | int | float]] = {
            "accuracy_masked": accuracy(guesses, labels, draw.masked),
            "accuracy_kept": accuracy(guesses, labels, kept),
            "distinct_labels": ((histogram(labels, logits.shape[-1], valid) > 0).sum(), 1),
            "distinct_guesses": ((histogram(guesses, logits.shape[-1], draw.masked) > 0).sum(), 1),
        }
        return LossOutput({"labels": term}, {**metrics, **self.usage.metrics()})

    def counts(self, batch: Batch, draw: Hidden) -> dict[str, Tensor]:
        return {"labels": draw.masked.sum()}

    def after_step(self, updates: int) -> None:
        if self.tokenizer is not None:
            self.usage.update(updates)


class RandomLabels(MaskedLabels):
    """Iteration 1: labels of a random projection."""

    def __init__(self, backbone: Beats, config: BeatsRandomConfig) -> None:
        super().__init__(backbone, config)
        self._build(RandomTokenizer(config.tokenizer, backbone.config.patch), config.tokenizer.codes)


class TokenizerLabels(MaskedLabels):
    """Iterations 2, 3, ...: labels of a trained tokenizer, which is stored with the run.

    Without `loss.tokenizer` it only carries a backbone: what an imported encoder comes as.
    """

    def __init__(self, backbone: Beats, config: BeatsLossConfig) -> None:
        super().__init__(backbone, config)
        self.tokenizer = None
        if config.tokenizer:
            tokenizer = load_tokenizer(config.tokenizer, backbone.config.patch, config.statistics)
            self._build(tokenizer, len(tokenizer.head.codebook.weight))

    def sample(self, batch: Batch) -> Hidden:
        if self.tokenizer is None:
            raise UsageError(
                "loss.tokenizer is not set: there are no labels to learn",
                fix="--set loss.tokenizer=RUN (of loss beats_tokenizer), or an official Tokenizer_*.pt",
            )
        return super().sample(batch)
