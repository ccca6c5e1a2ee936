"""A run may start from the slow average that a pretrained model's loss kept: its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avssl.data.clip import Row
from avssl.errors import CheckpointError
from avssl.imports import Imported
from avssl.model import Initial, build_backbone, build_loss, open_model, read_initial
from avssl.model_import import write_imported
from avssl.registry import registry
from avssl.testing import check_loss
from avssl.training.run import finetune, pretrain
from avssl.training.setup import Machine
from avssl_data2vec import example
from avssl_data2vec.formats import to_fairseq

MACHINE = Machine(device="cpu", workers=0)
TINY = ["backbone.dim=16", "backbone.depth=2", "backbone.heads=2", "data.batch_size=4", "optim.lr=1e-2"]
NONE = "holds no average of its weights (--set train.init=weights, or start from another model)"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [Row(f"{i}", {"text": f"a text of {i} words"}, labels=("ab"[i % 2],)) for i in range(8)]


@pytest.fixture(scope="module", params=["data2vec/text_tiny", "data2vec/text2_tiny"])
def pretrained(request: pytest.FixtureRequest, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    still = ["loss.teacher.start=0.9", "loss.teacher.end=0.9", "train.updates=4"]
    pretrain(request.param, rows, out, overrides=[*TINY, *still], machine=MACHINE)
    return out


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {k.removeprefix("backbone."): v for k, v in read_initial(path).tensors.items() if k.startswith("backbone.")}


def tuned(source: Path, rows: list[Row], out: Path, *changes: str) -> dict[str, torch.Tensor]:
    """The backbone as fine-tuning found it: nothing moves it at this rate."""
    recipe = f"{read_initial(source).tables['name']}_finetune"
    finetune(
        recipe, source, rows, out, overrides=[*TINY, "train.updates=1", "optim.lr=1e-30", *changes], machine=MACHINE
    )
    return weights(out)


def test_fine_tuning_starts_from_the_weights_or_from_the_average(
    pretrained: Path, rows: list[Row], tmp_path: Path
) -> None:
    student = weights(pretrained)
    tensors = read_initial(pretrained).tensors
    teacher = {k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")}
    assert teacher.keys() <= student.keys() and any(not torch.equal(v, student[k]) for k, v in teacher.items())
    for out, change, want in (
        ("weights", "train.init=weights", student),
        ("average", "train.init=average", {**student, **teacher}),  # what the teacher shares is the student's
    ):
        got = tuned(pretrained, rows, tmp_path / out, change)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert open_model(tmp_path / "average").recipe["train"]["init"] == "average"


def test_pretraining_goes_on_from_the_average_with_its_own_teacher(pretrained: Path) -> None:
    initial = read_initial(pretrained)
    averaged = initial.averaged()
    loss = build_loss(initial.tables, build_backbone(initial.tables))
    averaged.into_backbone(loss.backbone, initial.backbone_name)
    averaged.into_rest(loss)
    state = loss.state_dict()
    for name, value in initial.tensors.items():
        if name.startswith("teacher."):
            assert torch.equal(state[name], value) and torch.equal(state["backbone." + name[8:]], value)


def test_a_model_without_an_average_of_its_own_is_refused(pretrained: Path, rows: list[Row], tmp_path: Path) -> None:
    tuned(pretrained, rows, tmp_path / "tuned")
    with pytest.raises(CheckpointError) as caught:  # fine-tuning kept none
        read_initial(tmp_path / "tuned").averaged()
    assert str(caught.value) == f"{tmp_path}/tuned {NONE}"
    initial = read_initial(pretrained)
    copy = {
        k: initial.tensors["backbone." + k[8:]] if k.startswith("teacher.") else v for k, v in initial.tensors.items()
    }
    with pytest.raises(CheckpointError) as caught:  # as of a published file that held none: readers fill in a copy
        replace(initial, tensors=copy).averaged()
    assert str(caught.value) == f"{pretrained} {NONE}"


def test_a_published_teacher_is_started_from(tmp_path: Path) -> None:
    """The part of the official `load_ema`: what the file averages replaces the student's, the rest stays."""
    tables = {**example.audio(tmp_path), "loss": {"name": "data2vec", "teacher": {"own_local": False}}}
    loss = build_loss(tables, build_backbone(tables))
    with torch.no_grad():
        for parameter in loss.teacher.parameters():
            parameter.add_(1)
    made = Imported(backbone=tables["backbone"], loss=tables["loss"], tensors=loss.state_dict())
    write_imported(made, tmp_path / "made")
    (file,) = to_fairseq.write(open_model(tmp_path / "made"), tmp_path / "model.pt")
    initial: Initial = read_initial(file, "data2vec_fairseq")
    moved = {k for k, v in initial.averaged().tensors.items() if not torch.equal(v, initial.tensors[k])}
    local = ("backbone.extractor", "backbone.feature_norm", "backbone.project", "backbone.mask_token")
    assert moved == {k for k, _ in loss.named_parameters() if k.startswith("backbone.") and not k.startswith(local)}


def test_an_average_that_an_entry_promises_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry().get("loss", "data2vec")
    for prefix, message in (
        ("slow.", "its entry names an average 'slow.', and its state has none"),
        ("heads.", "its average has audio.0.bias, its backbone has not"),
    ):
        monkeypatch.setitem(registry().entries["loss"], "data2vec", replace(entry, average=prefix))
        with pytest.raises(AssertionError, match=message):
            check_loss("data2vec")
