"""Cases of the authors' own numbers, and the rules by which ours are compared with them (schema: shared/parity/README)."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(os.environ.get("AVSSL_PARITY_ROOT", Path(__file__).resolve().parents[3] / "shared" / "parity"))


@dataclass
class Case:
    """One folder. Everything but the files comes from its case.json."""

    folder: Path
    spec: dict[str, Any]
    checked: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.spec['system']}/{self.spec['test']}/{self.folder.name}"

    @property
    def model(self) -> dict[str, Any]:
        """The authors' constructor arguments."""
        return self.spec["config"]["model"]

    @property
    def call(self) -> dict[str, Any]:
        return self.spec["call"]

    def file(self, role: str) -> Path:
        return self.folder / self.spec["files"][role]

    @cached_property
    def io(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(str(self.file("io")))

    def input(self, role: str) -> torch.Tensor:
        """The stored tensor of the one input with that role."""
        found = [i for i in self.spec["inputs"] if i.get("role") == role]
        assert len(found) == 1, f"{self}: {len(found)} inputs have the role {role!r}"
        return self.io[found[0]["tensor"]]

    def outputs(self, of: str | None = None, **qualifiers: Any) -> list[dict[str, Any]]:
        """Output records, filtered by `of` and other fields."""
        return [
            o
            for o in self.spec["outputs"]
            if (of is None or o["of"] == of) and all(o.get(k) == v for k, v in qualifiers.items())
        ]

    @property
    def required(self) -> set[str]:
        """Names of the outputs that a test must compare."""
        return {o.get("tensor", o.get("json")) for o in self.spec["outputs"] if not o.get("optional")}

    def rule(self, name: str, tolerance: str = "tolerance") -> dict[str, Any]:
        """The most specific tolerance rule for a tensor: its own name, else the longest matching glob."""
        rules = self.spec[tolerance]
        if name in rules:
            return rules[name]
        matching = [p for p in rules if fnmatch.fnmatchcase(name, p)]
        assert matching, f"{self}: no tolerance for {name}"
        return rules[max(matching, key=lambda p: len(p.replace("*", "")))]

    def check(self, name: str, got: Any, tolerance: str = "tolerance", own_grad: Any = None, want: Any = None) -> None:
        """Assert that `got` equals the stored tensor (or `want`) within its rule; remembers that it was compared."""
        rule = self.rule(name, tolerance)
        self.checked.add(name)
        if "skip" in rule:
            return
        a = _array(got)
        b = _array(self.io[name] if want is None else want)
        assert a.shape == b.shape, f"{self} {name}: shape {a.shape}, official {b.shape}"
        if rule.get("equal"):
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), f"{self} {name}: not equal"
            return
        a, b = a.astype(np.float64), b.astype(np.float64)
        select = self._selected(rule, b.shape)
        if select is not None:
            a, b = a[select], b[select]
        if a.size == 0:
            return
        error = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
        bound = (
            rule.get("atol", 0.0)
            + rule.get("rtol", 0.0) * np.abs(b)
            + rule.get("rel_to_max", 0.0) * np.nanmax(np.abs(b))
        )
        if "where" in rule:
            threshold = rule["where"]["own_grad_abs_gt"]
            assert own_grad is not None, f"{self} {name}: the rule needs our own gradient"
            grad = np.abs(_array(own_grad).astype(np.float64))
            grad = grad if select is None else grad[select]
            bound = np.where(grad > threshold, bound, rule["where"].get("else_atol", rule.get("else_atol", np.inf)))
        excess = error - bound
        worst = np.unravel_index(np.nanargmax(excess), excess.shape) if excess.ndim else ()
        assert not np.isnan(excess).any() and (excess <= 0).all(), (
            f"{self} {name}: off by {error[worst]:.3g} at {worst} (allowed {np.broadcast_to(bound, error.shape)[worst]:.3g}), "
            f"official {b[worst]:.6g}, ours {a[worst]:.6g}; {(excess > 0).mean():.2%} of the elements are outside"
        )
        if "mean_abs" in rule:
            assert error.mean() <= rule["mean_abs"], (
                f"{self} {name}: mean error {error.mean():.3g} > {rule['mean_abs']}"
            )

    def _selected(self, rule: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        only = rule.get("only_where")
        if only is None:
            return None
        if "lengths" in only:
            axis = only["axis"]
            mask = np.zeros(shape, dtype=bool)
            for row, length in enumerate(only["lengths"]):
                index = [slice(None)] * len(shape)
                index[0], index[axis] = row, slice(0, length)
                mask[tuple(index)] = True
            return mask
        return _array(self.io[only["tensor"]]) != only["not_equals"]

    def check_gradients(self, grads: Mapping[str, torch.Tensor | None], tolerance: str = "tolerance") -> None:
        """Compare every stored gradient. grads: official key -> our gradient; None counts as zeros where the case says so."""
        spec = self.spec["gradients"]
        for key in spec["names"]:
            assert key in grads, f"{self}: no gradient for {key}"
            want = self.io[f"grad.{key}"]
            got = grads[key]
            if got is None:
                assert spec.get("missing_in_official_are_zero") or key in spec.get("all_zero", ()), (
                    f"{self}: {key} got no gradient"
                )
                got = torch.zeros_like(want)
            self.check(f"grad.{key}", got, tolerance, own_grad=got)

    def check_complete(self) -> None:
        """Every required output was compared: a test cannot pass by forgetting one."""
        forgotten = self.required - self.checked
        assert not forgotten, f"{self}: never compared: {sorted(forgotten)}"


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float64 if value.dtype == torch.bfloat16 else value.dtype).cpu().numpy()
    return np.asarray(value)


def cases(system: str, *tests: str) -> list[Any]:
    """Parameters for pytest: every case of a system (hyphens and underscores are one) and of the given kinds."""
    found = []
    for path in sorted(ROOT.glob("*/*/case.json")) if ROOT.is_dir() else []:
        spec = json.loads(path.read_text(encoding="utf-8"))
        if spec["system"].replace("-", "_") == system.replace("-", "_") and (not tests or spec["test"] in tests):
            case = Case(path.parent, spec)
            found.append(pytest.param(case, id=str(case)))
    if not found:
        reason = (
            f"no {system} cases of kind {tests} in {ROOT}"
            if ROOT.is_dir()
            else f"no parity cases at {ROOT}; set AVSSL_PARITY_ROOT"
        )
        return [pytest.param(None, id=f"{system}/none", marks=pytest.mark.skip(reason=reason))]
    return found


def known_tests(system: str) -> set[str]:
    """The kinds of test that the folder holds for a system: a new kind must not pass by being unknown."""
    return {
        json.loads(p.read_text(encoding="utf-8"))["test"]
        for p in ROOT.glob("*/*/case.json")
        if json.loads(p.read_text(encoding="utf-8"))["system"].replace("-", "_") == system.replace("-", "_")
    }
