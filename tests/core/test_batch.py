"""Batches: padding, joining, moving, seeds."""

from __future__ import annotations

import pytest
import torch

from avssl.batch import Batch, Stream, generators, item
from avssl.errors import DataError


def test_unequal_items_are_padded_with_their_value_and_marked() -> None:
    out = Batch.cat([item("a", 1, audio=torch.ones(3)), item("b", 2, audio=torch.ones(5))], {"audio": -2.0})
    stream = out.need("audio")
    assert stream.x.tolist() == [[1, 1, 1, -2, -2], [1] * 5]
    assert stream.pad is not None and stream.pad.tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    assert stream.lengths.tolist() == [3, 5]
    assert (out.ids, out.seeds.tolist()) == (("a", "b"), [1, 2])


def test_equal_items_have_no_pad_mask() -> None:
    assert Batch.cat([item("a", 1, x=torch.ones(3)), item("b", 2, x=torch.ones(3))]).need("x").pad is None


def test_joining_padded_batches_keeps_their_masks() -> None:
    short = Batch.cat([item("a", 1, x=torch.ones(2)), item("b", 2, x=torch.ones(4))])
    joined = Batch.cat([short, item("c", 3, x=torch.ones(6))])
    assert joined.need("x").lengths.tolist() == [2, 4, 6]


def test_targets_of_one_number_each_stack() -> None:
    out = Batch.cat([item("a", 1, targets=2, x=torch.ones(1)), item("b", 2, targets=0, x=torch.ones(1))])
    assert out.targets is not None and out.targets.x.tolist() == [2, 0]


def test_a_missing_target_is_refused_not_shifted() -> None:
    """Dropping it would give every later item its neighbour's label."""
    labelled, bare = item("a", 1, targets=2, x=torch.ones(1)), item("b", 2, x=torch.ones(1))
    for batches in ([labelled, bare], [bare, labelled]):
        with pytest.raises(DataError, match="'b' has no target, others of its batch have one"):
            Batch.cat(batches)


def test_other_streams_or_shapes_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"'b' has \['y'\], 'a' \['x'\]"):
        Batch.cat([item("a", 1, x=torch.ones(3)), item("b", 2, y=torch.ones(3))])
    with pytest.raises(DataError, match="x: items of shapes"):
        Batch.cat([item("a", 1, x=torch.ones(3, 2)), item("b", 2, x=torch.ones(3, 4))])


def test_a_missing_stream_says_what_there_is() -> None:
    with pytest.raises(DataError, match=r"items 'a'... have no vision \(they have audio\)"):
        item("a", 1, audio=torch.ones(3)).need("vision")


def test_rows_are_a_batch_of_their_own() -> None:
    whole = Batch.cat([item(str(i), i, targets=i, x=torch.full((2,), float(i))) for i in range(5)])
    part = whole.rows(slice(1, 3))
    assert part.ids == ("1", "2") and part.seeds.tolist() == [1, 2]
    assert part.targets is not None and part.targets.x.tolist() == [1, 2]


def test_a_draw_depends_on_the_item_alone() -> None:
    alone = [torch.rand(4, generator=g) for g in generators(torch.tensor([5]))]
    among = [torch.rand(4, generator=g) for g in generators(torch.tensor([9, 5, 3]))]
    assert torch.equal(alone[0], among[1])
    salted = [torch.rand(4, generator=g) for g in generators(torch.tensor([5]), salt=1)]
    assert not torch.equal(alone[0], salted[0])


def test_a_stream_moves_with_its_mask() -> None:
    moved = Stream(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)).to("cpu")
    assert moved.pad is not None and moved.x.device.type == "cpu"
