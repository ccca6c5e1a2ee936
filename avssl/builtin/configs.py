"""Configs of the built-in losses."""

from __future__ import annotations

from typing import Literal

from avssl.errors import check
from avssl.schema import config


@config
class ClassifyConfig:
    """A linear head on pooled features."""

    classes: int = 0  # outputs; 0 = as many as the training labels have
    streams: tuple[str, ...] = ()  # pooled streams that are averaged; () = "joint" if the backbone has it, else all
    norm: bool = True  # LayerNorm before the linear layer
    dropout: float = 0.0
    # auto: index -> cross_entropy, multi_hot -> bce, float -> mse
    loss: Literal["auto", "cross_entropy", "bce", "mse"] = "auto"
    label_smoothing: float = 0.0  # cross_entropy

    def __post_init__(self) -> None:
        check(self.classes >= 0, f"loss.classes is {self.classes}", fix="give the number of classes, or 0")
        for name in ("dropout", "label_smoothing"):
            value = getattr(self, name)
            check(0 <= value < 1, f"loss.{name} is {value}", fix="give a share from 0 to below 1")


@config
class ContrastiveConfig:
    """InfoNCE between pooled features of every pair of modalities (CLIP, arXiv:2103.00020)."""

    streams: tuple[str, ...] = ()  # () = all of the backbone's modalities
    dim: int = 0  # width of linear projections; 0 = compare the pooled features themselves
    temperature: float = 0.07
    learn_temperature: bool = False
    directions: Literal["both", "first"] = "both"  # "first": the first stream of a pair looks for the second only

    def __post_init__(self) -> None:
        check(self.dim >= 0, f"loss.dim is {self.dim}", fix="give a width, or 0 for no projection")
        check(self.temperature > 0, f"loss.temperature is {self.temperature}", fix="give a positive number, e.g. 0.07")
