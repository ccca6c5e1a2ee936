"""CAV-MAE's promises beyond the authors' numbers: missing modalities, lengths, masks, ablations, Sync, media files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Frames, Row, Waveform
from avssl.errors import CheckpointError, DataError, UsageError
from avssl.imports import build
from avssl.nn.positions import sincos_2d
from avssl_cav_mae.backbone import CavMae
from avssl_cav_mae.checkpoint import imported, official_state, read, write
from avssl_cav_mae.config import CavMaeConfig, CavMaeFrontendConfig, CavMaeLossConfig
from avssl_cav_mae.frontend import CavMaeFrontend
from avssl_cav_mae.layout import detect, read_labels
from avssl_cav_mae.layout import read as read_layout
from avssl_cav_mae.loss import CavMaeLoss

SMALL = CavMaeConfig(image_size=32, audio_frames=64, mel_bins=32, dim=32, depth=2, shared_depth=2, heads=4)
OBJECTIVE = CavMaeLossConfig(decoder_dim=16, decoder_depth=2, decoder_heads=2)


def batch_of(n: int = 3, frames: int = 64, seed: int = 0, modalities: tuple[str, ...] = ("audio", "vision")) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x = {"audio": torch.randn(n, frames, 32, generator=g), "vision": torch.randn(n, 3, 32, 32, generator=g)}
    return Batch(tuple(map(str, range(n))), torch.arange(n) + 7, {m: Stream(x[m]) for m in modalities})


def small(**changes) -> CavMae:
    torch.manual_seed(0)
    return CavMae(dataclasses.replace(SMALL, **changes)).eval()


def objective(backbone: CavMae | None = None, **changes) -> CavMaeLoss:
    return CavMaeLoss(backbone or small(), dataclasses.replace(OBJECTIVE, **changes))


# -- the backbone ------------------------------------------------------------------------------------------------------
def test_the_base_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        loss = CavMaeLoss(CavMae(CavMaeConfig(spare_norms=True)), CavMaeLossConfig(spare_norms=True))
    total = sum(p.numel() for p in loss.parameters())
    spare = sum(p.numel() for n, p in loss.named_parameters() if not p.requires_grad and "positions" not in n)
    trained = sum(p.numel() for p in loss.parameters() if p.requires_grad)
    assert round(total / 1e6, 3) == 191.036 and round((trained + spare) / 1e6, 3) == 190.130


@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_an_item_that_lacks_a_modality_still_has_its_own_and_the_joint_stream(modality):
    backbone = small()
    both, alone = backbone(batch_of()), backbone(batch_of(modalities=(modality,)))
    assert set(both.pooled) == {"audio", "vision", "joint"} and set(alone.pooled) == {modality, "joint"}
    torch.testing.assert_close(alone.pooled[modality], both.pooled[modality])
    assert not torch.allclose(alone.pooled["joint"], both.pooled["joint"])


def test_only_the_wanted_streams_are_computed():
    assert set(small()(batch_of(), only={"joint"}).tokens) == {"joint"}
    assert set(small()(batch_of(), only=("audio", "joint")).tokens) == {"audio", "joint"}


def test_a_stream_that_no_item_has_is_refused():
    with pytest.raises(DataError, match="no vision"):
        small()(batch_of(modalities=("audio",)), only=("vision",))


def test_kept_patches_see_nothing_of_the_others():
    backbone, batch = small(), batch_of()
    keep = {"audio": torch.tensor([[3, 0, 5]]).expand(3, -1), "vision": torch.tensor([[1, 2]]).expand(3, -1)}
    other = batch.with_streams(audio=Stream(batch.streams["audio"].x.clone()))
    other.streams["audio"].x[:, 16:32, :16] += 100  # patch (row 0, column 1), which is not kept
    a, b = (backbone(x, keep=keep).tokens for x in (batch, other))
    assert a["audio"].shape == (3, 3, 32) and a["joint"].shape == (3, 5, 32)
    assert all(torch.equal(a[s], b[s]) for s in a)


def test_hidden_patches_are_replaced_and_keep_their_place():
    backbone, batch = small(), batch_of()
    hide = torch.zeros(3, 8, dtype=torch.bool)
    hide[:, 1] = True
    other = batch.with_streams(audio=Stream(batch.streams["audio"].x.clone()))
    other.streams["audio"].x[:, 16:32, :16] += 100
    a, b = (backbone(x, hide={"audio": hide}).tokens["audio"] for x in (batch, other))
    assert torch.equal(a, b) and a.shape == (3, 8, 32)
    assert not torch.allclose(a, backbone(batch).tokens["audio"])


@pytest.mark.parametrize("kind", ["blocks", "ffn"])
def test_inner_states_are_those_of_each_block(kind):
    layers = small()(batch_of(), layers=kind).layers
    assert {s: len(x) for s, x in layers.items()} == {"audio": 4, "vision": 4, "joint": 2}
    assert layers["audio"][0].shape == (3, 8, 32) and layers["joint"][0].shape == (3, 12, 32)


def test_a_shorter_sound_lies_on_the_beginning_of_the_grid():
    backbone = small()
    embedded = backbone.embed(batch_of(frames=32), "audio")
    with torch.no_grad():
        backbone.positions["audio"].zero_()
    bare = backbone.embed(batch_of(frames=32), "audio")
    torch.testing.assert_close(embedded - bare, sincos_2d(32, 2, 2).expand(3, -1, -1), atol=1e-6, rtol=1e-5)


def test_a_longer_sound_is_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"32 x 80.*32 x 64.*audio_frames"):
        small()(batch_of(frames=80))


@pytest.mark.parametrize("frames", [32, 96])
def test_other_clip_lengths_start_from_the_same_weights(frames):
    source, target = small(), small(audio_frames=frames)
    with torch.no_grad():
        source.modality["audio"].fill_(3.0)
    target.load_state_dict(target.adapt(source.state_dict(), source.config))
    assert torch.equal(target.positions["audio"], sincos_2d(32, 2, frames // 16))  # fixed tables go on as they began
    trained = {**source.state_dict(), "positions.audio": torch.arange(8.0)[:, None].expand(-1, 32).clone()}
    table = target.adapt(trained, source.config)["positions.audio"]
    assert table.shape == (2 * frames // 16, 32)
    if frames == 32:  # a trained table is cut on its grid, row by row
        assert table[:, 0].tolist() == [0, 1, 4, 5]


# -- the objective -----------------------------------------------------------------------------------------------------
def test_av_mae_and_cav_are_one_setting_away():
    batch = batch_of()
    av_mae, cav = objective(contrast_weight=0.0), objective(reconstruction_weight=0.0)
    assert set(av_mae(batch).terms) == {"reconstruct_audio", "reconstruct_vision"} and not av_mae.contrastive
    assert set(cav(batch).terms) == {"contrast"}
    av_mae(batch).total().backward()
    cav(batch).total().backward()
    assert all(p.grad is None for p in cav.decoder.parameters())


def test_every_trainable_parameter_of_the_default_objective_learns():
    loss = objective(small(shared_depth=1))
    loss(batch_of()).total().backward()
    assert [n for n, p in loss.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_loss_of_an_item_does_not_depend_on_hidden_patches_reaching_the_encoder():
    loss, batch = objective(), batch_of()
    draw = loss.sample(batch)
    noisy = batch.streams["audio"].x.clone()
    hidden = draw.mask("audio").view(3, 2, 4).bool()  # (B, mel rows, time columns)
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2).transpose(1, 2)
    other = batch.with_streams(audio=Stream(torch.where(pixels, noisy + 9, noisy)))
    a, b = (loss.encode(x, draw)["audio"] for x in (batch, other))
    assert torch.equal(a, b)


def test_counts_are_known_before_computing():
    loss, batch = objective(), batch_of()
    draw = loss.sample(batch)
    terms = loss.compute(batch, draw).terms
    assert {k: v for k, v in loss.counts(batch, draw).items()} == {k: terms[k].count for k in loss.counts(batch, draw)}


def test_micro_batches_add_up_to_the_whole_batch():
    loss, batch = objective(), batch_of(4)
    draw = loss.sample(batch)
    parts = [batch.rows(slice(0, 2)), batch.rows(slice(2, 4))]
    locals_ = [loss.local(p, loss.sample(p)) for p in parts]
    whole, representations = loss.local(batch, draw)
    for name, term in whole.terms.items():
        torch.testing.assert_close(sum(o.terms[name].sum for o, _ in locals_), term.sum)
    joined = {k: torch.cat([r[k] for _, r in locals_]) for k in representations}
    torch.testing.assert_close(loss.joint(joined).total(), loss.joint(representations).total())


def test_reconstructions_keep_visible_patches_and_have_the_inputs_shapes():
    loss, batch = objective(norm_pixels=False), batch_of()
    draw = loss.sample(batch)
    out = loss.reconstruct(batch, draw)
    for m, parts in out.items():
        x = batch.streams[m].x
        assert all(p.shape == x.shape for p in parts.values())
        share = (parts["reconstructed"] == x).float().mean().item()
        kept = draw.kept[m] / draw.order[m].shape[1]
        assert share == pytest.approx(kept, abs=0.01)
        assert (parts["masked"] == 0).float().mean().item() == pytest.approx(1 - kept, abs=0.01)


def test_bf16_gives_nearly_the_loss_of_fp32():
    loss, batch = objective(), batch_of()
    draw = loss.sample(batch)
    exact = loss.compute(batch, draw).total()
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss.compute(batch, draw).total()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


# -- CAV-MAE Sync ------------------------------------------------------------------------------------------------------
SYNC = {"cls_tokens": True, "registers": 3, "contrast_depth": 1}


@pytest.mark.parametrize("keep_registers", [False, True])
@pytest.mark.parametrize("contrast_on", ["auto", "mean", "both"])
def test_sync_models_train_with_cls_and_register_tokens(keep_registers, contrast_on):
    loss = objective(small(keep_registers=keep_registers, **SYNC), contrast_on=contrast_on, mask_ratio_range=(0.6, 0.9))
    batch = batch_of()
    out = loss(batch)
    assert set(out.terms) == {"contrast", "reconstruct_audio", "reconstruct_vision"}
    out.total().backward()
    assert all(loss.backbone.registers[m].grad.abs().sum() > 0 for m in ("audio", "vision"))
    features = loss.backbone(batch)
    assert features.tokens["audio"].shape == (3, 8, 32) and features.tokens["joint"].shape == (3, 12, 32)
    assert not torch.allclose(features.pooled["audio"], features.tokens["audio"].mean(1))  # the cls token


def test_sync_checkpoints_come_out_as_they_went_in(tmp_path):
    loss = objective(small(shared_depth=1, **SYNC))
    (path,) = write(loss, tmp_path / "sync.pth")
    state = torch.load(path, weights_only=True)
    assert state["module.register_tokens"].shape == (6, 32) and "module.constrative_head_visual.0.norm1.weight" in state
    again = build(read(path, heads=4, decoder_heads=2, mel_bins=32))
    assert again.backbone.config == loss.backbone.config
    assert all(torch.equal(a, b) for a, b in zip(official_state(again).values(), state.values(), strict=True))


def test_contrast_on_cls_tokens_needs_them():
    with pytest.raises(UsageError, match="cls"):
        objective(contrast_on="cls")


def test_sync_lays_the_window_around_the_picture():
    """Window start = round(f * 1024 / 16) - L // 2, inside the clip (specification, 9)."""
    frontend = CavMaeFrontend(CavMaeFrontendConfig(frames=416, span=1024, pictures=16))
    starts = [r.parts["audio"].start for r in frontend.views(Row("a", {"audio": "a.wav", "vision": "a.mp4"}))]
    assert starts == [pytest.approx(min(max(round(f * 64) - 208, 0), 608) / 100) for f in range(16)]


# -- files -------------------------------------------------------------------------------------------------------------
def test_foreign_and_damaged_states_are_refused_by_name():
    state = official_state(objective())
    with pytest.raises(CheckpointError, match="unknown key extra"):
        imported({**state, "extra": torch.zeros(1)}, "x", heads=4, decoder_heads=2, mel_bins=32)
    with pytest.raises(CheckpointError, match="no CAV-MAE checkpoint"):
        imported({"blocks.0.norm1.weight": torch.ones(3)}, "x")
    with pytest.raises(CheckpointError, match="how many heads"):
        imported(state, "x", mel_bins=32)
    lacking = {k: v for k, v in state.items() if k != "blocks_a.1.mlp.fc1.bias"}
    with pytest.raises(CheckpointError, match=r"misses backbone\.stacks\.audio\.1\.fc1\.bias"):
        build(imported(lacking, "x", heads=4, decoder_heads=2, mel_bins=32))


def test_an_encoder_alone_is_a_model(tmp_path):
    loss = objective(decoder_depth=0, reconstruction_weight=0.0)
    (path,) = write(loss, tmp_path / "encoder.pth")
    again = build(read(path, heads=4, mel_bins=32))
    batch = batch_of()
    torch.testing.assert_close(again.backbone(batch).pooled, loss.backbone(batch).pooled)


@pytest.fixture
def layout(tmp_path):
    data = [
        {"video_id": "x", "wav": "wav/x.wav", "video_path": "frames", "labels": "/m/2,/m/1"},
        {"video_id": "y", "wav": "/abs/y.wav", "video_path": "", "labels": "/m/1"},
    ]
    (tmp_path / "data.json").write_text(json.dumps({"data": data}))
    return tmp_path


def test_the_authors_json_is_read_with_its_frames_and_labels(layout):
    (layout / "labels.csv").write_text('index,mid,display_name\n1,/m/2,"Speech, female"\n0,/m/1,Music\n')
    assert detect(layout / "data.json") and not detect(layout / "labels.csv")
    x, y = read_layout(layout / "data.json")
    assert x.parts["audio"] == str(layout / "wav/x.wav")
    assert x.parts["vision"] == tuple(str(layout / f"frames/frame_{i}/x.jpg") for i in range(10))
    assert x.labels == ("Speech, female", "Music") and y.labels == ("Music",)
    assert set(y.parts) == {"audio"} and y.parts["audio"] == "/abs/y.wav"
    assert list(read_labels(layout / "labels.csv").values()) == ["Music", "Speech, female"]  # in the order of the index


def test_without_a_csv_labels_are_the_mids(layout):
    assert read_layout(layout / "data.json")[0].labels == ("/m/2", "/m/1")


def test_a_label_that_the_csv_does_not_know_is_named(layout):
    (layout / "labels.csv").write_text("index,mid,display_name\n0,/m/1,Music\n")
    with pytest.raises(DataError, match="'/m/2' of x"):
        read_layout(layout / "data.json")


# -- the front end -----------------------------------------------------------------------------------------------------
AUGMENTED = CavMaeFrontendConfig(
    frames=64, mel_bins=32, image_size=32, noise=True, freq_mask=8, time_mask=16, mixup=0.5, label_smoothing=0.1
)


def clip(name: str, seconds: float, target=None) -> Clip:
    rng = np.random.default_rng(len(name))
    return Clip(
        name,
        {
            "audio": Waveform(rng.normal(0, 0.1, (2, int(16000 * seconds))).astype(np.float32), 16000),
            "vision": Frames(rng.integers(0, 255, (1, 40, 60, 3), dtype=np.uint8)),
        },
        target=target,
        seed=5,
    )


def test_augmentation_depends_on_the_items_seed_alone_and_rests_at_evaluation():
    frontend = CavMaeFrontend(AUGMENTED)
    items = [frontend.item([clip(n, 1.0)], np.random.default_rng(0)) for n in ("a", "bb")]
    items = [dataclasses.replace(b, seeds=torch.tensor([s])) for b, s in zip(items, (11, 12), strict=True)]
    frontend.train()
    together, alone = frontend(Batch.cat(items)), frontend(items[1])
    torch.testing.assert_close(together.streams["audio"].x[1], alone.streams["audio"].x[0], atol=1e-5, rtol=1e-5)
    frontend.eval()
    assert not torch.allclose(frontend(items[1]).streams["audio"].x, alone.streams["audio"].x)
    assert torch.equal(frontend(items[1]).streams["audio"].x, frontend(items[1]).streams["audio"].x)


def test_items_that_are_mixed_and_items_that_are_not_make_one_batch():
    frontend = CavMaeFrontend(AUGMENTED)
    rng = np.random.default_rng(0)
    hot = np.eye(4, dtype=np.float32)
    mixed = frontend.item([clip("a", 1.0, hot[0]), clip("bb", 0.3, hot[2])], rng)
    plain = frontend.item([clip("ccc", 0.5, hot[1])], rng)
    out = frontend(Batch.cat([mixed, plain]))
    assert out.streams["audio"].x.shape == (2, 64, 32) and out.streams["vision"].x.shape == (2, 3, 32, 32)
    assert out.targets.x[1].tolist() == pytest.approx([0.025, 0.9, 0.025, 0.025])
    assert out.targets.x[0].sum().item() == pytest.approx(1.0)


def test_mixing_class_indices_is_refused_with_the_remedy():
    frontend = CavMaeFrontend(AUGMENTED)
    with pytest.raises(UsageError, match="multi_hot"):
        frontend.item([clip("a", 1.0, np.int64(1)), clip("b", 1.0, np.int64(2))], np.random.default_rng(0))


def test_sound_shorter_than_a_frame_is_bad_data_not_silence():
    with pytest.raises(DataError, match="160 samples"):
        CavMaeFrontend(AUGMENTED).item([clip("a", 0.01)], None)


def test_evaluation_sees_ten_pictures_of_a_video_and_one_of_an_image():
    frontend = CavMaeFrontend(CavMaeFrontendConfig())
    assert len(frontend.views(Row("a", {"vision": "a.mp4", "audio": "a.mp4"}, duration=5.0))) == 10
    assert len(frontend.views(Row("a", {"vision": "a.jpg", "audio": "a.wav"}))) == 1
    assert len(frontend.views(Row("a", {"audio": "a.wav"}))) == 1
    times = [v.parts["vision"].times[0] for v in frontend.views(Row("a", {"vision": "a.mp4"}, duration=5.0))]
    assert times == pytest.approx([0.5 * i for i in range(10)])


def test_training_windows_of_long_recordings_lie_inside_them():
    frontend = CavMaeFrontend(CavMaeFrontendConfig())
    rng = np.random.default_rng(0)
    for _ in range(50):
        request = frontend.plan(Row("a", {"vision": "a.mp4", "audio": "a.mp4"}, duration=60.0), rng)
        start = request.parts["audio"].start
        assert 0 <= start <= 60 - frontend.seconds
        assert start <= request.parts["vision"].times[0] <= start + frontend.seconds
