"""The one loop. No line knows a paper."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avssl.batch import Batch
from avssl.data.loader import TrainingLoader
from avssl.errors import AvsslError, CheckpointError, Exit, Stopped, UsageError
from avssl.evaluation.gates import lower_is_better
from avssl.frontend import Frontend
from avssl.loss import Loss
from avssl.recipe import Recipe
from avssl.training import checkpoint, replay
from avssl.training.distributed import World, sum_gradients
from avssl.training.meter import Journal, Meter, shared_out
from avssl.training.monitor import Collapsed, Monitor
from avssl.training.optim import clip, set_rate
from avssl.training.progress import Progress
from avssl.training.signals import StopRequest
from avssl.training.step import StepOutput, Stepper
from avssl.training.weights import Averages, full_state, load_full_state


class NonFinite(AvsslError):
    """A loss or gradient that is no number."""

    code = Exit.GATE


@dataclass
class Run:
    """Everything a run is made of; `train` moves it from `done` to `total` updates."""

    recipe: Recipe
    folder: Path
    loss: Loss
    frontend: Frontend
    loader: TrainingLoader
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]  # update (0 = first) -> learning rate
    stepper: Stepper
    world: World
    device: torch.device
    total: int
    per_epoch: int
    batch: int  # items of an update, over all processes
    done: int = 0
    skipped: int = 0  # updates whose step was not taken
    nonfinite: int = 0  # of these, the ones train.on_nonfinite counts: fp16 overflows are the scaler's business
    prepared: bool = False
    averages: Averages = field(default_factory=Averages)
    validate: Callable[[int], Mapping[str, float]] | None = None  # update -> metrics of the validation split
    best: float | None = None
    watched: Mapping[str, Any] = field(default_factory=dict)  # the monitor's last look, until the next log line
    trackers: tuple[Any, ...] = ()
    offset: int = 0  # of metrics.jsonl at the checkpoint that was resumed
    terms: Collection[str] = ()  # names of the loss's terms, once there was a step

    def __post_init__(self) -> None:
        self.meter = Meter(self.world, self.device)
        self.monitor = Monitor(self.recipe.monitor)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]

    @property
    def validate_every(self) -> int:
        """Updates between two looks at the validation split."""
        return max(1, round(self.recipe.train.validate_every * self.per_epoch))

    # -- the loop ------------------------------------------------------------------------------------------------
    def train(self, stop: StopRequest) -> None:
        """Run to the end. Raises Stopped after a signal (saved), NonFinite, Collapsed, DataError, CheckpointError."""
        cfg = self.recipe.train
        stop.busy = True
        journal = Journal(self.folder, self.offset, self.done, self.trackers) if self.world.first else None
        progress = Progress(self.total, self.done, show=self.world.first)
        save_every = cfg.save_every or min(self.per_epoch, 1000)
        self.loss.train()
        self.frontend.train()
        waited = worked = 0.0
        clips = 0
        began = time.monotonic()
        try:
            for micros in self.loader.updates(self.done, self.total):
                waited += time.monotonic() - began
                self._prepare(micros)
                self._step(micros)
                self.done += 1
                clips += sum(map(len, micros)) * self.world.ranks
                last = self.done == self.total
                progress.step(self.done)
                if self.monitor.due(self.done):
                    self.watched = self._watch(micros)
                worked += time.monotonic() - began
                if self.done % cfg.log_every == 0 or last:
                    record = {
                        "kind": "train",
                        "update": self.done,
                        "epoch": round(self.done / self.per_epoch, 4),
                        "lr": self.rate(self.done - 1),
                        **self.meter.take(),
                    }
                    if self.watched:
                        record["spread"], self.watched = self.watched, {}
                    record["timing"] = {
                        "clips_per_s": clips / max(worked, 1e-9),
                        "data_wait": waited / max(worked, 1e-9),
                        "memory_gib": memory(self.device),
                    }
                    if journal:
                        journal.write(record)
                    progress.report(record)
                    waited = worked = 0.0
                    clips = 0
                began = time.monotonic()
                if self.done % self.per_epoch == 0:
                    self.averages.epoch(self.done // self.per_epoch, self.loss)
                improved = False
                if self.validate and (self.done % self.validate_every == 0 or last):
                    improved = self._validate(journal, progress)
                stopping = self.world.any(bool(stop.name), self.device)
                if self.done % save_every == 0 or last or stopping or improved:
                    self.save(journal, improved)
                if stopping and not last:
                    raise Stopped(
                        f"stopped by {stop.name or 'another process'} after update {self.done}/{self.total}, saved in "
                        f"{self.folder}",
                        fix="the same command with --resume goes on",
                    )
        finally:
            progress.close()
            if journal:
                journal.close()

    def _watch(self, micros: list[Batch]) -> dict[str, Any]:
        """What the monitor sees; the first process decides for all whether this is a collapse."""
        self.frontend.eval()  # the workers augmented the items, and mixed them; nothing is added to that
        ready = [self.frontend(b.to(self.device)) for b in micros]
        self.frontend.train()
        found, problem = self.monitor.look(self.loss, ready, self.done)
        if problem := self.world.broadcast(problem):
            raise Collapsed(
                problem, fix="lower optim.lr or raise the loss's variance terms; monitor.every=0 switches the watch off"
            )
        return found

    def _prepare(self, micros: list[Batch]) -> None:
        """`Loss.prepare` once, from the first batch of rank 0."""
        if not self.prepared:
            self.stepper.prepare(micros)
        self.prepared = True

    def _step(self, micros: list[Batch]) -> None:
        """One update: gradients, clip, optimiser, after_step; a non-finite one is handled by the recipe's policy."""
        update = self.done + 1
        self.loss.before_step(update - self.skipped, self.total)
        set_rate(self.optimizer, self.rate(self.done))
        self._freeze(update)
        out = self.stepper.backward(micros, update)
        self.terms = out.terms.keys()
        sum_gradients(self.parameters, self.world)
        scaler = self.stepper.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = clip(self.parameters, self.recipe.optim.grad_clip)
        finite = (
            torch.stack([s for _, s, _ in out.terms.values()]).sum().isfinite() if out.terms else torch.tensor(True)
        )
        # fp16: the scaler halves its scale and goes on, unless there is no scale left to blame
        overflow = scaler is not None and not bool(norm.isfinite()) and scaler.get_scale() > 1.0
        bad = self.world.any(not bool(finite) or (not overflow and not bool(norm.isfinite())), self.device)
        if bad:
            self._non_finite(update, out, micros)
            if scaler is not None:
                scaler.update()  # or it would refuse the next gradients
        elif scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
            self.skipped += overflow
            if not overflow:
                self.loss.after_step(update - self.skipped)
        else:
            self.optimizer.step()
            self.loss.after_step(update - self.skipped)
        self.optimizer.zero_grad(set_to_none=True)
        if not bad and not overflow:
            self.averages.step(self.loss)
            self.meter.add(out, norm)

    def _freeze(self, update: int) -> None:
        """The backbone stays still for the first updates, where the recipe says so."""
        until = self.recipe.optim.freeze_updates
        if until and update <= until + 1:
            heads = self.loss.head_parameters()
            trained = {id(p) for p in self.parameters}
            for name, p in self.loss.named_parameters():
                if id(p) in trained and name not in heads:
                    p.requires_grad_(update > until)

    def _non_finite(self, update: int, out: StepOutput, micros: list[Batch]) -> None:
        broken = [(k, float(s)) for k, (_, s, _) in out.terms.items() if not bool(s.isfinite())]
        what = f"loss term {broken[0][0]} is {broken[0][1]}" if broken else "a gradient is not finite"
        folder = replay.capture(self, update, micros)
        policy, _, allowed = self.recipe.train.on_nonfinite.partition("-")
        self.skipped += 1
        self.nonfinite += 1
        clips = ", ".join(out.ids[:4]) + (", ..." if len(out.ids) > 4 else "")
        if policy != "skip" or self.nonfinite > int(allowed or 0):
            raise NonFinite(
                f"update {update}: {what}; clips {clips}",
                fix=f"`avssl debug replay {folder}` reproduces it; train.on_nonfinite=skip-10 passes over a few",
            )

    def _validate(self, journal: Journal | None, progress: Progress) -> bool:
        """Metrics of the validation split; whether the recipe's selecting one is the best so far."""
        assert self.validate is not None
        self.loss.eval()
        self.frontend.eval()
        with self.averages.applied(self.loss, self.world):  # what is deployed is what is judged
            metrics = self.world.broadcast(dict(self.validate(self.done)))  # the same everywhere, to the last bit
        self.loss.train()
        self.frontend.train()
        record = {
            "kind": "validation",
            "update": self.done,
            "epoch": round(self.done / self.per_epoch, 4),
            "validation": metrics,
        }
        if journal:
            journal.write(record)
        progress.say(f"update {self.done}  validation  " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        name = self.recipe.train.best
        if not name:
            return False
        if name not in metrics:
            raise UsageError(f"train.best = {name!r} is no validation metric", fix=f"one of {', '.join(metrics)}")
        better = improves(metrics[name], self.best, name in self.terms or lower_is_better(name))
        self.best = metrics[name] if better else self.best
        return better

    # -- saving --------------------------------------------------------------------------------------------------
    def save(self, journal: Journal | None, best: bool = False) -> None:
        """Write a checkpoint (all processes call it, the first one writes; its failure is everyone's)."""
        tensors = {"loss": full_state(self.loss, self.world), "optimizer": checkpoint.optimizer_tensors(self.optimizer)}
        tensors.update(self.averages.tensors())
        meta = {
            "meters": self.world.gather_objects(self.meter.state()),
            "monitor": self.monitor.state(),
            "watched": self.watched,
            "skipped": self.skipped,
            "nonfinite": self.nonfinite,
            "prepared": self.prepared,
            "averages": self.averages.state(),
            "best": self.best,
            "offset": journal.offset() if journal else self.offset,
            "ranks": self.world.ranks,
            "scaler": self.stepper.scaler.state_dict() if self.stepper.scaler is not None else None,
        }
        failure = None
        with self.world.first_works():
            if self.world.first:
                try:
                    checkpoint.save(
                        self.folder / "checkpoints",
                        checkpoint.Saved(self.done, tensors, meta),
                        self.recipe.train.keep_last,
                        best,
                    )
                except CheckpointError as error:
                    failure = error
        if failure := self.world.broadcast(failure):
            raise failure

    def load(self, saved: checkpoint.Saved) -> None:
        """Continue from a checkpoint."""
        load_full_state(self.loss, saved.tensors["loss"], str(self.folder))
        checkpoint.load_optimizer(self.optimizer, saved.tensors["optimizer"])
        self.averages.load(saved.tensors, saved.meta["averages"])
        self.meter.load(shared_out(saved.meta["meters"], self.world.ranks)[self.world.rank])
        self.monitor.load(saved.meta["monitor"])
        self.watched = saved.meta.get("watched", {})
        self.skipped, self.prepared, self.best = saved.meta["skipped"], saved.meta["prepared"], saved.meta["best"]
        self.nonfinite = saved.meta.get("nonfinite", self.skipped)  # 0.1 counted them together
        self.offset, self.done = saved.meta["offset"], saved.updates
        if saved.meta.get("is_best") and self.world.first:  # killed between the checkpoint and its mark
            checkpoint.mark_best(self.folder / "checkpoints", checkpoint.name_of(saved.updates))
        if self.stepper.scaler is not None and saved.meta["scaler"]:
            self.stepper.scaler.load_state_dict(saved.meta["scaler"])
        if self.done > self.total:
            raise CheckpointError(
                f"{self.folder} is at update {self.done}, the recipe ends at {self.total}",
                fix="raise train.updates or train.epochs, or use the recipe that it was started with",
            )


def improves(value: float, best: float | None, lower: bool) -> bool:
    """Whether a metric is better than the best so far; one that is no number never is."""
    if math.isnan(value) or best is None:
        return not math.isnan(value)
    return value < best if lower else value > best


def memory(device: torch.device) -> float:
    """Peak memory of this process so far, in GiB: of the device, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
