"""The hooks a plugin may implement. Each returns a list of entries (`avssl.entries`); none may import torch.

Nothing here is ever called: pluggy reads the names and signatures.
"""

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
def avssl_backbones() -> list[BackboneEntry]:  # type: ignore[empty-body]
    """Networks that turn a Batch into Features."""


@hookspec
def avssl_losses() -> list[LossEntry]:  # type: ignore[empty-body]
    """Objectives, self-supervised and supervised."""


@hookspec
def avssl_evaluations() -> list[EvaluationEntry]:  # type: ignore[empty-body]
    """Protocols that turn a model and its splits into a Report."""


@hookspec
def avssl_modalities() -> list[ModalityEntry]:  # type: ignore[empty-body]
    """Kinds of signal, with their files and decoders."""


@hookspec
def avssl_formats() -> list[FormatEntry]:  # type: ignore[empty-body]
    """Foreign checkpoint formats, in and out."""


@hookspec
def avssl_layouts() -> list[LayoutEntry]:  # type: ignore[empty-body]
    """Known arrangements of data sets."""


@hookspec
def avssl_recipes() -> list[RecipeEntry]:  # type: ignore[empty-body]
    """Recipes: usually `recipes_in(__name__)`."""
