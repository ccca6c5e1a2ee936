"""What a writer needs besides the deployed weights: head, decoder, teacher and the number of finished updates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.files import replacing
from avssl.model import TRAINING
from avssl.safeload import load_safetensors
from avssl.schema import structure


def own_tensors(model: Any) -> dict[str, Tensor]:
    """The backbone's tensors, on the CPU; model: an opened `avssl.model.Model`."""
    return {k: v.detach().cpu() for k, v in model.backbone.state_dict().items()}


def training_state(model: Any) -> dict[str, Tensor]:
    """The tensors that training needs and deployment does not; {} for a model without them."""
    path = Path(model.path) / TRAINING
    return load_safetensors(path) if path.is_file() else {}


def backbone_is(model: Any, *names: str) -> str:
    """The backbone's registered name. Raises CheckpointError when the format has no place for it."""
    name = model.recipe["backbone"]["name"]
    check(
        name in names,
        f"the format holds {' or '.join(names)}, the model is a {name}",
        fix="see `avssl import --list` for the others",
        error=CheckpointError,
    )
    return name


def objective_of(model: Any, name: str, cls: type) -> Any:
    """The objective's config: the model's own, or the defaults for a model that was trained otherwise since."""
    table = dict(model.recipe["loss"])
    return structure(cls, table, "loss") if table.pop("name") == name else cls()


def image_head(model: Any) -> Any:
    """The image classifier in one of the two published forms, or None for a model with no head of that kind.

    Raises CheckpointError for a head that BEiT's files have no place for.
    """
    from avssl_data2vec.classify import PatchHead

    head = model.head
    if not isinstance(head, PatchHead):
        return None
    pooled = head.norm is not None and not head.class_token and not model.backbone.config.pooled_norm
    check(
        pooled or (head.class_token and head.norm is None),
        "the format knows a norm between the pooled patches and the classifier, or a classifier of the class token alone",
        fix="train it with backbone.pooled_norm=false, or with loss.class_token=true loss.norm=false",
        error=CheckpointError,
    )
    return head


def save_torch(path: Path, data: Mapping[str, Any]) -> list[Path]:
    """A torch.save file, complete or absent, with tensors of their own memory."""

    def owned(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cpu().contiguous().clone()
        return {k: owned(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    with replacing(Path(path)) as temporary:
        torch.save(owned(data), temporary)
    return [Path(path)]
