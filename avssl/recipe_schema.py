"""The JSON schema of recipes, for editors."""

from __future__ import annotations

from typing import Any

from avssl.entries import resolve
from avssl.recipe import DataConfig, MonitorConfig, OptimConfig, ScheduleConfig, Stage, TrainConfig
from avssl.registry import registry
from avssl.schema import json_schema


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file, with the config of every registered backbone, loss and frontend."""
    definitions: dict[str, Any] = {}

    def closed(cls: type, name: str = "") -> dict[str, Any]:
        schema = json_schema(cls)
        definitions.update(schema.pop("$defs", {}))
        schema["additionalProperties"] = False
        if name:
            schema.setdefault("properties", {})["name"] = {"const": name}
        else:
            schema.pop("required", None)  # a recipe that extends another may leave anything out
        return schema

    def components(kind: str) -> dict[str, Any]:
        return {
            "oneOf": [
                {k: v for k, v in closed(resolve(e.config), e.name).items() if k != "required"}
                for e in registry().all(kind)
            ]
        }

    frontends = {e.frontend_config for kind in ("backbone", "loss") for e in registry().all(kind) if e.frontend_config}
    text = {"type": "string"}
    out = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "avssl recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": text,
            "summary": text,
            "source": text,
            "extends": text,
            "stage": {"enum": ["pretrain", "finetune", "pipeline"]},
            "tags": {"type": "array", "items": text},
            "backbone": components("backbone"),
            "loss": components("loss"),
            "frontend": {"anyOf": [closed(resolve(f)) for f in sorted(frontends)]},
            "data": closed(DataConfig),
            "optim": closed(OptimConfig),
            "schedule": closed(ScheduleConfig),
            "train": closed(TrainConfig),
            "monitor": closed(MonitorConfig),
            "expected": {"type": "object", "additionalProperties": {"type": "number"}},
            "stages": {"type": "array", "items": closed(Stage)},
        },
    }
    if definitions:
        out["$defs"] = definitions
    return out
