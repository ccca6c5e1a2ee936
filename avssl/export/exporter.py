"""One call: a model to the files a device needs, and a report that says what they cost and how they agree."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avssl import __version__
from avssl.batch import Batch
from avssl.errors import CheckpointError, check, nearest
from avssl.export import c_code, onnx_graph, runtimes
from avssl.export.context import Context, Exportable, context_of, items, on_cpu
from avssl.export.interpret import calibrate, forward, forward_int8
from avssl.export.plan import EncoderPlan, SoundPlan, folded, plan_of
from avssl.export.report import Exported, compare, measure, report_of, table
from avssl.export.snippet import snippet
from avssl.files import completing, write_json, write_text

TARGETS = ("onnx", "onnx-int8-dynamic", "onnx-int8", "c", "executorch", "litert")
SLOWER = (
    "int8 makes a small model's file smaller and suits integer hardware; on a desktop CPU it is not faster than "
    "float32, as the quantising nodes cost more than they save"
)
OUTSIDE = (
    "the clips are normalised before the ONNX graph, as `frontend.item` does it: for a graph that reads them as they were "
    "recorded, export with `frontend.portable()`"
)
LIMIT_FP32 = 1e-4  # largest logit difference that a float32 export may show


def export_model(
    model: Exportable,
    out: Path,
    targets: Collection[str] = ("onnx",),
    *,
    example: Batch,
    frontend: bool = True,
    calibration: Batch | None = None,
    test: Batch | None = None,
    stream: str = "",
    dynamic: bool = False,
    name: str = "model",
    note: str = "",
) -> dict[str, Any]:
    """Write the targets into folder `out`, with `report.json`, `labels.txt` and (ONNX) `run_onnx.py`.

    example, calibration, test: batches as a loader makes them (before `frontend.batch`), items of equal shape. example:
    one item is used, it fixes the shapes. calibration: for static int8 and C, at least 100 training clips are advised.
    test: clips the outputs are compared on; with targets, accuracy before and after. frontend: inside the ONNX graph;
    for a graph that reads what was recorded, model and batches are those of `frontend.portable()`. dynamic: leave
    dimension 1 (time) free in ONNX. stream: the embedding of a model without a head.
    note: for the reader of the report, e.g. that `test` is made up.
    Returns the report. Raises UsageError for a target that this model or this installation cannot serve; then nothing
    is written.
    """
    check(bool(targets), "nothing to export to", fix=f"give one of {', '.join(TARGETS)}")
    for target in targets:
        check(target in TARGETS, f"unknown target {target!r}", fix=nearest(target, TARGETS))
    if {"onnx-int8", "c"} & set(targets):
        check(
            calibration is not None,
            "int8 needs calibration clips and got none",
            fix="give --data, e.g. the training clips",
        )
    if any(t.startswith("onnx") for t in targets):
        onnx_graph.require_onnx()
    for target in set(targets) & set(runtimes.PACKAGES):
        runtimes.require(target)
    plans = plan_of(model) if "c" in targets else None
    if plans is not None:
        check(tuple(example.streams) == ("audio",), "the C forward pass reads sound", fix="export to ONNX")
        c_code.check_plan(*folded(*plans))
    with completing(out) as folder:
        folder.mkdir()
        context = context_of(model, folder, example, calibration, test, stream)
        return _write(context, targets, plans, frontend, dynamic, name, note)


def _write(
    context: Context,
    targets: Collection[str],
    plans: tuple[EncoderPlan, SoundPlan | None] | None,
    frontend: bool,
    dynamic: bool,
    name: str,
    note: str,
) -> dict[str, Any]:
    files: list[Exported] = []
    steps: dict[str, Callable[[], list[Exported]]] = {
        "onnx": lambda: _onnx(context, targets, frontend, dynamic),
        "c": lambda: _c(context, plans, name),  # type: ignore[arg-type]
        "executorch": lambda: _other(context, "executorch"),
        "litert": lambda: _other(context, "litert"),
    }
    for step, make in steps.items():
        if any(t == step or t.startswith(step + "-") for t in targets):
            files += make()
    report = report_of(context, files, plans, name) | {"note": note}
    write_text(context.out / "labels.txt", "".join(f"{label}\n" for label in context.labels))
    write_json(context.out / "report.json", report)
    return report


# ---- ONNX ------------------------------------------------------------------------------------------------------------
def _onnx(context: Context, targets: Collection[str], frontend: bool, dynamic: bool) -> list[Exported]:
    names, out = context.names, context.out
    outputs = ["logits" if context.model.head is not None else f"{context.stream}_embedding"]
    network = onnx_graph.trace(context.network, context.frames, names, outputs, dynamic)
    front = None
    changes = any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(context.inputs, context.frames, strict=True)
    )
    if frontend and changes:
        front = onnx_graph.trace(
            onnx_graph.Front(context.model.frontend, names),
            context.inputs,
            names,
            [f"{n}_frames" for n in names],
            dynamic,
        )
    about = _about(context, front is not None)

    def finish(path: Path) -> Path:
        import onnx

        model = onnx_graph.stripped(onnx.load(path))
        if front is not None:
            model = onnx_graph.joined(front, model, names)
        return onnx_graph.save(onnx_graph.described(model, about), path)

    bare = onnx_graph.save(network, out / ".network.onnx")
    done = []
    try:
        for target, file in (
            ("onnx", "model.onnx"),
            ("onnx-int8-dynamic", "model.int8-dynamic.onnx"),
            ("onnx-int8", "model.int8.onnx"),
        ):
            if target not in targets:
                continue
            path = out / file
            if target == "onnx":
                path.write_bytes(bare.read_bytes())
            elif target == "onnx-int8-dynamic":
                onnx_graph.quantised_dynamic(bare, path)
            else:
                assert context.calibration is not None
                clips = items(context.calibration, names)
                onnx_graph.quantised_static(
                    bare, path, ({n: x.numpy() for n, x in zip(names, i, strict=True)} for i in clips)
                )
            session = onnx_graph.Session(finish(path))
            feeds = _feeds(context, front is not None)
            one = Exported(target, file, path.stat().st_size, notes=[SLOWER] if "int8" in target else [])
            if frontend and context.model.frontend.portable() is not context.model.frontend:
                one.notes.append(OUTSIDE)
            first = context.inputs if front is not None else context.frames
            measure(one, context, lambda *x, run=session: run(*x), feeds, first)
            if target == "onnx" and one.max_logit_difference is not None:
                assert context.expected is not None
                scale = max(1.0, float(np.abs(context.expected).max())) if context.model.head is None else 1.0
                check(
                    one.max_logit_difference < LIMIT_FP32 * scale,
                    f"the ONNX model differs from PyTorch by {one.max_logit_difference:.2g}",
                    fix="report this",
                    error=CheckpointError,
                )
            done.append(one)
    finally:
        bare.unlink(missing_ok=True)
    write_text(out / "run_onnx.py", snippet(context, front is not None, done[0].path))
    return done


def _feeds(context: Context, front: bool) -> list[tuple[Tensor, ...]]:
    """The test clips as the exported graph takes them."""
    if context.test is None:
        return []
    clips = items(context.test, context.names)
    if front:
        return clips
    step = onnx_graph.Front(context.model.frontend, context.names)
    with torch.inference_mode():
        return [step(*item) for item in clips]


def _about(context: Context, front: bool) -> dict[str, str]:
    rate = getattr(context.model.frontend.config, "rate", None)
    about = {
        "avssl.version": __version__,
        "avssl.labels": "\n".join(context.labels),
        "avssl.licence": context.model.licence,
        "avssl.input": "the loader's tensors (sound: mono float32)" if front else "frames after the frontend",
        "avssl.rate": "" if rate is None else str(rate),
    }
    return {k: v for k, v in about.items() if v}


# ---- C ---------------------------------------------------------------------------------------------------------------
def _c(context: Context, plans: tuple[EncoderPlan, SoundPlan | None], name: str) -> list[Exported]:
    original, _ = plans
    plan, sound = folded(*plans)

    def frames(batch: Batch) -> Tensor:
        x = batch.need("audio").x.float()
        if original.shift is not None and original.gain is not None:
            x = (x - torch.from_numpy(original.shift)) * torch.from_numpy(original.gain)
        return x

    assert context.calibration is not None
    quantised = calibrate(plan, frames(context.calibration).split(16))
    length = context.frames[0].shape[1]
    folder = context.out / "c"
    c_code.write_c(
        folder,
        plan,
        quantised,
        sound,
        length,
        labels=context.labels,
        name=name,
        licence=context.model.licence,
        test=_test_vector(context, sound, frames),
    )
    need = c_code.memory(plan, sound, length)
    f32, int8 = (
        Exported(f"c-{kind}", "c", getattr(need, f"flash_{kind}") + need.flash_frontend, notes=[_memory_note(need)])
        for kind in ("float32", "int8")
    )
    if c_code.compiler() is None:
        for one in (f32, int8):
            one.notes.append("not compiled: this machine has no C compiler; numbers are the Python definition's")
        f32_run, int8_run = (lambda x: forward(plan, x).numpy()), (lambda x: forward_int8(quantised, x).numpy())
    else:
        binary = c_code.compile_c(folder)
        f32_run = lambda x: c_code.run_c(binary, "f32", "frames", x.numpy())  # noqa: E731
        int8_run = lambda x: c_code.run_c(binary, "int8", "frames", x.numpy())  # noqa: E731
        for one, milliseconds in zip((f32, int8), _bench(binary), strict=True):
            one.milliseconds = milliseconds
    if context.test is not None:
        with torch.inference_mode():
            x = frames(context.model.frontend(on_cpu(context.test)))
        compare(f32, context, f32_run(x))
        compare(int8, context, int8_run(x))
    return [f32, int8]


def _memory_note(need: c_code.Memory) -> str:
    """What a device needs: flash without code, RAM from the microphone to the label."""
    front = (
        f"its sound and float frames {need.clip_float:,} (they are standardised over the clip), "
        if need.clip_float
        else "the clip itself is not kept, "
    )
    return (
        f"C: the bytes are flash without code, {need.flash_frontend:,} of them the front end's tables; RAM from PCM to label "
        f"{need.total_int8:,} B with int8 ({need.total_float32:,} with float32): front end {need.ram_frontend:,}, "
        f"{front}frames {need.frames_int8:,}, forward pass {need.ram_int8:,}"
    )


def _test_vector(
    context: Context, sound: SoundPlan | None, frames: Callable[[Batch], Tensor]
) -> tuple[np.ndarray, Tensor]:
    """One second of the example as int16, and its frames as this machine computes them."""
    wave = context.inputs[0][0]
    if sound is None or wave.ndim != 1:
        return np.zeros(0, np.int16), context.frames[0][:, : max(1, context.frames[0].shape[1] // 5)]
    loudest = int(wave.abs().argmax())
    start = max(0, min(loudest - sound.rate // 2, len(wave) - sound.rate))
    pcm = (wave[start : start + sound.rate] * 32768).round().clamp(-32768, 32767).to(torch.int16)
    with torch.inference_mode():
        batch = onnx_graph.as_batch(("audio",), (pcm[None].float() / 32768,))
        return pcm.numpy(), frames(context.model.frontend(batch)).clone()


def _bench(binary: Path, passes: int = 20) -> list[float]:
    import subprocess

    done = subprocess.run([str(binary), "bench", str(passes)], capture_output=True, text=True, check=True, timeout=600)
    return [float(line.split()[1]) for line in done.stdout.splitlines()]


# ---- other runtimes --------------------------------------------------------------------------------------------------
def _other(context: Context, target: Literal["executorch", "litert"]) -> list[Exported]:
    file = {"executorch": "model.pte", "litert": "model.tflite"}[target]
    run = getattr(runtimes, f"to_{target}")(context.network, context.frames, context.out / file)
    one = Exported(target, file, (context.out / file).stat().st_size)
    measure(one, context, run, _feeds(context, False), context.frames)
    return [one]


__all__ = ["TARGETS", "Exportable", "Exported", "export_model", "table"]
