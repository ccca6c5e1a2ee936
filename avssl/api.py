"""The verbs of the command line as functions: small, typed, the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.data.clip import Row
from avssl.model import Model, open_model
from avssl.training.run import finetune
from avssl.training.run import pretrain as _pretrain
from avssl.training.setup import Machine

if TYPE_CHECKING:
    from avssl.recipe import Recipe

Data = str | Path | Sequence[Row]


def load(model: str | Path, *, format: str = "", device: str = "cpu", **options: Any) -> Model:
    """A model to use: `model.embed(paths_or_arrays)`, `model.logits(batch)`.

    model: a run directory, an imported model directory, or a published checkpoint (with `format`, and `options` for what
    the file does not say). Raises CheckpointError.
    """
    return open_model(model, format, device, **options)


def pretrain(recipe: str | Recipe, data: Data, out: str | Path, *, overrides: Sequence[str] = (), resume: bool = False,
             init: str | Path | None = None, init_format: str = "", machine: Machine | None = None) -> dict[str, Any]:
    """Pretrain a recipe, or run a pipeline of stages, into the run directory `out`; the report. See `avssl pretrain`."""
    from avssl.recipe import Pipeline, load_recipe

    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe
    if isinstance(loaded, Pipeline):
        from avssl.training.pipeline import run_pipeline

        return run_pipeline(loaded, data, out, resume=resume, machine=machine, init=init, init_format=init_format)
    return _pretrain(loaded, data, out, resume=resume, init=init, init_format=init_format, machine=machine)


__all__ = ["embed", "evaluate", "finetune", "load", "predict", "pretrain"]
