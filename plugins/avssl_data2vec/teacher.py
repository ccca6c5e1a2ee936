"""The teacher: a slow copy of the student that never trains."""

from __future__ import annotations

import fnmatch
from copy import deepcopy
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from avssl.backbone import Backbone
from avssl.batch import Batch
from avssl.errors import UsageError
from avssl.loss import Loss
from avssl_data2vec.config import TeacherConfig
from avssl_data2vec.targets import guard, mean_std

B = TypeVar("B", bound=Backbone)


def decay_at(updates: int, cfg: TeacherConfig) -> float:
    """tau after `updates` finished updates: linear from start to end, then constant."""
    n = max(0, updates - cfg.delay)
    if n >= cfg.anneal:  # also for anneal 0: a constant
        return cfg.end
    return cfg.end - (cfg.end - cfg.start) * (1 - n / cfg.anneal)


def make_teacher(student: nn.Module, cfg: TeacherConfig) -> nn.Module:
    """A copy in float32 and evaluation mode; without its local part when the student's local features serve it."""
    teacher = deepcopy(student).requires_grad_(False).float().eval()
    if not cfg.own_local:
        drop = getattr(teacher, "drop_local", None)
        if drop is None:
            raise UsageError(
                f"{type(student).__name__} cannot share local features with a teacher",
                fix="set loss.teacher.own_local=true",
            )
        drop()
    return teacher


class SharesLocal(Protocol):
    """A backbone whose local features serve a teacher too."""

    def local(self, batch: Batch) -> Tensor:
        """(B, N, D), before positions and masks."""

    def local_pad(self, batch: Batch) -> Tensor | None:
        """(B, N) bool padding of what `local` gives."""

    def drop_local(self) -> None:
        """Leave out what `local` needs: from now on `forward` must be given local features."""


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float, copied: tuple[str, ...]) -> None:
    """teacher <- decay * teacher + (1 - decay) * student, in float32; a decay of 1 leaves the average as it is.

    Parameters that match a glob of `copied`, those that the student never trains, and buffers are copied at any decay.
    Parameters that the teacher does not have (its local part) are left alone.
    """
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    own: dict[str, Tensor] = dict(teacher.named_parameters())
    for name, value in student.named_parameters():
        if name not in own:
            continue
        if not value.requires_grad or any(fnmatch.fnmatchcase(name, glob) for glob in copied):
            own[name].copy_(value)
        else:
            ours.append(own[name])
            theirs.append(value.detach().to(own[name].dtype))
    if decay < 1:
        torch._foreach_mul_(ours, decay)
        torch._foreach_add_(ours, theirs, alpha=1 - decay)
    buffers = dict(teacher.named_buffers())
    for name, buffer in student.named_buffers():
        if name in buffers:
            buffers[name].copy_(buffer)


class Taught(Loss[B]):
    """A loss whose targets a slow copy of the backbone makes, in float32. State: the copy, the number of finished updates."""

    updates: Tensor  # () int64

    def __init__(self, backbone: B, config: Any) -> None:
        super().__init__(backbone, config)
        self.teacher = make_teacher(backbone, config.teacher)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()  # Module.train() recurses, and would switch the teacher's dropout back on
        return self

    @property
    def decay(self) -> float:
        """tau after the finished updates."""
        return decay_at(int(self.updates), self.config.teacher)

    def watched(self, wanted: Tensor, predicted: Tensor, name: str) -> dict[str, Tensor]:
        """Standard deviations of (M, D) targets and predictions, for the log. Raises Collapsed as `guard` does."""
        spread = {"target": mean_std(wanted), "prediction": mean_std(predicted.detach())}
        guard(spread["target"], spread["prediction"], int(self.updates), self.config.guard, name)
        return spread

    @torch.no_grad()
    def after_step(self, updates: int) -> None:
        """Average the student as it is after this update into the teacher: the next step is taught by it."""
        self.updates.fill_(updates)
        follow(self.teacher, self.backbone, self.decay, self.config.teacher.copied)
