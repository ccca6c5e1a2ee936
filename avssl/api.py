"""The verbs of the command line as functions: small, typed, the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.data.clip import Row
from avssl.model import Model, open_model
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
    the file does not say). Raises CheckpointError.
    """
    return open_model(model, format, device, **options)


def pretrain(
    recipe: str | Path | Recipe | Pipeline,
    data: Data,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    init: str | Path | None = None,
    init_format: str = "",
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Pretrain a recipe, or run a pipeline of stages, into the run directory `out`; the report. See `avssl pretrain`."""
    loaded = load_recipe(str(recipe), overrides) if isinstance(recipe, (str, Path)) else recipe
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
    device: str = "auto",
) -> Report:
    """The Report of a protocol ("retrieval", "probe", "knn", "kfold", "classification", or a plugin's). See `avssl evaluate`."""
    from avssl.cli.evaluate import run

    return run(
        str(model),
        [str(d) for d in ([data] if isinstance(data, (str, Path)) else data)],
        task,
        train=[str(train)] if train is not None else None,
        format=format,
        split=split,
        overrides=tuple(overrides),
        device=device,
    )


def embed(model: str | Path | Model, inputs: Any, **options: Any) -> Vectors:
    """Embeddings of paths, rows or arrays; options are those of `avssl.embedding.encode.embed_inputs`."""
    from avssl.embedding.encode import embed_inputs

    return embed_inputs(model if isinstance(model, Model) else open_model(model), inputs, **options)


def predict(model: str | Path | Model, data: str | Path | Sequence[Row], **options: Any) -> Predictions:
    """Labels with scores from a fine-tuned model; options are those of `avssl.prediction.predict_rows`."""
    from avssl.data.manifest import read_rows
    from avssl.prediction import predict_rows

    rows = read_rows(str(data)) if isinstance(data, (str, Path)) else data
    return predict_rows(model if isinstance(model, Model) else open_model(model), rows, **options)


__all__ = ["embed", "evaluate", "finetune", "load", "predict", "pretrain"]
