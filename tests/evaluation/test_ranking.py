"""Retrieval against brute force: every order of tied candidates is tried, none is assumed."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avssl.errors import DataError, UsageError
from avssl.evaluation import ranking


def every_order(similarity: np.ndarray, relevant: np.ndarray, k: int) -> tuple[list[float], list[float]]:
    """(recall at k, rank of the first right answer) of each query, averaged over all orders that respect the scores."""
    hits, ranks = [], []
    for s, r in zip(similarity, relevant, strict=True):
        if not r.any():
            continue
        found, first = [], []
        for order in permutations(range(len(s))):
            if all(s[a] >= s[b] for a, b in pairwise(order)):
                places = [i for i, g in enumerate(order) if r[g]]
                found.append(places[0] < k)
                first.append(places[0] + 1)
        hits.append(float(np.mean(found)))
        ranks.append(float(np.mean(first)))
    return hits, ranks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 6))
def test_expected_recall_and_rank_are_the_mean_over_all_orders_of_the_ties(seed, k):
    rng = np.random.default_rng(seed)
    similarity, relevant = rng.integers(0, 3, (4, 6)).astype(float), rng.random((4, 6)) < 0.35
    if not relevant.any():
        return
    placed = ranking.place(similarity, relevant)
    hits, ranks = every_order(similarity, relevant, k)
    assert placed.recall(k) == pytest.approx(np.mean(hits))
    np.testing.assert_allclose(placed.ranks(), ranks)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 8))
def test_the_readings_of_ties_are_ordered_and_agree_without_ties(seed, k):
    rng = np.random.default_rng(seed)
    tied, relevant = rng.integers(0, 4, (6, 8)).astype(float), rng.random((6, 8)) < 0.4
    relevant[0, 0] = True
    placed = ranking.place(tied, relevant)
    assert placed.recall(k, "last") <= placed.recall(k, "expected") + 1e-12
    assert placed.recall(k, "expected") <= placed.recall(k, "first") + 1e-12
    clear = ranking.place(rng.permutation(48).reshape(6, 8).astype(float), relevant)
    assert len({round(clear.recall(k, t), 12) for t in ("expected", "first", "last", "listed")}) == 1
    assert len({clear.median_rank(t) for t in ("expected", "first", "last", "listed")}) == 1


def test_a_collapsed_embedding_scores_chance():
    placed = ranking.rank(np.ones((50, 8)), np.ones((50, 8)), ranking.same(np.arange(50), np.arange(50)))
    for k in (1, 5, 10):
        assert placed.recall(k) == pytest.approx(k / 50) == placed.chance(k)
    assert placed.median_rank() == 25.5
    assert placed.recall(1, "first") == 1.0


def test_class_level_chance_is_what_random_orders_score():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 30)
    placed = ranking.rank(rng.normal(size=(30, 16)), rng.normal(size=(30, 16)), ranking.same(labels, labels))
    got = np.mean([ranking.place(rng.random((30, 30)), labels[:, None] == labels).recall(5) for _ in range(300)])
    assert placed.chance(5) == pytest.approx(got, abs=0.01)


def test_ranking_in_blocks_equals_ranking_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    q, g, labels = rng.normal(size=(40, 8)), rng.normal(size=(30, 8)), rng.integers(0, 5, 40)
    whole = ranking.rank(q, g, ranking.same(labels, labels[:30]))
    monkeypatch.setattr(ranking, "_CHUNK", 7 * 30)
    parts = ranking.rank(q, g, ranking.same(labels, labels[:30]))
    for field in ("better", "tied", "right", "relevant", "gallery"):
        assert (getattr(whole, field) == getattr(parts, field)).all()


def test_a_clip_is_not_its_own_answer_within_a_modality():
    rng = np.random.default_rng(2)
    x, labels, ids = rng.normal(size=(20, 4)), rng.integers(0, 4, 20), np.arange(20)
    with_self = ranking.rank(x, x, ranking.same(labels, labels))
    without = ranking.rank(x, x, ranking.same(labels, labels), exclude=ranking.same(ids, ids))
    assert with_self.recall(1) == 1.0 and without.recall(1) < 1.0
    assert (without.gallery == 19).all()


def test_several_labels_count_as_right_when_one_is_shared():
    labels = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    assert ranking.shared(labels, labels)(slice(0, 3)).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


def test_queries_without_a_right_answer_do_not_count_and_none_at_all_is_an_error():
    q = np.eye(3)
    placed = ranking.rank(q, q, ranking.same(np.array([0, 1, 9]), np.array([0, 1, 2])))
    assert len(placed) == 2
    with pytest.raises(DataError, match="no query has a right answer"):
        ranking.rank(q, q, ranking.same(np.array([7, 8, 9]), np.array([0, 1, 2])))


def test_copies_of_one_vector_tie_wherever_they_lie_in_the_gallery():
    rng = np.random.default_rng(3)
    g = rng.normal(size=(1003, 257)).astype(np.float32)
    g[1002] = g[0]
    placed = ranking.rank(g[:1] + 0.1, g, ranking.same(np.array([0]), np.arange(1003)))
    assert placed.tied.tolist() == [2] and placed.recall(1) == 0.5


@pytest.mark.parametrize(
    ("queries", "gallery", "error", "text"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), UsageError, "3 wide, the gallery 4"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), DataError, "vector 0 is not finite"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(queries, gallery, error, text):
    with pytest.raises(error, match=text):
        ranking.rank(queries, gallery, ranking.same(np.arange(2), np.arange(2)))
