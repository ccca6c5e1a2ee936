"""What every mask of CAV-MAE keeps, hides and depends on."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avssl.nn.positions import resize_grid, sincos_2d
from avssl_cav_mae.masks import draw_masks, draw_order, keep_count
from avssl_cav_mae.patches import patches, unpatch

GRIDS = st.tuples(st.integers(1, 8), st.integers(1, 40))
RATIOS = st.floats(0.0, 0.99)
MODES = st.sampled_from(["unstructured", "time", "frequency", "time_frequency"])
SEEDS = st.integers(0, 2**62)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(GRIDS, RATIOS, MODES, SEEDS)
def test_an_order_is_a_permutation(grid, ratio, mode, seed):
    order = draw_order(grid, ratio, mode, generator(seed))
    assert torch.equal(order.sort().values, torch.arange(grid[0] * grid[1]))


@given(st.integers(1, 1000), RATIOS)
def test_visible_patches_are_rounded_down_and_never_none(count, ratio):
    kept = keep_count(count, ratio)
    assert kept == max(1, int(count * (1 - ratio)))
    assert 1 <= kept <= count


@given(GRIDS, RATIOS, RATIOS, MODES, st.lists(SEEDS, min_size=1, max_size=4))
@settings(max_examples=50)
def test_visible_and_hidden_share_out_the_patches_of_each_item(grid, ratio_a, ratio_v, mode, seeds):
    masks = draw_masks(
        torch.tensor(seeds),
        {"audio": grid, "vision": (4, 4)},
        {"audio": ratio_a, "vision": ratio_v},
        {"audio": mode, "vision": "unstructured"},
    )
    for m, count, ratio in (("audio", grid[0] * grid[1], ratio_a), ("vision", 16, ratio_v)):
        assert masks.kept[m] == keep_count(count, ratio)
        mask = masks.mask(m)
        assert torch.equal(mask.sum(1), torch.full((len(seeds),), float(count - masks.kept[m])))
        assert (mask.gather(1, masks.visible(m)) == 0).all() and (mask.gather(1, masks.hidden(m)) == 1).all()


@given(GRIDS, RATIOS, MODES, SEEDS, SEEDS)
@settings(max_examples=50)
def test_an_item_gets_the_same_mask_in_any_batch(grid, ratio, mode, seed, other):
    def order(*seeds: int) -> torch.Tensor:
        return draw_masks(torch.tensor(seeds), {"audio": grid}, {"audio": ratio}, {"audio": mode}).order["audio"]

    assert torch.equal(order(seed)[0], order(other, seed)[1])


@given(st.integers(1, 8), st.integers(1, 40), RATIOS, SEEDS)
def test_time_masks_hide_whole_columns_and_frequency_masks_whole_rows(rows, columns, ratio, seed):
    for mode, shape in (("time", (rows, columns)), ("frequency", (columns, rows))):
        order = draw_order(shape, ratio, mode, generator(seed))
        lines = int((shape[1] if mode == "time" else shape[0]) * ratio)
        across = shape[0] if mode == "time" else shape[1]
        last = order[len(order) - lines * across :]
        touched = last % shape[1] if mode == "time" else last // shape[1]
        assert len(touched.unique()) == lines


def test_the_official_grid_loses_exactly_the_official_lines():
    """8 x 64 patches at 0.75: time takes 48 columns, frequency 6 rows; both together 33 columns and 4 rows, 388 patches
    of which four stay visible (specification, 1.4)."""
    for seed in range(20):
        hidden = torch.ones(8, 64)
        hidden.view(-1)[draw_order((8, 64), 0.75, "time", generator(seed))[:128]] = 0
        assert hidden.all(0).sum() == 48 and hidden.sum() == 384
        hidden = torch.ones(8, 64)
        hidden.view(-1)[draw_order((8, 64), 0.75, "frequency", generator(seed))[:128]] = 0
        assert hidden.all(1).sum() == 6
        order = draw_order((8, 64), 0.75, "time_frequency", generator(seed))
        lines = torch.zeros(8, 64)
        lines.view(-1)[order[512 - 388 :]] = 1
        assert lines.all(0).sum() == 33 and lines.all(1).sum() == 4


def test_unstructured_masks_are_uniform():
    hits = torch.zeros(24)
    for seed in range(2000):
        hits[draw_order((4, 6), 0.75, "unstructured", generator(seed))[:6]] += 1
    assert ((hits / 2000 - 0.25).abs() < 0.05).all()  # five standard deviations


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([2, 16]))
@settings(max_examples=30)
def test_patches_can_be_put_together_again(items, rows, columns, channels, patch):
    x = torch.arange(items * channels * rows * columns * patch**2, dtype=torch.float32)
    x = x.view(items, channels, rows * patch, columns * patch)
    assert torch.equal(unpatch(patches(x, patch), (rows, columns), patch), x)


def test_the_channel_is_fastest_inside_a_patch():
    x = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    assert patches(x, 2)[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]


@given(st.integers(1, 8), st.integers(2, 30), st.integers(1, 29))
@settings(max_examples=30)
def test_cutting_a_table_keeps_each_tokens_position(rows, columns, fewer):
    """On the grid: the flat table is mel-major, so its first entries are no shorter sound."""
    new = min(fewer, columns)
    table = sincos_2d(16, rows, columns)
    assert torch.equal(resize_grid(table, (rows, columns), (rows, new)), sincos_2d(16, rows, new))


def test_the_table_is_that_of_the_paper():
    table = sincos_2d(8, 3, 5)
    omega = torch.tensor([1.0, 0.01])
    want = torch.cat([(4 * omega).sin(), (4 * omega).cos(), (2 * omega).sin(), (2 * omega).cos()])
    torch.testing.assert_close(table[2 * 5 + 4], want)  # row 2, column 4: the column first


def test_resampling_a_table_keeps_its_grid():
    table = torch.arange(4.0)[:, None].repeat_interleave(3, 0).repeat(1, 4)  # depends on the row alone
    got = resize_grid(table, (4, 3), (8, 6), "bilinear").view(8, 6, 4)
    assert (got == got[:, :1]).all() and (got[1:, 0, 0] >= got[:-1, 0, 0]).all()
