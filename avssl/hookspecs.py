"""The hooks a plugin may implement. Each returns a list of entries (`avssl.entries`); none may import torch."""

from __future__ import annotations

import pluggy

from avssl.entries import (
    BackboneEntry,
    EvaluationEntry,
    FormatEntry,
    LayoutEntry,
    LossEntry,
    ModalityEntry,
    RecipeEntry,
)

hookspec = pluggy.HookspecMarker("avssl")
hookimpl = pluggy.HookimplMarker("avssl")


@hookspec
def avssl_backbones() -> list[BackboneEntry]:
    """Networks that turn a Batch into Features."""


@hookspec
def avssl_losses() -> list[LossEntry]:
    """Objectives, self-supervised and supervised."""


@hookspec
def avssl_evaluations() -> list[EvaluationEntry]:
    """Protocols that turn a model and its splits into a Report."""


@hookspec
def avssl_modalities() -> list[ModalityEntry]:
    """Kinds of signal, with their files and decoders."""


@hookspec
def avssl_formats() -> list[FormatEntry]:
    """Foreign checkpoint formats, in and out."""


@hookspec
def avssl_layouts() -> list[LayoutEntry]:
    """Known arrangements of data sets."""


@hookspec
def avssl_recipes() -> list[RecipeEntry]:
    """Recipes: usually `recipes_in(__name__)`."""
