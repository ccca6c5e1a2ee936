"""One update's gradients: exact over micro-batches and processes, contrastive losses included."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avssl.batch import Batch
from avssl.errors import UsageError
from avssl.frontend import Frontend
from avssl.loss import Loss, LossOutput, Term, to_device
from avssl.training.distributed import World, gather

Sums = dict[str, tuple[float, Tensor, Tensor]]  # term -> (weight, sum, count)


@dataclass
class StepOutput:
    """What one update gave on this process; sums over processes are the meter's business."""

    terms: Sums = field(default_factory=dict)
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    ids: tuple[str, ...] = ()

    def add(self, out: LossOutput, device: torch.device) -> None:
        for name, term in out.terms.items():
            old = self.terms.get(name, (0, None, None))[1:]
            self.terms[name] = (term.weight, *_plus(old, (term.sum, term.count), device))
        for name, pair in out.metrics.items():
            self.metrics[name] = _plus(self.metrics.get(name, (None, None)), pair, device)


def _plus(old: tuple[Any, ...], new: tuple[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(v, device=device).detach().to(wide(device)) for v in new)
    return (a, b) if old[0] is None else (old[0] + a, old[1] + b)


def wide(device: torch.device) -> torch.dtype:
    """What sums over a run are kept in: float64, but on Apple's GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass
class Stepper:
    """Turns the micro-batches of an update into gradients.

    dtype: of autocast, or None. negatives: "global", "rank" or a group size, for contrastive losses.
    Everything random in `forward` (dropout, drop path) is seeded by (seed, update, process, micro-batch): a resumed run
    needs no generator state, and a second pass over a micro-batch sees the same noise.
    """

    loss: Loss
    frontend: Frontend
    device: torch.device
    world: World
    seed: int
    dtype: torch.dtype | None = None
    negatives: str | int = "global"
    scaler: torch.amp.GradScaler | None = None

    @torch.no_grad()
    def prepare(self, micros: list[Batch]) -> None:
        """`Loss.prepare` of all processes from the micro-batches of the first one.

        All of them compute it, because sharded parameters come together only for a forward pass of all; whatever is whole
        (buffers, parameters that are not sharded) is then the first process's, to the last bit.
        """
        if type(self.loss).prepare is Loss.prepare:
            return
        micros = self.world.broadcast(micros)
        self.loss.prepare(Batch.cat([self.frontend(b.to(self.device)) for b in micros], self.frontend.pad_values))
        for tensor in self.loss.state_dict().values():
            if self.world.ranks > 1 and not hasattr(tensor, "full_tensor"):
                torch.distributed.broadcast(tensor, 0)

    def backward(self, micros: list[Batch], update: int) -> StepOutput:
        """Accumulate the gradients of an update; terms are divided by their counts over all micro-batches and processes."""
        batches = [self.frontend(b.to(self.device, non_blocking=True)) for b in micros]
        draws = [to_device(self.loss.sample(b), self.device) for b in batches]
        result = StepOutput(ids=tuple(i for b in micros for i in b.ids))
        if len(batches) == 1:
            out, representations = self._local(batches[0], draws[0], update, 0)
            if self.loss.contrastive:
                out = out.merged(self._joint(representations))
            self._scaled(out.total(self._counts([out]))).backward()
            result.add(out, self.device)
            return result
        return self._accumulate(batches, draws, update, result)

    def _accumulate(self, batches: list[Batch], draws: list[Any], update: int, result: StepOutput) -> StepOutput:
        """Several micro-batches: counts (and, for a contrast, representations) first, then one backward pass for each."""
        known = [self.loss.counts(b, d) for b, d in zip(batches, draws, strict=True)]
        leaves: dict[str, Tensor] = {}
        if self.loss.contrastive or any(k is None for k in known):
            with torch.no_grad():
                first = [self._local(b, d, update, m) for m, (b, d) in enumerate(zip(batches, draws, strict=True))]
            outs = [out for out, _ in first]
            if self.loss.contrastive:  # GradCache (arXiv:2101.06983): the contrast's gradient at the representations
                leaves = {k: torch.cat([r[k] for _, r in first]).requires_grad_() for k in first[0][1]}
                joint = self._joint(leaves)
                counts = self._counts([*outs, joint])
                self._scaled(joint.total(counts)).backward()
                result.add(joint, self.device)
            else:
                counts = self._counts(outs)
        else:
            counts = self._counts(
                [LossOutput({k: Term(1.0, torch.zeros(()), v) for k, v in (one or {}).items()}) for one in known]
            )
        row = 0
        for m, (batch, draw) in enumerate(zip(batches, draws, strict=True)):
            out, representations = self._local(batch, draw, update, m)
            total = self._scaled(out.total(counts))
            for name, x in representations.items():
                grad = leaves[name].grad
                assert grad is not None
                total = total + (x * grad[row : row + len(batch)].to(x.dtype)).sum()
            row += len(batch)
            if total.requires_grad:
                total.backward()
            result.add(out, self.device)
        return result

    def _local(self, batch: Batch, draw: Any, update: int, micro: int) -> tuple[LossOutput, dict[str, Tensor]]:
        seed_everything(self.seed, update, self.world.rank, micro)
        with self.autocast():
            if self.loss.contrastive:
                return self.loss.local(batch, draw)
            return self.loss.compute(batch, draw), {}

    def _joint(self, representations: Mapping[str, Tensor]) -> LossOutput:
        """The contrast over the batch that `negatives` names; every process holds an equal share of a global one."""
        with self.autocast():
            if self.negatives == "rank":
                return self.loss.joint(representations)
            everyone = gather(representations, self.world)
            if self.negatives == "global":
                out = self.loss.joint(everyone)
            else:
                out = self._grouped(everyone, int(self.negatives))
        share = 1.0 / self.world.ranks
        return LossOutput(
            {k: Term(t.weight, t.sum * share, t.count * share) for k, t in out.terms.items()},
            {k: (a * share, b * share) for k, (a, b) in out.metrics.items()},
        )

    def _grouped(self, everyone: Mapping[str, Tensor], size: int) -> LossOutput:
        n = len(next(iter(everyone.values())))
        if n % size:
            raise UsageError(
                f"train.negatives = {size} does not divide the batch of {n}", fix="choose data.batch_size accordingly"
            )
        outs = [self.loss.joint({k: x[i : i + size] for k, x in everyone.items()}) for i in range(0, n, size)]
        terms = {
            k: Term(t.weight, torch.stack([o.terms[k].sum for o in outs]).sum(), sum(o.terms[k].count for o in outs))
            for k, t in outs[0].terms.items()
        }
        metrics = {k: (sum(o.metrics[k][0] for o in outs), sum(o.metrics[k][1] for o in outs)) for k in outs[0].metrics}
        return LossOutput(terms, metrics)  # type: ignore[arg-type]

    def _counts(self, outs: list[LossOutput]) -> dict[str, Tensor]:
        """term -> () its count over the given outputs of all processes."""
        names = sorted({n for out in outs for n in out.terms})
        counts = torch.zeros(len(names), dtype=wide(self.device), device=self.device)
        for i, name in enumerate(names):
            for out in outs:
                if name in out.terms:
                    counts[i] += torch.as_tensor(out.terms[name].count, device=self.device)
        return dict(zip(names, self.world.sum(counts), strict=True))

    def _scaled(self, total: Tensor) -> Tensor:
        return self.scaler.scale(total) if self.scaler is not None else total

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype is not None else nullcontext()


def seed_everything(*parts: int) -> None:
    """Seed every global generator from a few numbers."""
    seed = int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
