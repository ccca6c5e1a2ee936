"""What training needs and deployment does not: a module that owns its backbone, draws, and adds up terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from avssl.backbone import Backbone
from avssl.batch import Batch

if TYPE_CHECKING:
    from avssl.data.targets import Codec

B = TypeVar("B", bound=Backbone)


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a loss: weight * sum / count, where the loop adds sums and counts over ranks and micro-batches."""

    weight: float
    sum: Tensor  # () with gradient
    count: Tensor | int | float  # number of elements summed over: tokens, items, pixels

    @property
    def value(self) -> Tensor:
        """The unweighted mean over this batch alone."""
        return self.sum / self.count


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Terms to minimise, and what to log."""

    terms: Mapping[str, Term]
    metrics: Mapping[str, tuple[Tensor, Tensor | int | float]] = field(
        default_factory=dict
    )  # name -> (sum, count), no gradient

    def total(self, counts: Mapping[str, Tensor | float] | None = None) -> Tensor:
        """() the only total there is: sum of weight * sum / count. `counts` replaces the local counts by global ones."""
        parts = [t.weight * t.sum / (t.count if counts is None else counts[n]) for n, t in self.terms.items()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def merged(self, other: LossOutput) -> LossOutput:
        """The terms and metrics of both. Raises ValueError for a name that both use: one would hide the other."""
        twice = (self.terms.keys() & other.terms.keys()) | (self.metrics.keys() & other.metrics.keys())
        if twice:
            raise ValueError(f"two terms or metrics of a loss are called {', '.join(sorted(twice))}")
        return LossOutput({**self.terms, **other.terms}, {**self.metrics, **other.metrics})


class Loss(nn.Module, Generic[B]):
    """Base of every objective.

    A subclass takes (backbone, config); the backbone already holds its initial weights, so that a teacher can copy
    them. Everything random happens in `sample`, on the CPU, row by row from `batch.seeds`; `compute` is deterministic
    given the draw (dropout and drop path apart). A contrastive objective implements `local` and `joint` instead of
    `compute` and sets `contrastive = True`: the loop then gathers representations over ranks and micro-batches, so that
    accumulation and data parallelism keep every negative. State that a forward pass updates (codebooks, running
    statistics) is collected only while `torch.is_grad_enabled()`, and applied in `after_step`.
    """

    contrastive: bool = False
    exclusive: bool = False  # its head's outputs are a softmax even where targets are vectors: one class for each item

    def __init__(self, backbone: B, config: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    # -- one step ------------------------------------------------------------------------------------------------
    def sample(self, batch: Batch) -> Any:
        """All randomness of a step: a dataclass of CPU tensors with one row per item (or None)."""
        return None

    def compute(self, batch: Batch, draw: Any) -> LossOutput:
        """The terms of a batch, given the draw. Contrastive objectives inherit this: local, then joint."""
        out, representations = self.local(batch, draw)
        return out.merged(self.joint(representations))

    def local(self, batch: Batch, draw: Any) -> tuple[LossOutput, dict[str, Tensor]]:
        """Terms that need only this micro-batch, and (B, ...) representations that `joint` compares over all items."""
        raise NotImplementedError

    def joint(self, representations: Mapping[str, Tensor]) -> LossOutput:
        """Terms that compare items with each other, over the items of the whole (global) batch."""
        raise NotImplementedError

    def counts(self, batch: Batch, draw: Any) -> Mapping[str, Tensor | int | float] | None:
        """The count of each term without computing it, where draw and shapes tell. None makes the loop spend a forward
        pass without gradient when it accumulates over micro-batches: sums are divided by counts over all of them."""
        return None

    def forward(self, batch: Batch, draw: Any = None) -> LossOutput:
        """`sample`, then `compute`."""
        return self.compute(batch, self.sample(batch) if draw is None else draw)

    # -- around the steps ----------------------------------------------------------------------------------------
    def for_training(self, codec: Codec | None) -> None:
        """When a run is built, before anything is written: open what only training needs (another model that teaches),
        and see that it fits the targets. A model that is opened for use does not come here, so that it needs no teacher."""

    def prepare(self, first_batch: Batch) -> None:
        """Once before the first update (k-means start and the like), on every process from rank 0's first batch; its result
        is part of the state. It may set buffers; parameters that train.shard cuts up are restored after it."""

    def before_step(self, updates: int, total: int) -> None:
        """Before update number `updates` (1 is the first) of `total`: schedules inside a loss."""

    def after_step(self, updates: int) -> None:
        """After `updates` finished optimiser updates (1 after the first): EMA, codebooks. Skipped steps do not count."""

    def exports(self) -> dict[str, nn.Module]:
        """What is deployed, by name: the backbone, and a head where prediction is the point."""
        return {"backbone": self.backbone}

    def head_parameters(self) -> set[str]:
        """Names (as in `named_parameters`) of freshly initialised heads: their own learning-rate ratio, never frozen."""
        return {n for n, _ in self.named_parameters() if not n.startswith("backbone.")}

    def reconstruct(self, batch: Batch, draw: Any) -> dict[str, dict[str, Tensor]]:
        """For systems that reconstruct: modality -> {"original", "masked", "reconstructed"}, frontend units; else {}."""
        return {}


@torch.no_grad()
def to_device(draw: Any, device: torch.device | str) -> Any:
    """A draw (nested dataclasses, dicts, lists of tensors) on a device; generators and numbers pass through."""
    import dataclasses

    if isinstance(draw, Tensor):
        return draw.to(device, non_blocking=True)
    if dataclasses.is_dataclass(draw) and not isinstance(draw, type):
        return dataclasses.replace(
            draw, **{f.name: to_device(getattr(draw, f.name), device) for f in dataclasses.fields(draw)}
        )
    if isinstance(draw, dict):
        return {k: to_device(v, device) for k, v in draw.items()}
    if isinstance(draw, (list, tuple)):
        return type(draw)(to_device(v, device) for v in draw)
    return draw
