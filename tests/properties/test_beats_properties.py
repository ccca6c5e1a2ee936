"""What must hold for BEATs whatever the numbers are."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from work import group

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Row, Waveform
from avssl.errors import UsageError
from avssl_beats.augment import spec_augment
from avssl_beats.backbone import Beats
from avssl_beats.config import (
    BeatsConfig,
    BeatsFrontendConfig,
    BeatsRandomConfig,
    RandomTokenizerConfig,
    TokenizerConfig,
)
from avssl_beats.distill import Teacher, TokenizerDistillation
from avssl_beats.encoder import RelativeBias
from avssl_beats.frontend import BeatsFrontend
from avssl_beats.masked import RandomLabels, choose, label_loss
from avssl_beats.quantizer import Codebook, kmeans, l2, nearest
from avssl_beats.tokenizers import RandomTokenizer
from avssl_beats.usage import CodeCollapse, CodeUsage

SMALL = BeatsConfig(
    dim=32, depth=2, heads=4, ffn=48, patch_dim=16, position_kernel=8, position_groups=4, buckets=16, max_distance=40
)


@pytest.fixture
def backbone() -> Beats:
    torch.manual_seed(0)
    model = Beats(SMALL)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)  # a gate at its start does nothing
    return model.eval()


def waves(*lengths: int) -> Batch:
    """Noise of these lengths in samples, padded to the longest."""
    g = torch.Generator().manual_seed(1)
    items = [
        Batch((f"clip {i}",), torch.tensor([i]), {"audio": Stream(0.1 * torch.randn(1, n, generator=g))})
        for i, n in enumerate(lengths)
    ]
    return Batch.cat(items)


def mel(items: int = 2, frames: int = 96, seed: int = 0) -> Batch:
    x = torch.randn(items, frames, 128, generator=torch.Generator().manual_seed(seed))
    return Batch(tuple(map(str, range(items))), torch.arange(items), {"audio": Stream(x)})


# -- padding -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lengths", [(24000, 15000), (2800, 40000), (16000, 15999, 9001)])
def test_with_the_exact_rule_a_padded_clip_is_the_clip_alone(backbone: Beats, lengths: tuple[int, ...]):
    frontend = BeatsFrontend(BeatsFrontendConfig(padding="exact")).eval()
    together = waves(*lengths)
    features = backbone(frontend.batch(together))
    for i, n in enumerate(lengths):
        alone = backbone(
            frontend.batch(
                Batch(("a",), torch.zeros(1).long(), {"audio": Stream(together.streams["audio"].x[i : i + 1, :n])})
            )
        )
        valid = ~features.pad["audio"][i]
        assert int(valid.sum()) == alone.tokens["audio"].shape[1]
        torch.testing.assert_close(features.tokens["audio"][i, valid], alone.tokens["audio"][0], atol=2e-5, rtol=0)
        torch.testing.assert_close(features.pooled["audio"][i], alone.pooled["audio"][0], atol=2e-5, rtol=0)


def test_the_official_rule_keeps_patches_of_padding_and_the_centre_rule_loses_none(backbone: Beats):
    counts = {}
    for rule in ("official", "exact", "centre"):
        frontend = BeatsFrontend(BeatsFrontendConfig(padding=rule)).eval()
        backbone.config = replace(SMALL, padding=rule)
        counts[rule] = int((~backbone.padding(frontend.batch(waves(160000, 80000))))[1].sum())
    # 80000 samples: 498 frames, 31 whole steps of 8 bands. The middle of a 10 s buffer falls inside step 31.
    assert counts == {"official": 250, "exact": 248, "centre": 256}


def test_an_official_mask_without_padding_changes_no_bit(backbone: Beats):
    backbone.config = replace(SMALL, padding="official")
    batch = mel()
    masked = batch.with_streams(audio=Stream(batch.streams["audio"].x, torch.zeros(2, 96, dtype=torch.bool)))
    torch.testing.assert_close(backbone(masked).tokens["audio"], backbone(batch).tokens["audio"], atol=1e-6, rtol=0)


def test_the_official_rule_refuses_patches_of_eight_that_it_would_all_mask():
    small = replace(SMALL, patch=8, padding="official")
    batch = mel()
    batch = batch.with_streams(audio=Stream(batch.streams["audio"].x, torch.zeros(2, 96, dtype=torch.bool)))
    with pytest.raises(UsageError, match="192 patches share 96 frames"):
        Beats(small)(batch)
    assert not Beats(replace(small, padding="exact")).padding(batch).any()


# -- encoder -----------------------------------------------------------------------------------------------------------
def test_released_buckets():
    bucket = RelativeBias(1, 320, 800).bucket
    got = bucket(torch.tensor([0, -1, -79, -80, -81, -400, -799, -5000, 1, 79, 80, 5000])).tolist()
    assert got == [0, 1, 79, 80, 80, 135, 159, 159, 161, 239, 240, 319]
    assert 160 not in bucket(torch.arange(-2000, 2000)).tolist()


def test_shared_bias_is_the_table_at_every_distance():
    bias = RelativeBias(3, 16, 40)
    table, n = bias(7)[0], torch.arange(7)
    want = bias.table(bias.bucket(n[None] - n[:, None])).permute(2, 0, 1)
    torch.testing.assert_close(table, want, atol=0, rtol=0)
    torch.testing.assert_close(bias(7, n[None])[0], want, atol=0, rtol=0)


def test_keeping_all_patches_in_order_changes_nothing(backbone: Beats):
    batch = mel()
    n = backbone.grid(batch)["audio"].tokens
    every = {"audio": torch.arange(n).expand(2, -1)}
    want = backbone(batch).tokens["audio"]
    for rule in ("sequence", "grid"):
        backbone.config = replace(SMALL, kept_positions=rule)
        torch.testing.assert_close(backbone(batch, keep=every).tokens["audio"], want, atol=1e-5, rtol=0)


def test_dropped_patches_cannot_be_heard(backbone: Beats):
    batch, keep = mel(1), torch.tensor([[0, 3, 8, 20, 47]])
    x = batch.streams["audio"].x.clone()
    hidden = [p for p in range(48) if p not in keep[0].tolist()]
    for p in hidden:
        t, k = divmod(p, 8)
        x[:, 16 * t : 16 * t + 16, 16 * k : 16 * k + 16] = 7.0
    other = batch.with_streams(audio=Stream(x))
    for rule in ("sequence", "grid"):
        backbone.config = replace(SMALL, kept_positions=rule)
        a, b = (backbone(clip, keep={"audio": keep}).tokens["audio"] for clip in (batch, other))
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    mask = torch.zeros(1, 48, dtype=torch.bool)
    mask[0, hidden] = True
    a, b = (backbone(clip, hide={"audio": mask}).tokens["audio"] for clip in (batch, other))
    torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_true_places_and_places_in_the_sequence_differ(backbone: Beats):
    keep = {"audio": torch.tensor([[0, 9, 30]]).expand(2, -1)}
    out = []
    for rule in ("sequence", "grid"):
        backbone.config = replace(SMALL, kept_positions=rule)
        out.append(backbone(mel(), keep=keep).tokens["audio"])
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_inner_states_are_what_they_say(backbone: Beats):
    batch = mel()
    blocks, ffn = (backbone(batch, layers=kind).layers["audio"] for kind in ("blocks", "ffn"))
    assert len(blocks) == len(ffn) == SMALL.depth
    features = backbone(batch)
    torch.testing.assert_close(blocks[-1], features.tokens["audio"], atol=0, rtol=0)
    last = backbone.blocks[-1]
    seen = {}
    last.norm1.register_forward_hook(lambda _, __, y: seen.update(x=y))
    backbone(batch)
    torch.testing.assert_close(ffn[-1], last.feed(seen["x"]), atol=1e-6, rtol=0)


def test_a_backbone_can_be_copied_after_a_forward_pass_with_gradients(backbone: Beats):
    backbone.train()
    backbone(mel()).pooled["audio"].sum().backward()
    copied = copy.deepcopy(backbone).eval()
    torch.testing.assert_close(copied(mel()).tokens["audio"], backbone.eval()(mel()).tokens["audio"], atol=0, rtol=0)


def test_gradient_decay_scales_layers_by_their_depth():
    grads = []
    for decay in (1.0, 0.5):
        torch.manual_seed(0)
        model = Beats(replace(SMALL, gradient_decay=decay)).eval()
        model(mel()).tokens["audio"].square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, power in (("layers.blocks.1.fc1.weight", 1 - 1), ("layers.blocks.0.fc1.weight", 1), ("patch.weight", 2)):
        torch.testing.assert_close(grads[1][name], 0.5**power * grads[0][name], rtol=1e-5, atol=1e-7)


def test_layer_drop_follows_torchs_seed_and_skips_layers():
    model = Beats(replace(SMALL, layer_drop=0.5, dropout=0.0, attention_dropout=0.0)).train()
    runs = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        runs.append(model(mel()).tokens["audio"])
    assert torch.equal(runs[0], runs[1])
    assert any(not torch.equal(runs[0], r) for r in runs[2:])


def test_depths_for_layer_wise_rates(backbone: Beats):
    depths = {n: backbone.depth_of(n) for n, _ in backbone.named_parameters()}
    assert depths["patch.weight"] == depths["norm.weight"] == depths["layers.bias.table.weight"] == 0
    assert depths["layers.blocks.1.fc2.bias"] == 2
    pre = Beats(replace(SMALL, pre_norm=True, deep_norm=False))
    assert pre.depth_of("norm.weight") == 3


# -- masks and labels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", ["floor", "round"])
def test_masks_hide_three_quarters_of_what_is_there(count: str):
    g = torch.Generator().manual_seed(0)
    valid = torch.ones(5, 64, dtype=torch.bool)
    for row, n in enumerate((64, 63, 40, 17, 8)):
        valid[row, n:] = False
    hidden = choose(torch.rand(5, 64, generator=g), valid, 0.75, count)
    assert not (hidden.masked & ~valid).any()
    for row in range(5):
        n, kept = int(valid[row].sum()), hidden.keep[row]
        mine = [p for p in kept.tolist() if valid[row, p]]
        want = n - int(0.75 * n) if count == "floor" else round(0.25 * n)
        assert len(mine) == len(set(mine)) == want
        assert mine == sorted(mine) and kept[: len(mine)].tolist() == mine, "kept patches come first, in order"
        assert int(hidden.masked[row].sum()) == n - want
        assert not hidden.masked[row, kept].any()


def test_an_items_mask_depends_on_the_item_alone(backbone: Beats):
    loss = RandomLabels(backbone, BeatsRandomConfig(tokenizer=RandomTokenizerConfig(codes=16, code_dim=8)))
    batch = mel(4)
    whole = loss.sample(batch)
    part = loss.sample(batch.rows(slice(2, 4)))
    assert torch.equal(whole.masked[2:], part.masked)
    assert not torch.equal(whole.masked[0], whole.masked[1])
    frontend = BeatsFrontend(BeatsFrontendConfig()).eval()
    padded = loss.sample(frontend.batch(waves(40000, 15000)))
    alone = loss.sample(frontend.batch(waves(40000, 15000).rows(slice(1, 2))).with_streams())
    assert torch.equal(padded.masked[1], alone.masked[0])


@pytest.mark.parametrize("positions", ["sequence", "grid"])
def test_a_padded_batch_has_the_loss_of_its_items(positions: str):
    torch.manual_seed(0)
    backbone = Beats(replace(SMALL, kept_positions=positions))
    loss = RandomLabels(backbone, BeatsRandomConfig(tokenizer=RandomTokenizerConfig(codes=16, code_dim=8))).eval()
    frontend = BeatsFrontend(BeatsFrontendConfig()).eval()
    raw = waves(40000, 15000, 24001)
    together = loss(frontend.batch(raw)).terms["labels"]
    total, count = 0.0, 0
    for i, n in enumerate((40000, 15000, 24001)):
        one = raw.rows(slice(i, i + 1))
        cut = one.with_streams(audio=Stream(one.streams["audio"].x[:, :n]))
        term = loss(frontend.batch(cut)).terms["labels"]
        total, count = total + term.sum.item(), count + int(term.count)
    assert int(together.count) == count
    assert together.sum.item() == pytest.approx(total, rel=1e-5)


def test_the_loss_counts_hidden_patches_and_no_others():
    logits = torch.randn(2, 6, 5)
    labels = torch.randint(5, (2, 6))
    masked = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    term = label_loss(logits, labels, masked)
    changed = torch.where(masked[..., None], logits, torch.full_like(logits, 9.0))
    assert label_loss(changed, labels, masked).sum == term.sum and int(term.count) == 5


@pytest.mark.parametrize("normalise", ["none", "l2", "layer_norm", "patch_l2", "chain"])
def test_random_labels_come_again_from_the_seed_and_ignore_autocast(normalise: str):
    batch = mel(1)
    make = lambda seed: RandomTokenizer(RandomTokenizerConfig(codes=32, code_dim=8, normalise=normalise, seed=seed), 16)  # noqa: E731
    one, same, other = make(3).labels(batch), make(3).labels(batch), make(4).labels(batch)
    assert torch.equal(one, same) and not torch.equal(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make(3).labels(batch), one)


def test_patch_l2_hears_through_the_level():
    tokenizer = RandomTokenizer(RandomTokenizerConfig(codes=64, code_dim=16, normalise="patch_l2"), 16)
    quiet = mel(1)
    loud = quiet.with_streams(audio=Stream(3 * quiet.streams["audio"].x + 1))
    assert (tokenizer.labels(quiet) == tokenizer.labels(loud)).float().mean() > 0.95


def test_collapsed_labels_warn_once_and_varied_ones_do_not():
    valid = torch.ones(1, 64, dtype=torch.bool)
    rare = torch.arange(64).clamp(max=8)[None]  # nine codes, of which one has seven eighths of the patches
    for labels, expected in ((torch.zeros(1, 64, dtype=torch.long), 1), (rare, 1), (torch.arange(64)[None], 0)):
        usage = CodeUsage(64, 0.05)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for update in range(1, 61):
                usage.collect(labels, valid)
                usage.update(update)
        assert len([w for w in caught if issubclass(w.category, CodeCollapse)]) == expected
        if not labels.any() or not expected:
            torch.testing.assert_close(float(usage.perplexity()), 1.0 if expected else 64.0, atol=1e-3, rtol=1e-4)


# -- codebook ----------------------------------------------------------------------------------------------------------
def started(codes: Tensor) -> Codebook:
    book = Codebook(*codes.shape)
    book.weight.copy_(codes)
    book.started.fill_(1)
    return book


def test_nearest_is_by_distance_when_codes_are_no_unit_vectors():
    codes = torch.tensor([[3.0, 0.0], [0.9, 0.1]])
    assert nearest(torch.tensor([1.0, 0.0]), codes).item() == 1  # the inner product would say 0
    assert nearest(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])).item() == 0, "first of equals"


def test_labels_do_not_change_the_codebook_and_micro_batches_move_it_like_one_batch():
    g = torch.Generator().manual_seed(0)
    codes, x = l2(torch.randn(8, 4, generator=g)), torch.randn(2, 30, 4, generator=g)
    whole, parts = started(codes), started(codes)
    before = {k: v.clone() for k, v in whole.state_dict().items()}
    q = whole(x)
    assert all(torch.equal(before[k], v) for k, v in whole.state_dict().items())
    whole.collect(q)
    whole.update()
    for item in x:
        parts.collect(parts(item[None]))
    parts.update()
    torch.testing.assert_close(whole.weight, parts.weight)
    torch.testing.assert_close(whole.usage, parts.usage)
    unused = torch.bincount(q.indices.flatten(), minlength=8) == 0
    torch.testing.assert_close(whole.weight[unused], codes[unused])
    torch.testing.assert_close(whole.weight.norm(dim=1), torch.ones(8))


def test_kmeans_finds_separate_directions_and_keeps_empty_clusters():
    g = torch.Generator().manual_seed(0)
    centres = l2(torch.randn(4, 16, generator=g))
    samples = l2(centres.repeat_interleave(50, 0) + 0.05 * torch.randn(200, 16, generator=g))
    means, counts = kmeans(samples, samples[[0, 50, 100, 150]], 10)
    assert counts.tolist() == [50] * 4
    assert ((means * centres).sum(1) > 0.99).all()
    lonely = torch.cat([samples[[0, 50, 100, 150]], -centres[:1]])
    means, counts = kmeans(samples, lonely, 10)
    assert counts[4] == 0 and torch.equal(means[4], lonely[4])


def test_kmeans_starts_from_distinct_rows_and_repeats_only_when_it_must():
    book = Codebook(16, 4)
    samples = torch.randn(40, 4)
    book.start(samples, 0, torch.Generator().manual_seed(0))
    assert bool(book.started) and book.weight.unique(dim=0).shape[0] == 16
    few = Codebook(16, 4)
    few.start(samples[:3], 0, torch.Generator().manual_seed(0))
    assert few.weight.unique(dim=0).shape[0] <= 3, "rows come again"


def _rank(vectors: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    torch.distributed.init_process_group("gloo")
    book = started(torch.from_numpy(codes))
    book.collect(book(torch.from_numpy(vectors[torch.distributed.get_rank()])))
    book.update()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return {name: value.numpy() for name, value in book.state_dict().items()}


def test_two_processes_move_the_codebook_like_one():
    g = torch.Generator().manual_seed(0)
    codes, x = l2(torch.randn(8, 4, generator=g)), torch.randn(2, 30, 4, generator=g)
    single = started(codes)
    single.collect(single(x))
    single.update()
    for state in group(2, _rank, x.numpy(), codes.numpy()):
        for name, value in single.state_dict().items():
            np.testing.assert_allclose(state[name], value.numpy(), rtol=1.3e-6, atol=1e-5)


def _warnings_of_a_collapse() -> int:
    torch.distributed.init_process_group("gloo")
    usage = CodeUsage(64, 0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for update in range(1, 21):
            usage.collect(torch.zeros(1, 64, dtype=torch.long), torch.ones(1, 64, dtype=torch.bool))
            usage.update(update)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return len(caught)


def test_of_two_processes_one_warns_of_a_collapse():
    assert group(2, _warnings_of_a_collapse) == [1, 0]


def test_half_precision_trains_and_its_losses_are_float32(backbone: Beats):
    batch = mel(2)
    for loss in (
        RandomLabels(backbone, BeatsRandomConfig(tokenizer=RandomTokenizerConfig(codes=16, code_dim=8))),
        distillation(scaling="paper"),
    ):
        loss.prepare(batch)
        draw = loss.sample(batch)
        loss.eval()
        want = loss(batch, draw).total()
        with torch.autocast("cpu", torch.bfloat16):
            got = loss(batch, draw).total()
        assert got.dtype == torch.float32
        got.backward()
        if isinstance(loss, RandomLabels):  # elsewhere a rounding may choose another code, and with it another answer
            torch.testing.assert_close(got, want, atol=0.05, rtol=0.05)
        assert loss.backbone.patch.weight.grad.isfinite().all()


def distillation(**changes: object) -> TokenizerDistillation:
    torch.manual_seed(0)
    loss = TokenizerDistillation(Beats(SMALL), TokenizerConfig(codes=24, code_dim=8, **changes))
    teacher = Beats(replace(SMALL, dim=40, position_groups=1))
    from avssl_beats.distill import Estimator

    loss.teacher = Teacher(teacher, None)
    loss.estimator = Estimator(loss.backbone, loss.config.estimator, 8, 40)
    loss.usage = CodeUsage(24, 0.05)
    loss.standard = None
    return loss


def test_training_uses_the_codebook_and_moves_it_only_after_a_step():
    loss = distillation()
    batch = mel(4)
    loss.prepare(batch)
    book = loss.tokenizer.codebook
    assert bool(book.started)
    first = book.weight.clone()
    loss.prepare(mel(4, seed=5))
    assert torch.equal(book.weight, first), "a started codebook is kept"
    optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], 1e-3)
    history = []
    for update in range(1, 16):
        out = loss(batch)
        total = out.total()
        total.backward()
        with torch.no_grad():
            loss(batch)  # a look without gradient is not counted
        assert torch.equal(book.weight, first)
        optimizer.step()
        optimizer.zero_grad()
        loss.after_step(update)
        assert not torch.equal(book.weight, first)
        first = book.weight.clone()
        history.append(total.item())
    assert history[-1] < history[0] - 0.05
    assert int(loss.usage.used()) > 12, "k-means starts with most codes in use"
    assert float(book.usage.sum()) <= 4 * 48, "each patch counts once per update"


def test_a_teacher_and_a_tokenizer_never_leave_evaluation_mode():
    loss = distillation()
    loss.train()
    assert not loss.teacher.backbone.training and not any(p.requires_grad for p in loss.teacher.parameters())
    assert loss.backbone.training


def test_counts_are_those_of_the_terms(backbone: Beats):
    frontend = BeatsFrontend(BeatsFrontendConfig()).eval()
    batch = frontend.batch(waves(24000, 15000))
    for changes in ({}, {"scaling": "paper"}, {"padded_take_part": True}):
        loss = distillation(**changes)
        loss.prepare(batch)
        terms = loss(batch).terms
        assert {k: int(v) for k, v in loss.counts(batch, None).items()} == {k: int(t.count) for k, t in terms.items()}
    labels = RandomLabels(backbone, BeatsRandomConfig(tokenizer=RandomTokenizerConfig(codes=16, code_dim=8)))
    draw = labels.sample(batch)
    assert int(labels.counts(batch, draw)["labels"]) == int(labels.compute(batch, draw).terms["labels"].count)


# -- front-end ---------------------------------------------------------------------------------------------------------
def clip(samples: int, rate: int = 16000, channels: int = 1, target: object = None) -> Clip:
    x = np.random.default_rng(0).normal(0, 0.1, (channels, samples)).astype(np.float32)
    return Clip("clip", {"audio": Waveform(x, rate)}, target=target)


def test_long_clips_are_cut_short_ones_completed_and_other_rates_resampled():
    frontend = BeatsFrontend(BeatsFrontendConfig(seconds=2.0))
    clips = [clip(80000), clip(1000), clip(44100, 44100, 2)]
    shapes = [frontend.item([c], None).streams["audio"].x.shape[1] for c in clips]
    assert shapes == [32000, 2800, 16000]
    mel_of_short = frontend.eval().batch(frontend.item([clip(1000)], None)).streams["audio"].x
    assert mel_of_short.shape == (1, 16, 128)


def test_windows_of_a_long_recording_cover_it_and_end_with_it():
    frontend = BeatsFrontend(BeatsFrontendConfig(window=10.0))
    views = frontend.views(Row("x", {"audio": "x.wav"}, duration=35.0))
    assert [v.parts["audio"].start for v in views] == [0, 10, 20, 25]
    assert all(v.parts["audio"].seconds == 10 for v in views)
    assert len(frontend.views(Row("x", {"audio": "x.wav"}, duration=9.0))) == 1


def test_training_excerpts_and_mixes_come_from_the_items_own_generator():
    frontend = BeatsFrontend(BeatsFrontendConfig(seconds=1.0, roll=0.0, mixup=1.0))

    def make(seed: int) -> Batch:
        pair = [clip(48000, target=np.eye(3, dtype=np.float32)[0]), clip(20000, target=np.eye(3, dtype=np.float32)[2])]
        return frontend.item(pair, np.random.default_rng(seed))

    a, b, c = make(1), make(1), make(2)
    assert torch.equal(a.streams["audio"].x, b.streams["audio"].x)
    assert not torch.equal(a.streams["audio"].x, c.streams["audio"].x)
    assert a.targets.x.sum().item() == pytest.approx(1.0) and 0 < a.targets.x[0, 0] < 1
    row = Row("x", {"audio": "x.wav"}, duration=3.0)
    assert frontend.plan(row, np.random.default_rng(0)).partners == 1 and frontend.plan(row, None).partners == 0


def test_augmentation_is_for_training_alone_and_stays_inside_the_clip():
    cfg = BeatsFrontendConfig(time_warp=5, time_mask=0.2, mel_mask=20)
    frontend = BeatsFrontend(cfg)
    batch = waves(24000, 15000)
    plain = frontend.eval().batch(batch).streams["audio"].x
    one, two = (frontend.train().batch(batch).streams["audio"].x for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, plain)
    x = torch.randn(60, 128)
    only_time = replace(cfg, mel_mask=0)
    out = spec_augment(x, 40, only_time, torch.Generator().manual_seed(3))
    assert torch.equal(out[40:], x[40:]) and not torch.equal(out[:40], x[:40])


# -- as a whole --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fill", ["zeros", "token"])
def test_iteration_one_learns_to_name_hidden_patches(fill: str):
    from avssl_beats.config import PredictorConfig

    torch.manual_seed(0)
    cfg = BeatsRandomConfig(
        tokenizer=RandomTokenizerConfig(codes=16, code_dim=8), predictor=PredictorConfig(fill=fill, dim=24, ffn=32)
    )
    loss = RandomLabels(Beats(replace(SMALL, dropout=0.0, attention_dropout=0.0)), cfg)
    steps = torch.arange(96) // 16 % 2
    x = torch.where(steps[:, None] == 0, torch.linspace(-1, 1, 128), torch.linspace(1, -1, 128)).expand(4, -1, -1)
    batch = Batch(("a", "b", "c", "d"), torch.arange(4), {"audio": Stream(x.contiguous())})
    optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], 3e-3)
    losses = []
    for update in range(1, 41):
        out = loss(replace(batch, seeds=batch.seeds + 4 * update))
        out.total().backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.after_step(update)
        losses.append(out.total().item())
    assert losses[-1] < 0.5 * losses[0]
    assert {"accuracy_masked", "accuracy_kept", "codes_used", "code_perplexity"} <= out.metrics.keys()


def test_recipes_load_and_pipelines_feed_what_their_stages_ask_for():
    from avssl.recipe import Pipeline, load_recipe
    from avssl.registry import registry

    found = [e.name for e in registry().all("recipe") if e.name.startswith("beats/")]
    assert len(found) >= 15
    for name in found:
        recipe = load_recipe(name)
        if isinstance(recipe, Pipeline):
            for stage in recipe.stages:
                inner = load_recipe(stage.recipe, [f'{k}="x"' for k in stage.inputs if "." in k])
                for key in stage.inputs:
                    assert key == "from" or "x" in (getattr(inner.loss.config, key.removeprefix("loss.")),)
        else:
            assert recipe.source and recipe.summary, name
