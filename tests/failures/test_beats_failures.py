"""What BEATs refuses, and that it says why and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Row, Waveform
from avssl.errors import AvsslError, CheckpointError, DataError, UsageError
from avssl.imports import build, import_checkpoint
from avssl.model import from_imported, open_model, read_initial
from avssl.model_import import write_imported
from avssl.recipe import load_recipe
from avssl.training.pipeline import run_pipeline
from avssl.training.run import finetune
from avssl.training.setup import Machine
from avssl_beats.backbone import Beats
from avssl_beats.checkpoint import official_name, read, write
from avssl_beats.config import BeatsConfig, BeatsFrontendConfig, BeatsLossConfig, TokenizerConfig
from avssl_beats.distill import TokenizerDistillation, load_teacher
from avssl_beats.frontend import BeatsFrontend
from avssl_beats.masked import TokenizerLabels
from avssl_beats.quantizer import Codebook

CFG = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "embed_dim": 16,
    "input_patch_size": 16,
    "num_buckets": 16,
    "max_distance": 40,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "deep_norm": True,
    "dropout": 0.0,
}
SMALL = BeatsConfig(
    dim=32, depth=2, heads=4, ffn=48, patch_dim=16, position_kernel=8, position_groups=4, buckets=16, max_distance=40
)


def official(path: Path, kind: str = "encoder", **changes: object) -> Path:
    """A small file in the authors' format, with random weights."""
    torch.manual_seed(0)
    state = {official_name(k): v for k, v in Beats(SMALL).state_dict().items()}
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    state[table.format(1)] = state[table.format(0)]
    cfg, file = {**CFG, **changes}, {}
    if kind == "classifier":
        state |= {"predictor.weight": torch.randn(3, 32), "predictor.bias": torch.zeros(3)}
        cfg |= {"finetuned_model": True, "predictor_class": 3}
        file["label_dict"] = {0: "dog", 1: "rain", 2: "siren"}
    if kind == "tokenizer":
        codes = torch.nn.functional.normalize(torch.randn(12, 8), dim=-1)
        state |= {
            "quantize_layer.0.weight": torch.randn(32, 32),
            "quantize_layer.0.bias": torch.zeros(32),
            "quantize_layer.2.weight": torch.randn(8, 32),
            "quantize_layer.2.bias": torch.zeros(8),
            "quantize.embedding.weight": codes,
            "quantize.embedding.initted": torch.ones(1),
            "quantize.embedding.embed_avg": codes,
            "quantize.embedding.cluster_size": torch.zeros(12),
            "quantize.cluster_size": torch.zeros(12),
        }
        cfg |= {"quant_n": 12, "quant_dim": 8}
    torch.save({"cfg": cfg, "model": state, **file}, path)
    return path


def edited(path: Path, change) -> Path:  # type: ignore[no-untyped-def]
    file = torch.load(path, weights_only=True)
    change(file)
    torch.save(file, path)
    return path


def mel(items: int = 2) -> Batch:
    x = torch.randn(items, 64, 128, generator=torch.Generator().manual_seed(0))
    return Batch(tuple(map(str, range(items))), torch.arange(items), {"audio": Stream(x)})


# -- files -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["encoder", "classifier", "tokenizer"])
def test_a_file_is_recognised_imported_opened_and_written_back(tmp_path: Path, kind: str):
    path = official(tmp_path / "official.pt", kind)
    imported = import_checkpoint(path)  # no format given
    write_imported(imported, tmp_path / "model")
    for model in (open_model(tmp_path / "model"), from_imported(imported, path)):
        assert write(model, tmp_path / "back.pt") == [tmp_path / "back.pt"]
        assert [p.parent for p in write(model, tmp_path / "folder")] == [tmp_path / "folder"]
        old, new = (torch.load(p, weights_only=True) for p in (path, tmp_path / "back.pt"))
        assert old["model"].keys() == new["model"].keys() and old.get("label_dict") == new.get("label_dict")
        assert all(torch.equal(old["model"][k], v) for k, v in new["model"].items())
        assert all(new["cfg"][k] == v for k, v in old["cfg"].items())


def test_other_peoples_exports_are_read_and_their_helpers_named_as_ignored(tmp_path: Path):
    path = official(tmp_path / "a.pt")
    want = read(path).tensors

    def change(file: dict) -> None:
        file["cfg"] |= {"use_flash_attn": False, "decoder_layers": 3}
        file["model"]["raw2fbank_pad.weight"] = torch.zeros(1)
        for ours, theirs in (("weight_g", "original0"), ("weight_v", "original1")):
            moved = file["model"].pop(f"encoder.pos_conv.0.{ours}")
            file["model"][f"encoder.pos_conv.0.parametrizations.weight.{theirs}"] = moved
        file["model"] = {f"module.{k}": v.double() for k, v in file["model"].items()}

    imported = read(edited(path, change))
    assert "ESPnet" in imported.ignored["raw2fbank_pad.weight"]
    assert all(torch.equal(v, want[k].double()) for k, v in imported.tensors.items())
    assert all(p.dtype == torch.float32 for p in build(imported).parameters())


def test_the_statistics_of_the_spectrogram_travel_with_the_file(tmp_path: Path):
    path = official(tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="fbank_men is no option"):
        read(path, fbank_men=1.0)
    imported = read(path, fbank_mean=11.72215, fbank_std=10.60431)
    write(from_imported(imported, path), tmp_path / "b.pt")
    for again in (imported, read(tmp_path / "b.pt")):
        assert (again.frontend["mean"], again.frontend["std"]) == (11.72215, 10.60431)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f["model"].pop("encoder.layers.1.fc2.bias"), "misses encoder.layers.1.fc2.bias"),
        (lambda f: f["model"].update({"extra": torch.zeros(1)}), "unknown extra"),
        (lambda f: f["cfg"].pop("input_patch_size"), "input_patch_size"),
        (lambda f: f["cfg"].update(encoder_layers=3), "misses encoder.layers.2"),
        (lambda f: f["model"].update({"layer_norm.weight": torch.zeros(3)}), "layer"),
        (lambda f: f.pop("model"), "no 'model'"),
    ],
)
def test_a_file_that_does_not_fit_names_what_is_wrong(tmp_path: Path, change, says: str):  # type: ignore[no-untyped-def]
    path = edited(official(tmp_path / "a.pt"), change)
    with pytest.raises(CheckpointError) as error:
        build(read(path))
    assert says in str(error.value) or "patch_norm.weight" in str(error.value)
    assert error.value.fix


def test_labels_that_do_not_cover_the_head_are_refused(tmp_path: Path):
    path = edited(official(tmp_path / "a.pt", "classifier"), lambda f: f["label_dict"].pop(1))
    with pytest.raises(CheckpointError, match="label_dict names 2 classes, the head has 3"):
        read(path)


def test_a_learned_mask_token_has_no_place_in_the_official_format():
    with pytest.raises(CheckpointError, match="mask_token"):
        official_name("mask_token")


@pytest.mark.parametrize("labels", [("dog", "siren"), ("dog", "rain", "cat")])
def test_the_head_of_an_official_classifier_goes_on_where_it_knows_the_classes(
    tmp_path: Path, labels: tuple, capsys: pytest.CaptureFixture
):
    def backwards(file: dict) -> None:
        file["label_dict"] = {0: "siren", 1: "rain", 2: "dog"}

    path = edited(official(tmp_path / "a.pt", "classifier"), backwards)
    rng = np.random.default_rng(0)
    rows = []
    for i, label in enumerate(labels):
        soundfile.write(tmp_path / f"{i}.wav", rng.normal(0, 0.1, 16000), 16000)
        rows.append(Row(id=str(i), parts={"audio": str(tmp_path / f"{i}.wav")}, labels=(label,)))
    sets = ["train.updates=1", "optim.lr=1e-12", "data.batch_size=2", "schedule.name=constant", "schedule.warmup=0"]
    finetune("beats/audioset-20k", path, rows, tmp_path / "run", overrides=sets, machine=Machine(workers=0))
    model = open_model(tmp_path / "run")
    old = torch.load(path, weights_only=True)["model"]["predictor.weight"]
    known = "cat" not in labels
    assert list(model.codec.classes) == (["siren", "rain", "dog"] if known else ["cat", "dog", "rain"])
    assert torch.allclose(model.head.linear.weight, old, atol=1e-6) == known
    notes = capsys.readouterr().err
    assert ("was fine-tuned on other classes: the head starts afresh" in notes) == (not known)
    assert "backbone.gradient_decay 1.0 -> 0.3" in notes  # what the recipe changes of the model is said


def test_after_sizes_that_do_not_fit_the_same_directory_can_be_used(tmp_path: Path):
    path = official(tmp_path / "a.pt", "classifier")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    rows = [Row(id="a", parts={"audio": str(tmp_path / "a.wav")}, labels=("dog",))]
    sets = ["train.updates=1", "data.batch_size=1", "schedule.name=constant", "schedule.warmup=0"]

    def run(*more: str) -> None:
        finetune(
            "beats/audioset-20k", path, rows, tmp_path / "run", overrides=[*sets, *more], machine=Machine(workers=0)
        )

    with pytest.raises(CheckpointError, match=r"--set backbone\.dim=32"):
        run("backbone.dim=64")
    assert (tmp_path / "run" / "manifest.parquet").is_file()
    run()


# -- settings ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change", [{"heads": 5}, {"position_groups": 5}, {"pre_norm": True}, {"max_distance": 80}, {"buckets": 3}]
)
def test_sizes_that_do_not_fit_are_refused(change: dict):
    with pytest.raises(UsageError) as error:
        BeatsConfig(**{"dim": 32, "position_groups": 4, "heads": 4, **change})
    assert error.value.fix


def test_training_without_a_tokenizer_or_teacher_says_what_to_set():
    labels = TokenizerLabels(Beats(SMALL), BeatsLossConfig())
    with pytest.raises(UsageError, match=r"loss\.tokenizer is not set"):
        labels(mel())
    with pytest.raises(UsageError, match=r"loss\.teacher is not set"):
        TokenizerDistillation(Beats(SMALL), TokenizerConfig())(mel())


def test_an_encoder_is_no_tokenizer_and_patch_sizes_must_agree(tmp_path: Path):
    encoder, tokenizer = official(tmp_path / "e.pt"), official(tmp_path / "t.pt", "tokenizer")
    with pytest.raises(CheckpointError, match="no BEATs tokenizer"):
        TokenizerLabels(Beats(SMALL), BeatsLossConfig(tokenizer=str(encoder)))
    from dataclasses import replace

    with pytest.raises(UsageError, match="patches of 16"):
        TokenizerLabels(Beats(replace(SMALL, patch=8)), BeatsLossConfig(tokenizer=str(tokenizer)))
    with pytest.raises(AvsslError, match="no such"):
        TokenizerLabels(Beats(SMALL), BeatsLossConfig(tokenizer=str(tmp_path / "gone.pt")))


def test_an_official_tokenizer_and_encoder_continue_on_new_data(tmp_path: Path):
    tokenizer, encoder = official(tmp_path / "t.pt", "tokenizer"), official(tmp_path / "e.pt")
    backbone = build(read(encoder)).backbone
    loss = TokenizerLabels(backbone, BeatsLossConfig(tokenizer=str(tokenizer))).train()
    out = loss(mel())
    out.total().backward()
    assert out.total().isfinite() and loss.backbone.patch.weight.grad is not None
    assert all(p.grad is None for p in loss.tokenizer.parameters())
    assert not loss.tokenizer.backbone.training
    taught = TokenizerDistillation(Beats(SMALL), TokenizerConfig(teacher=str(encoder), codes=12, code_dim=8))
    taught.prepare(mel())
    assert taught(mel()).total().isfinite()


def test_one_command_continues_the_authors_iteration_on_new_data(tmp_path: Path):
    tokenizer, encoder = official(tmp_path / "t.pt", "tokenizer"), official(tmp_path / "e.pt")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    rows = [Row(id=str(i), parts={"audio": str(tmp_path / "a.wav")}) for i in range(2)]
    sizes = read_initial(encoder).tables["backbone"]
    sets = [f"backbone.{k}={json.dumps(v)}" for k, v in sizes.items() if k != "name"]
    sets += ["train.updates=1", "optim.lr=1e-12", "data.batch_size=2", "schedule.name=constant", "schedule.warmup=0"]
    sets += [f"tokenizer.loss.teacher={encoder}", "tokenizer.loss.codes=12", "tokenizer.loss.code_dim=8"]
    recipe = load_recipe("beats/continue", sets)
    report = run_pipeline(recipe, rows, tmp_path / "run", machine=Machine(workers=0), init=tokenizer)
    assert list(report["stages"]) == ["tokenizer", "encoder"]
    want = read_initial(tokenizer).tensors["tokenizer.down.0.weight"]  # --init started the first stage
    got = read_initial(tmp_path / "run" / "stages" / "tokenizer").tensors["tokenizer.down.0.weight"]
    torch.testing.assert_close(got, want)
    assert (tmp_path / "run" / "stages" / "encoder" / "weights.safetensors").is_file()


def test_a_codebook_of_another_size_starts_afresh(tmp_path: Path):
    tokenizer, encoder = official(tmp_path / "t.pt", "tokenizer"), official(tmp_path / "e.pt")
    for codes in (12, 6):
        cfg = TokenizerConfig(teacher=str(encoder), codes=codes, code_dim=8)
        loss = TokenizerDistillation(Beats(SMALL), cfg)
        fresh = read_initial(tokenizer).into_rest(loss)
        loss.prepare(mel())
        assert ("tokenizer.codebook.weight" in fresh) == (codes == 6)
        book = loss.tokenizer.codebook.weight
        torch.testing.assert_close(book.norm(dim=-1), torch.ones(codes))
        theirs = torch.load(tokenizer, weights_only=True)["model"]["quantize.embedding.weight"]
        assert (codes == 12) == (book.shape == theirs.shape and torch.equal(book, theirs))


def test_other_statistics_are_refused(tmp_path: Path):
    tokenizer = official(tmp_path / "t.pt", "tokenizer")
    with pytest.raises(UsageError, match=r"15\.41663") as error:
        TokenizerLabels(Beats(SMALL), BeatsLossConfig(tokenizer=str(tokenizer), statistics=(11.72215, 10.60431)))
    assert "frontend.mean=15.41663" in error.value.fix


def test_logits_need_a_teacher_with_a_head(tmp_path: Path):
    encoder, fine = official(tmp_path / "e.pt"), official(tmp_path / "c.pt", "classifier")
    with pytest.raises(UsageError, match="no head"):
        load_teacher(TokenizerConfig(teacher=str(encoder), target="logits"), Beats(SMALL))
    for pooling, shape in (("clip", (2, 3)), ("patch", (2, 32, 3))):
        cfg = TokenizerConfig(
            teacher=str(fine), target="logits", pooling=pooling, standardise=True, codes=12, code_dim=8
        )
        loss = TokenizerDistillation(Beats(SMALL), cfg)
        loss.prepare(mel())
        assert loss._target(mel())[0].shape == shape
        out = loss(mel())
        assert out.total().isfinite()
        loss.after_step(1)


def test_a_codebook_that_was_never_started_gives_no_labels():
    with pytest.raises(CheckpointError, match="never started"):
        Codebook(4, 2)(torch.randn(3, 2))


# -- data --------------------------------------------------------------------------------------------------------------
def test_a_spectrogram_without_a_patch_is_refused():
    batch = Batch(("short",), torch.zeros(1).long(), {"audio": Stream(torch.randn(1, 15, 128))})
    with pytest.raises(DataError, match="15 frames"):
        Beats(SMALL)(batch)


def test_class_indices_do_not_mix():
    frontend = BeatsFrontend(BeatsFrontendConfig(mixup=1.0))
    clip = Clip("a", {"audio": Waveform(np.zeros((1, 16000), np.float32), 16000)}, target=np.int64(3))
    with pytest.raises(UsageError, match="class indices do not mix"):
        frontend.item([clip, clip], np.random.default_rng(0))


def test_digital_silence_is_a_normal_clip():
    frontend = BeatsFrontend(BeatsFrontendConfig()).eval()
    silence = frontend.batch(Batch(("s",), torch.zeros(1).long(), {"audio": Stream(torch.zeros(1, 16000))}))
    x = silence.streams["audio"].x
    torch.testing.assert_close(x, torch.full_like(x, -2.39173), atol=1e-4, rtol=0)
    assert Beats(SMALL).eval()(silence).tokens["audio"].isfinite().all()
