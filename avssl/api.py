"""The verbs of the command line as functions: small, typed, the same names.

They print nothing of their own; `with avssl.progress.shown():` around a long one shows how far it is, on stderr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.data.clip import Row
from avssl.model import Initial, Model, open_model
from avssl.recipe import Pipeline, Recipe, load_recipe
from avssl.training.run import finetune
from avssl.training.run import pretrain as _pretrain
from avssl.training.setup import Machine

if TYPE_CHECKING:
    from avssl.embedding.encode import Vectors
    from avssl.evaluation.report import Report
    from avssl.prediction import Predictions

Data = str | Path | Sequence[Row]


def load(model: str | Path, *, format: str = "", device: str = "cpu", **options: Any) -> Model:
    """A model to use: `model.embed(paths_or_arrays)`, `model.logits(batch)`.

    model: a run directory, an imported model directory, or a published checkpoint (with `format`, and `options` for what
    the file does not say, e.g. heads=12). Raises CheckpointError.
    """
    return open_model(model, format, device, **options)


def pretrain(
    recipe: str | Path | Recipe | Pipeline,
    data: Data,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    init: str | Path | Initial | None = None,
    init_format: str = "",
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Pretrain a recipe, or run a pipeline of stages, into the run directory `out`; the report, as in its report.json.

    recipe: a name of `avssl recipes`, a .toml file, or a Recipe. data: a folder, a manifest, a known layout, or rows.
    overrides: `["optim.lr=1e-4"]`. init: a model to start from (`avssl.model.read_initial` opens one that needs options).
    machine: `avssl.training.setup.Machine(device=..., precision=..., workers=...)`. Raises AvsslError.
    """
    loaded = load_recipe(recipe, overrides)
    if isinstance(loaded, Pipeline):
        from avssl.training.pipeline import run_pipeline

        return run_pipeline(loaded, data, out, resume=resume, machine=machine, init=init, init_format=init_format)
    return _pretrain(loaded, data, out, resume=resume, init=init, init_format=init_format, machine=machine)


def evaluate(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    task: str,
    *,
    train: str | Path | None = None,
    split: str = "",
    overrides: Sequence[str] = (),
    format: str = "",
    options: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> Report:
    """The Report of a protocol: "retrieval", "probe", "knn", "kfold", "classification", or a plugin's.

    `report.metrics` is name -> value, `print(report)` its table; `report.hold(["knn.audio.accuracy=0.5"])` raises GateError
    below that. train: training data when `data` has no train split; overrides: options of the protocol, `["k=5"]`;
    options: of the checkpoint's format; workers: None = chosen from the cores; precision: "fp32", "bf16", "fp16" or
    "auto". Raises AvsslError.
    """
    from avssl.evaluation.run import run

    return run(
        model,
        [data] if isinstance(data, (str, Path)) else data,
        task,
        train=[train] if train is not None else None,
        format=format,
        options=options,
        split=split,
        overrides=overrides,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
    )


def embed(model: str | Path | Model, inputs: Any, **options: Any) -> Vectors:
    """Vectors of paths, rows or arrays: `vectors["audio"]` is (N, D) float32, `vectors.ids` names the items.

    inputs: a path (file, folder, manifest), rows, or a list of: paths; float arrays, sound (L,) or (C, L); uint8 arrays,
    a picture (H, W, 3) or frames (K, H, W, 3).
    options: rate=16000 of arrays of sound, modality="text" when the strings are texts, batch_size=32, workers=0,
    on_bad="fail" (or "skip"); and what a vector is, see `avssl.embedding.encode.EmbedOptions`: streams=("audio",), layer,
    pooling, normalize, sequence, views, precision, window, hop. Raises AvsslError.
    """
    from avssl.embedding.encode import embed_inputs

    return embed_inputs(model if isinstance(model, Model) else open_model(model), inputs, **options)


def predict(
    model: str | Path | Model,
    data: Data,
    *,
    views: str = "all",
    batch_size: int = 32,
    workers: int = 0,
    on_bad: str = "skip",
    precision: str = "fp32",
) -> Predictions:
    """Labels with scores from a fine-tuned model: `.scores` (N, C), `.ids`, `.classes`; `.plain()` is one record each.

    views: "all" = the mean over the frontend's views, "one". on_bad: items that cannot be read are left out, or "fail".
    Raises CheckpointError for a model without a head, DataError when nothing could be read.
    """
    from avssl.data.manifest import read_rows
    from avssl.prediction import predict_rows

    rows = read_rows(str(data)) if isinstance(data, (str, Path)) else data
    opened = model if isinstance(model, Model) else open_model(model)
    return predict_rows(
        opened, rows, views=views, batch_size=batch_size, workers=workers, on_bad=on_bad, precision=precision
    )


__all__ = ["embed", "evaluate", "finetune", "load", "predict", "pretrain"]
