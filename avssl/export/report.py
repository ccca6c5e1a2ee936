"""What each exported file costs, and how it agrees with PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from avssl import __version__
from avssl.batch import Batch
from avssl.export import c_code
from avssl.export.context import Context
from avssl.export.plan import EncoderPlan, SoundPlan, folded
from avssl.schema import unstructure


@dataclass
class Exported:
    """One file (or folder) and its measurements."""

    target: str
    path: str
    bytes: int
    milliseconds: float | None = None  # median per clip, one thread, this machine
    max_logit_difference: float | None = None  # against PyTorch, over the test clips
    argmax_agreement: float | None = None
    accuracy: float | None = None  # on the labelled test clips
    notes: list[str] = field(default_factory=list)


def measure(
    one: Exported,
    context: Context,
    run: Callable[..., np.ndarray],
    feeds: list[tuple[Tensor, ...]],
    first: tuple[Tensor, ...],
    passes: int = 20,
) -> None:
    """Latency on the first clip, agreement on the test clips."""
    run(*first)
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        run(*first)
        times.append(time.perf_counter() - start)
    one.milliseconds = 1e3 * sorted(times)[len(times) // 2]
    if feeds:
        compare(one, context, np.concatenate([run(*feed) for feed in feeds]))


def compare(one: Exported, context: Context, got: np.ndarray) -> None:
    want = context.expected
    assert want is not None and context.test is not None
    one.max_logit_difference = float(np.abs(got - want).max())
    if context.model.head is not None:
        one.argmax_agreement = float((got.argmax(1) == want.argmax(1)).mean())
        one.accuracy = accuracy(got, context.test)


def accuracy(logits: np.ndarray, test: Batch) -> float | None:
    """Share of right answers, for targets that are classes."""
    if test.targets is None:
        return None
    target = test.targets.x.cpu().numpy()
    if target.ndim == 1 and target.dtype.kind in "iu":
        return float((logits.argmax(1) == target).mean())
    if target.ndim == 2 and (target.sum(1) == 1).all():
        return float((logits.argmax(1) == target.argmax(1)).mean())
    return None


def report_of(
    context: Context, files: list[Exported], plans: tuple[EncoderPlan, SoundPlan | None] | None, name: str
) -> dict[str, Any]:
    model = context.model
    parts = [p for p in (model.backbone, model.head) if p is not None]
    report: dict[str, Any] = {
        "name": name,
        "avssl_version": __version__,
        "licence": model.licence,
        "labels": list(context.labels),
        "inputs": {n: list(x.shape) for n, x in zip(context.names, context.inputs, strict=True)},
        "frames": {n: list(x.shape) for n, x in zip(context.names, context.frames, strict=True)},
        "frontend": unstructure(model.frontend.config),
        "parameters": sum(p.numel() for part in parts for p in part.parameters()),
        "test_clips": 0 if context.test is None else len(context.test),
        "calibration_clips": 0 if context.calibration is None else len(context.calibration),
        "files": [asdict(f) for f in files],
    }
    if context.expected is not None and context.test is not None and model.head is not None:
        report["accuracy_pytorch"] = accuracy(context.expected, context.test)
    if plans is not None:
        plan, sound = folded(*plans)
        frames = context.frames[0].shape[1]
        need = c_code.memory(plan, sound, frames)
        report |= {
            "macs": plan.macs(frames),
            "macs_c": plan.macs_executed(frames),
            "tokens": plan.tokens(frames),
            "memory": asdict(need),
            "rate": sound.rate if sound else None,
        }
    elif hasattr(model.backbone, "macs") and context.names == ("audio",):
        linear = [m for m in (model.head.modules() if model.head is not None else ()) if isinstance(m, nn.Linear)]
        report["macs"] = model.backbone.macs(context.frames[0].shape[1]) + sum(m.weight.numel() for m in linear)
    return report


def table(report: dict[str, Any]) -> str:
    """The report's files as lines of text."""
    rows = [("target", "file", "bytes", "ms", "max diff", "argmax", "accuracy")]
    for f in report["files"]:

        def show(key: str, form: str, f: dict[str, Any] = f) -> str:
            return "-" if f[key] is None else format(f[key], form)

        rows.append(
            (
                f["target"],
                f["path"],
                f"{f['bytes']:,}",
                show("milliseconds", ".3f"),
                show("max_logit_difference", ".2g"),
                show("argmax_agreement", ".1%"),
                show("accuracy", ".1%"),
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    notes = sorted({n for f in report["files"] for n in f["notes"]})
    return "\n".join([*lines, *notes, *([report["note"]] if report["note"] else [])])
