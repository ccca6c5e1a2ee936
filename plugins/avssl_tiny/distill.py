"""Distillation from any avssl model that hears: each step asks the teacher about the very sound the student gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.backbone import Backbone
from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Waveform
from avssl.errors import UsageError, check
from avssl.loss import Loss, LossOutput, Term

from .config import DistillConfig, DistillEmbeddingConfig, SoundConfig
from .frontend import SoundFrontend
from .loss import Head, supervised

if TYPE_CHECKING:
    from avssl.data.targets import Codec
    from avssl.model import Model


class TaughtFrontend(SoundFrontend):
    """The student's frontend; the augmented waveform travels on in stream "sound" (B, L), for the teacher.

    Mixup mixes waveforms here, not frames, so that teacher and student hear the same mixture.
    """

    config: SoundConfig

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        made = super().item(clips, rng)
        if "partner" not in made.streams:
            return made
        share = made.need("share").x[:, None]
        mixed = share * made.need("audio").x + (1 - share) * made.need("partner").x
        streams = {k: v for k, v in made.streams.items() if k != "partner"}
        return replace(made, streams={**streams, "audio": Stream(mixed)})

    def batch(self, batch: Batch) -> Batch:
        sound = batch.need("audio")
        return (
            super()
            .batch(batch)
            .with_streams(sound=sound, rate=Stream(sound.x.new_full((len(batch),), self.config.rate)))
        )


class Teacher:
    """A frozen model outside the module tree: no state dict, optimiser or `.train()` reaches it."""

    def __init__(self, path: str, format: str) -> None:
        from avssl.model import open_model

        check(
            bool(path), "loss.teacher names no model", fix="--set loss.teacher=RUN, a run or imported model directory"
        )
        self.model: Model = open_model(path, format)
        check(
            "audio" in self.model.frontend.modalities,
            f"the teacher {path} does not hear",
            fix="give one that reads audio",
        )
        for part in (self.model.backbone, self.model.head):
            if part is not None:
                part.requires_grad_(False)

    def batch(self, batch: Batch) -> Batch:
        """The student's sounds through the teacher's own frontend, as its evaluation would see them."""
        sound, rate = batch.need("sound"), int(batch.need("rate").x[0])
        clips = [
            Clip(id, {"audio": Waveform(wave[:length].numpy()[None], rate)})
            for id, wave, length in zip(batch.ids, sound.x.cpu(), sound.lengths.tolist(), strict=True)
        ]
        frontend = self.model.frontend
        made = Batch.cat([frontend.item([clip], None) for clip in clips], frontend.pad_values)
        device = sound.x.device
        if self.model.device != device:
            self.model.to(device)
        return frontend.batch(made.to(device))


class Distill(Loss[Backbone]):
    """(1 - w) * cross-entropy + w * t^2 * KL(teacher || student), both at temperature t.

    The teacher is opened for training, or at the first use: the student is deployed without it.
    """

    config: DistillConfig
    exclusive = True

    def __init__(self, backbone: Backbone, config: DistillConfig) -> None:
        super().__init__(backbone, config)
        self.head = Head(backbone.dim, config.classes)
        self.order: list[int] | None = None  # the teacher's output for each of the student's, where they differ

    @cached_property
    def teacher(self) -> Teacher:
        teacher = Teacher(self.config.teacher, self.config.teacher_format)
        if teacher.model.head is None:
            raise UsageError(
                f"the teacher {self.config.teacher} has no classification head",
                fix="fine-tune it on these labels first, or use loss.name=distill_embedding",
            )
        return teacher

    def for_training(self, codec: Codec | None) -> None:
        """Raises UsageError for a teacher of other classes; the same ones in another order are put in order."""
        taught = self.teacher.model.codec
        if codec is None or taught is None or taught.classes == codec.classes:
            return
        theirs = set(taught.classes)
        missing = [c for c in codec.classes if c not in theirs]
        check(
            not missing and len(theirs) == len(codec.classes),
            f"the teacher {self.config.teacher} knows {', '.join(taught.classes[:3])} ... ({len(theirs)} classes), "
            f"the labels are {', '.join((missing or codec.classes)[:3])} ... ({len(codec.classes)})",
            fix="fine-tune the teacher on the same labels, or use loss.name=distill_embedding",
        )
        self.order = [taught.classes.index(c) for c in codec.classes]

    def exports(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        logits = self.head(self.backbone(batch, only=self.head.streams))
        model, head = self.teacher.model, self.teacher.model.head
        assert head is not None  # refused when built
        with torch.no_grad():
            wanted = head(model.backbone(self.teacher.batch(batch), only=getattr(head, "streams", None)))
        check(
            wanted.shape == logits.shape,
            f"the teacher has {wanted.shape[1]} classes, the student {logits.shape[1]}",
            fix="fine-tune the teacher on the same labels",
        )
        wanted = wanted if self.order is None else wanted[:, self.order]
        out = supervised(logits, batch, self.config.label_smoothing, weight=1 - self.config.weight)
        imitation = Term(
            self.config.weight, divergence(logits.float(), wanted.float(), self.config.temperature), len(batch)
        )
        return out.merged(LossOutput({"imitation": imitation}))


class DistillEmbedding(Loss[Backbone]):
    """1 - cos(linear(student), teacher), the mean over items."""

    config: DistillEmbeddingConfig
    teacher: Teacher

    def __init__(self, backbone: Backbone, config: DistillEmbeddingConfig) -> None:
        super().__init__(backbone, config)
        teacher = Teacher(config.teacher, config.teacher_format)
        widths = teacher.model.backbone.widths()
        check(
            config.stream in widths,
            f"the teacher gives no {config.stream!r}",
            fix=f"loss.stream: one of {', '.join(widths)}",
        )
        object.__setattr__(self, "teacher", teacher)
        self.projection = nn.Linear(backbone.dim, widths[config.stream])

    def compute(self, batch: Batch, draw: None) -> LossOutput:
        pooled = self.backbone(batch).pooled["audio"]
        with torch.no_grad():
            features = self.teacher.model.backbone(self.teacher.batch(batch), only={self.config.stream})
        wanted = features.pooled[self.config.stream]
        error = 1 - F.cosine_similarity(self.projection(pooled).float(), wanted.float(), dim=1)
        return LossOutput({"imitation": Term(1.0, error.sum(), len(batch))})


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """() sum over items of t^2 * KL(softmax(teacher / t) || softmax(student / t)); logits (B, C)."""
    log_p, log_q = (F.log_softmax(x / temperature, -1) for x in (teacher, student))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
