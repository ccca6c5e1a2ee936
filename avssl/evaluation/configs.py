"""Options of the protocols. `avssl evaluate --set KEY=VALUE` sets them; every value is written into the report."""

from __future__ import annotations

from typing import Literal

from avssl.errors import check
from avssl.schema import config


@config
class EvaluationConfig:
    """What every protocol takes."""

    split: str = ""  # rows to evaluate on; "" = test, eval, val, valid, validation or dev, else all when there are none
    views: Literal["one", "all"] = "one"  # each item's single evaluation view, or all views of its frontend
    batch_size: int = 32
    workers: int = 0
    on_bad: Literal["fail", "skip"] = "skip"  # items that cannot be read
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the model; half is faster and less exact
    limit: int | None = None  # only so many rows of each split, spread over it, for a trial
    bootstrap: int = 1000  # resamples for the confidence intervals; 0 = none
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.batch_size > 0, f"batch_size is {self.batch_size}", fix="give at least 1")
        check(self.bootstrap >= 0, f"bootstrap is {self.bootstrap}", fix="give a number of resamples, or 0")
        check(0 < self.confidence < 1, f"confidence is {self.confidence}", fix="give a share such as 0.95")
        check(self.limit is None or self.limit > 0, f"limit is {self.limit}", fix="give at least 1")


@config
class RetrievalConfig(EvaluationConfig):
    """Nearest neighbours by cosine between pooled streams, in both directions of every pair."""

    streams: tuple[str, ...] = ()  # () = every modality of the model (not fused streams)
    pooling: Literal["model", "mean", "cls", "max"] = "model"  # of tokens, instead of the model's own
    # clips by their mean vectors, or view by view (frames with their sound); then all views are read
    compare: Literal["vector", "diagonal_mean", "diagonal_max", "mean", "max"] = "vector"
    k: tuple[int, ...] = (1, 5, 10)
    levels: tuple[Literal["instance", "class"], ...] = ("instance", "class")  # "class" needs labels
    ties: Literal["expected", "first", "last", "listed"] = "expected"  # "listed" = the official CAV-MAE script
    tolerance: float = 1e-6  # cosines this close are equal: the rounding of a float32 dot product
    pair: str = "id"  # rows with the same value in this column belong together (several captions of one clip)
    within: bool = False  # also each stream with itself, class level, the clip itself left out
    hits: int = 0  # queries whose nearest ten are kept in the report, for galleries

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.k) and min(self.k) > 0, f"k is {self.k}", fix="give positive ranks, e.g. 1, 5 and 10")
        check(self.tolerance >= 0, f"tolerance is {self.tolerance}", fix="give a number from 0")


@config
class FeatureConfig(EvaluationConfig):
    """What a probe or neighbours look at."""

    streams: tuple[str, ...] = ()  # () = all that the model gives; "audio+vision" joins two end to end
    layer: int | None = None  # output of an inner block, with `pooling`
    pooling: Literal["model", "mean", "cls", "max"] = "model"
    train_split: str = "train"
    per_class: int | None = None  # only this many training items of each class, chosen by `seed`
    empty: Literal["skip", "zero"] = "skip"  # classes without positives in mAP and AUC

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.per_class is None or self.per_class > 0, f"per_class is {self.per_class}", fix="give at least 1")
        check(
            self.layer is None or self.pooling != "model",
            "an inner layer has no pooling of the model",
            fix="--set pooling=mean",
        )


@config
class ProbeConfig(FeatureConfig):
    """A linear classifier on frozen features (ridge regression for numbers)."""

    c: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # inverse L2 weights; one is used as it is
    inner: float = 0.2  # share of the training rows that chooses among them; whole groups, when rows have groups
    max_iter: int = 1000
    standardize: bool = True  # features to mean 0 and variance 1 on the training rows

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.c) and min(self.c) > 0, f"c is {self.c}", fix="give positive numbers")
        check(0 < self.inner < 1, f"inner is {self.inner}", fix="give a share such as 0.2")


@config
class KnnConfig(FeatureConfig):
    """Weighted nearest neighbours by cosine: weight exp(cosine / temperature), as DINO evaluates (arXiv:2104.14294)."""

    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.k > 0, f"k is {self.k}", fix="give at least 1")
        check(self.temperature > 0, f"temperature is {self.temperature}", fix="give a positive number")


@config
class KfoldConfig(ProbeConfig, KnnConfig):
    """For each value of the `fold` column: fit on the other folds, evaluate on it; mean and standard deviation."""

    fit: Literal["probe", "knn"] = "probe"


@config
class ClassificationConfig(EvaluationConfig):
    """The model's own head; probabilities are averaged over the views."""

    views: Literal["one", "all"] = "all"
    empty: Literal["skip", "zero"] = "skip"
    threshold: float = 0.5  # of multi-label F1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.threshold <= 1, f"threshold is {self.threshold}", fix="give a score from 0 to 1")
