"""What a recipe costs on this machine: its parts timed apart, side by side with another recipe when asked."""

from __future__ import annotations

import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from avssl.data.manifest import read_rows
from avssl.data.samples import sample_rows
from avssl.recipe import Recipe
from avssl.training.distributed import World
from avssl.training.loop import Run, memory
from avssl.training.setup import DataPlan, Machine, build_run, needed_modalities, pick_device, plan_data


def bench(
    recipe: Recipe, data: str | None, machine: Machine, *, steps: int = 5, against: Recipe | None = None
) -> dict[str, Any]:
    """Time a recipe's update, forward pass, frontend and data loading; with `against`, alternating, and their ratios.

    data: real data, or None for generated files. steps: timed repetitions after one warm-up; medians are given. CPU seconds are
    those of this process; they are steadier than wall time on a shared machine.
    """
    device = pick_device(machine.device)
    with tempfile.TemporaryDirectory() as folder:
        subjects = {"recipe": _Subject(recipe, data, machine, device, Path(folder) / "a")}
        if against is not None:
            subjects["against"] = _Subject(against, data, machine, device, Path(folder) / "b")
        ceiling = matmul_ceiling(device, subjects["recipe"].run.stepper.dtype)
        for subject in subjects.values():
            subject.update()  # warm-up: allocations, compilation, autotuning
        for _ in range(steps):
            for subject in subjects.values():  # alternating: drift of the machine hits both
                subject.time("update", subject.update)
        for _ in range(max(1, steps // 2)):
            for subject in subjects.values():
                subject.time("forward", subject.forward)
                subject.time("frontend", subject.frontend)
        out = {name: subject.report(ceiling) for name, subject in subjects.items()}
        for name, subject in subjects.items():
            out[name]["loading"] = subject.loading()
    report: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(ceiling / 1e9, 1),
        **out,
    }
    if against is None:  # the peak of a process that ran both would say nothing of either
        out["recipe"]["peak_memory_gib"] = round(memory(device), 2)
    else:
        a, b = out["recipe"], out["against"]
        report["ratio"] = {
            k: round(b[k] / a[k], 3) for k in ("update_s", "update_cpu_s", "forward_s", "seconds_per_clip")
        }
    return report


class _Subject:
    def __init__(self, recipe: Recipe, data: str | None, machine: Machine, device: torch.device, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.recipe, self.device = recipe, device
        if data is None:
            (folder / "media").mkdir()
            rows = sample_rows(needed_modalities(recipe), folder / "media", recipe.data.batch_size)
        else:
            rows = read_rows(data, modalities=needed_modalities(recipe))
        plan, _ = plan_data(recipe, rows)
        plan = DataPlan(plan.train, [], plan.codec)
        self.run: Run = build_run(recipe, plan, folder, World(), device, machine)
        self.run.loss.train()
        self.run.frontend.train()
        self.micros = next(iter(self.run.loader.updates(0, 1)))
        self.ready = [self.run.frontend(b.to(device)) for b in self.micros]
        self.clips = sum(map(len, self.micros))
        self.times: dict[str, list[tuple[float, float]]] = {}
        self.run._prepare(self.micros)

    def update(self) -> None:
        self.run._step(self.micros)

    @torch.no_grad()
    def forward(self) -> None:
        with self.run.stepper.autocast():
            for batch in self.ready:
                self.run.loss.backbone(batch)

    @torch.no_grad()
    def frontend(self) -> None:
        for batch in self.micros:
            self.run.frontend(batch.to(self.device))

    def time(self, name: str, call: Callable[[], None]) -> None:
        wall, cpu = time.perf_counter(), _cpu()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.setdefault(name, []).append((time.perf_counter() - wall, _cpu() - cpu))

    def loading(self) -> dict[str, float]:
        """Training batches from the workers, augmented and with their partners, nothing trained: clips per second, and
        the share of a run's time in which this machine would wait for them."""
        updates = max(2, math.ceil(256 / self.clips))
        batches = self.run.loader.updates(0, 1 + updates)
        next(batches)  # the workers start
        began = time.perf_counter()
        seen = sum(len(batch) for micros in batches for batch in micros)
        loading = (time.perf_counter() - began) / seen
        update = statistics.median(wall for wall, _ in self.times["update"]) / self.clips
        workers = self.run.loader.workers
        waiting = max(0.0, loading - update) / loading if workers else loading / (loading + update)
        return {"clips_per_s": round(1 / loading, 1), "workers": workers, "waiting_share": round(waiting, 3)}

    def report(self, ceiling: float) -> dict[str, Any]:
        """Medians, rates, FLOPs of an update and the share of the measured ceiling that they make (MFU)."""
        median = {
            k: (statistics.median(w for w, _ in v), statistics.median(c for _, c in v)) for k, v in self.times.items()
        }
        flops = self._flops()
        update = median["update"][0]
        return {
            "name": self.recipe.name,
            "clips_per_update": self.clips,
            "update_s": round(update, 4),
            "update_cpu_s": round(median["update"][1], 4),
            "forward_s": round(median["forward"][0], 4),
            "frontend_s": round(median["frontend"][0], 4),
            "clips_per_s": round(self.clips / update, 2),
            "seconds_per_clip": round(update / self.clips, 5),
            "gflop_per_update": round(flops / 1e9, 1),
            "mfu": round(flops / update / ceiling, 3),
            "parameters": sum(p.numel() for p in self.run.loss.backbone.parameters()),
            "precision": {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.run.stepper.dtype],
        }

    def _flops(self) -> float:
        with FlopCounterMode(display=False) as counter:
            self.run.stepper.backward(self.micros, 1)
        self.run.optimizer.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())


def matmul_ceiling(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of a large matrix product in this precision: what MFU is measured against."""
    n = 8192 if device.type == "cuda" else 1536
    a = torch.randn(n, n, device=device, dtype=dtype or torch.float32)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
