"""Run a recipe and hold its numbers against those it states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from avssl.errors import check
from avssl.evaluation.gates import lower_is_better
from avssl.files import write_json
from avssl.recipe import load_run
from avssl.registry import registry
from avssl.training.setup import Machine

MARGIN = 0.05  # relative; a recipe's numbers are one seed's, other machines round otherwise


def reproduce(
    recipe_name: str,
    data: str,
    out: Path,
    *,
    source: str | None = None,
    resume: bool = False,
    machine: Machine | None = None,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Train the recipe, run the protocols that its `expected` metrics name, and compare.

    Returns {"metrics": {name: {"expected", "got", "ok"}}, "ok", "run"}; ok = not worse than expected by more than
    `margin` (relative). Metrics are those of `avssl evaluate` (`retrieval.audio->vision.class.r@1`) or, with the prefix
    `validation.`, of the run itself. Raises UsageError for a recipe that states nothing, or numbers of no protocol.
    """
    from avssl.api import evaluate
    from avssl.training.run import finetune, pretrain

    recipe = load_run(recipe_name)
    check(
        bool(recipe.expected),
        f"{recipe_name} states no expected numbers",
        fix="see `avssl recipes show NAME`: [expected]",
    )
    tasks = {name.split(".")[0] for name in recipe.expected} - {"validation"}
    for task in tasks:
        registry().get("evaluation", task)  # a misspelt one is an error before hours of training
    if recipe.stage == "finetune":
        report = finetune(recipe_name, source, data, out, resume=resume, machine=machine)
    else:
        report = pretrain(recipe, data, out, resume=resume, machine=machine)
    got: dict[str, float] = {f"validation.{k}": v for k, v in report["validation"].items()}
    for task in sorted(tasks):
        got |= evaluate(out, data, task, device=machine.device if machine else "auto").metrics
    compared = {}
    for name, wanted in recipe.expected.items():
        value = got.get(name)
        sign = -1 if lower_is_better(name) else 1
        lead = -math.inf if value is None else sign * (value - wanted)
        compared[name] = {"expected": wanted, "got": value, "ok": lead >= -margin * abs(wanted)}
    result = {
        "recipe": recipe_name,
        "run": str(out),
        "margin": margin,
        "metrics": compared,
        "ok": all(c["ok"] for c in compared.values()),
    }
    write_json(out / "reproduction.json", result)
    return result
