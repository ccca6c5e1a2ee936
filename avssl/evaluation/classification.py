"""A fine-tuned model's own predictions, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.data.bad import BadFiles
from avssl.errors import CheckpointError, UsageError, check
from avssl.evaluation.configs import ClassificationConfig
from avssl.evaluation.features import note_bad, protocol
from avssl.evaluation.labels import Splits, encode, evaluation_split, labelled
from avssl.evaluation.report import Report
from avssl.evaluation.scoring import score
from avssl.prediction import predict_rows

if TYPE_CHECKING:
    from avssl.model import Model


def classification(model: Model, splits: Splits, config: ClassificationConfig) -> Report:
    """`classification.accuracy`, `.map` ... of the mean over the views of the head's probabilities (of its outputs, for
    numbers)."""
    check(
        model.head is not None and model.codec is not None,
        f"{model.path} has no classification head",
        fix="fine-tune it (`avssl finetune`), or evaluate frozen features: --task probe",
        error=CheckpointError,
    )
    codec = model.codec
    assert codec is not None
    if codec.kind == "characters":
        raise UsageError(f"{model.path} writes characters", fix="its evaluation belongs to its own plugin")
    split, rows = evaluation_split(splits, config.split, config.limit)
    rows = labelled(rows)
    encode(rows, codec)  # an unknown label is an error before anything is computed
    report = Report(
        "classification",
        protocol=protocol(
            config,
            split=split,
            target=codec.kind,
            exclusive=codec.exclusive,
            aggregation="mean of probabilities over views",
        ),
    )
    bad = BadFiles()
    predictions = predict_rows(
        model,
        rows,
        views=config.views,
        batch_size=config.batch_size,
        workers=config.workers,
        on_bad=config.on_bad,
        bad=bad,
        precision=config.precision,
    )
    note_bad(report, bad)
    report.n |= {"items": len(predictions.ids), "views": int(predictions.views.sum())}
    score(report, "classification", predictions.scores, encode([rows[i] for i in predictions.indices], codec), config)
    return report
