"""The samplers of data2vec draw what the authors' draw: statistics of 2,000 draws of each, within sampling error."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from parity.harness import ROOT

from avssl.errors import UsageError
from avssl_data2vec import masks
from avssl_data2vec.config import BlockConfig, Mask2Config, SpanConfig, TokenConfig

PATH = ROOT / "data2vec" / "mask_stats.json"
STATS = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}
SIGMAS = 5.0  # two samples of 2,000 draws: a false alarm in about a million comparisons


def records(kind: str) -> list:
    if not STATS:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no statistics at {PATH}; set AVSSL_PARITY_ROOT"))]
    return [pytest.param(r, id=r["description"]) for r in STATS[kind]]


def rngs(count: int, salt: int = 0) -> list[np.random.Generator]:
    return masks.generators(torch.arange(count), salt)


def close(what: str, values: np.ndarray, official: float, draws: int, std: float | None = None) -> None:
    """The mean of independent `values` equals the mean of `draws` official ones, within SIGMAS standard errors."""
    own = float(np.std(values, ddof=1))
    error = math.sqrt(own**2 / len(values) + (own if std is None else std) ** 2 / draws)
    difference = abs(float(np.mean(values)) - official)
    assert difference <= SIGMAS * error + 1e-6, (
        f"{what}: {np.mean(values):.5f}, official {official:.5f}, {difference / error:.1f} sigma"
    )


def run_lengths(row: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("record", records("span_audio"))
def test_spans_of_time(record):
    items, size = record["shape"]
    lengths = record["padding_lengths"] or [size] * items
    cfg = SpanConfig(
        probability=record["mask_prob"],
        length=record["mask_length"],
        min_spans=record["min_masks"],
        same_count=record["require_same_masks"],
    )
    batches = record["draws"] // items
    all_rngs = rngs(record["draws"])
    drawn = np.stack([masks.spans(all_rngs[i * items : (i + 1) * items], size, lengths, cfg) for i in range(batches)])
    for row, length in enumerate(lengths):
        assert not drawn[:, row, length - 1 :].any(), "the last frame of a static span can never be hidden"
    if record["require_same_masks"]:
        counts = drawn.sum(-1)
        assert (counts == counts[:, :1]).all()
    # items of one batch share a count: batches are the independent draws
    share = (drawn.sum(-1) / np.array(lengths)).mean(1)
    close("hidden share", share, record["masked_fraction_mean"], 1, record["masked_fraction_standard_error"])
    independent = record["independent_batches"]
    runs = np.array([np.mean([len(run_lengths(row)) for row in batch]) for batch in drawn])
    close("runs", runs, record["runs_per_sequence_mean"], independent)
    lengths_of = [np.concatenate([run_lengths(row) for row in batch]) for batch in drawn]
    close("run length", np.array([x.mean() for x in lengths_of]), record["run_length_mean"], independent)
    for name, frame in (
        ("frame_0", 0),
        ("middle_frame", size // 2),
        ("frame_mask_length_minus_1", record["mask_length"] - 1),
        ("second_last_frame", size - 2),
    ):
        close(name, drawn[:, :, frame].mean(1), record[f"p_masked_at_{name}"], independent)


@pytest.mark.parametrize("record", records("block_vision"))
def test_rectangles(record):
    h, w = record["grid"]
    cfg = BlockConfig(
        count=record["num_masking_patches"],
        min_patches=record["min_num_patches"],
        max_patches=record["max_num_patches"],
    )
    drawn = np.stack([masks.rectangles(rng, h, w, cfg) for rng in rngs(2000)])
    counts = drawn.sum((1, 2))
    draws = record["draws"]
    close("patches", counts, record["masked_patches_mean"], draws, record["masked_patches_std"])
    assert counts.max() <= record["num_masking_patches"]
    close("exact", counts == record["num_masking_patches"], record["share_hitting_num_masking_patches_exactly"], draws)
    close("corner", drawn[:, 0, 0], record["p_masked_corner"], draws)
    close("centre", drawn[:, h // 2, w // 2], record["p_masked_center"], draws)


@pytest.mark.parametrize("record", records("inverse_block_vision_v2"))
def test_blocks_of_patches_that_are_kept(record):
    side = math.isqrt(record["tokens"])
    cfg = Mask2Config(
        clones=1,
        probability=record["mask_prob"],
        adjust=record["mask_prob_adjust"],
        length=record["mask_length"],
        inverse=record["inverse_mask"],
    )
    drawn = np.concatenate([masks.multi(rng, (side, side), cfg) for rng in rngs(2000)])
    assert (drawn.sum(1) == round(record["masked_tokens"])).all()
    draws = record["draws"]
    close("corner", drawn[:, 0], record["p_masked_corner"], draws)
    close("centre", drawn[:, side // 2 * side + side // 2], record["p_masked_center"], draws)
    from scipy.ndimage import label

    parts = np.array([label(~row.reshape(side, side))[1] for row in drawn])
    close("kept regions", parts, record["kept_connected_components_mean"], draws)


@pytest.mark.parametrize("record", records("block_1d_audio_v2"))
def test_blocks_of_time(record):
    size = record["T"]
    cfg = Mask2Config(
        clones=record["clones"],
        probability=record["mask_prob"],
        adjust=record["mask_prob_adjust"],
        length=record["mask_length"],
    )
    drawn = np.concatenate([masks.multi(rng, (size,), cfg) for rng in rngs(2000 // record["clones"])])
    assert (drawn.sum(1) == int(size * record["mask_prob"])).all()
    draws = record["draws"]
    runs = [run_lengths(row) for row in drawn]
    close("runs", np.array([len(r) for r in runs]), record["runs_per_sequence_mean"], draws)
    close("run length", np.array([r.mean() for r in runs]), record["run_length_mean"], draws)
    for name, frame in (("first", 0), ("middle", size // 2), ("last", size - 1)):
        close(name, drawn[:, frame], record[f"p_masked_{name}"], draws)


@pytest.mark.parametrize("kind,length", [("random", 1), ("blocks", 5)])
def test_padding_is_kept_before_an_item_loses_more_than_its_share(kind: str, length: int):
    cfg = Mask2Config(clones=3, kind=kind, length=length, probability=0.48)
    lengths = [40, 3, 17, 40, 9]
    drawn = masks.multi_padded(rngs(5), 40, lengths, cfg).reshape(5, 3, 40)
    assert len({int(n) for n in (~drawn).sum(2).flatten()}) == 1  # a batch keeps one number of tokens
    for item, n, rng in zip(drawn, lengths, rngs(5), strict=True):
        alone = masks.multi(rng, (n,), cfg)
        np.testing.assert_array_equal(item[:, :n], alone)
        assert (~alone).any(1).all()


@pytest.mark.parametrize("record", records("text"))
def test_corrupted_tokens(record):
    cfg = TokenConfig(
        probability=record["mask_prob"],
        span=record["mask_multiple_length"],
        unchanged=record["leave_unmasked_prob"],
        random=record["random_token_prob"],
    )
    drawn = np.stack([masks.corruption(rng, record["length"], cfg) for rng in rngs(2000)])
    draws = record["draws"]
    chosen = drawn != masks.UNTOUCHED
    close("chosen", chosen.mean(1), record["chosen_fraction_mean"], draws, record["chosen_fraction_std"])
    close("first", chosen[:, 0], record["p_bos_position_chosen"], draws)
    for kind, key in (
        (masks.MASKED, "share_of_chosen_replaced_by_mask"),
        (masks.RANDOM, "share_of_chosen_random"),
        (masks.UNCHANGED, "share_of_chosen_unchanged"),
    ):
        close(key, (drawn == kind).sum(1) / chosen.sum(1), record[key], draws)
    close("runs", np.array([len(run_lengths(row)) for row in chosen]), record["runs_per_sequence_mean"], draws)


def test_some_hidden_patches_are_shown_again():
    def hidden(dropout: float) -> float:
        cfg = BlockConfig(count=120, dropout=dropout)
        return float(np.mean([masks.rectangles(np.random.default_rng(i), 14, 14, cfg).sum() for i in range(100)]))

    assert hidden(0.5) == pytest.approx(hidden(0.0) / 2, rel=0.05)


def test_a_clip_too_short_for_its_spans_is_an_error_that_says_so():
    with pytest.raises(UsageError, match="all 3 frames"):
        masks.spans(rngs(20), 3, [3] * 20, SpanConfig(probability=1.0, length=3, min_spans=3))


@pytest.mark.parametrize(
    "cfg",
    [
        SpanConfig(probability=0.3, length=5, overlap=False, min_space=2, same_count=False),
        SpanConfig(probability=0.3, length=5, selection="normal", other=2.0, same_count=False),
        SpanConfig(probability=0.3, length=5, selection="uniform", other=1, same_count=False),
        SpanConfig(probability=0.3, length=5, selection="poisson", same_count=False),
        SpanConfig(probability=0.3, length=5, add=True),
        SpanConfig(probability=0.3, length=5, dropout=0.5),
    ],
    ids=["apart", "normal", "uniform", "poisson", "add", "dropout"],
)
def test_other_ways_to_choose_spans(cfg):
    drawn = masks.spans(rngs(50), 200, [200] * 50, cfg)
    assert 0.05 < drawn.mean() < 0.5
    if not cfg.overlap:
        for row in drawn:
            gaps = run_lengths(~row)[1:-1]
            assert (run_lengths(row) == cfg.length).all() and (gaps >= cfg.min_space - 1).all()
    if cfg.add:
        assert len({int(n) for n in drawn.sum(1)}) == 1


def test_an_items_draw_does_not_depend_on_its_neighbours():
    cfg = SpanConfig(same_count=False)
    seeds = torch.tensor([7, 8, 9])
    together = masks.spans(masks.generators(seeds, 0), 100, [100] * 3, cfg)
    alone = masks.spans(masks.generators(seeds[1:2], 0), 100, [100], cfg)
    assert (together[1] == alone[0]).all() and (together[0] != together[1]).any()
