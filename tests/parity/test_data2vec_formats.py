"""Published checkpoints go in and come out with every tensor, and no stranger gets in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from avssl.batch import Batch, Stream
from avssl.errors import CheckpointError
from avssl.imports import Imported, import_checkpoint
from avssl.model import open_model
from avssl.model_import import write_imported
from avssl.safeload import load_safetensors, load_torch
from avssl_data2vec import example
from avssl_data2vec.formats import fairseq, hugging_face, to_fairseq, to_hugging_face, to_vision1, vision1
from avssl_data2vec.formats.faithful import check_written
from parity.harness import Case, cases

EVERY = cases("data2vec")


def flat(model: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    out = {}
    for key, value in model.items():
        out |= {f"{key}.{k}": v for k, v in flat(value).items()} if isinstance(value, Mapping) else {key: value}
    return out


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert set(a) == set(b), f"only in one: {sorted(set(a) ^ set(b))[:6]}"
    for key in a:
        assert torch.equal(a[key], b[key].to(a[key].dtype)), key


def format_of(case: Case) -> tuple[str, Any]:
    vision = case.spec["config"]["official_class"].startswith("VisionTransformer")
    return ("data2vec_vision", to_vision1) if vision else ("data2vec_fairseq", to_fairseq)


@pytest.mark.parametrize("case", EVERY)
def test_a_published_file_comes_out_as_it_went_in(case: Case, tmp_path: Path):
    name, writer = format_of(case)
    imported = import_checkpoint(case.file("checkpoint"), name)
    write_imported(imported, tmp_path / "model")
    (written,) = writer.write(open_model(tmp_path / "model"), tmp_path / "out.pt")
    before, after = load_torch(case.file("checkpoint")), load_torch(written)
    same(flat(before["model"]), flat(after["model"]))
    if "model_ema" in before:
        same(before["model_ema"], after["model_ema"])
    again = import_checkpoint(written, name)
    assert dict(again.backbone) == dict(imported.backbone)
    same(again.tensors, imported.tensors)
    if name == "data2vec_fairseq":
        assert again.loss == imported.loss


@pytest.mark.parametrize("case", EVERY)
def test_a_published_file_is_recognised(case: Case):
    path = case.file("checkpoint")
    seen = [
        name for name, module in (("data2vec_fairseq", fairseq), ("data2vec_vision", vision1)) if module.detect(path)
    ]
    assert seen == [format_of(case)[0]] and not hugging_face.detect(path)


@pytest.mark.parametrize("case", cases("data2vec", "audio_backbone", "vision_backbone", "text_backbone"))
def test_a_hugging_face_folder_comes_out_as_it_went_in(case: Case, tmp_path: Path):
    imported = import_checkpoint(case.file("hf_model"), "data2vec_hf", config=str(case.file("hf_config")))
    write_imported(imported, tmp_path / "model")
    to_hugging_face.write(open_model(tmp_path / "model"), tmp_path / "hf")
    same(load_safetensors(case.file("hf_model")), load_safetensors(tmp_path / "hf" / "model.safetensors"))
    assert hugging_face.detect(tmp_path / "hf")
    again = import_checkpoint(tmp_path / "hf")
    assert dict(again.backbone) == dict(imported.backbone)
    same(again.tensors, imported.tensors)


@pytest.mark.parametrize("case", EVERY)
def test_a_tensor_that_nothing_uses_is_an_error_that_names_it(case: Case, tmp_path: Path):
    data = load_torch(case.file("checkpoint"))
    data["model"]["encoder.layers.0.surprise.weight"] = torch.zeros(3)
    torch.save(data, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="surprise"):
        import_checkpoint(tmp_path / "odd.pt", format_of(case)[0])


@pytest.mark.parametrize("case", cases("data2vec", "audio_train_step", "text_train_step", "vision_train_step"))
def test_a_missing_tensor_is_an_error(case: Case, tmp_path: Path):
    from avssl.imports import build

    data = load_torch(case.file("checkpoint"))
    lost = next(k for k in data["model"] if k.endswith("fc1.weight"))
    del data["model"][lost]
    torch.save(data, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError):
        build(import_checkpoint(tmp_path / "odd.pt", format_of(case)[0]))


@pytest.mark.parametrize("case", cases("data2vec", "vision_backbone"))
def test_heads_that_the_file_does_not_say_are_asked_for_as_the_command_line_takes_them(case: Case, tmp_path: Path):
    data = load_torch(case.file("checkpoint"))
    data["model"] = {k: v for k, v in data["model"].items() if "relative_position" not in k}
    torch.save({"model": data["model"]}, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(tmp_path / "plain.pth", "data2vec_vision")
    assert "--option heads=" in error.value.fix
    heads = case.spec["config"]["model"]["num_heads"]
    assert import_checkpoint(tmp_path / "plain.pth", "data2vec_vision", heads=heads).backbone["heads"] == heads


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("executed",)


def test_no_pickle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"cfg": {"model": {"_name": "data2vec_audio"}}, "model": {"evil": Evil()}, "optimizer_history": []}, "evil.pt"
    )
    for read in (fairseq.read, vision1.read, hugging_face.read):
        with pytest.raises(CheckpointError):
            read(Path("evil.pt"))
    assert not Path("executed").exists()


def test_a_recogniser_goes_out_and_in_in_both_formats(tmp_path: Path):
    from avssl.imports import build
    from avssl.model import build_backbone, build_loss, imported_tables

    tables = example.audio(tmp_path)
    tables["loss"] = {
        "name": "ctc",
        "classes": 32,
        "spans": {"probability": 0.65},
        "channels": {"probability": 0.25, "length": 16, "min_spans": 0},
    }
    loss = build_loss(tables, build_backbone(tables))
    made = Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict())
    assert imported_tables(made)["loss"]["name"] == "ctc"
    write_imported(made, tmp_path / "model")
    model = open_model(tmp_path / "model")
    (file,) = to_fairseq.write(model, tmp_path / "ctc.pt")
    to_hugging_face.write(model, tmp_path / "hf")
    for again in (import_checkpoint(file, "data2vec_fairseq"), import_checkpoint(tmp_path / "hf")):
        same(again.tensors, made.tensors)
        assert build(again).config.spans.probability == 0.65


FINE_TUNED = [
    (example.audio2, "ctc", {"classes": 32, "spans": {"probability": 0.5}}, to_fairseq),
    (example.audio, "data2vec_audio_classify", {"classes": 5, "pooling": "average"}, to_fairseq),
    (example.vision2, "data2vec_image_classify", {"classes": 5, "class_token": True}, to_fairseq),
    (example.vision2, "data2vec_image_classify", {"classes": 5, "norm": False}, to_fairseq),
    (example.text, "data2vec_text_classify", {"classes": 5}, to_fairseq),
    (example.text2, "data2vec_text_classify", {"regression": True}, to_fairseq),
    (example.vision, "data2vec_image_classify", {"classes": 5}, to_vision1),
    (example.vision, "data2vec_image_classify", {"classes": 5, "class_token": True, "norm": False}, to_vision1),
    (example.vision, "data2vec_image_classify", {"classes": 5}, to_hugging_face),
    (example.vision, "data2vec_image_classify", {"classes": 5, "class_token": True, "norm": False}, to_hugging_face),
    (example.text, "data2vec_text_classify", {"regression": True}, to_hugging_face),
]


@pytest.mark.parametrize(
    "encoder,name,options,writer", FINE_TUNED, ids=lambda x: getattr(x, "__name__", str(x)).rsplit(".", 1)[-1]
)
def test_a_fine_tuned_model_goes_out_and_in_with_its_head(encoder, name, options, writer, tmp_path: Path):
    from avssl.imports import build
    from avssl.model import build_backbone, build_loss

    tables = encoder(tmp_path)
    if encoder is example.vision:
        tables["backbone"]["pooled_norm"] = False
    tables["loss"] = {"name": name, **options}
    loss = build_loss(tables, build_backbone(tables))
    if writer is to_vision1 or encoder is example.vision:  # neither file has what a classifier does not use
        unused = ("mask_token",) if options.get("class_token") else ("mask_token", "norm.")
        fresh = {k: v for k, v in loss.backbone.state_dict().items() if k.startswith(unused)}
        loss.backbone.load_state_dict({k: torch.zeros_like(v) for k, v in fresh.items()} | {
            k: torch.ones_like(v) for k, v in fresh.items() if k == "norm.weight"}, strict=False)  # fmt: skip
    made = Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict())
    write_imported(made, tmp_path / "model")
    writer.write(open_model(tmp_path / "model"), tmp_path / "out.pt")
    again = import_checkpoint(tmp_path / "out.pt")
    same(again.tensors, made.tensors)
    head = build(again)
    assert again.loss["name"] == name and head.config.__class__ is loss.config.__class__
    assert {k: getattr(head.config, k) for k in options if k != "spans"} == {
        k: v for k, v in options.items() if k != "spans"
    }


@pytest.mark.parametrize(
    "encoder,writer", [(example.audio, to_fairseq), (example.text, to_fairseq), (example.vision, to_vision1)]
)
def test_an_encoder_under_a_head_that_the_format_lacks_goes_out_alone(encoder, writer, tmp_path: Path):
    from avssl.imports import build
    from avssl.model import build_backbone, build_loss

    tables = {**encoder(tmp_path), "loss": {"name": "classify", "classes": 3}}
    loss = build_loss(tables, build_backbone(tables))
    write_imported(
        Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict()), tmp_path / "m"
    )
    writer.write(open_model(tmp_path / "m"), tmp_path / "out.pt")
    again = build(import_checkpoint(tmp_path / "out.pt"))
    same(again.backbone.state_dict(), loss.backbone.state_dict())


def test_a_model_without_layer_scale_or_positions_is_opened_again(tmp_path: Path):
    from avssl.imports import build
    from avssl.model import build_backbone, build_loss

    tables = example.vision(tmp_path)
    tables["backbone"] |= {"layer_scale": 0.0, "positions": "none"}
    tables["loss"] = {"name": "data2vec", "targets": {"top_k": 2}, "teacher": {"average_head": True, "delay": 1}}
    tables["loss"] |= {"blocks": {"count": 0.5, "min_patches": 2}}
    loss = build_loss(tables, build_backbone(tables))
    made = Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict())
    write_imported(made, tmp_path / "model")
    to_vision1.write(open_model(tmp_path / "model"), tmp_path / "out.pth")
    again = import_checkpoint(tmp_path / "out.pth")
    same(again.tensors, made.tensors)
    assert again.backbone["layer_scale"] == 0.0 and again.backbone["positions"] == "none"
    batch = Batch(("a", "b"), torch.arange(2), {"vision": Stream(torch.randn(2, 3, 32, 32))})
    totals = [build(made)(batch, draw := loss.sample(batch)).total(), build(again)(batch, draw).total()]
    torch.testing.assert_close(*totals)  # of the same objective, whose scale the file says in another way


def test_a_hugging_face_option_that_changes_the_numbers_is_refused(tmp_path: Path):
    import json

    from avssl.model import build_backbone, build_loss

    tables = {**example.vision(tmp_path), "loss": {"name": "data2vec", "targets": {"top_k": 2}}}
    loss = build_loss(tables, build_backbone(tables))
    write_imported(
        Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict()), tmp_path / "m"
    )
    to_hugging_face.write(open_model(tmp_path / "m"), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="hidden_act = 'relu'"):
        import_checkpoint(tmp_path / "hf")


def test_the_pixel_loss_of_the_second_version_goes_out_and_in(tmp_path: Path):
    from avssl.imports import build
    from avssl.model import build_backbone, build_loss

    tables = example.data2vec2(tmp_path)
    tables["backbone"] |= {"name": "data2vec2_vision", "dim": 48, "patch": 4}
    tables["loss"] |= {"name": "data2vec2", "reconstruction_weight": 0.3}
    loss = build_loss(tables, build_backbone(tables))
    made = Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict())
    write_imported(made, tmp_path / "model")
    (file,) = to_fairseq.write(open_model(tmp_path / "model"), tmp_path / "multi.pt")
    again = import_checkpoint(file, "data2vec_fairseq")
    same(again.tensors, made.tensors)
    assert build(again).config.reconstruction_weight == 0.3


def opened(tables: dict[str, Any], folder: Path) -> Any:
    """The model of these tables with fresh weights, as if a run had finished."""
    from avssl.model import build_backbone, build_loss

    loss = build_loss(tables, build_backbone(tables))
    made = Imported(tables["backbone"], tables["loss"], loss.state_dict(), frontend=tables.get("frontend", {}))
    write_imported(made, folder)
    return open_model(folder)


FIRST = {"name": "data2vec", "targets": {"top_k": 2}, "blocks": {"count": 0.5, "min_patches": 2}}
SECOND = {"name": "data2vec2", "targets": {"top_k": 2}, "mask": {"over_padding": True}}
AUDIO = {**FIRST, "teacher": {"own_local": False}}
UNSAYABLE = [  # encoder, objective, what is unusual, writer
    (example.audio2, SECOND, {"backbone": {"norm_first": True, "mend_norm_first": True}}, to_fairseq),
    (example.audio2, SECOND, {"backbone": {"positions_over_padding": False}}, to_fairseq),
    (example.audio, AUDIO, {"backbone": {"norm_eps": 1e-3}}, to_fairseq),
    (example.audio, AUDIO, {"backbone": {"positions_over_padding": False}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"targets": {"indices": [0]}}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"targets": {"per_layer": ["layer", "instance"]}}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"absolute": True}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"variance_weight": 0.5}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"teacher": {"delay": 1}}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"teacher": {"copied": ["layers.0.*"]}}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"head_layers": 2}}, to_fairseq),
    (example.audio, {**AUDIO, "teacher": {"own_local": True}, "targets": {"top_k": 1}}, {}, to_fairseq),
    (example.text, FIRST, {"backbone": {"norm_eps": 1e-3}}, to_fairseq),
    (example.text, FIRST, {"loss": {"teacher": {"copied": ["layers.0.*"]}}}, to_fairseq),
    (example.vision2, SECOND, {"frontend": {"mean": [0.5, 0.5, 0.5]}}, to_fairseq),
    (example.vision, FIRST, {"loss": {"blocks": {"min_aspect": 0.5}}}, to_vision1),
    (example.vision, FIRST, {"loss": {"teacher": {"delay": 0}}}, to_vision1),
    (example.audio, AUDIO, {"backbone": {"positions_over_padding": False}}, to_hugging_face),
    (example.audio, AUDIO, {"backbone": {"extractor": "default"}}, to_hugging_face),
]


def merged(into: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return into | {k: merged(into.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in other.items()}


def keys_of(table: Mapping[str, Any], where: str = "") -> list[str]:
    return [
        key for k, v in table.items() for key in (keys_of(v, f"{where}{k}.") if isinstance(v, Mapping) else [where + k])
    ]


@pytest.mark.parametrize(
    "encoder,objective,unusual,writer", UNSAYABLE, ids=lambda x: ",".join(keys_of(x)) if isinstance(x, dict) else ""
)
def test_what_a_format_cannot_say_is_an_error_that_names_it(encoder, objective, unusual, writer, tmp_path: Path):
    tables = merged({**encoder(tmp_path), "loss": objective}, unusual)
    with pytest.raises(CheckpointError) as error:
        writer.write(opened(tables, tmp_path / "model"), tmp_path / "out")
    named = str(error.value)
    expected = keys_of(unusual)[-1] if unusual else "loss.targets.indices"
    assert expected in named or "extractor" in expected, named
    assert not (tmp_path / "out").exists()


SAYABLE = [  # the same thing in other words
    (example.audio, AUDIO, {"loss": {"reduction": "mean", "scale": 0.5, "modalities": ["audio"]}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"targets": {"indices": [1]}}}, to_fairseq),
    (
        example.audio,
        AUDIO,
        {"frontend": {"crop": "shortest"}, "loss": {"targets": {"count_padding": False}}},
        to_fairseq,
    ),
    (example.audio, AUDIO, {"loss": {"targets": {"per_layer": ["layer"], "count_padding": False}}}, to_fairseq),
    (example.audio, AUDIO, {"loss": {"teacher": {"copied": ["positions*"]}}}, to_fairseq),
    (example.text, FIRST, {"loss": {"teacher": {"copied": ["embed.*"]}}}, to_fairseq),
    (example.vision2, SECOND, {"loss": {"mask": {"over_padding": False}}, "backbone": {"patch_dim": 32}}, to_fairseq),
    (example.vision, FIRST, {"loss": {"teacher": {"delay": 1, "copied": ["no.such"]}}}, to_vision1),
    (example.audio, AUDIO, {"loss": {"absolute": True}}, to_hugging_face),
]


@pytest.mark.parametrize(
    "encoder,objective,words,writer", SAYABLE, ids=lambda x: ",".join(keys_of(x)) if isinstance(x, dict) else ""
)
def test_what_a_format_says_in_other_words_goes_out(encoder, objective, words, writer, tmp_path: Path):
    tables = merged({**encoder(tmp_path), "loss": objective}, words)
    model = opened(tables, tmp_path / "model")
    writer.write(model, tmp_path / "out")
    again = import_checkpoint(tmp_path / "out")
    own = {k: v for k, v in again.tensors.items() if k.startswith("backbone.")}
    same(own, {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()})


def test_what_only_training_would_miss_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tables = merged({**example.audio(tmp_path), "loss": LETTERS}, {"backbone": {"feature_grad": 0.5}})
    to_hugging_face.write(opened(tables, tmp_path / "model"), tmp_path / "hf")
    said = capsys.readouterr().err
    assert said == "note: data2vec_hf has no place for backbone.feature_grad = 0.5, loss.spans.same_count = True\n"
    to_fairseq.write(open_model(tmp_path / "model"), tmp_path / "ctc.pt")
    assert not capsys.readouterr().err
    padding = {"targets": {"count_padding": False}}
    tables = merged({**example.audio(tmp_path), "loss": AUDIO}, {"loss": padding})
    to_fairseq.write(opened(tables, tmp_path / "padding"), tmp_path / "padding.pt")
    assert "has no place for loss.targets.count_padding = False\n" in capsys.readouterr().err
    tables["loss"] = {"name": "classify", "classes": 3}
    to_fairseq.write(opened(tables, tmp_path / "other"), tmp_path / "alone.pt")
    assert "no place for the loss classify" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["loss.shared_decoder", "backbone.prenet_layerdrop", "frontend.rate", "loss.beta"])
def test_the_check_of_a_written_file_covers_every_field(key, tmp_path: Path):
    """A reader that loses one is noticed, whatever the field; an optional table too."""
    tables = merged(
        {**example.audio2(tmp_path), "loss": SECOND}, {"loss": {"shared_decoder": {"dim": 16, "groups": 4}}}
    )
    model = opened(merged(tables, {"loss": {"beta": 0.5}}), tmp_path / "model")
    table = model.recipe
    read = Imported(**{k: dict(table[k]) for k in ("backbone", "loss", "frontend")}, tensors={})
    check_written(model, read, "a format")
    part, field = key.split(".")
    lost = {**dict(getattr(read, part)), field: 8000 if field == "rate" else 0.25}
    if field == "shared_decoder":
        del lost[field]
    with pytest.raises(CheckpointError, match=rf"a format has no place for {part}\.{field}"):
        check_written(model, dataclasses.replace(read, **{part: lost}), "a format")


INCEPTION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
CLASSIFIER = {"name": "data2vec_image_classify", "classes": 5}
TAUGHT = {**FIRST, "teacher": {"delay": 1}}


def paths_of(table: Mapping[str, Any], *above: str) -> list[tuple[str, ...]]:
    own = [(*above, k) for k in table if k not in ("_name", "model", "w2v_args", "pretrained_model_args")]
    return own + [p for k, v in table.items() if isinstance(v, Mapping) for p in paths_of(v, *above, k)]


def without(table: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return {k: v for k, v in table.items() if k != first}
    return {**table, first: without(table[first], tuple(rest))}


LETTERS = {"name": "ctc", "classes": 6, "spans": {"probability": 0.5}}


@pytest.mark.parametrize(
    "encoder,loss",
    [
        (example.audio, AUDIO), (example.text, FIRST), (example.audio2, SECOND), (example.vision2, SECOND),
        (example.text2, SECOND), (example.audio, LETTERS), (example.audio2, LETTERS),
        (example.vision2, {**CLASSIFIER}), (example.text2, {"name": "data2vec_text_classify", "classes": 3}),
    ],
    ids=lambda x: x["name"] if isinstance(x, dict) else x.__name__,
)  # fmt: skip
def test_every_key_that_a_fairseq_file_leaves_out_has_its_official_default(encoder, loss, tmp_path: Path):
    """Such a file may then say other sizes than its tensors have, but it is never half a file."""
    to_fairseq.write(opened({**encoder(tmp_path), "loss": loss}, tmp_path / "model"), tmp_path / "out.pt")
    data = load_torch(tmp_path / "out.pt")
    paths = [p for p in paths_of(data["cfg"]) if p[0] in ("model", "task") and len(p) > 1]
    assert len(paths) > 20
    for path in paths:
        try:
            fairseq.read_data({**data, "cfg": without(data["cfg"], path)}, tmp_path / "out.pt")
        except CheckpointError as error:
            assert "unknown tensors" in str(error), path


def test_the_teacher_of_a_file_that_says_nothing_is_the_official_default(tmp_path: Path):
    to_fairseq.write(opened({**example.audio(tmp_path), "loss": AUDIO}, tmp_path / "a"), tmp_path / "a.pt")
    to_fairseq.write(opened({**example.text(tmp_path), "loss": FIRST}, tmp_path / "t"), tmp_path / "t.pt")
    for name, key, copied in (
        ("a.pt", "ema_layers_only", ["positions.*"]),
        ("t.pt", "ema_transformer_layers_only", ["embed.positions.*", "embed.norm.*", "embed.tokens.*"]),
    ):
        data = load_torch(tmp_path / name)
        assert data["cfg"]["model"].pop(key) is False
        del data["cfg"]["model"]["ema_anneal_end_step"]
        data["cfg"]["optimization"] = {"max_update": 123}
        teacher = fairseq.read_data(data, tmp_path / name).loss["teacher"]
        assert teacher["copied"] == copied and teacher["anneal"] == 123


def test_the_scale_of_an_old_file_without_a_dimension_for_layers_is_read(tmp_path: Path):
    tables = {**example.audio2(tmp_path), "loss": SECOND}
    tables["backbone"]["alibi"] = {"use": True, "learned_scale": True, "per_head": True}
    (file,) = to_fairseq.write(opened(tables, tmp_path / "model"), tmp_path / "new.pt")
    data = load_torch(file)
    for part in (data["model"], data["model"]["_ema"]):
        part["modality_encoders.AUDIO.alibi_scale"] = part["modality_encoders.AUDIO.alibi_scale"][0]
    torch.save(data, tmp_path / "old.pt")
    same(import_checkpoint(tmp_path / "old.pt").tensors, import_checkpoint(file).tensors)


def image_model(folder: Path, loss: Mapping[str, Any], **pixels: Any) -> Any:
    tables = merged({**example.vision(folder), "loss": loss}, {"frontend": pixels})
    if "classes" in loss:
        tables["backbone"]["pooled_norm"] = False
    return opened(tables, folder / "model")


@pytest.mark.parametrize("pixels", [{}, INCEPTION], ids=["imagenet", "inception"])
@pytest.mark.parametrize("loss", [TAUGHT, CLASSIFIER], ids=["pretrained", "classifier"])
@pytest.mark.parametrize("writer", [to_vision1, to_hugging_face], ids=["vision1", "hf"])
def test_the_normalisation_of_pixels_goes_out_and_in(writer, loss, pixels, tmp_path: Path):
    model = image_model(tmp_path, loss, **pixels)
    writer.write(model, tmp_path / "out")
    write_imported(import_checkpoint(tmp_path / "out"), tmp_path / "again")
    again = open_model(tmp_path / "again").frontend.config
    assert (again.mean, again.std) == (model.frontend.config.mean, model.frontend.config.std)
    assert again.eval_crop == pytest.approx(model.frontend.config.eval_crop, abs=0.02)  # whole pixels


@pytest.mark.parametrize("loss", [TAUGHT, CLASSIFIER], ids=["pretrained", "classifier"])
def test_a_file_that_does_not_say_its_pixels_is_of_the_published_commands(loss, tmp_path: Path):
    to_vision1.write(image_model(tmp_path, loss, **(INCEPTION if "classes" in loss else {})), tmp_path / "out.pth")
    data = load_torch(tmp_path / "out.pth")
    del data["args"]["imagenet_default_mean_and_std"]
    torch.save(data, tmp_path / "out.pth")
    frontend = import_checkpoint(tmp_path / "out.pth").frontend
    assert frontend.get("mean", "imagenet") == ([0.5] * 3 if "classes" in loss else "imagenet")


def test_pixels_that_the_vision_file_cannot_say_are_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"frontend\.mean"):
        to_vision1.write(image_model(tmp_path, CLASSIFIER, mean=[0.4, 0.5, 0.5]), tmp_path / "out.pth")


def test_a_processor_that_does_not_scale_pixels_is_read_as_what_it_does(tmp_path: Path):
    import json

    to_hugging_face.write(image_model(tmp_path, CLASSIFIER), tmp_path / "hf")
    file = tmp_path / "hf" / "preprocessor_config.json"
    own = json.loads(file.read_text())
    own |= {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}
    file.write_text(json.dumps(own | {"do_center_crop": False, "size": 32}))
    frontend = import_checkpoint(tmp_path / "hf").frontend
    assert frontend == {"size": 32, "mean": [0.5] * 3, "std": [0.2] * 3, "eval_crop": 1.0}


def test_what_a_recogniser_hears_goes_out_and_in(tmp_path: Path):
    tables = {**example.audio(tmp_path), "frontend": {"normalise": False, "rate": 8000}, "loss": AUDIO}
    tables["backbone"]["rate"] = 8000
    model = opened(tables, tmp_path / "model")
    to_fairseq.write(model, tmp_path / "out.pt")
    to_hugging_face.write(model, tmp_path / "hf")
    for path in (tmp_path / "out.pt", tmp_path / "hf"):
        again = import_checkpoint(path)
        assert again.frontend == {"normalise": False, "rate": 8000} and again.backbone["rate"] == 8000


def old_text(folder: Path, loss: Mapping[str, Any]) -> dict[str, Any]:
    """A text file under the names of older versions, with what they had beside."""
    (file,) = to_fairseq.write(
        opened({**example.text(folder), "loss": dict(loss)}, folder / "model"), folder / "new.pt"
    )
    data = load_torch(file)
    teacher = {k: v + 1 for k, v in data["model"].get("encoder._ema", {}).items() if k != "version"}
    beside = {f"encoder.emb_head.dense.{w}": torch.zeros(2) for w in ("weight", "bias")}
    beside |= {"encoder.lm_head.weight": torch.zeros(2), **{f"encoder.target_model.{k}": v for k, v in teacher.items()}}
    data["model"] = {k.replace("regression_head", "lm_head"): v for k, v in data["model"].items()} | beside
    return data


def test_an_older_text_file_has_its_teacher_under_another_name(tmp_path: Path):
    data = old_text(tmp_path, FIRST)
    newest = fairseq.read_data(data, tmp_path / "both.pt")
    assert set(newest.ignored) == {
        "encoder.target_model.", "encoder.emb_head.dense.weight", "encoder.emb_head.dense.bias", "encoder.lm_head.weight"
    }  # fmt: skip
    same(newest.tensors, import_checkpoint(tmp_path / "new.pt").tensors)
    del data["model"]["encoder._ema"]
    oldest = fairseq.read_data(data, tmp_path / "old.pt")
    teacher = {k: v + 1 if k.startswith("teacher.") else v for k, v in newest.tensors.items()}
    same(oldest.tensors, teacher)
    assert "encoder.target_model." not in oldest.ignored


def test_an_older_text_classifier_leaves_the_heads_of_pretraining_out(tmp_path: Path):
    data = old_text(tmp_path, {"name": "data2vec_text_classify", "classes": 3})
    data["model"]["encoder.target_model.embed_tokens.weight"] = torch.zeros(2)
    again = fairseq.read_data(data, tmp_path / "old.pt")
    same(again.tensors, import_checkpoint(tmp_path / "new.pt").tensors)
    assert {"target_model.", "lm_head.", "emb_head."} <= set(again.ignored)


def test_noise_in_place_of_hidden_frames_goes_out_and_in_and_is_drawn_again(tmp_path: Path):
    from avssl.imports import build

    tables = {**example.audio2(tmp_path), "loss": {**LETTERS, "channels": {"probability": 0.2, "length": 4}}}
    tables["loss"]["spans"] = {"probability": 0.5, "add": True, "dropout": 0.1}
    tables["backbone"]["hidden_noise"] = 0.02
    (file,) = to_fairseq.write(opened(tables, tmp_path / "model"), tmp_path / "ctc.pt")
    inner = load_torch(file)["cfg"]["model"]["w2v_args"]["model"]["modalities"]["audio"]
    assert not inner["encoder_zero_mask"] and inner["mask_noise_std"] == 0.02 and inner["mask_prob"] == 0.5
    again = import_checkpoint(file)
    assert again.backbone["hidden_noise"] == 0.02
    loss = build(again).train()
    assert (loss.config.spans.add, loss.config.spans.dropout, loss.config.channels.length) == (True, 0.1, 4)
    batch = Batch(("a", "b"), torch.tensor([7, 8]), {"audio": Stream(torch.randn(2, 8000))})
    hide = {"audio": torch.arange(24).expand(2, 24) % 2 == 0}
    local = torch.ones(2, 24, 32)

    def tokens(seeds: list[int]) -> torch.Tensor:
        return loss.backbone._hidden(local, hide["audio"], torch.tensor(seeds))

    first = tokens([7, 8])
    hidden, shown = first[hide["audio"]], first[~hide["audio"]]
    assert torch.equal(shown, torch.ones_like(shown)) and 0.017 < float(hidden.std()) < 0.023
    assert torch.equal(first, tokens([7, 8])) and torch.equal(first[1:], tokens([9, 8])[1:])
    assert not torch.equal(first[:1], tokens([9, 8])[:1])
    seen = [loss.backbone(batch, hide=hide).tokens["audio"] for _ in range(2)]
    assert torch.equal(*seen) and not torch.allclose(seen[0], loss.backbone(batch).tokens["audio"])


@pytest.mark.parametrize("option,value", [("mask_prob_min", 0.1), ("encoder_zero_mask", False)])
def test_an_option_that_no_encoder_of_ours_has_is_refused(option, value, tmp_path: Path):
    for encoder, loss in ((example.audio2, SECOND), (example.audio2, LETTERS)):
        (file,) = to_fairseq.write(
            opened({**encoder(tmp_path), "loss": loss}, tmp_path / loss["name"]), tmp_path / "x.pt"
        )
        data = load_torch(file)
        own = data["cfg"]["model"]
        own = own.get("w2v_args", {"model": own})["model"]["modalities"]["audio"]
        own[option] = value
        if (option, loss) == ("encoder_zero_mask", LETTERS):
            assert fairseq.read_data(data, file).backbone["hidden_noise"] == 0.01
            continue
        with pytest.raises(CheckpointError, match=option):
            fairseq.read_data(data, file)


@pytest.mark.parametrize("step", [123, torch.tensor(123.0)], ids=["number", "tensor"])
def test_the_updates_of_a_vision_file_are_those_that_its_optimiser_counted(step, tmp_path: Path):
    (file,) = to_vision1.write(image_model(tmp_path, TAUGHT), tmp_path / "out.pth")
    data = load_torch(file)
    assert int(vision1.read_data(data, file).tensors["updates"]) == 0
    data["optimizer"] = {"state": {0: {"step": step, "exp_avg": torch.zeros(3)}, 1: {"step": step}}, "param_groups": []}
    torch.save(data, file)
    assert int(import_checkpoint(file).tensors["updates"]) == 123
    assert int(import_checkpoint(file, updates=7).tensors["updates"]) == 7
    write_imported(import_checkpoint(file), tmp_path / "again")
    (again,) = to_vision1.write(open_model(tmp_path / "again"), tmp_path / "again.pth")
    assert int(import_checkpoint(again).tensors["updates"]) == 123


def test_a_vision_file_without_args_has_the_layers_of_the_published_command(tmp_path: Path):
    tables = merged({**example.vision(tmp_path), "loss": TAUGHT}, {"backbone": {"depth": 16}})
    (file,) = to_vision1.write(opened(tables, tmp_path / "model"), tmp_path / "out.pth")
    data = load_torch(file)
    del data["args"]["target_layers"]
    assert vision1.read_data(data, file).loss["targets"]["indices"] == list(range(10, 16))


def test_a_head_that_no_class_of_hugging_face_has_is_an_error(tmp_path: Path):
    for encoder, loss in ((example.vision, CLASSIFIER), (example.audio, LETTERS), (example.audio, AUDIO)):
        tables = merged({**encoder(tmp_path), "loss": loss}, {"backbone": {}})
        if encoder is example.vision:
            tables["backbone"]["pooled_norm"] = False
        folder = tmp_path / f"hf{loss['name']}"
        to_hugging_face.write(opened(tables, tmp_path / loss["name"]), folder)
        weights, config = load_safetensors(folder / "model.safetensors"), load_json(folder / "config.json")
        if loss is AUDIO:
            weights = {f"data2vec_audio.{k}": v for k, v in weights.items()}
        elif loss is CLASSIFIER:  # a known head of another task beside it does not hide the classifier
            read = hugging_face.read_parts(config, {**weights, "fpn1.0.weight": torch.zeros(2)}, {}, folder)
            assert read.loss["name"] == loss["name"] and set(read.ignored) == {"fpn1.0.weight"}
        with pytest.raises(CheckpointError, match="surprise"):
            hugging_face.read_parts(config, {**weights, "surprise.weight": torch.zeros(2)}, {}, folder)


def load_json(path: Path) -> dict[str, Any]:
    import json

    return json.loads(path.read_text())


def test_the_masks_of_a_hugging_face_recogniser_go_in_and_out(tmp_path: Path):
    from avssl.imports import build

    masks = {
        "spans": {"probability": 0.3, "length": 4, "min_spans": 3, "same_count": False},
        "channels": {"probability": 0.2, "length": 5, "min_spans": 1, "same_count": False},
    }
    tables = {**example.audio(tmp_path), "loss": {**LETTERS, **masks}}
    to_hugging_face.write(opened(tables, tmp_path / "model"), tmp_path / "hf")
    assert {k: dict(v) for k, v in import_checkpoint(tmp_path / "hf").loss.items() if k in masks} == masks
    config, weights = (
        load_json(tmp_path / "hf" / "config.json"),
        load_safetensors(tmp_path / "hf" / "model.safetensors"),
    )

    def read(**options: Any) -> Any:
        left = {k: v for k, v in config.items() if not k.startswith("mask_")}
        return build(hugging_face.read_parts({**left, **options}, weights, {}, tmp_path)).config

    plain = read()  # the defaults of their configuration class
    assert (plain.spans.probability, plain.spans.length, plain.spans.min_spans) == (0.05, 10, 2)
    assert (plain.channels.probability, plain.channels.min_spans) == (0.0, 0) and not plain.spans.same_count
    off = read(apply_spec_augment=False, mask_feature_prob=0.5)
    assert off.spans.probability == off.channels.probability == 0.0
    tables = {**example.audio(tmp_path), "loss": {"name": "ctc", "classes": 6}}  # nothing is hidden
    to_hugging_face.write(opened(tables, tmp_path / "shown"), tmp_path / "none")
    assert not load_json(tmp_path / "none" / "config.json")["apply_spec_augment"]
