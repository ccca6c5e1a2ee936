"""Metrics against implementations written from their definitions, not from the library they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stored import predicted

from avssl.errors import DataError, UsageError
from avssl.evaluation import bootstrap, metrics


def ap_by_definition(scores: np.ndarray, truth: np.ndarray) -> float:
    """Sum over distinct thresholds of (gain in recall) x (precision at that threshold)."""
    total, previous = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = truth[chosen].sum() / truth.sum()
        total += (recall - previous) * truth[chosen].mean()
        previous = recall
    return total


def auc_by_definition(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties half."""
    pos, neg = scores[truth == 1], scores[truth == 0]
    return float(((pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)).mean())


def tied_problem(seed: int, n: int = 40, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, (n, classes)).astype(float), (rng.random((n, classes)) < 0.3).astype(int)


@pytest.mark.parametrize("seed", range(8))
def test_ap_and_auc_follow_their_definitions_with_ties(seed):
    scores, truth = tied_problem(seed)
    ap, auc = metrics.average_precision(scores, truth), metrics.roc_auc(scores, truth)
    for c in range(scores.shape[1]):
        assert ap[c] == pytest.approx(ap_by_definition(scores[:, c], truth[:, c]), abs=1e-12)
        assert auc[c] == pytest.approx(auc_by_definition(scores[:, c], truth[:, c]), abs=1e-12)


def test_a_class_without_positives_is_left_out_or_kept_as_the_official_scripts_do():
    scores, truth = tied_problem(0)
    truth[:, -1] = 0
    skip, zero = (metrics.average_precision(scores, truth, e) for e in ("skip", "zero"))
    assert math.isnan(skip[-1]) and zero[-1] == 0
    assert metrics.macro(zero) == pytest.approx(metrics.macro(skip) * 4 / 5)
    assert math.isnan(metrics.roc_auc(scores, truth)[-1]) and metrics.roc_auc(scores, truth, "zero")[-1] == -1


@pytest.mark.parametrize(("auc", "expected"), [(0.5, 0.0), (0.9, 1.8124), (0.973, 2.7249)])
def test_d_prime_has_the_published_values(auc, expected):
    # d' = sqrt(2) z(AUC); z(0.9) = 1.281552, z(0.973) = 1.926837 from a normal table
    assert metrics.d_prime(auc) == pytest.approx(expected, abs=2e-4)


def test_d_prime_of_an_impossible_auc_is_not_a_number():
    assert math.isnan(metrics.d_prime(-1.0))


def test_accuracy_breaks_ties_towards_the_lower_class_for_every_k():
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    assert metrics.hits(scores, np.array([0, 1])).tolist() == [True, True]
    assert metrics.hits(scores, np.array([1, 2])).tolist() == [False, False]
    assert metrics.hits(scores, np.array([1, 2]), 2).tolist() == [True, True]


@given(
    hnp.arrays(np.float64, (12, 4), elements=st.integers(0, 3).map(float)),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_top_1_is_numpys_argmax_and_top_c_is_everything(scores, labels):
    assert (metrics.hits(scores, np.array(labels)) == (scores.argmax(1) == labels)).all()
    assert metrics.accuracy(scores, np.array(labels), 4) == 1.0


def test_macro_f1_and_confusion_follow_their_definitions():
    rng = np.random.default_rng(3)
    scores, labels = rng.random((60, 4)), rng.integers(0, 4, 60)
    guess = scores.argmax(1)
    table = metrics.confusion(scores, labels)
    for c in range(4):
        said, real = guess == c, labels == c
        tp, fp, fn = (said & real).sum(), (said & ~real).sum(), (~said & real).sum()
        assert metrics.f1(scores, labels)[c] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert table[c, c] == tp and table[c].sum() == tp + fn and table[:, c].sum() == tp + fp


def test_a_class_that_nobody_has_and_nobody_predicts_has_no_f1():
    values = metrics.f1(np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), np.array([0, 1]))
    assert values[:2].tolist() == [1, 1] and math.isnan(values[2])


def test_regression_metrics_follow_their_definitions():
    rng = np.random.default_rng(0)
    t = rng.normal(size=50)
    p = t + rng.normal(size=50)
    got = metrics.regression(p, t)
    pc, tc = p - p.mean(), t - t.mean()
    assert got["pearson"] == pytest.approx((pc @ tc) / math.sqrt((pc @ pc) * (tc @ tc)))
    rp, rt = p.argsort().argsort().astype(float), t.argsort().argsort().astype(float)
    rp, rt = rp - rp.mean(), rt - rt.mean()
    assert got["spearman"] == pytest.approx((rp @ rt) / (rp @ rp))
    assert got["mse"] == pytest.approx(((p - t) ** 2).mean())


def test_the_ensemble_is_the_mean_of_probabilities_not_of_logits():
    logits = np.array([[[0.0, 8.0]], [[3.0, 0.0]], [[3.0, 0.0]]], np.float32)
    mean = predicted(logits, exclusive=True)
    by_hand = np.mean([np.exp(x) / np.exp(x).sum() for x in logits[:, 0].astype(np.float64)], axis=0)
    np.testing.assert_allclose(mean[0], by_hand, rtol=1e-14)
    assert mean[0].argmax() == 0 and logits.mean(0)[0].argmax() == 1
    each = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    np.testing.assert_allclose(predicted(logits, exclusive=False)[0], each.mean(0), rtol=1e-14)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_and_located(value):
    scores = np.zeros((3, 2))
    scores[1, 0] = value
    with pytest.raises(UsageError, match=r"score at \(1, 0\)"):
        metrics.average_precision(scores, np.array([0, 1, 0]))


def test_nothing_to_evaluate_is_an_error_not_a_number():
    with pytest.raises(DataError, match="no items to evaluate"):
        metrics.classification(np.zeros((0, 3)), np.zeros(0, dtype=int))


# -- bootstrap ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_weighted_curves_equal_scikit_learns_with_sample_weights(seed):
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, truth = tied_problem(seed, classes=1)
    weights = np.random.default_rng(seed).integers(0, 4, (6, len(scores))).astype(float)
    ap, auc = bootstrap.weighted_curves(scores[:, 0], truth[:, 0], weights)
    for r in range(6):
        for ours, theirs in ((ap, average_precision_score), (auc, roc_auc_score)):
            assert ours[r] == pytest.approx(theirs(truth[:, 0], scores[:, 0], sample_weight=weights[r]), abs=1e-12)


def test_intervals_repeat_with_a_seed_and_hold_the_estimate():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 200)
    scores = rng.random((200, 7)) + 0.5 * metrics.one_hot(labels, 7)
    values, _ = metrics.classification(scores, labels)
    once, again, other = (
        bootstrap.of_classification([(scores, labels)], resamples=300, level=0.95, seed=s) for s in (1, 1, 2)
    )
    assert once == again != other
    assert once.keys() == values.keys()
    for name in ("accuracy", "top5", "auc", "d_prime", "f1"):
        assert once[name][0] <= values[name] <= once[name][1], name


def test_items_are_resampled_within_their_fold():
    """A fold that is all right and one that is all wrong: their mean is one half in every resample."""
    truth = np.repeat([0, 1], 20)
    right = metrics.one_hot(truth, 2).astype(float)
    found = bootstrap.of_classification([(right, truth), (1 - right, truth)], resamples=100, level=0.95, seed=0)
    assert found["accuracy"] == (0.5, 0.5)
    y = np.arange(10.0)
    numbers = bootstrap.of_regression([(y, y), (y + 2, y)], resamples=100, level=0.95, seed=0)
    assert numbers["mse"] == (2.0, 2.0)


@pytest.mark.parametrize("labels", ["one", "several"])
def test_classes_without_positives_count_in_the_interval_and_in_chance_as_in_the_value(labels):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)  # of eight classes
    scores = rng.random((200, 8)) + 0.5 * metrics.one_hot(y, 8)
    targets = y if labels == "one" else metrics.one_hot(y, 8)
    found = {}
    for empty in ("skip", "zero"):
        values, _ = metrics.classification(scores, targets, empty=empty)
        bounds = bootstrap.of_classification([(scores, targets)], resamples=200, level=0.95, seed=0, empty=empty)
        chance = metrics.chance(targets, 8, empty)
        assert all(bounds[k][0] <= values[k] <= bounds[k][1] for k in ("map", "auc", "f1")), (empty, values, bounds)
        found[empty] = (values["map"], *bounds["map"], chance["map"])
        blind = metrics.classification(np.ones((200, 8)), targets, empty=empty)[0]
        assert (blind["map"], blind["auc"]) == (pytest.approx(chance["map"]), pytest.approx(chance["auc"]))
    assert np.array(found["zero"]) == pytest.approx(np.array(found["skip"]) / 2)


def test_the_interval_of_a_mean_is_the_binomial_one():
    values = np.r_[np.ones(300), np.zeros(700)]
    low, high = bootstrap.of_mean(values, resamples=4000, level=0.95, seed=0)
    error = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - error, abs=0.003) and high == pytest.approx(0.3 + error, abs=0.003)


def test_the_bootstrap_draws_the_same_whatever_its_memory(monkeypatch):
    scores, truth = tied_problem(1)
    whole = bootstrap.of_classification([(scores, truth)], resamples=50, level=0.9, seed=0)
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * len(scores))
    assert bootstrap.of_classification([(scores, truth)], resamples=50, level=0.9, seed=0) == whole


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_metrics_do_not_depend_on_the_order_of_items(seed):
    scores, truth = tied_problem(seed, n=25, classes=3)
    order = np.random.default_rng(seed).permutation(25)
    for name in ("average_precision", "roc_auc"):
        metric = getattr(metrics, name)
        np.testing.assert_allclose(metric(scores, truth), metric(scores[order], truth[order]), atol=1e-12)


# -- chance ------------------------------------------------------------------------------------------------------------
def test_chance_of_top5_is_that_of_the_five_most_frequent_classes():
    y = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 12])
    scores = np.tile(np.bincount(y).astype(float), (len(y), 1))  # always the same answer, the frequent classes first
    found = metrics.chance(y, 8)
    assert found["top5"] == metrics.accuracy(scores, y, 5) == 34 / 40
    assert found["accuracy"] == metrics.accuracy(scores, y) == 12 / 40
    assert metrics.chance(np.repeat(np.arange(10), 3), 10)["top5"] == pytest.approx(0.5)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.6, 0.3, 0.1)])
def test_chance_of_f1_is_what_guessing_at_the_frequencies_gives_and_no_other_rate_beats_it(shares):
    rng, n = np.random.default_rng(0), 200_000
    y = rng.choice(len(shares), n, p=shares)

    def guessed(rates) -> float:
        scores = np.eye(len(shares))[rng.choice(len(shares), n, p=rates)]
        return metrics.macro(metrics.f1(scores, y))

    chance = metrics.chance(y, len(shares))["f1"]
    assert chance == pytest.approx(guessed(shares), abs=0.005) == pytest.approx(1 / len(shares), abs=0.005)
    for _ in range(5):
        assert guessed(rng.dirichlet(np.ones(len(shares)))) < chance + 0.005


def test_chance_of_f1_with_several_labels_is_that_of_always_naming_all():
    y = (np.random.default_rng(0).random((5000, 3)) < [0.1, 0.5, 0.9]).astype(int)
    assert metrics.chance(y, 3)["f1"] == pytest.approx(metrics.macro(metrics.f1(np.ones(y.shape), y)))
    assert "accuracy" not in metrics.chance(y, 3) and "top5" not in metrics.chance(y, 3)


@pytest.mark.parametrize("classes", [2, 5])
def test_matthews_correlation_is_scikit_learns(classes: int):
    from sklearn.metrics import matthews_corrcoef

    rng = np.random.default_rng(classes)
    scores, targets = rng.standard_normal((60, classes)), rng.integers(0, classes, 60)
    scores[np.arange(60), targets] += 1
    values, _ = metrics.classification(scores, targets)
    assert values["mcc"] == pytest.approx(matthews_corrcoef(targets, scores.argmax(1)))
    low, high = bootstrap.of_classification([(scores, targets)], resamples=200, level=0.9, seed=0)["mcc"]
    assert low < values["mcc"] < high
    constant = np.eye(classes)[np.zeros(60, dtype=int)]
    assert metrics.classification(constant, targets)[0]["mcc"] == 0.0
