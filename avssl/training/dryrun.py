"""Build everything, take one real step, say what the run will need, write nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avssl.data.clip import Row
from avssl.model import Initial
from avssl.recipe import Recipe
from avssl.training.distributed import World
from avssl.training.loop import memory
from avssl.training.run import look, rows_for
from avssl.training.setup import Machine, build_run, check_best, pick_device, plan_data


def dry_run(recipe: Recipe, data: str | Path | Sequence[Row], init: Initial | None, machine: Machine) -> dict[str, Any]:
    """Shapes, parameters, memory and time of a run, from one update on the first real batch."""
    device = pick_device(machine.device)
    rows, unusable = look(rows_for(data, recipe), machine)
    plan, lacking = plan_data(recipe, rows)
    check_best(recipe, plan)
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(recipe, plan, Path(folder), World(), device, machine, init)
        run.loss.train()
        run.frontend.train()
        began = time.monotonic()
        micros = next(iter(run.loader.updates(0, 2)))
        loading = time.monotonic() - began
        raw = micros[0]
        from_workers = {name: list(stream.x.shape) for name, stream in raw.streams.items()}
        to_network = {name: list(stream.x.shape) for name, stream in run.frontend(raw.to(device)).streams.items()}
        run._prepare(micros)
        run._step(micros)  # the first step warms up
        began = time.monotonic()
        out = run.stepper.backward(micros, 1)
        run.optimizer.zero_grad(set_to_none=True)
        step = time.monotonic() - began
    backbone = sum(p.numel() for p in run.loss.backbone.parameters())
    trained = sum(p.numel() for p in run.parameters)
    clips = sum(map(len, micros))
    return {
        "items": len(plan.train),
        "unreadable_items": len(unusable),
        "items_lacking_a_modality": len(lacking),
        "validation_items": len(plan.validation),
        "updates": run.total,
        "updates_per_epoch": run.per_epoch,
        "clips_per_update": clips,
        "micro_batches": len(micros),
        "shapes_from_workers": from_workers,
        "shapes_to_network": to_network,
        "backbone_parameters": backbone,
        "trained_parameters": trained,
        "loss_terms": {k: round(float(s / c), 4) for k, (_, s, c) in out.terms.items()},
        "first_batch_seconds": round(loading, 2),
        "update_seconds": round(step, 3),
        "clips_per_second": round(clips / step, 1),
        "peak_memory_gib": round(memory(device), 2),
        "run_seconds": round(step * run.total, 1),
        "device": str(device),
    }
