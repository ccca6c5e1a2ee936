"""CAV-MAE's evaluation against the authors' numbers: retrieval with ties, mAP and accuracy, frame ensemble, sampler
weights, weight averaging."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from stored import predicted

from avssl.data.clip import Row
from avssl.data.sampler import balanced_weights
from avssl.evaluation import metrics, ranking
from avssl.evaluation.similarity import similarities
from avssl.loss import Loss
from avssl.training.weights import Averages
from parity.harness import Case, cases

TIES = {None: "listed", "official": "listed", "count_strictly_better": "first"}


def stored(case: Case, dotted: str) -> Any:
    return reduce(lambda node, key: node[key], dotted.split("."), case.spec)


def compare(case: Case, record: dict[str, Any], got: Any) -> None:
    """A json output; entries without a defined value (null) are left out."""
    want = stored(case, record["json"])
    if want is None:
        case.checked.add(record["json"])
        return
    want, got = np.atleast_1d(np.array(want, dtype=float)), np.atleast_1d(np.array(got, dtype=float))
    assert want.shape == got.shape, record["json"]
    defined = ~np.isnan(want)
    case.check(record["json"], got[defined], want=want[defined])


@pytest.mark.parametrize("case", cases("cav_mae", "metrics"))
def test_metrics_are_the_official_ones(case: Case):
    config = case.spec["config"]["metrics"]
    assert set(config["ensemble"].values()) == {"mean_of_sigmoid_over_frames", "mean_of_softmax_over_frames"}
    similarity = {}
    for record in case.outputs("similarity"):
        gallery = case.io[record["gallery"]].numpy().copy()
        for source, copy in record.get("gallery_rows_copied", ()):
            gallery[copy] = gallery[source]
        queries = case.io[record["queries"]].numpy()
        similarity[record["tensor"]] = similarities(queries, gallery)(slice(0, len(queries)))
        case.check(record["tensor"], similarity[record["tensor"]])
    for record in case.outputs():
        if "similarity" in record:
            # Positions are counted in the stored matrix: in a recomputed one copies may differ by a rounding.
            matrix = case.io[record["similarity"]].numpy()
            placed = ranking.place(matrix, np.eye(len(matrix), dtype=bool))
            ties = TIES[record.get("tie_rule")]
            if record["of"] == "MR":
                compare(case, record, placed.median_rank(ties))
            else:
                assert int(record["of"][1:]) in config["retrieval_k"]
                compare(case, record, placed.recall(int(record["of"][1:]), ties))
        elif "logits" in record:
            compare(case, record, classified(case, record))
    for record in case.outputs("sample_weights"):
        hot = case.io[record["targets"]].numpy() > 0
        rows = [Row(str(i), {}, labels=tuple(map(str, np.flatnonzero(row)))) for i, row in enumerate(hot)]
        case.check(record["tensor"], balanced_weights(rows))
    for record in case.outputs("weight_average"):
        found = sorted(
            (i["epoch"], i["tensor"])
            for i in case.spec["inputs"]
            if i["role"] == "checkpoint_parameter" and i["parameter"] == record["parameter"]
        )
        assert len(found) == record["epochs"]
        averages = Averages(epochs=(1, len(found)))
        for epoch, (_, name) in enumerate(found, 1):
            averages.epoch(epoch, holding(case.io[name]))
        case.check(record["tensor"], averages.result({"p": case.io[found[-1][1]]})["p"])
    case.check_complete()


def holding(value: torch.Tensor) -> Loss:
    """A loss whose one parameter is this."""
    loss = Loss(None, None)
    loss.p = torch.nn.Parameter(value)
    return loss


def classified(case: Case, record: dict[str, Any]) -> Any:
    """Per frame on logits, the ensemble on mean probabilities; classes without positives stay in the mean with AP 0."""
    logits, targets = case.io[record["logits"]].numpy(), case.io[record["targets"]].numpy()
    multi_label = "single" not in record["targets"]
    together = predicted(logits, exclusive=not multi_label)
    name = record["of"]
    if name == "mAP_per_frame":
        return [metrics.macro(metrics.average_precision(f, targets, empty="zero")) for f in logits]
    if name == "acc_per_frame":
        return [metrics.accuracy(f, targets) for f in logits]
    if name == "ensemble_AP":
        return metrics.average_precision(together, targets, empty="zero")
    if name == "ensemble_mAP":
        return metrics.macro(metrics.average_precision(together, targets, empty="zero"))
    if name == "ensemble_acc":
        return metrics.accuracy(together, targets)
    assert name.startswith("frame0_"), name
    auc = metrics.roc_auc(logits[0], targets, empty="skip")
    return {
        "frame0_AP": metrics.average_precision(logits[0], targets, empty="zero"),
        "frame0_AUC": auc,
        "frame0_mAUC": metrics.macro(auc),
        "frame0_dprime": metrics.d_prime(metrics.macro(auc)),
    }[name]
