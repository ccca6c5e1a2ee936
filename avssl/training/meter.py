"""What a run tells: sums of terms between two log lines, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from avssl.files import finite, sync
from avssl.training.distributed import World
from avssl.training.step import StepOutput, wide


class Meter:
    """Adds up what steps give, without waiting for the device; `take` returns means over the log interval."""

    def __init__(self, world: World, device: torch.device) -> None:
        self.world, self.device = world, device
        self.sums: dict[str, tuple[float, Any, Any]] = {}  # "term/x" or "metric/x" -> (weight, sum, count)
        self.grad_norm: Any = 0.0
        self.steps = 0

    def add(self, out: StepOutput, grad_norm: torch.Tensor) -> None:
        fresh = {f"term/{k}": v for k, v in out.terms.items()}
        fresh |= {f"metric/{k}": (0.0, *v) for k, v in out.metrics.items()}
        for name, (weight, total, count) in fresh.items():
            old = self.sums.get(name, (weight, 0.0, 0.0))
            self.sums[name] = (weight, old[1] + total, old[2] + count)
        self.grad_norm = self.grad_norm + grad_norm.detach().to(wide(grad_norm.device))
        self.steps += 1

    def take(self) -> dict[str, Any]:
        """{"loss", "terms", "metrics", "grad_norm"} over all processes since the last call; starts anew. NaN when no step
        was taken since."""
        names = sorted(self.sums)
        flat = torch.tensor(
            [[float(self.sums[n][1]), float(self.sums[n][2])] for n in names] or [[0.0, 0.0]], dtype=torch.float64
        )
        flat = self.world.sum(flat.to(self.device if self.device.type == "cuda" else "cpu")).cpu()
        means = {n: (a / b if b else math.nan) for n, (a, b) in zip(names, flat.tolist(), strict=False)}
        out = {
            "loss": sum(self.sums[n][0] * means[n] for n in names if n.startswith("term/")) if self.steps else math.nan,
            "terms": {n[5:]: means[n] for n in names if n.startswith("term/")},
            "metrics": {n[7:]: means[n] for n in names if n.startswith("metric/")},
            "grad_norm": float(self.grad_norm) / self.steps if self.steps else math.nan,
        }
        self.sums, self.grad_norm, self.steps = {}, 0.0, 0
        return out

    def state(self) -> dict[str, Any]:
        """JSON-able; floats survive exactly."""
        return {
            "sums": {k: [w, float(a), float(b)] for k, (w, a, b) in self.sums.items()},
            "grad_norm": float(self.grad_norm),
            "steps": self.steps,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.sums = {k: tuple(v) for k, v in state["sums"].items()}
        self.grad_norm, self.steps = state["grad_norm"], state["steps"]


def shared_out(states: Sequence[Mapping[str, Any]], ranks: int) -> list[Mapping[str, Any]]:
    """The meters of a run that goes on with another number of processes: the first one takes what all had."""
    if len(states) == ranks:
        return list(states)
    names = {k: v[0] for s in states for k, v in s["sums"].items()}
    total = {
        k: [w, *(sum(s["sums"].get(k, (w, 0.0, 0.0))[i] for s in states) for i in (1, 2))] for k, w in names.items()
    }
    nothing = {k: [w, 0.0, 0.0] for k, w in names.items()}
    return [{**states[0], "sums": total if rank == 0 else nothing} for rank in range(ranks)]


class Journal:
    """`metrics.jsonl` and TensorBoard events of a run; on resume everything after the checkpoint is cut off."""

    def __init__(self, folder: Path, offset: int = 0, update: int = 0, trackers: tuple[Any, ...] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        self.path.touch()
        os.truncate(self.path, min(offset, self.path.stat().st_size))
        self.events = SummaryWriter(
            str(folder / "events"), purge_step=update + 1
        )  # what was logged after the checkpoint is void
        self.trackers = trackers

    def write(self, record: Mapping[str, Any]) -> None:
        """One line; its numbers also go to TensorBoard under their names."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(dict(record))) + "\n")
        step = int(record["update"])
        scalars = {name: v for name, v in _flat("", record).items() if name not in ("update", "kind")}
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)
        for tracker in self.trackers:
            tracker.log(scalars, step)

    def offset(self) -> int:
        """Bytes written so far, flushed."""
        self.events.flush()
        sync(self.path)  # the checkpoint that stores this number must not be more durable than the lines
        return self.path.stat().st_size

    def close(self) -> None:
        self.events.close()
        for tracker in self.trackers:
            tracker.close()


def _flat(prefix: str, value: Any) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {
            k: v
            for key, part in value.items()
            for k, v in _flat(f"{prefix}/{key}" if prefix else str(key), part).items()
        }
    return {prefix: float(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a half-written last line is left out."""
    records = []
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
