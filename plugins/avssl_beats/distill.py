"""Training the tokenizer of the next iteration: a codebook through which a teacher can be told (section 3.2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Features
from avssl.batch import Batch, generators
from avssl.errors import UsageError, check
from avssl.loss import Loss, LossOutput, Term
from avssl_beats.backbone import Beats, pooled
from avssl_beats.config import EstimatorConfig, TokenizerConfig
from avssl_beats.encoder import Layers, at_least_float32
from avssl_beats.masked import small
from avssl_beats.quantizer import Codebook, Quantised
from avssl_beats.standardise import RunningStandard
from avssl_beats.tokenizers import TokenizerHead, check_statistics
from avssl_beats.usage import CodeUsage


class Estimator(nn.Module):
    """Codes of all patches -> what the teacher gives for them."""

    def __init__(self, backbone: Beats, cfg: EstimatorConfig, code_dim: int, width: int) -> None:
        super().__init__()
        layers = small(backbone.config, cfg)
        self.enter = nn.Linear(code_dim, layers.dim)
        self.layers = Layers(layers)
        self.norm = nn.LayerNorm(layers.dim)
        self.leave = nn.Linear(layers.dim, width) if width != layers.dim else nn.Identity()

    def forward(self, codes: Tensor, pad: Tensor | None) -> Tensor:
        """(B, N, code_dim) -> (B, N, width)."""
        return self.leave(self.norm(self.layers(self.enter(codes), pad)))


class Teacher(nn.Module):
    """A frozen encoder, or a fine-tuned one whose logits are the target."""

    head: Any  # None, or a module with a `linear` layer: whose it is, the recipe of the teacher says

    def __init__(self, backbone: Beats, head: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Teacher:
        return self  # Module.train() of the loss recurses, and would switch the dropout on

    @torch.no_grad()
    def forward(self, batch: Batch) -> Features:
        return self.backbone(batch, only={"audio"})


@dataclass(frozen=True)
class Distilled:
    """Every intermediate of the objective, for what the loss and the tests need of it."""

    quantised: Quantised
    estimated: Tensor  # (B, N, width)
    cosine: Tensor  # (B, N), or (B,) for clip targets
    error: Tensor  # (B, N): squared distance of the unit vector from its code; its gradient reaches the vector only
    terms: dict[str, Term]


def distil(
    encoded: Tensor,
    codebook: Codebook,
    estimator: Callable[[Tensor], Tensor],
    target: Tensor,
    valid: Tensor,
    cfg: TokenizerConfig,
) -> Distilled:
    """The objective, to be minimised, from the encoder's output in the codebook's dimension.

    encoded: (B, N, D); target: (B, N, W) per patch or (B, W) per clip; valid: (B, N) bool.
    scaling "mean": mean(1 - cos) + beta * mean over all elements of the squared distance (the released quantizer);
    "paper": -cos + squared distance, summed over dimensions, twice: the codebook's own term has no gradient here, since
    a running average moves the codes, but it belongs to the printed value.
    """
    q = codebook(encoded)
    estimated, target = at_least_float32(estimator(q.passed)), at_least_float32(target)
    if target.ndim == 2:
        cosine = F.cosine_similarity(pooled(estimated, ~valid), target, dim=-1)  # (B,)
        scored = cosine
    else:
        cosine = F.cosine_similarity(estimated, target, dim=-1)  # (B, N)
        scored = cosine[valid]
    error = (q.unit - q.chosen).square().sum(-1)  # (B, N)
    paper = cfg.scaling == "paper"
    committed = error if cfg.padded_take_part and not paper else error * valid
    sums = {"cosine": (-scored if paper else 1 - scored).sum(), "commitment": committed.sum()}
    if paper:
        sums["codebook"] = committed.sum().detach()
    weights, counts = {"commitment": cfg.beta}, term_counts(valid, scored.numel(), cfg)
    terms = {name: Term(weights.get(name, 1.0), total, counts[name]) for name, total in sums.items()}
    return Distilled(q, estimated, cosine, error, terms)


def term_counts(valid: Tensor, scored: Tensor | int, cfg: TokenizerConfig) -> dict[str, Tensor | int]:
    """What each term of `distil` is divided by; `scored`: number of cosines."""
    if cfg.scaling == "paper":
        return {"cosine": scored, "commitment": valid.sum(), "codebook": valid.sum()}
    return {"cosine": scored, "commitment": (valid.numel() if cfg.padded_take_part else valid.sum()) * cfg.code_dim}


class TokenizerDistillation(Loss[Beats]):
    """`backbone` is the tokenizer's encoder, trained from scratch. Without `loss.teacher` it can only give labels: what
    an imported tokenizer comes as."""

    config: TokenizerConfig

    def __init__(self, backbone: Beats, config: TokenizerConfig) -> None:
        super().__init__(backbone, config)
        self.tokenizer = TokenizerHead(backbone.dim, config)
        self.teacher: Teacher | None = None
        if config.teacher:
            self.teacher = load_teacher(config, backbone)
            width = self.teacher.backbone.dim
            if config.target == "logits":
                width = self.teacher.head.linear.out_features
            self.estimator = Estimator(backbone, config.estimator, config.code_dim, width)
            self.usage = CodeUsage(config.codes, config.min_usage)
            self.standard = RunningStandard(width) if config.standardise else None

    def exports(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "tokenizer": self.tokenizer}

    def prepare(self, first_batch: Batch) -> None:
        """Start the codebook by k-means over the patches of the first batch, without dropout, and the statistics."""
        if self.teacher is not None and self.standard is not None:
            self.standard.collect(*self._target(first_batch))
            self.standard.update(decay=0.0)
        book = self.tokenizer.codebook
        if bool(book.started) and bool(book.weight.any()):  # of a codebook of another size only the flag was loaded
            return
        mode = self.training
        self.eval()
        with torch.no_grad():
            encoded, pad = self._encode(first_batch)
        self.train(mode)
        vectors = encoded.flatten(0, 1) if pad is None or self.config.padded_take_part else encoded[~pad]
        rng = next(iter(generators(first_batch.seeds, salt=0xC0DE)))
        book.start(vectors, self.config.kmeans_iterations, rng)

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        if self.teacher is None:
            raise UsageError(
                "loss.teacher is not set",
                fix="--set loss.teacher=RUN, a pretrained or fine-tuned model; in a pipeline --set STAGE.loss.teacher=RUN",
            )
        encoded, pad = self._encode(batch)
        valid = self._valid(batch)
        book = self.tokenizer.codebook
        target, where = self._target(batch)
        shown = target if self.standard is None else self.standard(target)
        out = distil(encoded, book, lambda codes: self.estimator(codes, pad), shown, valid, self.config)
        if torch.is_grad_enabled():
            if self.standard is not None:
                self.standard.collect(target, where)
            book.collect(out.quantised, None if self.config.padded_take_part else valid)
            self.usage.collect(out.quantised.indices, valid)
        return LossOutput(out.terms, self.usage.metrics())

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) vectors before normalisation, and the padding mask (B, N)."""
        features = self.backbone(batch)
        return self.tokenizer.down(features.tokens["audio"]), features.pad.get("audio")

    def _valid(self, batch: Batch) -> Tensor:
        """(B, N) bool, True = no padding."""
        pad, device = self.backbone.padding(batch), batch.need("audio").x.device
        if pad is not None:
            return ~pad
        return torch.ones(len(batch), self.backbone.grid(batch)["audio"].tokens, dtype=torch.bool, device=device)

    def counts(self, batch: Batch, draw: None) -> dict[str, Tensor | int]:
        valid, c = self._valid(batch), self.config
        return term_counts(valid, len(batch) if c.target == "logits" and c.pooling == "clip" else valid.sum(), c)

    @torch.no_grad()
    def _target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the teacher gives, (B, N, W) per patch or (B, W) per clip, and which of it is no padding."""
        assert self.teacher is not None
        features, valid = self.teacher(batch), self._valid(batch)
        if self.config.target == "features":
            return features.tokens["audio"], valid
        assert self.teacher.head is not None
        if self.config.pooling == "patch":
            return self.teacher.head.patches(features), valid
        return self.teacher.head(features), torch.ones_like(valid[:, 0])

    def after_step(self, updates: int) -> None:
        self.tokenizer.codebook.update()
        if self.teacher is not None:
            self.usage.update(updates)
            if self.standard is not None:
                self.standard.update()


def load_teacher(config: TokenizerConfig, backbone: Beats) -> Teacher:
    """The teacher that `config.teacher` names: a run directory, an imported model or an official file."""
    from avssl.model import open_model

    model = open_model(config.teacher)
    if not isinstance(model.backbone, Beats) or model.backbone.config.patch != backbone.config.patch:
        raise UsageError(
            f"{config.teacher} gives no features for patches of {backbone.config.patch}",
            fix="give a BEATs model of the same patch size",
        )
    check_statistics(config.teacher, dict(model.recipe["frontend"]), config.statistics)
    if config.target == "logits":
        known = model.head is not None and (config.pooling == "clip" or hasattr(model.head, "patches"))
        check(
            known and hasattr(model.head, "linear"),
            f"{config.teacher} has no head that gives logits per {config.pooling}",
            fix="give a model fine-tuned with beats_classify, or --set loss.target=features",
        )
    return Teacher(model.backbone, model.head if config.target == "logits" else None)
