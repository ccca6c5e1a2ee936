"""CAV-MAE Sync: windows of sound around pictures, clips as a whole, their head, retrieval view by view, and files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn import functional as F

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Frames, Row, Waveform
from avssl.embedding.encode import EmbedOptions, embed_inputs, embed_rows
from avssl.embedding.job import embed as embed_files
from avssl.errors import CheckpointError, DataError, UsageError
from avssl.evaluation import ranking
from avssl.evaluation.explain import explain
from avssl.evaluation.labels import splits_of
from avssl.evaluation.similarity import similarities
from avssl.imports import build
from avssl.model import Model, open_model
from avssl.registry import load
from avssl.schema import structure
from avssl_cav_mae.backbone import CavMae
from avssl_cav_mae.checkpoint import imported, official_state, read, write
from avssl_cav_mae.clip import ClipClassify
from avssl_cav_mae.config import CavMaeClipConfig, CavMaeConfig, CavMaeFrontendConfig, CavMaeLossConfig
from avssl_cav_mae.frontend import CavMaeFrontend, laid
from avssl_cav_mae.layout import read as read_layout
from avssl_cav_mae.loss import CavMaeLoss

SMALL = CavMaeConfig(
    image_size=32, audio_frames=64, mel_bins=32, dim=32, depth=2, shared_depth=1, heads=4, cls_tokens=True, registers=3
)
CLIPS = CavMaeFrontendConfig(frames=64, mel_bins=32, image_size=32, span=192, pictures=4, together=True)


def small(**changes) -> CavMae:
    torch.manual_seed(0)
    return CavMae(dataclasses.replace(SMALL, **changes)).eval()


def head_of(backbone: CavMae, **changes) -> ClipClassify:
    torch.manual_seed(1)
    loss = ClipClassify(backbone, CavMaeClipConfig(classes=5, **changes)).eval()
    with torch.no_grad():
        for p in loss.head.parameters():  # norms at 1 and 0 would hide one that is forgotten
            p.add_(0.1 * torch.randn(p.shape))
    return loss


def clips_of(n: int = 2, pairs: int = 4, modalities: tuple[str, ...] = ("audio", "vision")) -> Batch:
    g = torch.Generator().manual_seed(3)
    x = {"audio": torch.randn(n, pairs, 64, 32, generator=g), "vision": torch.randn(n, pairs, 3, 32, 32, generator=g)}
    return Batch(tuple(map(str, range(n))), torch.arange(n), {m: Stream(x[m]) for m in modalities})


def pair_of(batch: Batch, k: int) -> Batch:
    return dataclasses.replace(batch, streams={m: Stream(s.x[:, k]) for m, s in batch.streams.items()})


# -- windows of sound --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [96, 192, 304, 416, 512, 624, 720, 1024])
def test_windows_lie_around_their_pictures_inside_the_clip(window):
    for f, start in enumerate(starts(16, 1024, window, 998)):  # ten seconds: 998 frames, padded to 1024
        assert start == min(max(round(f * 1024 / 16) - window // 2, 0), 1024 - window)


def test_a_shorter_recording_is_laid_out_by_its_own_length():
    assert starts(4, 1024, 100, 400) == [0, 50, 150, 250]
    assert starts(4, 1024, 416, 200) == [0, 0, 0, 0]


def starts(pictures: int, span: int, window: int, there: int) -> list[int]:
    return laid(pictures, span, window, torch.tensor([there]))[0].tolist()


def sound(seconds: float) -> Waveform:
    return Waveform(np.random.default_rng(0).normal(0, 0.1, (1, int(16000 * seconds))).astype(np.float32), 16000)


@pytest.mark.parametrize("seconds", [1.9, 1.0])
def test_all_windows_of_a_clip_are_those_of_its_single_views(seconds):
    """... and slices of the clip's whole spectrogram, as the authors cut them."""
    row = Row("a", {"audio": "a.wav"}, duration=seconds)
    wave = sound(seconds)
    together = CavMaeFrontend(CLIPS).eval()
    alone = CavMaeFrontend(dataclasses.replace(CLIPS, together=False)).eval()
    (whole,) = together.views(row)
    item = together.item([Clip("a", {"audio": cut(wave, whole.parts["audio"])})], None)
    windows = together(item).streams["audio"].x  # (1, 4, 64, 32)
    mel = together.augmented(together.log_mel(item.streams["audio"]), together.draw(item.seeds))[0]
    views = alone.views(row)
    assert windows.shape == (1, 4, 64, 32) and len(views) == 4
    for k, (view, first) in enumerate(
        zip(views, starts(4, 192, 64, 1 + (len(wave.samples[0]) - 400) // 160), strict=True)
    ):
        x = alone(alone.item([Clip("a", {"audio": cut(wave, view.parts["audio"])})], None)).streams["audio"].x[0]
        torch.testing.assert_close(x, windows[0, k], atol=2e-4, rtol=1e-4)
        assert torch.equal(windows[0, k], mel[first : first + 64])


def cut(wave: Waveform, request) -> Waveform:
    first = round(request.start * wave.rate)
    return Waveform(wave.samples[:, first : first + round(request.seconds * wave.rate)], wave.rate, request.start)


def test_a_recording_of_unknown_length_is_measured_before_windows_are_laid(tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(1.0).samples[0], 16000)
    frontend = CavMaeFrontend(dataclasses.replace(CLIPS, together=False))
    found = [v.parts["audio"].start for v in frontend.views(Row("a", {"audio": str(tmp_path / "a.wav")}))]
    assert found == [s / 100 for s in starts(4, 192, 64, 98)] and max(found) == pytest.approx(0.34)


def test_sound_alone_is_seen_in_its_windows_and_what_fits_into_one_only_once():
    frontend = CavMaeFrontend(dataclasses.replace(CLIPS, together=False))
    counts = [len(frontend.views(Row("a", {"audio": "a.wav", "vision": "a.png"}, duration=s))) for s in (0.3, 1.5)]
    assert counts == [1, 4] and len(frontend.views(Row("a", {"audio": "a.wav"}, duration=1.5))) == 4
    assert len(CavMaeFrontend(CLIPS).views(Row("a", {"audio": "a.wav"}, duration=1.5))) == 1


def test_training_on_a_long_recording_takes_clips_of_it_with_their_pictures():
    frontend = CavMaeFrontend(dataclasses.replace(CLIPS, together=False))
    rng = np.random.default_rng(0)
    for _ in range(50):
        request = frontend.plan(Row("a", {"vision": "a.mp4", "audio": "a.mp4"}, duration=30.0), rng)
        start, time = request.parts["audio"].start, request.parts["vision"].times[0]
        assert 0 <= start <= 30 - frontend.seconds and start - 0.01 <= time <= start + frontend.seconds


def test_a_clip_item_holds_all_pictures_and_a_still_stands_for_each():
    frontend = CavMaeFrontend(CLIPS)
    request = frontend.plan(Row("a", {"vision": "a.mp4", "audio": "a.mp4"}, duration=30.0), np.random.default_rng(0))
    assert len(request.parts["vision"].times) == 4 and request.parts["audio"].seconds == frontend.seconds > 1.9
    pixels = np.random.default_rng(0).integers(0, 255, (4, 40, 60, 3), dtype=np.uint8)
    moving = frontend.item([Clip("a", {"audio": sound(2), "vision": Frames(pixels)})], None)
    still = frontend.item([Clip("b", {"audio": sound(1), "vision": Frames(pixels[:1])})], None)
    out = frontend.eval()(Batch.cat([moving, still]))
    assert out.streams["vision"].x.shape == (2, 4, 3, 32, 32) and out.streams["audio"].x.shape == (2, 4, 64, 32)
    assert torch.equal(out.streams["vision"].x[1], out.streams["vision"].x[0, :1].expand(4, -1, -1, -1))


def test_noise_that_rolls_sound_away_from_its_picture_is_refused():
    with pytest.raises(UsageError, match="rolls sound"):
        dataclasses.replace(CLIPS, noise=True)


# -- the backbone on clips ---------------------------------------------------------------------------------------------
def test_each_pair_of_a_clip_is_encoded_by_itself():
    backbone, batch = small(), clips_of()
    out, pairs = backbone(batch, layers="blocks"), [backbone(pair_of(batch, k)) for k in range(4)]
    for stream in ("audio", "vision", "joint"):
        torch.testing.assert_close(out.pooled[stream], torch.stack([p.pooled[stream] for p in pairs]).mean(0))
        torch.testing.assert_close(out.tokens[stream], torch.cat([p.tokens[stream] for p in pairs], 1))
    assert out.grid["audio"].shape == (4, 2, 4) and out.grid["audio"].axes == ("frame", "frequency", "time")
    assert out.grid["vision"].tokens == out.tokens["vision"].shape[1] and backbone.grid(batch) == out.grid
    assert out.layers["joint"][0].shape == (2, 4 * 12, 32)


def test_clips_are_not_masked_and_their_streams_match():
    with pytest.raises(DataError, match="cannot be masked"):
        small()(clips_of(), keep={"audio": torch.zeros(2, 1, dtype=torch.long)})
    batch = clips_of()
    uneven = batch.with_streams(vision=Stream(batch.streams["vision"].x[:, :2]))
    with pytest.raises(DataError, match="its window of sound"):
        small()(uneven)


def test_unchained_features_are_those_of_the_last_shared_block_alone():
    backbone = small(shared_depth=2, chain_shared=False)
    batch = pair_of(clips_of(), 0)
    chained = CavMae(dataclasses.replace(backbone.config, chain_shared=True))
    chained.load_state_dict(backbone.state_dict())
    assert not torch.allclose(backbone(batch).pooled["audio"], chained(batch).pooled["audio"])
    before = backbone(batch).pooled["audio"]
    with torch.no_grad():
        for p in backbone.shared[0].parameters():
            p.normal_()
    assert torch.equal(backbone(batch).pooled["audio"], before)


# -- the head: against the equations, written out ----------------------------------------------------------------------
def norm(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def block(x: torch.Tensor, state: dict[str, torch.Tensor], name: str, heads: int) -> torch.Tensor:
    """One pre-norm block over one item's tokens (N, W), head by head."""

    def linear(x: torch.Tensor, part: str) -> torch.Tensor:
        return x @ state[f"{name}.{part}.weight"].T + state[f"{name}.{part}.bias"]

    q, k, v = linear(norm(x, state, f"{name}.norm1.joint"), "qkv").chunk(3, 1)
    size = x.shape[1] // heads
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        out.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), 1) @ v[:, part])
    x = x + linear(torch.cat(out, 1), "proj")
    inner = linear(norm(x, state, f"{name}.norm2.joint"), "fc1")
    return x + linear(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), "fc2")


@pytest.mark.parametrize("cls_tokens", [True, False])
@pytest.mark.parametrize("streams", [("audio", "vision"), ("audio",), ("vision",)])
@torch.no_grad()
def test_the_clip_head_is_the_official_aggregation(streams, cls_tokens):
    loss = head_of(small(cls_tokens=cls_tokens), streams=streams)
    batch = clips_of(modalities=streams)
    state, heads = loss.state_dict(), SMALL.heads
    got = loss.head(loss.backbone(batch, only=loss.head.streams))
    for i in range(len(batch)):
        rows = []
        for k in range(4):
            one = pair_of(batch, k).rows(slice(i, i + 1))
            stacked = {m: loss.backbone.stack(m, loss.backbone.embed(one, m))[0] for m in streams}  # registers are off
            if len(streams) == 2:  # cls tokens before the shared blocks, side by side
                rows.append(torch.cat([x[0] if cls_tokens else x.mean(0) for x in stacked.values()]))
            else:  # the joint norms, over the one modality and its cls token
                x = block(stacked[streams[0]], state, "backbone.shared.0", heads)
                rows.append(norm(x, state, "backbone.norms.joint").mean(0))
        x = torch.cat([state["head.cls"], torch.stack(rows)])
        for layer in range(2):
            x = block(x, state, f"head.blocks.{layer}", heads)
        logits = norm(x[:1], state, "head.norm") @ state["head.linear.weight"].T + state["head.linear.bias"]
        torch.testing.assert_close(got[i : i + 1], logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_order_of_the_pictures_does_not_matter_and_their_mean_is_the_plain_alternative():
    loss, batch = head_of(small()), clips_of()
    turned = dataclasses.replace(batch, streams={m: Stream(s.x.flip(1)) for m, s in batch.streams.items()})
    a, b = (loss.head(loss.backbone(x, only=loss.head.streams)) for x in (batch, turned))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    mean = head_of(small(), aggregate="mean", streams=("audio",))
    tokens = mean.backbone(clips_of(modalities=("audio",)), only=("audio.alone",)).tokens["audio.alone"]
    features = dataclasses.replace(mean.backbone(batch, only=("audio",)), tokens={"audio.alone": tokens})
    expected = mean.head.linear(F.layer_norm(tokens.mean(1), (32,), mean.head.norm.weight, mean.head.norm.bias))
    torch.testing.assert_close(mean.head(features), expected)


def test_clip_fine_tuning_learns_its_labels():
    loss = head_of(small()).train()
    batch = dataclasses.replace(clips_of(), targets=Stream(torch.tensor([1, 3])))
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], 1e-3)
    first = loss(batch).total().item()
    for _ in range(30):
        out = loss(batch)
        optimizer.zero_grad()
        out.total().backward()
        optimizer.step()
    assert out.total().item() < 0.1 < first and out.metrics["accuracy"][0] == 2


def test_an_item_without_a_modality_of_the_head_is_refused():
    loss = head_of(small())
    with pytest.raises(DataError, match="reads vision"):
        loss.head(loss.backbone(clips_of(modalities=("audio",)), only=loss.head.streams))


# -- retrieval view by view --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six clips of two seconds: a changing sound, and four pictures in the authors' folders; one of them has a still."""
    path = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for i in range(6):
        tones = np.concatenate([np.sin(np.arange(8000) * f / 16000 * 2 * np.pi) for f in rng.uniform(100, 4000, 4)])
        soundfile.write(path / f"{i}.wav", (0.3 * tones).astype(np.float32), 16000)
        for k in range(4):
            (path / f"frame_{k}").mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path / f"frame_{k}" / f"{i}.png")
    return path


def rows_in(folder: Path, stills: int = 0) -> list[Row]:
    frames = [tuple(str(folder / f"frame_{k}" / f"{i}.png") for k in range(4)) for i in range(6)]
    return [
        Row(str(i), {"audio": str(folder / f"{i}.wav"), "vision": frames[i][0] if i < stills else frames[i]})
        for i in range(6)
    ]


def model_of(together: bool = False) -> Model:
    frontend = CavMaeFrontend(dataclasses.replace(CLIPS, together=together)).eval()
    tables = {"backbone": {"name": "cav_mae"}, "loss": {"name": "cav_mae"}}
    return Model(small(), frontend, None, None, tables, Path("x"))


def evaluate(model: Model, rows: list[Row], **options):
    config = structure(load("evaluation", "retrieval", "config"), {"bootstrap": 0, **options})
    return load("evaluation", "retrieval")(model, splits_of(rows), config)


@pytest.mark.parametrize("compare", ["diagonal_mean", "diagonal_max", "mean", "max"])
def test_retrieval_compares_clips_view_by_view(folder, compare):
    model, rows = model_of(), rows_in(folder)
    views = embed_rows(model, rows, EmbedOptions(streams=("audio", "vision"), views="each"))
    assert [v.shape for v in views["audio"]] == [(4, 32)] * 6
    table = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            cosines = cosine_similarity(views["audio"][i], views["vision"][j])
            chosen = np.diagonal(cosines) if compare.startswith("diagonal") else cosines
            table[i, j] = chosen.max() if compare.endswith("max") else chosen.mean()
    np.testing.assert_allclose(
        similarities(np.stack(views["audio"]), np.stack(views["vision"]), compare)(slice(0, 6)), table, atol=1e-6
    )
    report = evaluate(model, rows, compare=compare, hits=2)
    placed = ranking.place(table, np.eye(6, dtype=bool), 1e-6)
    assert report.metrics["retrieval.audio->vision.instance.r@1"] == pytest.approx(placed.recall(1))
    assert report.metrics["retrieval.audio->vision.instance.median_rank"] == placed.median_rank()
    assert report.protocol["compare"] == compare and report.protocol["views"] == "all" and report.n["views"] == 4
    first = report.hits["retrieval.audio->vision.instance"][0]["hits"][0]
    assert first["id"] == str(table[0].argmax()) and first["similarity"] == pytest.approx(table[0].max(), abs=1e-6)


def test_a_report_says_how_clips_were_compared_and_files_keep_one_vector_per_clip(folder, tmp_path):
    report = evaluate(model_of(), rows_in(folder), compare="diagonal_mean")
    assert any(
        "r@1: " in line and "mean over k of the cosines of view k with view k" in line for line in explain(report)
    )
    with pytest.raises(UsageError, match="one vector per clip"):
        embed_files(model_of(), rows_in(folder), tmp_path / "x.npz", EmbedOptions(views="each"))
    with pytest.raises(UsageError, match="sequence"):
        EmbedOptions(views="each", sequence=True)


def test_views_keep_their_order_beyond_nine_and_a_mean_is_their_mean(folder):
    model, rows = model_of(), rows_in(folder)[:1]
    model.frontend = CavMaeFrontend(dataclasses.replace(CLIPS, together=False, pictures=12)).eval()
    each = embed_rows(model, rows, EmbedOptions(streams=("vision",), views="each"))["vision"][0]
    mean = embed_rows(model, rows, EmbedOptions(streams=("vision",)))["vision"][0]
    assert each.shape == (12, 32)
    np.testing.assert_allclose(each.mean(0), mean, atol=1e-6)
    assert [np.allclose(each[i], each[i - 1], atol=1e-6) for i in range(1, 12)] == [i % 3 > 0 for i in range(1, 12)]


def test_clips_of_one_view_are_compared_in_it_and_other_differences_are_refused():
    q, still = np.random.default_rng(0).normal(size=(2, 3, 4)), np.ones((1, 4))
    from avssl.evaluation.similarity import stacked

    both = stacked([q[0], still], ["a", "b"])
    np.testing.assert_allclose(
        similarities(both[1:], q, "diagonal_mean")(slice(0, 1))[0],
        [cosine_similarity(still, x).mean() for x in q],
        atol=1e-6,
    )
    with pytest.raises(DataError, match="b is seen in another number of views"):
        stacked([q[0], q[1][:2]], ["a", "b"])


def test_pictures_in_memory_are_seen_as_those_in_files(folder):
    model, row = model_of(), rows_in(folder)[0]
    pixels = np.stack([np.asarray(Image.open(p)) for p in row.parts["vision"]])
    files = embed_rows(
        model,
        [dataclasses.replace(row, parts={"vision": row.parts["vision"]})],
        EmbedOptions(streams=("vision",), views="each"),
    )["vision"][0]
    memory = embed_inputs(model, [pixels], streams=("vision",), views="each")["vision"][0]
    np.testing.assert_allclose(memory, files, atol=1e-6)
    assert not np.allclose(files[0], files[3], atol=1e-3)


def test_the_authors_json_lists_as_many_frames_as_there_are_folders(folder, tmp_path):
    (tmp_path / "data.json").write_text(
        f'{{"data": [{{"video_id": "0", "wav": "{folder}/0.wav", "video_path": "{folder}", "labels": ""}}]}}'
    )
    (row,) = read_layout(tmp_path / "data.json")
    assert row.parts["vision"] == tuple(str(folder / f"frame_{k}" / "0.jpg") for k in range(4))


# -- one modality alone, and files -------------------------------------------------------------------------------------
def test_a_backbone_for_sound_alone_takes_its_part_of_a_whole_model():
    whole, alone = small(cls_tokens=False, registers=0), small(cls_tokens=False, registers=0, modalities=("audio",))
    own = alone.adapt(whole.state_dict(), whole.config)
    alone.load_state_dict(own)
    assert not any("vision" in k for k in own if not k.startswith("shared"))
    batch = pair_of(clips_of(), 0)
    a, b = alone(batch), whole(pair_of(clips_of(modalities=("audio",)), 0))
    assert set(a.pooled) == set(alone.widths()) == {"audio", "joint"}
    assert all(torch.equal(a.pooled[s], b.pooled[s]) for s in a.pooled)
    with pytest.raises(UsageError, match="audio alone"):
        CavMaeLoss(alone, CavMaeLossConfig())


def test_a_sync_model_starts_from_one_without_its_tokens():
    plain = small(cls_tokens=False, registers=0)
    sync = small(contrast_depth=1, audio_frames=32)
    own = sync.adapt(plain.state_dict(), plain.config)
    fresh = {k: v.clone() for k, v in sync.state_dict().items() if k.split(".")[0] in ("cls", "registers", "contrast")}
    sync.load_state_dict(own)
    assert all(torch.equal(sync.state_dict()[k], v) for k, v in fresh.items()) and len(fresh) == 4 + 2 * 12
    assert torch.equal(sync.patch["audio"].weight, plain.patch["audio"].weight)
    with pytest.raises(RuntimeError, match="Missing"):  # but half of what a source has is damage, not a choice
        sync.load_state_dict(sync.adapt({k: v for k, v in sync.state_dict().items() if "cls" not in k}, sync.config))


def same_files(a: Path, b: Path) -> None:
    x, y = (torch.load(p, weights_only=True) for p in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_sound_alone_checkpoints_come_out_as_they_went_in(tmp_path):
    """The keys are those of the authors' CAVMAEFTAudio: no picture's weights, no `norm_v`, all three norms per block."""
    classify = load("loss", "classify")
    backbone = small(cls_tokens=False, registers=0, modalities=("audio",))
    config = structure(load("loss", "classify", "config"), {"classes": 5, "streams": ["audio"]})
    (path,) = write(classify(backbone, config), tmp_path / "audio.pth")
    state = torch.load(path, weights_only=True)
    state["module.blocks_u.0.norm1_v.weight"] += 1  # from pretraining: kept, though sound never reads it
    torch.save(state, path)
    heads = {"patch_embed_a", "modality_a", "pos_embed_a", "blocks_a", "blocks_u", "norm_a", "norm", "mlp_head"}
    assert {k.split(".")[1] for k in state} == heads and len(state) == 4 + 3 * 20 + 4 + 4
    model = open_model(path, heads=4, mel_bins=32)
    assert model.backbone.modalities == {"audio"} and model.head.streams == ("audio",)
    assert model.frontend.config.modalities == ("audio",)
    same_files(path, write(model, tmp_path / "again.pth")[0])
    with pytest.raises(CheckpointError, match="needs pictures"):
        read(path, heads=4, mel_bins=32, mode="multimodal")


@pytest.mark.parametrize(
    ("mode", "streams"), [("multimodal", ("audio", "vision")), ("audioonly", ("audio",)), ("videoonly", ("vision",))]
)
def test_clip_classifiers_come_out_as_they_went_in(tmp_path, mode, streams):
    loss = head_of(small(), streams=streams)
    (path,) = write(loss, tmp_path / "clip.pth")
    model = open_model(path, heads=4, mel_bins=32, mode=mode)
    assert model.frontend.config.together and model.frontend.config.pictures == 16
    batch = clips_of(modalities=streams)
    torch.testing.assert_close(
        model.head(model.backbone(batch, only=model.head.streams)),
        loss.head(loss.backbone(batch, only=loss.head.streams)),
    )
    same_files(path, write(model, tmp_path / "again.pth")[0])
    if mode != "multimodal":
        with pytest.raises(CheckpointError, match="32 wide"):
            read(path, heads=4, mel_bins=32)


def test_a_mean_over_pictures_has_no_official_file():
    with pytest.raises(CheckpointError, match="no official class"):
        official_state(head_of(small(), aggregate="mean"))


def test_a_sync_model_listens_around_its_pictures_and_other_models_do_not():
    sync = imported(official_state(CavMaeLoss(small(), CavMaeLossConfig(decoder_depth=1))), "x", heads=4, mel_bins=32)
    assert sync.frontend["span"] == 1024 and sync.frontend["pictures"] == 16
    bare = official_state(CavMaeLoss(small(cls_tokens=False, registers=0, shared_depth=2), CavMaeLossConfig()))
    assert "span" not in imported(bare, "x", heads=4, mel_bins=32).frontend
    told = build(imported(bare, "x", heads=4, mel_bins=32, sync=True))
    assert not told.backbone.config.chain_shared


@pytest.mark.parametrize("mode", ["missingaudioonly", "audioonly"])
def test_a_model_read_for_sound_alone_looks_at_no_pictures(mode):
    classify = load("loss", "classify")
    config = structure(load("loss", "classify", "config"), {"classes": 5, "streams": ["joint"]})
    state = official_state(classify(small(cls_tokens=False, registers=0), config))
    assert imported(state, "x", heads=4, mel_bins=32, mode=mode).frontend["modalities"] == ["audio"]
