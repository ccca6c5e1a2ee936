"""What the objectives of data2vec promise, beyond the authors' numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import avssl_data2vec.example as example
from avssl.batch import Batch, Stream
from avssl.errors import UsageError
from avssl.model import build_backbone, build_loss
from avssl.nn.convolution import conv_same
from avssl.recipe import read_recipe
from avssl.registry import check_fit, registry
from avssl.testing import BATCH_TOLERANCE, check_plugin
from avssl.training.monitor import Collapsed
from avssl_data2vec.config import GuardConfig, TargetConfig, TeacherConfig
from avssl_data2vec.convolution import conv_last
from avssl_data2vec.loss import Data2Vec, regression
from avssl_data2vec.loss2 import Data2Vec2, pixels
from avssl_data2vec.modules import ConvExtractor
from avssl_data2vec.targets import average_targets, guard, normalise
from avssl_data2vec.teacher import decay_at

SMALL_DECODER = {"dim": 16, "groups": 4, "kernel": 4, "layers": 2, "input_dropout": 0.0}


def made(tables: dict, **loss: object):
    torch.manual_seed(0)
    tables = {**tables, "loss": {"name": "data2vec", "targets": {"top_k": 2}, **loss}}
    return build_loss(tables, build_backbone(tables)).train()


def sounds(items: int = 3, samples: int = 8000) -> Batch:
    x = torch.randn(items, samples, generator=torch.Generator().manual_seed(1))
    return Batch(tuple(map(str, range(items))), torch.arange(items) + 5, {"audio": Stream(x)})


def pictures(items: int = 3) -> Batch:
    x = torch.randn(items, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(tuple(map(str, range(items))), torch.arange(items) + 5, {"vision": Stream(x)})


def test_every_entry_keeps_the_contract():
    failed = [r for r in check_plugin("data2vec") if r.get("error")]
    assert not failed, failed


# -- the teacher ---------------------------------------------------------------------------------------------------
def test_the_decay_rises_linearly_and_then_stays():
    cfg = TeacherConfig(start=0.9, end=0.99, anneal=10)
    assert decay_at(0, cfg) == pytest.approx(0.9) and decay_at(5, cfg) == pytest.approx(0.945)
    assert decay_at(10, cfg) == decay_at(99, cfg) == 0.99
    assert decay_at(1, dataclasses.replace(cfg, delay=1)) == pytest.approx(0.9)
    assert decay_at(0, dataclasses.replace(cfg, delay=1, anneal=0)) == 0.99


def test_the_teacher_follows_the_student_after_the_step_and_copies_what_is_shared():
    loss = made(
        example.audio(Path()), teacher={"own_local": False, "copied": ["positions.*"], "start": 0.5, "end": 0.5}
    )
    before = {k: v.clone() for k, v in loss.teacher.state_dict().items()}
    with torch.no_grad():
        for p in loss.backbone.parameters():
            p.add_(1.0)
    loss.after_step(1)
    student = loss.backbone.state_dict()
    for key, value in loss.teacher.state_dict().items():
        wanted = student[key] if key.startswith("positions.") else 0.5 * before[key] + 0.5 * student[key]
        torch.testing.assert_close(value, wanted)
    assert not any(k.startswith("extractor") for k in before), "the teacher must not hold a waveform extractor"
    assert int(loss.updates) == 1


@pytest.mark.parametrize("name", ["data2vec", "data2vec2"])
def test_once_tau_is_one_the_average_stands_still(name: str):
    """data2vec 1 then copies nothing either; in 2.0 what is the student's own stays the student's."""
    second = name == "data2vec2"
    tables = example.data2vec2(Path()) if second else example.data2vec(Path())
    own = "extra_tokens" if second else "positions.*"
    tables["loss"] |= {"name": name, "teacher": {"copied": [own], "start": 1.0, "end": 1.0}}
    loss = build_loss(tables, build_backbone(tables))
    before = {k: v.clone() for k, v in loss.teacher.state_dict().items()}
    with torch.no_grad():
        for p in loss.backbone.parameters():
            p.add_(1.0)
    loss.after_step(1)
    changed = {k for k, v in loss.teacher.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == ({"extra_tokens"} if second else set()) and int(loss.updates) == 1


def test_layer_wise_rates_of_the_second_version_are_for_blocks_alone():
    backbone = build_backbone(example.data2vec2(Path()))
    top = len(backbone.blocks) + 1
    depths = {n: backbone.depth_of(n) for n, _ in backbone.named_parameters()}
    assert {d for n, d in depths.items() if not n.startswith(("prenet.", "layers."))} == {top}
    assert [depths[f"prenet.{i}.fc1.weight"] for i in range(len(backbone.prenet))] == list(
        range(1, len(backbone.prenet) + 1)
    )
    assert depths[f"layers.{len(backbone.layers) - 1}.fc1.weight"] == top - 1


def test_teacher_and_step_are_part_of_the_state():
    state = made(example.vision(Path())).state_dict()
    assert "updates" in state and any(k.startswith("teacher.") for k in state)


def test_the_teacher_never_drops_out_and_never_trains():
    tables = example.audio(Path())
    tables["backbone"]["dropout"] = 0.5
    loss = made(tables)
    assert not loss.teacher.training
    loss(sounds()).total().backward()
    assert all(p.grad is None for p in loss.teacher.parameters())


def test_sharing_local_features_gives_the_same_targets_as_a_teacher_of_its_own():
    whole, shared = made(example.audio(Path())), made(example.audio(Path()), teacher={"own_local": False})
    batch = sounds()
    draw = whole.sample(batch)
    torch.testing.assert_close(whole(batch, draw).total(), shared(batch, draw).total())


# -- what the student sees -----------------------------------------------------------------------------------------
def test_hidden_patches_cannot_leak_into_the_student():
    loss = made(example.vision(Path()), blocks={"count": 0.5, "min_patches": 2})
    batch = pictures()
    draw = loss.sample(batch)
    hide = {k: v for k, v in draw.hide.items()}
    pixels = batch.need("vision").x.clone()
    mask = hide["vision"].view(-1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    scrambled = batch.with_streams(vision=Stream(torch.where(mask, torch.randn_like(pixels), pixels)))
    seen = [loss.backbone(b, hide=hide).tokens["vision"] for b in (batch, scrambled)]
    torch.testing.assert_close(*seen, rtol=0, atol=0)


def test_dropped_frames_cannot_leak_through_the_positional_convolutions():
    for tables in (example.audio(Path()), example.audio2(Path())):
        torch.manual_seed(0)
        model = build_backbone(tables).eval()
        local = model.local(sounds())
        keep = torch.arange(0, local.shape[1], 3).expand(3, -1)
        dropped = torch.ones(local.shape[:2], dtype=torch.bool).scatter(1, keep, False)
        other = torch.where(dropped[..., None], torch.randn_like(local), local)
        seen = [model(sounds(), keep={"audio": keep}, local=x).tokens["audio"] for x in (local, other)]
        torch.testing.assert_close(*seen, rtol=0, atol=0)


def test_what_lies_in_the_padding_is_never_read():
    torch.manual_seed(0)
    model = build_backbone(example.audio(Path())).eval()
    pad = torch.zeros(2, 8000, dtype=torch.bool)
    pad[0, 6000:] = True
    wave = sounds(2).need("audio").x
    outs = []
    for junk in (0.0, 1.0):
        x = torch.where(pad, junk * torch.randn(2, 8000), wave)
        outs.append(model(Batch(("a", "b"), torch.zeros(2), {"audio": Stream(x, pad)})))
    assert int((~outs[0].pad["audio"][0]).sum()) == model.extractor.frames(6000)
    torch.testing.assert_close(outs[0].pooled["audio"], outs[1].pooled["audio"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["audio", "audio2"])
@pytest.mark.parametrize("extractor", ["layer_norm", "default"])
def test_padding_reaches_an_item_where_the_authors_let_it_and_nowhere_else(name: str, extractor: str):
    """The positional convolutions run over the padding, and a group norm over time counts it. Take both away, and an item
    padded beside a longer one is what it is alone (`embed` and `evaluate` never pad: tests/contract/test_padding.py)."""
    wave = sounds(2).need("audio").x
    pad = torch.zeros(2, 8000, dtype=torch.bool)
    pad[0, 6000:] = True

    @torch.no_grad()
    def leak(**options: object) -> float:
        torch.manual_seed(0)
        tables = getattr(example, name)(Path())
        tables["backbone"] |= {"extractor": extractor, **options}
        model = build_backbone(tables).eval()
        padded = model(Batch(("a", "b"), torch.zeros(2), {"audio": Stream(wave.masked_fill(pad, 0), pad)}))
        alone = model(Batch(("a",), torch.zeros(1), {"audio": Stream(wave[:1, :6000])})).pooled["audio"][0]
        return float((padded.pooled["audio"][0] - alone).abs().max() / alone.abs().max())

    assert leak() > 1e-3
    if extractor == "layer_norm":
        assert leak(positions_over_padding=False) < BATCH_TOLERANCE
    else:
        assert leak(positions_over_padding=False) > 1e-3


def test_random_and_unchanged_tokens_are_seen_but_not_scored():
    loss = made(example.text(Path()), tokens={"probability": 0.5, "random": 0.4, "unchanged": 0.2})
    ids = torch.randint(4, 260, (4, 60), generator=torch.Generator().manual_seed(0))
    batch = Batch(tuple("abcd"), torch.arange(4), {"text": Stream(ids)})
    draw = loss.sample(batch)
    swapped = draw.replaced["text"] >= 0
    assert swapped.any() and not (swapped & draw.hide["text"]).any()
    assert (draw.replaced["text"][swapped] < loss.backbone.config.mask).all()
    assert loss(batch, draw).terms["regression"].count == int(draw.hide["text"].sum())


def test_pretraining_can_also_hide_channels():
    off = {"probability": 0.5, "length": 4, "min_spans": 0}
    loss, batch = made(example.audio(Path()), channels=off), sounds()
    draw = loss.sample(batch)
    seen = []
    loss.backbone.positions.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    loss(batch, draw)
    assert draw.channels.any() and (seen[0].transpose(1, 2)[draw.channels] == 0).all()
    with pytest.raises(UsageError, match="VisionEncoder cannot hide channels"):
        made(example.vision(Path()), channels=off)


def test_without_beta_the_error_is_squared_or_absolute():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    assert regression(a, b, 0.0).tolist() == [0.25, 9.0]
    assert regression(a, b, 0.0, absolute=True).tolist() == [0.5, 3.0]


@pytest.mark.parametrize("over", [False, True])
def test_padding_is_scored_where_the_authors_score_it_and_only_if_asked(over: bool):
    tables = example.text2(Path())
    mask = {"clones": 2, "probability": 0.5, "kind": "random", "over_padding": over}
    tables["loss"] = {"name": "data2vec2", "targets": {"top_k": 2}, "mask": mask, "decoder": SMALL_DECODER}
    loss = build_loss(tables, build_backbone(tables))
    ids = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(0))
    ids[1, 20:] = loss.backbone.config.pad
    batch = Batch(("a", "b"), torch.arange(2), {"text": Stream(ids)})
    draw = loss.sample(batch)
    padding = (draw.mask & (ids == 1).repeat_interleave(2, 0)).sum()
    assert padding > 0, "what is not kept is marked as hidden, padding too"
    scored = loss(batch, draw).terms["regression"].count
    assert int(scored) == int(draw.mask.sum()) - (0 if over else int(padding))


# -- targets and guards --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kind,reference",
    [
        ("instance", lambda x: torch.nn.functional.instance_norm(x.transpose(1, 2)).transpose(1, 2)),
        ("layer", lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:])),
        (
            "batch",
            lambda x: torch.nn.functional.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2),
        ),
        ("item", lambda x: torch.nn.functional.layer_norm(x, x.shape[-2:])),
        (
            "frame",
            lambda x: torch.nn.functional.layer_norm(x.transpose(0, 1), (x.shape[0], x.shape[2])).transpose(0, 1),
        ),
        ("across_items", lambda x: torch.nn.functional.instance_norm(x.permute(1, 2, 0)).permute(2, 0, 1)),
    ],
)
def test_normalisations_are_torchs(kind: str, reference):
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    torch.testing.assert_close(normalise(x, kind), reference(x))


@pytest.mark.parametrize("kind", ["instance", "batch", "item"])
def test_normalisation_without_padding_is_that_of_the_item_alone(kind: str):
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, 4:] = False
    if kind == "batch":
        alone = normalise(x[real][None], kind)[0]
        torch.testing.assert_close(normalise(x, kind, real)[real], alone)
    else:
        torch.testing.assert_close(normalise(x, kind, real)[:1, :4], normalise(x[:1, :4], kind))
        torch.testing.assert_close(normalise(x, kind, real)[1:], normalise(x[1:], kind))


@pytest.mark.parametrize("name", ["audio", "audio2"])
def test_targets_that_leave_padding_out_do_not_depend_on_how_much_there_is(name: str):
    """Counted, as the authors do, padding sets the mean that a short item's targets are measured from."""
    torch.manual_seed(0)
    table = {"name": "data2vec" if name == "audio" else "data2vec2"}
    wave, pad = sounds(2).need("audio").x, torch.zeros(2, 8000, dtype=torch.bool)
    pad[0, 4000:] = True
    for counted in (True, False):
        tables = getattr(example, name)(Path())
        tables["loss"] = {**table, "targets": {"top_k": 2, "count_padding": counted}}
        tables["backbone"]["positions_over_padding"] = False
        loss = build_loss(tables, build_backbone(tables))
        padded = Batch(("a", "b"), torch.zeros(2, dtype=torch.int64), {"audio": Stream(wave.masked_fill(pad, 0), pad)})
        alone = Batch(("a",), torch.zeros(1, dtype=torch.int64), {"audio": Stream(wave[:1, :4000])})
        with torch.no_grad():
            one, two = (targets_of(loss, b)[0] for b in (alone, padded))
        off = float((two[: len(one)] - one).abs().max())
        assert (off > 0.1) if counted else (off < 1e-3)


def targets_of(loss: Data2Vec | Data2Vec2, batch: Batch) -> Tensor:
    if isinstance(loss, Data2Vec2):
        return loss._target(batch, loss.backbone.local(batch), loss.backbone.local_pad(batch))
    return loss._target(loss.teacher(batch, layers="ffn"), "audio")


def test_targets_average_the_chosen_layers_without_the_prefix():
    layers = [torch.full((2, 4, 3), float(i)) for i in range(5)]
    assert float(average_targets(layers, TargetConfig(top_k=2, per_layer=()), 1).mean()) == 3.5
    assert average_targets(layers, TargetConfig(indices=(0, 2), per_layer=()), 1).shape == (2, 3, 3)
    assert float(average_targets(layers, TargetConfig(indices=(0, 2), per_layer=())).mean()) == 1.0


def test_a_collapsed_run_stops_with_a_clear_message():
    cfg = GuardConfig(min_target_std=0.1, min_prediction_std=0.01, after=5000)
    low, fine = torch.tensor(0.005), torch.tensor(0.5)
    guard(low, low, 5000, cfg, "audio")  # not yet
    with pytest.raises(Collapsed, match=r"after 5001 updates the targets .* 0.005, below 0.1"):
        guard(low, fine, 5001, cfg, "audio")
    with pytest.raises(Collapsed, match="predictions"):
        guard(fine, low, 5001, cfg, "audio")


def test_a_run_whose_student_is_constant_is_stopped():
    loss = made(
        example.vision(Path()), blocks={"count": 0.5, "min_patches": 2}, targets={"layers": "blocks", "per_layer": []}
    )
    with torch.no_grad():
        loss.heads["vision"][-1].weight.zero_()
    loss.after_step(5001)
    with pytest.raises(Collapsed, match="predictions have collapsed"):
        loss(pictures())


# -- generic use ---------------------------------------------------------------------------------------------------
def test_the_objective_learns_with_every_backbone_that_fits():
    fitting = registry().fitting_backbones("data2vec")
    assert {"data2vec_audio", "data2vec_vision", "data2vec_text", "data2vec2_audio", "data2vec2_vision"} <= set(fitting)


def test_the_second_version_is_refused_for_other_backbones():
    with pytest.raises(UsageError, match="data2vec2"):
        check_fit("data2vec_audio", "data2vec2")


def learns(loss, batch: Batch, updates: int = 25, lr: float = 3e-3) -> tuple[float, float]:
    """The total before and after some updates on one batch and one draw."""
    draw = loss.sample(batch)
    optimiser = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=lr)
    totals: list[Tensor] = []
    for step in range(1, updates + 1):
        total = loss(batch, draw).total()
        totals.append(total.detach())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        loss.after_step(step)
    return float(totals[0]), float(totals[-1])


def test_hidden_patches_are_also_regressed_to_their_own_pixels():
    tables = example.data2vec2(Path())
    tables["backbone"] |= {"name": "data2vec2_vision", "dim": 48, "patch": 4}
    tables["loss"] |= {"name": "data2vec2", "reconstruction_weight": 0.3}
    torch.manual_seed(0)
    loss = build_loss(tables, build_backbone(tables))
    batch = pictures(2)
    draw = loss.sample(batch)
    out = loss(batch, draw)
    image = batch.need("vision").x[1]
    patch = image[:, 8:12, 20:24].permute(1, 2, 0).flatten()  # row 2, column 5
    ours = pixels(batch.need("vision").x, 4)
    torch.testing.assert_close(ours[1, 2 * 8 + 5], (patch - patch.mean()) / patch.std())
    seen = []
    loss.pixel_head.register_forward_hook(lambda _m, _a, y: seen.append(y))
    term = loss(batch, draw).terms["reconstruction"]
    wanted = ours.repeat_interleave(2, 0)[draw.mask]
    torch.testing.assert_close(term.sum, (seen[0] - wanted).square().sum() / 48**0.5)
    assert term.weight == 0.3 and int(term.count) == int(draw.mask.sum()) == int(out.terms["regression"].count)
    with pytest.raises(UsageError, match="48 values"):
        tables["backbone"]["dim"] = 32
        build_loss(tables, build_backbone(tables))


def test_version_one_learns():
    first, last = learns(made(example.audio(Path()), teacher={"own_local": False}), sounds())
    assert last < 0.8 * first


@pytest.mark.parametrize("name", ["audio2", "vision2", "text2"])
def test_version_two_learns_in_every_modality(name: str):
    tables = getattr(example, name)(Path())
    torch.manual_seed(0)
    mask = {"clones": 3, "probability": 0.5, "length": 2}
    kernel = {"dim": 16, "groups": 4, "kernel": 4, "layers": 2, "input_dropout": 0.0, "projection_layers": 2}
    tables["loss"] = {"name": "data2vec2", "targets": {"top_k": 2}, "mask": mask, "decoder": kernel}
    loss = build_loss(tables, build_backbone(tables)).train()
    assert isinstance(loss, Data2Vec2)
    ids = torch.randint(4, 260, (3, 30), generator=torch.Generator().manual_seed(0))
    batch = {
        "audio2": sounds(),
        "vision2": pictures(),
        "text2": Batch(tuple("abc"), torch.arange(3), {"text": Stream(ids)}),
    }[name]
    draw = loss.sample(batch)
    assert dict(loss.counts(batch, draw)) == {k: t.count for k, t in loss(batch, draw).terms.items()}
    first, last = learns(loss, batch)
    assert last < 0.9 * first


def test_a_shared_decoder_predicts_beside_the_own_one():
    """Over the tokens in a row, also for images; from noise of its own."""
    tables = example.vision2(Path())
    torch.manual_seed(0)
    tables["loss"] = {
        "name": "data2vec2",
        "targets": {"top_k": 2},
        "mask": {"clones": 2, "probability": 0.5, "length": 2},
        "decoder": SMALL_DECODER,
        "shared_decoder": {**SMALL_DECODER, "kernel": 5},
    }
    loss, batch = build_loss(tables, build_backbone(tables)).train(), pictures(2)
    draw = loss.sample(batch)
    assert not torch.equal(draw.noise, draw.shared_noise)
    out = loss(batch, draw)
    assert set(out.terms) == {"regression", "regression.shared"} and "prediction.shared_std" in out.metrics
    assert dict(loss.counts(batch, draw)) == {k: t.count for k, t in out.terms.items()}
    out.total().backward()
    assert all(p.grad.any() for p in (*loss.decoder.parameters(), *loss.shared_decoder.parameters()))


def test_a_cross_pair_learns_another_systems_encoder_with_this_objective():
    """CAV-MAE's two streams, hidden and regressed as data2vec does it."""
    check_fit("cav_mae", "data2vec")
    sizes = {"dim": 32, "depth": 1, "image_size": 32, "audio_frames": 48, "mel_bins": 32, "patch": 8}
    table = {**read_recipe("cav_mae/tiny")["backbone"], **sizes}
    torch.manual_seed(0)
    tables = {
        "backbone": table,
        "loss": {
            "name": "data2vec",
            "targets": {"layers": "blocks", "top_k": 1, "per_layer": ["layer"]},
            "blocks": {"count": 0.5, "min_patches": 2},
        },
    }
    loss = build_loss(tables, build_backbone(tables)).train()
    sound = torch.randn(3, table["audio_frames"], table["mel_bins"], generator=torch.Generator().manual_seed(0))
    batch = pictures().with_streams(audio=Stream(sound))
    assert isinstance(loss, Data2Vec) and set(loss.sample(batch).hide) == {"audio", "vision"}
    first, last = learns(loss, batch)
    assert last < 0.9 * first


@pytest.mark.parametrize("channels,kernel,stride", [(1, 10, 5), (4, 3, 2), (4, 2, 2), (3, 5, 2), (3, 2, 3), (2, 4, 1)])
def test_the_convolution_by_matrix_products_is_torchs(channels: int, kernel: int, stride: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 53, channels, generator=generator).requires_grad_()
    weight = torch.randn(6, channels, kernel, generator=generator).requires_grad_()
    bias = torch.randn(6, generator=generator).requires_grad_()
    ours = conv_last(x, weight, bias, stride)
    theirs = torch.nn.functional.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    up = torch.randn(theirs.shape, generator=generator)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(theirs, [x, weight, bias], up)
    for a, b in zip(torch.autograd.grad(ours, [x, weight, bias], up), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 249, 250, 251, 613])
@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_waveform_encoder_in_pieces_is_the_whole_one(frames: int, clips: int, bf16: bool):
    torch.manual_seed(frames)
    extractor = ConvExtractor([(8, 10, 5), (8, 3, 2), (8, 2, 2)], "layer_norm", bias=True)
    wave = torch.randn(clips, extractor.window + (frames - 1) * 20 + 7)  # 7 samples that no frame sees
    assert extractor.frames(wave.shape[1]) == frames
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole = extractor(wave)
        with torch.no_grad():
            pieces = extractor(wave)
    assert pieces.dtype == whole.dtype
    torch.testing.assert_close(pieces, whole.detach(), rtol=1e-5, atol=1e-2 if bf16 else 1e-5)


@pytest.mark.parametrize("kernel", [3, 4, 19])
def test_positions_from_convolutions_are_those_of_conv1d(kernel: int):
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 11, 12), (12, 4, kernel), (12,)))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    theirs = torch.nn.functional.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=3)
    theirs = theirs[..., :11].transpose(1, 2)
    ours = conv_same(x, weight, bias, 3)
    torch.testing.assert_close(ours, theirs)
    up = torch.randn_like(theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves, up), torch.autograd.grad(theirs, leaves, up))


@pytest.mark.parametrize("positions", ["shared_relative", "relative", "both", "none"])
def test_a_model_starts_from_another_image_size(positions: str):
    tables = example.vision(Path())
    tables["backbone"] |= {"positions": positions, "absolute_positions": True}
    small = build_backbone(tables)
    with torch.no_grad():  # a table that is a plane stays one
        steps = torch.arange(49, dtype=torch.float32)
        for name, p in small.named_parameters():
            if name.endswith("relative.table"):
                p[:-3] = (steps % 7)[:, None]
    tables["backbone"]["image_size"] = 64
    large = build_backbone(tables)
    adapted = large.adapt(small.state_dict(), small.config)
    large.load_state_dict(adapted)
    for name, value in adapted.items():
        if name.endswith("relative.table"):
            plane = value[:-3, 0].view(15, 15)
            torch.testing.assert_close(plane[0, 0], torch.tensor(0.0), atol=1e-4, rtol=0)
            torch.testing.assert_close(plane[7, 14], torch.tensor(6.0), atol=1e-4, rtol=0)
            assert torch.equal(value[-3:], small.state_dict()[name][-3:])


def test_a_second_version_starts_from_another_image_size():
    tables = example.vision2(Path())
    small = build_backbone(tables)
    tables["backbone"]["image_size"] = 64
    large = build_backbone(tables)
    large.load_state_dict(large.adapt(small.state_dict(), small.config))
    assert large.sincos.shape[1] == 64
