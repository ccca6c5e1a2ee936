"""Two naming schemes for the same tensors, written once and read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from avssl.errors import CheckpointError

_T = TypeVar("_T")
_PART = re.compile(r"\{(\w+)\}")
_KINDS = {"w": r"weight|bias"}  # {w}; any other placeholder is a number


def _pattern(template: str) -> re.Pattern[str]:
    out, last = "", 0
    for match in _PART.finditer(template):
        out += re.escape(template[last : match.start()]) + f"(?P<{match[1]}>{_KINDS.get(match[1], r'[0-9]+')})"
        last = match.end()
    return re.compile(out + re.escape(template[last:]) + r"\Z")


@dataclass(frozen=True)
class Rule:
    """ours <-> theirs, with {i}-like placeholders for numbers and {w} for weight or bias. Several names of theirs are
    one tensor of ours, joined along the first dimension (queries, keys, values)."""

    ours: str
    theirs: str | tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """A table of rules."""

    rules: tuple[Rule, ...]

    def to_ours(self, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
        """Our names, and the foreign ones that no rule knows. Raises CheckpointError when part of a joined tensor is
        missing."""
        out: dict[str, Tensor] = {}
        used: set[str] = set()
        for rule in self.rules:
            names = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
            pattern = _pattern(names[0])
            for key in theirs:
                match = pattern.match(key)
                if match is None:
                    continue
                keys = [name.format(**match.groupdict()) for name in names]
                if missing := [k for k in keys if k not in theirs]:
                    raise CheckpointError(f"the checkpoint has {key} but not {missing[0]}", fix="is the file complete?")
                parts = [theirs[k] for k in keys]
                out[rule.ours.format(**match.groupdict())] = parts[0] if len(parts) == 1 else torch.cat(parts)
                used.update(keys)
        return out, set(theirs) - used

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their names. Raises CheckpointError for a tensor of ours that no rule knows."""
        out: dict[str, Tensor] = {}
        used: set[str] = set()
        for rule in self.rules:
            names = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
            pattern = _pattern(rule.ours)
            for key in ours:
                match = pattern.match(key)
                if match is None or key in used:
                    continue
                parts = ours[key].chunk(len(names)) if len(names) > 1 else [ours[key]]
                out |= {n.format(**match.groupdict()): p for n, p in zip(names, parts, strict=True)}
                used.add(key)
        if forgotten := sorted(set(ours) - used):
            raise CheckpointError(f"{forgotten[0]} has no name in this format", fix="export to another format")
        return out


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Whatever a reader does not find in a file is said as a CheckpointError that names it."""
    try:
        yield
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, StopIteration) as error:
        raise CheckpointError(
            f"{path}: not a whole data2vec checkpoint: {type(error).__name__}: {error}", fix="is the file complete?"
        ) from error


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """With a prefix before every name."""
    return {prefix + k: v for k, v in tensors.items()}


def part(tensors: Mapping[str, _T], prefix: str) -> dict[str, _T]:
    """The tensors below a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def fresh_head(modality: str, dim: int, layers: int = 1) -> dict[str, Tensor]:
    """The head of an encoder that comes alone: new, and always the same one."""
    from avssl_data2vec.loss import make_head

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prefixed(make_head(dim, layers).state_dict(), f"heads.{modality}.")


def tensors_only(state: Mapping[str, object], where: str, besides: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a state dict; anything else, besides the named entries, is a CheckpointError."""
    skip = set(besides)
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in skip:
            continue
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{where}: {key} is a {type(value).__name__}, no tensor", fix="is it a data2vec model?"
            )
        out[key] = value.float() if value.is_floating_point() else value
    return out


def unknown(keys: set[str], where: str) -> None:
    """Raise CheckpointError when the checkpoint holds tensors that nothing uses."""
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise CheckpointError(
            f"{where} has unknown tensors: {', '.join(sorted(keys)[:3])}{more}",
            fix="is it a checkpoint of this system?",
        )
