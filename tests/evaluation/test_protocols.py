"""Protocols on a small real model: against what can be computed by hand, and against what must be refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import toy
from sklearn.metrics.pairwise import cosine_similarity

from avssl.data.clip import Row
from avssl.data.split import few_rows
from avssl.data.targets import Codec
from avssl.embedding.encode import EmbedOptions, embed_rows
from avssl.errors import CheckpointError, DataError, GateError, UsageError
from avssl.evaluation import metrics
from avssl.evaluation.configs import ClassificationConfig, KnnConfig, ProbeConfig
from avssl.evaluation.explain import describe, explain
from avssl.evaluation.features import _apart
from avssl.evaluation.gates import check_gates, check_names, lower_is_better
from avssl.evaluation.kfold import summary
from avssl.evaluation.knn import neighbours
from avssl.evaluation.labels import Labels, encode, splits_of
from avssl.evaluation.probe import fit_probe, inner_split
from avssl.evaluation.report import Report
from avssl.recipe import recipe_from
from avssl.registry import load
from avssl.schema import structure
from avssl.training.setup import plan_data

RUN = {
    "name": "test",
    "stage": "finetune",
    "backbone": {"name": "toy"},
    "loss": {"name": "classify"},
    "optim": {"lr": 1e-3},
}


def evaluate(task, model, rows, **options):
    config = structure(load("evaluation", task, "config"), {"bootstrap": 50, **options})
    return load("evaluation", task)(model, splits_of(rows), config)


@pytest.fixture(scope="module")
def rows(toy_manifest):
    return toy.rows(toy_manifest)


# -- retrieval ---------------------------------------------------------------------------------------------------------
def test_retrieval_is_the_ranking_of_the_embeddings(toy_model, rows):
    report = evaluate("retrieval", toy_model, rows)
    test = [r for r in rows if r.split == "test"]
    vectors = embed_rows(toy_model, test, EmbedOptions(streams=("audio", "vision"), views="one"))
    labels = np.array([r.labels[0] for r in test])
    similarity = cosine_similarity(vectors["audio"], vectors["vision"])
    for level, right in (("instance", np.eye(10, dtype=bool)), ("class", labels[:, None] == labels)):
        first = right[np.arange(10)[:, None], np.argsort(-similarity, axis=1)]
        prefix = f"retrieval.audio->vision.{level}"
        for k in (1, 5, 10):
            assert report.metrics[f"{prefix}.r@{k}"] == pytest.approx(first[:, :k].any(1).mean())
        assert report.metrics[f"{prefix}.median_rank"] == np.median(first.argmax(1) + 1)
        low, high = report.intervals[f"{prefix}.r@1"]
        assert low <= report.metrics[f"{prefix}.r@1"] <= high
    assert report.n["items"] == 10 and report.protocol["split"] == "test"
    assert {m.split(".")[1] for m in report.metrics} == {"audio->vision", "vision->audio"}
    assert report.chance["retrieval.vision->audio.instance.r@5"] == pytest.approx(0.5)


def test_captions_of_one_clip_are_its_instances_and_the_clip_is_one_candidate(toy_model, rows):
    doubled = [
        replace(
            r,
            id=f"{r.id}-{n}",
            split="test",
            extra={"clip": r.id},
            parts={**r.parts, "vision": rows[(i + n) % 12].parts["vision"]},
        )
        for i, r in enumerate(rows[:6])
        for n in range(2)
    ]
    report = evaluate("retrieval", toy_model, doubled, pair="clip", levels=["instance"])
    assert report.n["retrieval.vision->audio.instance.gallery"] == 6
    assert report.n["retrieval.audio->vision.instance.gallery"] == 12
    assert report.n["retrieval.audio->vision.instance.queries"] == 6
    with pytest.raises(DataError, match="has no 'nothing' column"):
        evaluate("retrieval", toy_model, doubled, pair="nothing")


def test_a_stream_can_be_searched_by_itself_without_finding_itself(toy_model, rows):
    report = evaluate("retrieval", toy_model, rows, within=True, streams=["joint"], hits=3)
    assert list(report.n)[1:] == ["retrieval.joint->joint.class.queries", "retrieval.joint->joint.class.gallery"]
    examples = report.hits["retrieval.joint->joint.class"]
    assert len(examples) == 3 and all(e["query"] not in [h["id"] for h in e["hits"]] for e in examples)


def test_the_official_reading_of_ties_is_an_option(toy_model, rows):
    same = [replace(rows[0], id=str(i), split="test", labels=()) for i in range(4)]
    by_ties = {t: evaluate("retrieval", toy_model, same, ties=t) for t in ("expected", "first", "last", "listed")}
    recall = {t: r.metrics["retrieval.audio->vision.instance.r@1"] for t, r in by_ties.items()}
    # four clips of one content: every candidate ties with the right one
    assert recall == {"expected": 0.25, "first": 1.0, "last": 0.0, "listed": 0.25}


def test_retrieval_says_what_is_missing(toy_model, rows):
    with pytest.raises(UsageError, match="retrieval between modalities needs two"):
        evaluate("retrieval", toy_model, rows, streams=["audio"])
    alone = [replace(r, parts={"audio": r.parts["audio"]}, split="test") for r in rows[:4]]
    with pytest.raises(DataError, match="nothing could be compared"):
        evaluate("retrieval", toy_model, alone)
    with pytest.raises(DataError, match="which split"):
        evaluate("retrieval", toy_model, [replace(r, split="train") for r in rows])


# -- probe and neighbours ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", ["probe", "knn"])
def test_protocols_on_frozen_features_separate_what_is_separable(toy_model, rows, task):
    report = evaluate(task, toy_model, rows, streams=["audio", "audio+vision"])
    assert report.metrics[f"{task}.audio.accuracy"] == 1.0 == report.metrics[f"{task}.audio+vision.accuracy"]
    assert report.classes == ["class 0", "class 1", "class 2"]
    assert np.trace(report.confusion[f"{task}.audio"]) == 10 == report.n["test"]
    assert sum(c["n"] for c in report.per_class[f"{task}.audio"].values()) == 10
    assert json.loads(json.dumps(report.plain()))["protocol"]["split"] == "test"


@pytest.mark.parametrize("task", ["probe", "knn"])
def test_few_labels_are_those_that_fine_tuning_with_the_seed_gets(toy_model, rows, task):
    report = evaluate(task, toy_model, rows, streams=["audio"], per_class=3, seed=5)
    assert report.n["train"] == 9
    assert report.protocol["per_class"] == 3
    few = few_rows([r for r in rows if r.split == "train"], 3, seed=5)
    by_hand = evaluate(task, toy_model, few + [r for r in rows if r.split == "test"], streams=["audio"], seed=5)
    assert by_hand.metrics == report.metrics
    recipe = recipe_from({**RUN, "data": {"target": "index", "per_class": 3}, "train": {"updates": 1, "seed": 5}})
    assert plan_data(recipe, rows)[0].train == few


def test_k_fold_takes_few_labels_of_each_training_part(toy_model, rows):
    report = evaluate("kfold", toy_model, rows, streams=["audio"], per_class=2, seed=1, c=[1.0])
    y, folds = np.array([int(r.labels[0][-1]) for r in rows]), np.array([r.fold for r in rows])
    x = embed_rows(toy_model, rows, EmbedOptions(streams=("audio",), views="one"))["audio"]
    codec = Codec("index", ("class 0", "class 1", "class 2"))
    for fold in (0, 1, 2):
        few = few_rows([r for r in rows if r.fold != fold], 2, seed=1)
        known, held = np.array([rows.index(r) for r in few]), folds == fold
        scores, _ = fit_probe(x[known], Labels(codec, y[known]), x[held], ProbeConfig(c=(1.0,)), [""] * len(known))
        assert report.metrics[f"kfold.audio.accuracy.fold.{fold}"] == metrics.accuracy(scores, y[held])


def test_the_probe_is_scikit_learns_logistic_regression_on_standardised_features():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 5)) + y[:, None]
    labels = Labels(Codec("index", ("a", "b", "c")), y[:60])
    scores, facts = fit_probe(x[:60], labels, x[60:], ProbeConfig(c=(0.3,)), [""] * 60)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(x[:60], y[:60])
    np.testing.assert_allclose(scores, pipeline.predict_proba(x[60:]), atol=1e-6)
    assert facts == {"c": 0.3, "converged": True}
    again, _ = fit_probe(x[:60], labels, x[60:], ProbeConfig(c=(0.3,)), [""] * 60)
    assert np.array_equal(scores, again)


def test_the_inner_split_keeps_groups_together_and_classes_on_both_sides():
    y = np.repeat([0, 1], 20)
    labels = Labels(Codec("index", ("a", "b")), y)
    fit, held = inner_split(labels, [""] * 40, 0.25, 0)
    assert sorted([*fit, *held]) == list(range(40)) and set(y[fit]) == set(y[held]) == {0, 1}
    groups = [f"speaker {i // 4}" for i in range(40)]
    fit, held = inner_split(labels, groups, 0.25, 0)
    assert not {groups[i] for i in fit} & {groups[i] for i in held}


def test_several_labels_and_numbers_are_probed_as_such(toy_model, rows):
    several = [replace(r, labels=(r.labels[0], "all")[: 1 + (i % 2)]) for i, r in enumerate(rows)]
    report = evaluate("probe", toy_model, several, streams=["audio"])
    assert report.protocol["target"] == "multi_hot" and "probe.audio.accuracy" not in report.metrics
    assert report.metrics["probe.audio.map"] > report.chance["probe.audio.map"]
    numbers = [replace(r, labels=(f"{float(r.labels[0][-1]) + 0.5}",)) for r in rows]
    for task in ("probe", "knn"):
        assert evaluate(task, toy_model, numbers, streams=["audio"]).metrics[f"{task}.audio.pearson"] > 0.95


def test_neighbours_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    x, z, y = rng.normal(size=(30, 4)), rng.normal(size=(7, 4)), rng.integers(0, 3, 30)
    got = neighbours(x, Labels(Codec("index", ("a", "b", "c")), y), z, 5, 0.1)
    for n in range(7):
        cosine = cosine_similarity(z[n : n + 1], x)[0]
        near = np.argsort(-cosine)[:5]
        weights = np.exp(cosine[near] / 0.1)
        for c in range(3):
            assert got[n, c] == pytest.approx(weights[y[near] == c].sum() / weights.sum(), rel=1e-4)


@pytest.mark.parametrize("task", ["probe", "knn"])
def test_a_probe_without_training_rows_or_with_unknown_labels_is_refused(toy_model, rows, task):
    test = [r for r in rows if r.split == "test"]
    with pytest.raises(DataError, match="needs a 'train' split to fit on"):
        evaluate(task, toy_model, test)
    with pytest.raises(DataError, match="both trained and evaluated on"):
        evaluate(task, toy_model, rows, split="train")
    with pytest.raises(DataError, match="20 clips of 30 would be both trained and evaluated on, the first: '0000'"):
        evaluate(task, toy_model, rows, split="all")
    copied = replace(rows[3], id="another name", split="test")
    with pytest.raises(
        DataError, match="1 clip of 11 would be both trained and evaluated on, the first: 'another name'"
    ):
        evaluate(task, toy_model, [*rows, copied])
    text = [Row(name, {"text": "it is fine"}, split=name) for name in ("train", "test")]
    _apart(text[:1], text[1:])  # people write the same sentence twice
    with pytest.raises(DataError, match="label 'class 9' is not among the 3 known ones"):
        evaluate(task, toy_model, [*rows, replace(test[0], id="new", labels=("class 9",))])
    with pytest.raises(UsageError, match="the model gives no 'sound'"):
        evaluate(task, toy_model, rows, streams=["sound"])
    with pytest.raises(DataError, match="none of the 20 rows has a label"):
        evaluate(task, toy_model, [replace(r, labels=()) if r.split == "train" else r for r in rows])


def test_pieces_of_one_file_and_files_of_one_name_are_different_clips(toy_model, rows, tmp_path):
    train = [replace(r, start=0.0, end=0.5) for r in rows if r.split == "train"]
    other = toy.rows(toy.write_media(tmp_path, items=6, seed=1))  # the same ids, in another folder
    test = [replace(r, split="test") for r in other] + [replace(r, start=0.5, end=1.0, split="test") for r in train]
    assert evaluate("knn", toy_model, train + test, streams=["audio"]).n["test"] == 26


@pytest.mark.parametrize("name", ["test", "eval", "val", "valid", "validation", "dev"])
def test_the_split_that_training_holds_out_is_the_one_that_is_evaluated(toy_model, rows, name):
    named = [replace(r, split=name if r.split == "test" else r.split) for r in rows]
    assert evaluate("knn", toy_model, named, streams=["audio"]).protocol["split"] == name
    recipe = recipe_from({**RUN, "data": {"target": "index"}, "train": {"updates": 1}})
    plan, _ = plan_data(recipe, [replace(r, split="" if r.split == "train" else r.split) for r in named])
    assert len(plan.train) == 20 and len(plan.validation) == (0 if name in ("test", "eval") else 10)


def test_unreadable_items_are_counted_not_scored(toy_model, rows, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    broken = [replace(r, parts={"audio": str(tmp_path / "x.wav")}) if r.id == "0025" else r for r in rows]
    report = evaluate("knn", toy_model, broken, streams=["audio"])
    assert report.n["test"] == 9 and [b["id"] for b in report.bad] == ["0025"]


# -- folds -------------------------------------------------------------------------------------------------------------
def test_every_fold_is_scored_by_a_probe_that_did_not_see_it(toy_model, rows):
    report = evaluate("kfold", toy_model, rows, streams=["vision"], c=[1.0])
    each = []
    x = embed_rows(toy_model, rows, EmbedOptions(streams=("vision",), views="one"))["vision"]
    y, folds = np.array([int(r.labels[0][-1]) for r in rows]), np.array([r.fold for r in rows])
    codec = Codec("index", ("class 0", "class 1", "class 2"))
    for fold in (0, 1, 2):
        held = folds == fold
        scores, _ = fit_probe(x[~held], Labels(codec, y[~held]), x[held], ProbeConfig(c=(1.0,)), [""] * sum(~held))
        each.append(metrics.accuracy(scores, y[held]))
        assert report.metrics[f"kfold.vision.accuracy.fold.{fold}"] == pytest.approx(each[-1])
    assert report.metrics["kfold.vision.accuracy"] == pytest.approx(np.mean(each))
    assert report.metrics["kfold.vision.accuracy.std"] == pytest.approx(np.std(each, ddof=1))


@pytest.mark.parametrize("empty", ["skip", "zero"])
@pytest.mark.parametrize("fit", ["probe", "knn"])
def test_intervals_of_folds_hold_the_mean_over_the_folds(toy_model, rows, empty, fit):
    """Fold 0 has all classes, fold 1 only one of them: its mAP is not that of the items together."""
    uneven = [replace(r, fold=1 if r.labels == ("class 1",) and i % 2 else 0) for i, r in enumerate(rows)]
    report = evaluate("kfold", toy_model, uneven, streams=["audio"], fit=fit, empty=empty, c=[1.0], bootstrap=200)
    for name in ("accuracy", "map", "f1"):
        value, (low, high) = report.metrics[f"kfold.audio.{name}"], report.intervals[f"kfold.audio.{name}"]
        assert low - 1e-9 <= value <= high + 1e-9, name
    fold = report.metrics["kfold.audio.map.fold.1"]
    assert fold == pytest.approx(1.0 if empty == "skip" else 1 / 3)
    shares = [0.4, 0.4, 0.2] if empty == "skip" else [0.4, 0.2, 0.4]
    chance = (np.mean(shares) + (1.0 if empty == "skip" else 1 / 3)) / 2
    assert report.chance["kfold.audio.map"] == pytest.approx(chance)
    assert "of each fold, of the mean" in explain(report)[-2]


def test_folds_of_separate_runs_are_summarised_alike():
    out = summary({"1": {"accuracy": 0.8}, "2": {"accuracy": 0.9}})
    assert out["accuracy"] == pytest.approx(0.85) and out["accuracy.std"] == pytest.approx(0.0707, abs=1e-4)
    assert out["accuracy.fold.2"] == 0.9


@pytest.mark.parametrize(("option", "value"), [("k", 0), ("temperature", 0.0), ("temperature", float("nan"))])
@pytest.mark.parametrize("task", ["knn", "kfold"])
def test_neighbours_that_are_none_are_refused(task, option, value):
    with pytest.raises(UsageError, match=f"{option} is {value}"):
        structure(load("evaluation", task, "config"), {option: value})


@pytest.mark.parametrize("k", [1, 7])
def test_k_fold_has_the_neighbours_of_k_nn(toy_model, rows, k):
    mixed = [replace(r, labels=(f"class {i * 7 % 5 % 3}",)) for i, r in enumerate(rows)]  # not what is heard
    report = evaluate("kfold", toy_model, mixed, streams=["audio"], fit="knn", k=k, temperature=0.5, bootstrap=0)
    apart = [replace(r, split="test" if r.fold == 1 else "train") for r in mixed]
    alone = evaluate("knn", toy_model, apart, streams=["audio"], k=k, temperature=0.5, bootstrap=0)
    assert report.metrics["kfold.audio.map.fold.1"] == pytest.approx(alone.metrics["knn.audio.map"])
    assert alone.metrics["knn.audio.map"] < 0.9


def test_k_fold_without_folds_is_refused(toy_model, rows):
    with pytest.raises(DataError, match="k-fold needs a fold for every row; there are 0"):
        evaluate("kfold", toy_model, [replace(r, fold=None) for r in rows])


# -- the model's own head ----------------------------------------------------------------------------------------------
def test_classification_averages_probabilities_over_the_views(toy_classifier, rows):
    from avssl.model import open_model
    from avssl.prediction import predict_rows

    model = open_model(toy_classifier)
    # two pictures: two views of each item
    paired = [
        replace(r, parts={"vision": (r.parts["vision"], rows[(i + 1) % 30].parts["vision"])})
        for i, r in enumerate(rows)
    ]
    report = evaluate("classification", model, paired)
    one, other = (
        predict_rows(
            model, [replace(r, parts={"vision": (r.parts["vision"][n],)}) for r in paired if r.split == "test"]
        ).scores
        for n in (0, 1)
    )
    truth = np.array([int(r.labels[0][-1]) for r in rows if r.split == "test"])
    assert report.n == {"items": 10, "views": 20}
    assert report.metrics["classification.accuracy"] == metrics.accuracy((one + other) / 2, truth)
    assert report.metrics["classification.map"] == pytest.approx(
        metrics.macro(metrics.average_precision((one + other) / 2, truth))
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "auto"])
def test_a_softmax_of_vector_targets_is_a_softmax_everywhere(toy_plugin, rows, tmp_path, loss):
    """Training, evaluation and prediction say the same of a model whose targets are multi_hot for the sake of mixing."""
    from avssl.evaluation.names import classification as names
    from avssl.model import open_model
    from avssl.prediction import predict_rows
    from avssl.training.run import finetune
    from avssl.training.setup import Machine

    table = {**RUN, "loss": {"name": "classify", "loss": loss}, "data": {"target": "multi_hot", "batch_size": 10},
             "train": {"updates": 2}}  # fmt: skip
    parts = [replace(r, split="val" if r.split == "test" else "train") for r in rows]
    trained = finetune(recipe_from(table), None, parts, tmp_path / "run", machine=Machine(device="cpu", workers=0))
    single = loss == "cross_entropy"
    stored = tmp_path / "run" / "assets" / "targets.json"
    state = json.loads(stored.read_text())
    assert state["exclusive"] is single
    for written in (state, {k: v for k, v in state.items() if k != "exclusive"}):  # the second: an older folder
        stored.write_text(json.dumps(written))
        model = open_model(tmp_path / "run")
        report = evaluate("classification", model, parts, views="one")
        assert {k.removeprefix("classification."): pytest.approx(v, abs=1e-6) for k, v in report.metrics.items()} == (
            trained["validation"]
        )
        assert set(report.metrics) <= set(names(model, ClassificationConfig()))
        assert ("classification.accuracy" in report.metrics) is single and bool(report.confusion) is single
        found = predict_rows(model, parts)
        assert np.allclose(found.scores.sum(1), 1) is single
        assert all(r["label"] == r["labels"][0]["label"] for r in found.plain(top=1)) if single else True
        assert found.bar() == (0.0 if single else 0.5) and ("one of" in repr(found)) is single


def test_clips_with_several_labels_keep_them_under_a_softmax(rows):
    codec = Codec("multi_hot", ("class 0", "class 1", "class 2"), exclusive=True)
    assert encode(rows, codec).y.shape == (30,) and not encode(rows, codec).multi
    both = [replace(rows[0], labels=("class 0", "class 1")), *rows[1:]]
    assert encode(both, codec).y.shape == (30, 3) and encode(both, codec).counts[1] == 11


def test_classification_needs_a_head_and_known_labels(toy_model, toy_classifier, rows):
    from avssl.model import open_model

    with pytest.raises(CheckpointError, match="has no classification head"):
        evaluate("classification", toy_model, rows)
    with pytest.raises(DataError, match="label 'zebra' is not among"):
        evaluate("classification", open_model(toy_classifier), [replace(rows[-1], labels=("zebra",))])


# -- gates and explanations --------------------------------------------------------------------------------------------
METRICS = {
    "retrieval.audio->vision.class.r@1": 0.4,
    "retrieval.audio->vision.class.r@10": 0.9,
    "retrieval.audio->vision.class.median_rank": 2.0,
    "retrieval.vision->audio.class.r@1": 0.2,
    "knn.audio.accuracy": float("nan"),
}


@pytest.mark.parametrize(
    "gate",
    [
        "retrieval.audio->vision.class.r@1=0.4",
        "retrieval.audio->vision=0.4",
        "retrieval=0.2",
        "retrieval.audio->vision.class.r=0.4",
    ],
)
def test_a_gate_that_holds_passes(gate):
    assert check_gates(METRICS, [gate])


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        ("retrieval.audio->vision.class.r@1=0.41", r"audio->vision\.class\.r@1 = 0\.4000 < 0\.41 \(1 of 1 gated"),
        ("retrieval=0.3", r"retrieval\.vision->audio\.class\.r@1 = 0\.2000 < 0\.3 \(1 of 3 gated"),
        ("knn.audio.accuracy=0", r"knn\.audio\.accuracy = nan < 0"),
    ],
)
def test_a_gate_that_fails_names_every_metric_below(gate, text):
    with pytest.raises(GateError, match=text):
        check_gates(METRICS, [gate])


LOW = {
    "kfold.audio.mse": 0.4,
    "kfold.audio.mse.std": 0.1,
    "kfold.audio.mse.fold.1": 0.5,
    "kfold.audio.r2": 0.9,
    "kfold.audio.r2.fold.1": 0.8,
    "speech.wer": float("nan"),
}


def test_a_bound_from_above_is_held_by_every_metric_that_is_better_when_lower():
    assert check_gates(LOW, over=["kfold=0.5"]) == ["kfold.audio.mse", "kfold.audio.mse.std", "kfold.audio.mse.fold.1"]
    assert check_gates(LOW, under=["kfold=0.8"]) == ["kfold.audio.r2", "kfold.audio.r2.fold.1"]
    with pytest.raises(GateError, match=r"^kfold\.audio\.mse\.fold\.1 = 0\.5000 > 0\.45 \(1 of 3 gated"):
        check_gates(LOW, over=["kfold=0.45"])
    with pytest.raises(GateError, match=r"speech\.wer = nan > 0\.1; kfold\.audio\.mse = "):
        Report("x", metrics=LOW).hold(over=["speech.wer=0.1", "kfold.audio.mse=0.3"])
    for gate in ("kfold.audio.r2=0.1", "kfold.audio.r2.fold.1=0.1"):
        with pytest.raises(UsageError, match=r"--fail-over kfold\.audio\.r2\S*: better when higher \(--fail-under"):
            check_gates(LOW, over=[gate])
    with pytest.raises(UsageError, match=r"--fail-under kfold\.audio\.mse\.fold\.1: better when lower"):
        check_gates(LOW, under=["kfold.audio.mse.fold.1=0.1"])


def test_a_gate_of_the_wrong_direction_is_refused_by_its_announced_name():
    known = ["kfold.audio.mse", "kfold.audio.mse.fold.*", "kfold.audio.r2.fold.*"]
    check_names(known, ["kfold.audio.r2.fold.3=0.1"], ["kfold.audio.mse.fold.3=0.1"])
    with pytest.raises(UsageError, match=r"--fail-under kfold\.audio\.mse\.fold\.3: better when lower"):
        check_names(known, ["kfold.audio.mse.fold.3=0.1"])


def test_what_is_better_when_lower_is_told_by_the_last_word_and_explained():
    for name in ("loss", "validation.loss", "speech.wer", "x.cer", "retrieval.a->b.class.median_rank", "k.mse.fold.2"):
        assert lower_is_better(name) and describe(name, {}).endswith("; lower is better"), name
    for name in ("accuracy", "loss.accuracy", "knn.audio.map", "kfold.audio.accuracy.fold.2"):
        assert not lower_is_better(name) and "lower is better" not in describe(name, {}), name


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        ("retrieval.audio->vision.class.r@2=0.1", "no such metric"),
        ("retr=0.1", "no such metric"),
        ("x", "is no NAME=VALUE"),
        ("retrieval=high", "is no NAME=VALUE"),
        ("retrieval.audio->vision.class.median_rank=3", "better when lower"),
    ],
)
def test_a_gate_that_means_nothing_is_a_usage_error(gate, text):
    with pytest.raises(UsageError, match=text):
        check_gates(METRICS, [gate])


def test_every_metric_that_a_protocol_gives_was_announced(toy_model, toy_classifier, rows):
    """Or a gate on it would be refused."""
    from fnmatch import fnmatchcase

    from avssl.model import open_model
    from avssl.registry import load

    numbers = [replace(r, labels=(f"{i % 7}.5",)) for i, r in enumerate(rows)]
    several = [replace(r, labels=(*r.labels, "also") if i % 2 else r.labels) for i, r in enumerate(rows)]
    for task in ("retrieval", "probe", "knn", "kfold", "classification"):
        model = open_model(toy_classifier) if task == "classification" else toy_model
        config = load("evaluation", task, "config")()
        names = list(load("evaluation", task, "names")(model, config))
        for data in (rows,) if task == "classification" else (rows, numbers, several):
            report = evaluate(task, model, data, **({"c": [1.0]} if task in ("probe", "kfold") else {}))
            assert report.metrics
            assert all(any(fnmatchcase(m, n) for n in names) for m in report.metrics), (task, names)


def test_every_metric_of_every_protocol_is_explained(toy_model, toy_classifier, rows):
    from avssl.model import open_model

    for task in ("retrieval", "probe", "knn", "kfold", "classification"):
        report = evaluate(task, open_model(toy_classifier) if task == "classification" else toy_model, rows)
        lines = explain(report)
        for name in report.metrics:
            assert any(line.startswith(f"{name}: ") and "see the protocol" not in line for line in lines), name


def test_wrong_options_name_the_nearest_right_one():
    for wrong, text in (({"strems": ["audio"]}, "unknown key strems .did you mean 'streams'"), ({"k": 0}, "k is 0")):
        with pytest.raises(UsageError, match=text):
            structure(KnnConfig, wrong)


def test_a_limit_is_spread_over_the_rows_so_that_a_sorted_manifest_keeps_its_classes(toy_manifest):
    from avssl.evaluation.labels import evaluation_split

    rows = sorted(toy.rows(toy_manifest), key=lambda r: r.labels)
    _, some = evaluation_split({"test": rows}, limit=6)
    assert len(some) == 6 and {r.labels for r in some} == {r.labels for r in rows}
    assert evaluation_split({"test": rows}, limit=100)[1] == rows
