"""Order and seeds: pure functions of (seed, epoch), whatever the workers do."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avssl.data.clip import Row
from avssl.data.sampler import Key, ShuffledSampler, balanced_weights, item_seed
from avssl.errors import DataError


def rows(count: int, labels: int = 3) -> list[Row]:
    return [Row(id=str(i), parts={"audio": f"{i}.wav"}, labels=(str(i % labels),)) for i in range(count)]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_an_epoch_has_each_item_at_most_once_and_full_batches(count: int, batch: int, seed: int, epoch: int) -> None:
    batch = min(batch, count)
    sampler = ShuffledSampler(rows(count), batch, seed)
    batches = sampler.epoch(epoch)
    assert len(batches) == len(sampler) == count // batch
    assert all(len(b) == batch for b in batches)
    drawn = [k.index for b in batches for k in b]
    assert len(set(drawn)) == len(drawn)
    assert batches == ShuffledSampler(rows(count), batch, seed).epoch(epoch)


def test_epochs_and_seeds_differ() -> None:
    sampler = ShuffledSampler(rows(50), 10, 7)
    assert sampler.epoch(0) != sampler.epoch(1)
    assert sampler.epoch(0) != ShuffledSampler(rows(50), 10, 8).epoch(0)


def test_balancing_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.balance draws by label, and no item has one"):
        ShuffledSampler([Row("a", {"audio": "a.wav"})], 1, 0, balance=True)


def test_a_repeated_item_gets_a_seed_of_its_own() -> None:
    sampler = ShuffledSampler(rows(6), 6, 0, epoch_items=24, balance=True)
    keys = [k for b in sampler.epoch(3) for k in b]
    assert len(keys) == 24 and len(set(keys)) == 24
    assert len({item_seed(0, k) for k in keys}) == 24


@given(st.integers(0, 2**40), st.integers(0, 2**31), st.integers(0, 1000))
def test_item_seeds_fit_63_bits_and_depend_on_everything(seed: int, index: int, epoch: int) -> None:
    base = item_seed(seed, Key(index, epoch))
    assert 0 <= base < 2**63
    assert base != item_seed(seed, Key(index, epoch + 1)) != item_seed(seed, Key(index + 1, epoch))
    assert base != item_seed(seed, Key(index, epoch), salt=1)


def test_balanced_sampling_evens_out_the_classes() -> None:
    skewed = [Row(id=str(i), parts={}, labels=("rare",) if i < 10 else ("common",)) for i in range(1000)]
    weights = balanced_weights(skewed)
    assert np.isclose(weights[0], 1000 / 10.01) and np.isclose(weights[-1], 1000 / 990.01)
    drawn = Counter(
        skewed[k.index].labels[0] for b in ShuffledSampler(skewed, 100, 0, 20_000, balance=True).epoch(0) for k in b
    )
    assert abs(drawn["rare"] / 20_000 - 0.5) < 0.02


def test_weights_add_up_over_several_labels() -> None:
    both = [Row(id="a", parts={}, labels=("x", "y")), Row(id="b", parts={}, labels=("x",)), Row(id="c", parts={})]
    assert np.allclose(balanced_weights(both), [1000 / 2.01 + 1000 / 1.01, 1000 / 2.01, 0.0])
