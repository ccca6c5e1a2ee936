"""What the heads of fine-tuning share."""

from __future__ import annotations

from torch import Tensor, nn

from avssl.backbone import Backbone
from avssl.batch import Batch
from avssl.errors import DataError, check
from avssl.loss import Loss


class FineTuned(Loss[Backbone]):
    """A backbone under the head of a task; the two are deployed together."""

    head: nn.Module

    def exports(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}


def check_classes(classes: int, least: int = 1, fix: str = "set loss.classes or data.target") -> None:
    """Raises UsageError when neither the recipe nor the labels say how many outputs a head has."""
    check(
        classes >= least,
        f"loss.classes is {classes}, and no labels say how many there are",
        fix=fix,
    )


def targets_of(batch: Batch, fix: str = "set data.target, and give labels") -> Tensor:
    """The targets of a batch. Raises DataError where it has none."""
    if batch.targets is None:
        raise DataError("a fine-tuning batch has no targets", fix=fix)
    return batch.targets.x
