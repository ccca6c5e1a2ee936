"""avssl: self-supervised learning of audio, video and text.

Importing avssl imports nothing else; the verbs and types below load when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    # the verbs
    "pretrain": "avssl.api", "finetune": "avssl.api", "evaluate": "avssl.api", "embed": "avssl.api", "load": "avssl.api",
    "predict": "avssl.api",
    # what a plugin is made of
    "hookimpl": "avssl.hookspecs", "config": "avssl.schema",
    "BackboneEntry": "avssl.entries", "EvaluationEntry": "avssl.entries", "FormatEntry": "avssl.entries",
    "LayoutEntry": "avssl.entries", "LossEntry": "avssl.entries", "ModalityEntry": "avssl.entries",
    "RecipeEntry": "avssl.entries", "recipes_in": "avssl.entries",
    "Backbone": "avssl.backbone", "Features": "avssl.backbone", "Grid": "avssl.backbone",
    "Batch": "avssl.batch", "Stream": "avssl.batch", "Frontend": "avssl.frontend",
    "Loss": "avssl.loss", "LossOutput": "avssl.loss", "Term": "avssl.loss",
    "Model": "avssl.model", "Recipe": "avssl.recipe", "load_recipe": "avssl.recipe",
    # what goes wrong
    "AvsslError": "avssl.errors", "CheckpointError": "avssl.errors", "DataError": "avssl.errors",
    "GateError": "avssl.errors", "PluginError": "avssl.errors", "UsageError": "avssl.errors",
}  # fmt: skip

if TYPE_CHECKING:
    from avssl.api import embed, evaluate, finetune, load, predict, pretrain
    from avssl.backbone import Backbone, Features, Grid
    from avssl.batch import Batch, Stream
    from avssl.entries import (
        BackboneEntry,
        EvaluationEntry,
        FormatEntry,
        LayoutEntry,
        LossEntry,
        ModalityEntry,
        RecipeEntry,
        recipes_in,
    )
    from avssl.errors import AvsslError, CheckpointError, DataError, GateError, PluginError, UsageError
    from avssl.frontend import Frontend
    from avssl.hookspecs import hookimpl
    from avssl.loss import Loss, LossOutput, Term
    from avssl.model import Model
    from avssl.recipe import Recipe, load_recipe
    from avssl.schema import config

__all__ = [
    "AvsslError", "Backbone", "BackboneEntry", "Batch", "CheckpointError", "DataError", "EvaluationEntry", "Features",
    "FormatEntry", "Frontend", "GateError", "Grid", "LayoutEntry", "Loss", "LossEntry", "LossOutput", "ModalityEntry",
    "Model", "PluginError", "Recipe", "RecipeEntry", "Stream", "Term", "UsageError", "config", "embed", "evaluate",
    "finetune", "hookimpl", "load", "load_recipe", "predict", "pretrain", "recipes_in",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'avssl' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
