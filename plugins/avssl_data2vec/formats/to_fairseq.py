"""Writing fairseq `.pt` files, in the layout that fairseq saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl_data2vec.formats import fairseq, to_fairseq1, to_fairseq2, to_fairseq_tasks
from avssl_data2vec.formats.faithful import check_written
from avssl_data2vec.formats.training_state import backbone_is, save_torch, training_state

_PRETRAINED = (
    "loss.guard.*",  # when a run stops: neither text nor any file says how late it begins
    "loss.mask.over_padding",  # what of a padded batch is hidden, and what targets are normalised over
    "loss.targets.count_padding",
)
_FINE_TUNED = ("loss.spans.*", "loss.channels.*", "loss.channels_first", "loss.dropout")


def write(model: Any, path: Path) -> list[Path]:
    """Write an opened model; a pretrained one with head and teacher where its directory holds them.

    Raises CheckpointError for a model that the official classes would take for another one.
    """
    name = backbone_is(
        model, "data2vec_audio", "data2vec_text", "data2vec2_audio", "data2vec2_vision", "data2vec2_text"
    )
    pretrained = {"data2vec_audio": to_fairseq1.audio, "data2vec_text": to_fairseq1.text}.get(name, to_fairseq2.multi)
    fine_tuned = {
        ("ctc", "data2vec_audio"): to_fairseq_tasks.ctc,
        ("ctc", "data2vec2_audio"): to_fairseq_tasks.ctc,
        ("data2vec_audio_classify", "data2vec_audio"): to_fairseq_tasks.tags,
        ("data2vec_image_classify", "data2vec2_vision"): to_fairseq_tasks.images,
        ("data2vec_text_classify", "data2vec_text"): to_fairseq_tasks.sentences1,
        ("data2vec_text_classify", "data2vec2_text"): to_fairseq_tasks.sentences2,
    }
    task = fine_tuned.get((model.recipe["loss"]["name"], name))
    data = _file(*(task or pretrained)(model), model)
    c = model.backbone.config
    ids = {"pad": c.pad, "mask": c.mask} if hasattr(c, "vocabulary") else {}
    check_written(
        model, fairseq.read_data(data, path, **ids), "data2vec_fairseq",
        training_only=_FINE_TUNED if task else _PRETRAINED,
    )  # fmt: skip
    return save_torch(path, data)


def _file(tensors: Mapping[str, Any], cfg: Mapping[str, Any], model: Any) -> dict[str, Any]:
    updates = training_state(model).get("updates")
    history = {
        "criterion_name": "ModelCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0 if updates is None else int(updates),
    }
    return {
        "args": None,
        "cfg": {"_name": None, **cfg},
        "model": tensors,
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
        "last_optimizer_state": {},
    }
