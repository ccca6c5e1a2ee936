"""What a model that reconstructs sees, and what it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.data.clip import Row
from avssl.data.loader import evaluation_batches
from avssl.data.sampler import Key, item_seed
from avssl.loss import Loss, to_device
from avssl.report.pictures import drawn


def reconstructions(
    path: Path, tables: dict[str, Any], rows: Sequence[Row], device: torch.device | str = "cpu"
) -> list[dict[str, Any]]:
    """One record per row: id, labels, `parts` (modality -> data URIs of "original", "masked", "reconstructed") and
    `errors` (`hidden_error` of each). Empty when the run's loss does not reconstruct.

    path: a run directory (its decoder is in training.safetensors). The masks are drawn as in training, the same ones
    each time.
    """
    loss, frontend = open_loss(path, tables)
    if type(loss).reconstruct is Loss.reconstruct:
        return []
    loss, frontend = loss.to(device).eval(), frontend.to(device).eval()
    wanted = frozenset(loss.backbone.modalities)
    rows = [r for r in rows if wanted <= set(r.parts)] or list(rows)
    found: dict[int, dict[str, Any]] = {}
    for indices, _, batch in evaluation_batches(
        rows, frontend, batch_size=len(rows) or 1, views=False, modalities=wanted
    ):
        seeds = torch.tensor([item_seed(0, Key(i, 0), salt=0x5EE) for i in indices])
        with torch.inference_mode():
            batch = frontend(replace(batch, seeds=seeds).to(device))
            parts = loss.reconstruct(batch, to_device(loss.sample(batch), device))
        for position, index in enumerate(indices):
            arrays = {m: {k: v[position].float().cpu().numpy() for k, v in t.items()} for m, t in parts.items()}
            pictures = {m: picture for m, a in arrays.items() if (picture := drawn(m, a, frontend.config)) is not None}
            if pictures:
                errors = {m: hidden_error(arrays[m]) for m in pictures}
                found[index] = {
                    "id": rows[index].id,
                    "labels": list(rows[index].labels),
                    "parts": pictures,
                    "errors": errors,
                }
    return [found[i] for i in sorted(found)]


def hidden_error(arrays: dict[str, np.ndarray]) -> float | None:
    """Mean squared error where the input was hidden, over the variance of the original: 1 = as bad as its mean."""
    original, masked, guess = (arrays[k] for k in ("original", "masked", "reconstructed"))
    hidden = original != masked
    variance = float(original.var())
    return float(((original - guess)[hidden] ** 2).mean()) / variance if hidden.any() and variance > 0 else None


def open_loss(path: Path, tables: dict[str, Any]) -> tuple[Loss, Any]:
    """The objective of a finished run with all that it learned, and its frontend, on the CPU."""
    from avssl.imports import load_strictly
    from avssl.model import build_backbone, build_frontend, build_loss, read_initial

    loss = build_loss(tables, build_backbone(tables))
    load_strictly(loss, read_initial(path).tensors, str(path))
    return loss, build_frontend(tables, path)
