"""The objective of data2vec 1 (arXiv:2202.03555, Sec. 3), for any backbone that hides tokens and shows its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone, Features, Grid
from avssl.batch import Batch, Stream
from avssl.errors import UsageError
from avssl.loss import LossOutput, Term
from avssl_data2vec import masks
from avssl_data2vec.config import Data2VecConfig
from avssl_data2vec.modules import check_channels, waveform_frames
from avssl_data2vec.targets import average_targets
from avssl_data2vec.teacher import SharesLocal, Taught, decay_at, follow


@dataclass(frozen=True)
class Hidden:
    """What a step hides: modality -> (B, N) bool, True = hidden from the student and scored.

    replaced: modality -> (B, N) int64, ids that the student reads instead of the item's own, -1 = none (text).
    channels: (B, D) bool, channels of the student's frames that are set to 0; None = no channel (waveforms).
    """

    hide: Mapping[str, Tensor]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    channels: Tensor | None = None


def regression(prediction: Tensor, target: Tensor, beta: float, absolute: bool = False) -> Tensor:
    """Elementwise squared (or absolute) error at beta 0, else smooth L1, in float32."""
    prediction, target = prediction.float(), target.float()
    if beta == 0:
        error = prediction - target
        return error.abs() if absolute else error.square()
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)


def make_head(dim: int, layers: int) -> nn.Sequential:
    """Linear D -> D, or Linear D -> 2D, GELU, ..., Linear -> D."""
    parts: list[nn.Module] = []
    width = dim
    for i in range(layers - 1):
        wider = dim * 2 if i == 0 else width
        parts += [nn.Linear(width, wider), nn.GELU()]
        width = wider
    return nn.Sequential(*parts, nn.Linear(width, dim))


class Data2Vec(Taught[Backbone]):
    """Regress a slow teacher's clean inner layers at the hidden tokens.

    State: backbone, heads, teacher (float32) and the number of finished updates. A stream that lies in time is hidden
    in spans, one that lies in a plane in rectangles, text token by token.
    """

    def __init__(self, backbone: Backbone, config: Data2VecConfig) -> None:
        super().__init__(backbone, config)
        known = set(backbone.modalities)
        if unknown := set(config.modalities) - known:
            raise UsageError(
                f"loss.modalities has {sorted(unknown)}, the backbone reads {sorted(known)}",
                fix=f"choose from {sorted(known)}",
            )
        check_channels(backbone, config.channels.probability)
        self.modalities = tuple(config.modalities) or tuple(sorted(known))
        self.heads = nn.ModuleDict({m: make_head(self._width(m), config.head_layers) for m in self.modalities})
        self.teacher_heads = deepcopy(self.heads).requires_grad_(False) if config.teacher.average_head else None

    # -- the draw ------------------------------------------------------------------------------------------------
    def sample(self, batch: Batch) -> Hidden:
        hide: dict[str, Tensor] = {}
        replaced: dict[str, Tensor] = {}
        grids = sorted(self.backbone.grid(batch).items())
        for salt, (name, grid) in enumerate(grids):
            if name not in self.modalities:
                continue
            rngs = masks.generators(batch.seeds, salt)
            if grid.axes == ("token",):
                hide[name], swapped = self._tokens(batch.need(name), grid, rngs)
                if swapped is not None:
                    replaced[name] = swapped
            elif len(grid.shape) == 1:
                lengths = self._lengths(batch.need(name), grid)
                hide[name] = torch.from_numpy(masks.spans(rngs, grid.shape[0], lengths, self.config.spans))
            else:
                rows = [self._plane(rng, grid) for rng in rngs]
                hide[name] = torch.from_numpy(np.stack(rows))
        if not hide:
            raise UsageError(f"the batch has nothing of {', '.join(self.modalities)}", fix="set loss.modalities")
        off = None
        if self.config.channels.probability > 0:
            off = masks.channels(masks.generators(batch.seeds, len(grids)), self.backbone.dim, self.config.channels)
        return Hidden(hide, replaced, off)

    def _plane(self, rng: np.random.Generator, grid: Grid) -> np.ndarray:
        """(N,) rectangles over the last two axes, drawn anew for each place of the axes before them."""
        *outer, height, width = grid.shape
        planes = [masks.rectangles(rng, height, width, self.config.blocks) for _ in range(math.prod(outer))]
        return np.stack(planes).reshape(-1)

    def _lengths(self, stream: Stream, grid: Grid) -> list[int]:
        """Tokens of each item that are no padding."""
        frames = grid.shape[0]
        if stream.pad is None:
            return [frames] * len(stream.x)
        if hasattr(self.backbone, "extractor"):
            return waveform_frames(self.backbone, stream)
        share = stream.lengths.cpu().double() / stream.x.shape[1]
        return [max(1, int(n)) for n in (share * frames).floor()]

    def _tokens(self, stream: Stream, grid: Grid, rngs: list[np.random.Generator]) -> tuple[Tensor, Tensor | None]:
        ids = stream.x.cpu()
        pad_id = getattr(self.backbone.config, "pad", None)
        real = torch.ones(ids.shape[:2], dtype=torch.bool) if pad_id is None else ids != pad_id
        if stream.pad is not None:
            real &= ~stream.pad.cpu()
        hide = torch.zeros(len(rngs), grid.shape[0], dtype=torch.bool)
        draw_ids = getattr(self.backbone, "random_tokens", None)
        swapped = torch.full(hide.shape, -1, dtype=torch.int64) if draw_ids is not None else None
        for row, rng in enumerate(rngs):
            places = real[row].nonzero()[:, 0]
            kind = torch.from_numpy(masks.corruption(rng, len(places), self.config.tokens))
            hide[row, places[kind == masks.MASKED]] = True
            random = places[kind == masks.RANDOM]
            if draw_ids is not None and swapped is not None and len(random):
                swapped[row, random] = torch.from_numpy(draw_ids(rng, len(random)))
        return hide, swapped

    def counts(self, batch: Batch, draw: Hidden) -> dict[str, Tensor | int]:
        out: dict[str, Tensor | int] = {}
        for name, mask in draw.hide.items():
            suffix = "" if len(draw.hide) == 1 else f".{name}"
            dim = self._width(name)
            out[f"regression{suffix}"] = mask.sum() * (dim if self.config.reduction == "mean" else 1)
            if self.config.variance_weight > 0:
                out[f"variance{suffix}"] = dim
        return out

    def _width(self, name: str) -> int:
        return self.backbone.widths().get(name, self.backbone.dim)

    # -- the step ------------------------------------------------------------------------------------------------
    def compute(self, batch: Batch, draw: Hidden) -> LossOutput:
        device = next(iter(batch.streams.values())).x.device
        hide = {m: mask.to(device) for m, mask in draw.hide.items()}
        target, student = self._features(batch, hide, draw)
        terms: dict[str, Term] = {}
        metrics: dict[str, tuple[Tensor, float]] = {}
        for name, mask in hide.items():
            prefix = student.grid[name].prefix
            predicted = self.heads[name](student.tokens[name][:, prefix:][mask])  # (M, D), item by item
            wanted = self._target(target, name)[mask]
            suffix = "" if len(hide) == 1 else f".{name}"
            terms |= self._terms(predicted, wanted, suffix)
            spread = self.watched(wanted, predicted, name)
            metrics |= {f"{what}_std{suffix}": (value, 1) for what, value in spread.items()}
        metrics["teacher_decay"] = (torch.tensor(self.decay), 1)
        return LossOutput(terms, metrics)

    def _features(self, batch: Batch, hide: Mapping[str, Tensor], draw: Hidden) -> tuple[Features, Features]:
        """The teacher's view of the clean batch and the student's of the hidden one."""
        seen = batch
        for name, ids in draw.replaced.items():
            own = batch.need(name)
            ids = ids.to(own.x.device)
            seen = seen.with_streams(**{name: Stream(torch.where(ids >= 0, ids, own.x), own.pad)})
        only = set(hide)
        kind = self.config.targets.layers
        off: dict[str, Any] = {}
        if draw.channels is not None:
            device = next(iter(batch.streams.values())).x.device
            off = {"hide_channels": draw.channels.to(device), "channels_first": self.config.channels_first}
        if self.config.teacher.own_local:
            student = self.backbone(seen, hide=hide, only=only, **off)
            with torch.no_grad():
                return self.teacher(batch, layers=kind, only=only), student
        shared = cast(SharesLocal, self.backbone)  # the teacher was made from it
        local, pad = shared.local(seen), shared.local_pad(seen)
        student = self.backbone(seen, hide=hide, only=only, local=local, pad=pad, **off)
        with torch.no_grad():
            return self.teacher(batch, layers=kind, only=only, local=local.detach(), pad=pad), student

    def _target(self, features: Features, name: str) -> Tensor:
        prefix, pad = features.grid[name].prefix, features.pad.get(name)
        return average_targets(features.layers[name], self.config.targets, prefix, pad)

    def _terms(self, predicted: Tensor, wanted: Tensor, suffix: str) -> dict[str, Term]:
        c: Data2VecConfig = self.config
        dim = predicted.shape[-1]
        scale = 1 / math.sqrt(dim) if c.scale is None else c.scale
        error = regression(predicted, wanted, c.beta, c.absolute).sum() * scale
        count = predicted.shape[0] * (dim if c.reduction == "mean" else 1)
        terms = {f"regression{suffix}": Term(1.0, error, count)}
        if c.variance_weight > 0:
            spread = torch.sqrt(predicted.float().var(0) + 1e-6)
            terms[f"variance{suffix}"] = Term(c.variance_weight * scale, F.relu(c.variance_margin - spread).sum(), dim)
        return terms

    @torch.no_grad()
    def after_step(self, updates: int) -> None:
        """As of any taught loss; but once tau is 1 the official code copies nothing either."""
        if decay_at(updates, self.config.teacher) >= 1:
            self.updates.fill_(updates)
            return
        super().after_step(updates)
        if self.teacher_heads is not None:
            follow(self.teacher_heads, self.heads, self.decay, ())

    def head_parameters(self) -> set[str]:
        return {f"heads.{n}" for n, _ in self.heads.named_parameters()}

    def exports(self) -> dict[str, Any]:
        return {"backbone": self.backbone}
