"""The objective of data2vec 2.0 (arXiv:2212.07525): many masks per item, one target, a student of kept tokens."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avssl.backbone import Features, Grid
from avssl.batch import Batch
from avssl.errors import check
from avssl.loss import LossOutput, Term
from avssl_data2vec import masks
from avssl_data2vec.config import Data2Vec2Config, SpanConfig
from avssl_data2vec.decoder import Decoder, with_noise
from avssl_data2vec.loss import regression
from avssl_data2vec.modules import bert_init
from avssl_data2vec.multi import Multi2, mae_init
from avssl_data2vec.targets import average_targets
from avssl_data2vec.teacher import Taught


@dataclass(frozen=True)
class Clones:
    """M masks per item, in rows item by item (item 0's clones, item 1's, ...); K kept of N tokens."""

    mask: Tensor  # (B * M, N) bool, True = hidden
    keep: Tensor  # (B * M, K) int64
    restore: Tensor  # (B * M, N) int64: where a token is found in [kept, noise]
    noise: Tensor  # (B * M, N - K, D) standard normal, in the order of the hidden tokens in [kept, noise]
    shared_noise: Tensor | None = None  # likewise, for the shared decoder


class Data2Vec2(Taught[Multi2]):
    """Predict the teacher's averaged layers at the hidden places, with a small convolutional decoder.

    State: backbone, decoder, teacher (float32) and the number of finished updates.
    """

    def __init__(self, backbone: Multi2, config: Data2Vec2Config) -> None:
        super().__init__(backbone, config)
        check(
            config.class_weight == 0 or backbone.config.extra_tokens > 0,
            "loss.class_weight needs a class token",
            fix="set backbone.extra_tokens=1",
        )
        positions = config.decoder.add_positions
        check(
            positions == "none" or getattr(backbone, "sincos", None) is not None,
            f"loss.decoder.add_positions = {positions!r}, but the backbone has no fixed positions",
            fix="--set loss.decoder.add_positions=none",
        )
        self.decoder = Decoder(backbone.dim, backbone.modality == "vision", config.decoder)
        if not backbone.config.mae_init:
            bert_init(self.decoder)
        self.shared_decoder = None
        if config.shared_decoder is not None:
            self.shared_decoder = Decoder(backbone.dim, False, config.shared_decoder)
            self.shared_decoder.apply(mae_init)
        self.pixel_head = _pixel_head(backbone) if config.reconstruction_weight > 0 else None

    # -- the draw ------------------------------------------------------------------------------------------------
    def sample(self, batch: Batch) -> Clones:
        grid = self.backbone.grid(batch)[self.backbone.modality]
        rngs = masks.generators(batch.seeds, 0)
        pad = self.backbone.local_pad(batch)
        lengths = [grid.shape[0]] * len(rngs) if pad is None else (~pad).sum(1).tolist()
        if self._in_spans(grid):
            mask = self._spans(rngs, grid.shape[0], lengths)
        elif pad is not None and len(grid.shape) == 1 and not self.config.mask.over_padding:
            mask = masks.multi_padded(rngs, grid.shape[0], lengths, self.config.mask)
        else:
            mask = np.concatenate([masks.multi(rng, grid.shape, self.config.mask) for rng in rngs])
        order = np.argsort(mask, axis=1, kind="stable")  # kept first, each part in the order of the tokens
        kept = int((~mask[0]).sum())
        shape = (self.config.mask.clones, mask.shape[1] - kept, self.backbone.dim)

        def noise(salt: int) -> Tensor:
            rngs = masks.generators(batch.seeds, salt)
            return torch.from_numpy(np.concatenate([r.standard_normal(shape, dtype=np.float32) for r in rngs]))

        return Clones(
            torch.from_numpy(mask),
            torch.from_numpy(order[:, :kept].copy()),
            torch.from_numpy(np.argsort(order, axis=1)),
            noise(1),
            None if self.shared_decoder is None else noise(2),
        )

    def _in_spans(self, grid: Grid) -> bool:
        return self.config.mask.kind == "spans" and self.config.mask.length > 1 and len(grid.shape) == 1

    def _spans(self, rngs: list[np.random.Generator], size: int, lengths: list[int]) -> np.ndarray:
        """Without precomputed masks the official model draws those of data2vec 1; all rows get the same count."""
        c = self.config.mask
        share = 1 - c.probability if c.inverse else c.probability
        spans = SpanConfig(probability=share, length=c.length, dropout=c.dropout, add=c.add)
        rows = [pair for pair in zip(rngs, lengths, strict=True) for _ in range(c.clones)]
        mask = masks.spans([rng for rng, _ in rows], size, [n for _, n in rows], spans)
        return ~mask if c.inverse else mask

    def counts(self, batch: Batch, draw: Clones) -> dict[str, Tensor]:
        hidden = self._scored(batch, draw).sum()
        c: Data2Vec2Config = self.config
        names = ["regression", *(["regression.shared"] if self.shared_decoder is not None else [])]
        weights = {"class": c.class_weight, "reconstruction": c.reconstruction_weight}
        return dict.fromkeys([*names, *(name for name, weight in weights.items() if weight > 0)], hidden)

    def _scored(self, batch: Batch, draw: Clones, pad: Tensor | None = None) -> Tensor:
        pad = self.backbone.local_pad(batch) if pad is None else pad
        if pad is None or self.config.mask.over_padding:
            return draw.mask
        return draw.mask & ~pad.to(draw.mask.device).repeat_interleave(self.config.mask.clones, 0)

    # -- the step ------------------------------------------------------------------------------------------------
    def compute(self, batch: Batch, draw: Clones) -> LossOutput:
        c: Data2Vec2Config = self.config
        name = self.backbone.modality
        device = batch.need(name).x.device
        drawn = {f.name: getattr(draw, f.name) for f in dataclasses.fields(draw)}
        draw = dataclasses.replace(draw, **{k: v.to(device) for k, v in drawn.items() if v is not None})
        clones = c.mask.clones
        local, pad = self.backbone.local(batch), self.backbone.local_pad(batch)
        student = self.backbone(batch, keep={name: draw.keep}, local=local, pad=pad, clones=clones)
        target = self._target(batch, local, pad)  # (B, N, D)
        scored = self._scored(batch, draw, pad)
        predicted = {k: v[scored] for k, v in self._decode(student, draw).items()}
        wanted = target.repeat_interleave(clones, 0)[scored]
        scale = 1 / math.sqrt(self.backbone.dim) if c.scale is None else c.scale
        hidden = len(wanted)
        terms = {
            f"regression{of}": Term(c.weight, regression(x, wanted, c.beta).sum() * scale, hidden)
            for of, x in predicted.items()
        }
        if c.class_weight > 0:
            token = student.tokens[name][:, self.backbone.config.extra_tokens - 1]
            error = regression(token, target.mean(1).repeat_interleave(clones, 0), c.beta).sum() * scale
            terms["class"] = Term(c.class_weight, error * hidden, hidden)  # summed, and not divided by the tokens
        if self.pixel_head is not None:
            own = pixels(batch.need(name).x, self.backbone.config.patch).repeat_interleave(clones, 0)[scored]
            error = regression(self.pixel_head(next(iter(predicted.values()))), own, c.beta).sum() * scale
            terms["reconstruction"] = Term(c.reconstruction_weight, error, hidden)
        metrics: dict[str, Any] = {"teacher_decay": (torch.tensor(self.decay), 1)}
        for of, x in predicted.items():
            spread = self.watched(wanted, x, name)
            metrics |= {"target_std": (spread["target"], 1), f"prediction{of}_std": (spread["prediction"], 1)}
        metrics["masked_share"] = (torch.tensor(1 - draw.keep.shape[1] / draw.restore.shape[1]), 1)
        return LossOutput(terms, metrics)

    @torch.no_grad()
    def _target(self, batch: Batch, local: Tensor, pad: Tensor | None) -> Tensor:
        kind = self.config.targets.layers
        if self.config.teacher.own_local:
            features = self.teacher(batch, layers=kind)
        else:
            features = self.teacher(batch, layers=kind, local=local.detach(), pad=pad)
        name, prefix = self.backbone.modality, self.backbone.config.extra_tokens
        return average_targets(features.layers[name], self.config.targets, prefix, features.pad.get(name))

    def _decode(self, student: Features, draw: Clones) -> dict[str, Tensor]:
        """(B * M, N, D) predictions at every place, of the shared decoder (where there is one, first) and the own."""
        out: dict[str, Tensor] = {}
        if self.shared_decoder is not None and draw.shared_noise is not None:
            x = self._decoder_input(student, draw, draw.shared_noise)
            out[".shared"] = self.shared_decoder(x, (x.shape[1],))
        x = self._decoder_input(student, draw, draw.noise)
        return out | {"": self.decoder(x, student.grid[self.backbone.modality].shape)}

    def _decoder_input(self, student: Features, draw: Clones, noise: Tensor) -> Tensor:
        c = self.config.decoder
        x = student.tokens[self.backbone.modality]
        x = F.dropout(x, c.input_dropout, self.training) if c.input_dropout else x
        x = with_noise(x[:, self.backbone.config.extra_tokens :], noise * self.config.noise_std, draw.restore)
        if c.add_positions == "none":
            return x
        positions = self.backbone.get_buffer("sincos")
        if c.add_positions in ("masked", "both"):
            x = x + positions * draw.mask[..., None].to(x.dtype)
        return x + positions if c.add_positions in ("all", "both") else x


def _pixel_head(backbone: Multi2) -> torch.nn.Linear:
    patch = backbone.config.channels * backbone.config.patch**2 if backbone.modality == "vision" else 0
    check(
        patch == backbone.dim,
        f"loss.reconstruction_weight: a patch has {patch} values, the predictions {backbone.dim}",
        fix="set loss.reconstruction_weight=0, or backbone.dim to the values of a patch (ViT-B: 16 x 16 x 3 = 768)",
    )
    return torch.nn.Linear(backbone.dim, backbone.dim)


@torch.no_grad()
def pixels(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, patches, patch * patch * C) float32: row by row, each patch to mean 0 and unbiased variance 1."""
    x = images[:, 0] if images.ndim == 5 else images
    x = x.float().unfold(2, patch, patch).unfold(3, patch, patch)  # (B, C, rows, columns, patch, patch)
    x = x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    var, mean = torch.var_mean(x, dim=-1, keepdim=True)
    return (x - mean) * torch.rsqrt(var + 1e-6)
