"""A step that went wrong, kept whole: batch, weights, seed, so that it can be run again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avssl.batch import Batch, Stream
from avssl.data.targets import Codec
from avssl.errors import CheckpointError
from avssl.files import write_json
from avssl.model import save_tensors
from avssl.safeload import load_safetensors

if TYPE_CHECKING:
    from avssl.training.loop import Run


def capture(run: Run, update: int, micros: list[Batch]) -> Path:
    """Write the failing update of this process: micro-batches as they left the loader, the weights before it, the seed."""
    from avssl.training.weights import full_state

    folder = run.folder / "debug" / f"update-{update:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    state = full_state(run.loss, run.world)
    if run.world.first:
        save_tensors(folder / "weights.safetensors", state)
    rank = run.world.rank
    tensors, items = {}, []
    for m, batch in enumerate(micros):
        tensors[f"{m}/seeds"] = batch.seeds
        streams = {**batch.streams, **({"targets:": batch.targets} if batch.targets is not None else {})}
        for name, stream in streams.items():
            tensors[f"{m}/{name}/x"] = stream.x
            if stream.pad is not None:
                tensors[f"{m}/{name}/pad"] = stream.pad
        items.append(list(batch.ids))
    save_tensors(folder / f"batch-{rank}.safetensors", tensors)
    write_json(
        folder / f"batch-{rank}.json",
        {
            "update": update,
            "finished": run.done - run.skipped,
            "total": run.total,
            "rank": rank,
            "ranks": run.world.ranks,
            "precision": {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[run.stepper.dtype],
            "ids": items,
            "targets": run.loader.items.codec.state() if run.loader.items.codec is not None else None,
        },
    )
    return folder


def load_batches(folder: Path, rank: int = 0) -> tuple[dict[str, Any], list[Batch]]:
    """What `capture` kept: its facts and the micro-batches."""
    try:
        meta = json.loads((folder / f"batch-{rank}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        why = "no such folder" if not folder.is_dir() else "holds no captured step"
        raise CheckpointError(f"{folder}: {why}", fix="give RUN/debug/update-N of a run that stopped on it") from None
    tensors = load_safetensors(folder / f"batch-{rank}.safetensors")
    micros = []
    for m, ids in enumerate(meta["ids"]):
        own = {k.removeprefix(f"{m}/"): v for k, v in tensors.items() if k.startswith(f"{m}/")}
        names = sorted({k.rsplit("/", 1)[0] for k in own if k != "seeds"})
        streams = {n: Stream(own[f"{n}/x"], own.get(f"{n}/pad")) for n in names}
        targets = streams.pop("targets:", None)
        micros.append(Batch(tuple(ids), own["seeds"], streams, targets))
    return meta, micros


def replay(folder: Path, rank: int = 0) -> dict[str, Any]:
    """Run a captured update of a process again on this machine's CPU: every term, every gradient that is not finite, and
    which items alone give a loss that is not finite. Raises CheckpointError when the folder is none, or damaged."""
    from avssl.model import build_backbone, build_frontend, build_loss, read_tables
    from avssl.training.distributed import World
    from avssl.training.setup import autocast_dtype
    from avssl.training.step import Stepper
    from avssl.training.weights import load_full_state

    meta, micros = load_batches(folder, rank)
    run_folder = folder.resolve().parent.parent
    tables = read_tables(run_folder)
    loss = build_loss(tables, build_backbone(tables))
    loss.for_training(Codec.load(meta["targets"]) if meta.get("targets") else None)
    load_full_state(loss, load_safetensors(folder / "weights.safetensors"), str(folder))
    frontend = build_frontend(tables, run_folder)
    update, device = meta["update"], torch.device("cpu")
    loss.before_step(meta["finished"] + 1, meta["total"])
    dtype = autocast_dtype(meta["precision"].replace("fp16", "fp32"), device)  # there is no fp16 on a CPU
    stepper = Stepper(loss.train(), frontend.train(), device, World(rank=rank), tables["train"]["seed"], dtype, "rank")
    out = stepper.backward(micros, update)
    gradients = [n for n, p in loss.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    guilty = []
    for batch in micros:
        for i, name in enumerate(batch.ids):
            if len(batch) == 1 or not loss.contrastive:
                alone = stepper.backward([batch.rows(slice(i, i + 1))], update)
                if not all(bool(s.isfinite()) for _, s, _ in alone.terms.values()):
                    guilty.append(name)
    terms = {k: float(s / c) for k, (_, s, c) in out.terms.items()}
    return {
        "update": update,
        "reproduced": bool(gradients) or not all(map(math.isfinite, terms.values())),
        "terms": terms,
        "gradients_not_finite": gradients,
        "clips_not_finite_alone": guilty,
        "clips": [i for b in micros for i in b.ids],
    }
