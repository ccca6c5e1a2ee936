"""avssl: self-supervised learning of audio, video and text.

Importing avssl imports no torch; the verbs and types below load when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from avssl.hookspecs import hookimpl

__version__ = "0.1.0"

_LAZY = {
    "Backbone": "avssl.backbone", "Features": "avssl.backbone", "Grid": "avssl.backbone",
    "Batch": "avssl.batch", "Stream": "avssl.batch",
    "Loss": "avssl.loss", "LossOutput": "avssl.loss", "Term": "avssl.loss",
    "Frontend": "avssl.frontend",
    "Recipe": "avssl.recipe", "load_recipe": "avssl.recipe",
    "config": "avssl.schema",
}  # fmt: skip

if TYPE_CHECKING:
    from avssl.backbone import Backbone, Features, Grid
    from avssl.batch import Batch, Stream
    from avssl.schema import config
    from avssl.frontend import Frontend
    from avssl.loss import Loss, LossOutput, Term
    from avssl.recipe import Recipe, load_recipe


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'avssl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = [
    "AvsslError", "Backbone", "BackboneEntry", "Batch", "CheckpointError", "DataError", "EvaluationEntry", "Features",
    "FormatEntry", "Frontend", "GateError", "Grid", "LayoutEntry", "Loss", "LossEntry", "LossOutput", "ModalityEntry",
    "PluginError", "Recipe", "RecipeEntry", "Stream", "Term", "UsageError", "config", "hookimpl", "load_recipe",
    "recipes_in",
]  # fmt: skip
