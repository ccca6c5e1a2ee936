"""Entry points to names. One broken plugin is reported by name and spoils nothing else."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

import pluggy

from avssl import hookspecs
from avssl.entries import API_VERSION, Entry, resolve, unfit
from avssl.errors import PluginError, UsageError, nearest

GROUP = "avssl"
DISABLE = "AVSSL_DISABLE_PLUGINS"  # comma-separated entry-point names
HOOKS = {
    "backbone": "avssl_backbones",
    "loss": "avssl_losses",
    "evaluation": "avssl_evaluations",
    "modality": "avssl_modalities",
    "format": "avssl_formats",
    "layout": "avssl_layouts",
    "recipe": "avssl_recipes",
}


@dataclass(frozen=True)
class PluginStatus:
    """One entry point and what became of it."""

    name: str
    target: str
    distribution: str = ""
    version: str = ""
    error: str = ""  # why it is not usable; "" when it is
    disabled: bool = False
    entries: tuple[tuple[str, str], ...] = ()  # (kind, name)

    @property
    def label(self) -> str:
        """Distribution and version; of an uninstalled plugin, its import string."""
        return f"{self.distribution} {self.version}".strip() or self.target


@dataclass
class Registry:
    """Everything that is registered, by kind and name."""

    plugins: list[PluginStatus] = field(default_factory=list)
    entries: dict[str, dict[str, Entry]] = field(default_factory=lambda: {kind: {} for kind in HOOKS})

    def all(self, kind: str) -> list[Any]:
        """Entries of a kind, by name."""
        return [self.entries[kind][name] for name in sorted(self.entries[kind])]

    def get(self, kind: str, name: str) -> Any:
        """The entry of that name. Raises UsageError with the nearest name and any plugin that failed to load."""
        try:
            return self.entries[kind][name]
        except KeyError:
            broken = [p for p in self.plugins if p.error and not p.disabled]
            off = [p.name for p in self.plugins if p.disabled]
            note = "".join(f"; plugin {p.name!r} ({p.label}) did not load: {p.error}" for p in broken)
            note += f"; switched off: {', '.join(off)}" if off else ""
            fix = "; ".join(filter(None, (nearest(name, set(self.entries[kind])), LISTINGS.get(kind))))
            raise UsageError(f"no {kind} is called {name!r}{note}", fix=fix) from None

    def fitting_losses(self, backbone: str, supervised: bool | None = None) -> list[str]:
        """Names of the losses that can train a backbone."""
        entry = self.get("backbone", backbone)
        return [
            x.name
            for x in self.all("loss")
            if not unfit(entry, x) and (supervised is None or x.supervised == supervised)
        ]

    def fitting_backbones(self, loss: str) -> list[str]:
        """Names of the backbones that a loss can train."""
        entry = self.get("loss", loss)
        return [b.name for b in self.all("backbone") if not unfit(b, entry)]


LISTINGS = {  # where to see what there is
    "backbone": "see `avssl backbones`", "loss": "see `avssl losses`", "recipe": "see `avssl recipes`",
    "format": "see `avssl import --list`",
}  # fmt: skip


@cache
def registry() -> Registry:
    """The registry of this process: built-ins and installed plugins, less those switched off."""
    return load_registry()


def load_registry(disabled: Iterable[str] | None = None, points: Iterable[Any] | None = None) -> Registry:
    """Load the entry points one by one (pluggy's own loader lets one bad import stop every command).

    disabled: entry-point names to leave out; default: the environment variable AVSSL_DISABLE_PLUGINS.
    """
    off = set(disabled if disabled is not None else filter(None, os.environ.get(DISABLE, "").split(",")))
    out = Registry()
    found = points if points is not None else importlib.metadata.entry_points(group=GROUP)
    seen: set[tuple[str, str]] = set()
    for point in sorted(found, key=lambda p: (p.name != "builtin", p.name, p.value)):
        dist = getattr(point, "dist", None)
        status = PluginStatus(point.name, point.value, dist.name if dist else "", dist.version if dist else "")
        if (status.name, status.target) in seen:  # an editable install may be listed twice
            continue
        seen.add((status.name, status.target))
        if point.name in off:
            out.plugins.append(replace(status, disabled=True))
            continue
        try:
            entries = _entries(point, status)
            _add(out, entries, status)
            out.plugins.append(replace(status, entries=tuple((e.kind, e.name) for e in entries)))
        except (Exception, SystemExit) as error:  # a plugin may raise anything, sys.exit included
            reason = error.message if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            out.plugins.append(replace(status, error=" ".join(reason.split())))
    return out


def _entries(point: Any, status: PluginStatus) -> list[Entry]:
    module = point.load()
    wanted = getattr(module, "avssl_api", API_VERSION)
    if wanted != API_VERSION:
        raise PluginError(f"it is written for plugin API {wanted}, this avssl has API {API_VERSION}")
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    misspelt = sorted(n for n in _own_hooks(module) if n not in HOOKS.values())
    if misspelt:
        raise PluginError(f"unknown hook {misspelt[0]!r}; {nearest(misspelt[0], set(HOOKS.values()))}")
    manager.register(module, name=point.name)
    manager.check_pending()
    entries: list[Entry] = []
    for kind, hook in HOOKS.items():
        for returned in getattr(manager.hook, hook)():
            for entry in returned:
                if getattr(entry, "kind", None) != kind:
                    raise PluginError(f"{hook} returned {entry!r}, which is no {kind} entry")
                entries.append(replace(entry, origin=status.label))
    return entries


def _own_hooks(module: ModuleType | Any) -> list[str]:
    """Names in a module that are marked as hook implementations, or look like one and are not marked."""
    return [
        n
        for n, v in vars(module).items()
        if n.startswith("avssl_")
        and callable(v)
        and (hasattr(v, "avssl_impl") or getattr(v, "__module__", "") == getattr(module, "__name__", ""))
    ]


def _add(out: Registry, entries: list[Entry], status: PluginStatus) -> None:
    """All or nothing: a collision leaves the registry as it was."""
    fresh: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        other: Entry | None = out.entries[entry.kind].get(entry.name) or fresh.get((entry.kind, entry.name))
        if other is not None:
            raise PluginError(f"{entry.kind} {entry.name!r} is already registered by {other.origin}")
        fresh[entry.kind, entry.name] = entry
    for (kind, name), entry in fresh.items():
        out.entries[kind][name] = entry


def check_fit(backbone: str, loss: str) -> None:
    """Raise UsageError, with what would fit, when a loss cannot train a backbone."""
    reg = registry()
    b, l = reg.get("backbone", backbone), reg.get("loss", loss)
    if reason := unfit(b, l):
        raise UsageError(
            f"loss {loss!r} cannot train backbone {backbone!r}: {reason}",
            fix=f"losses for {backbone}: {', '.join(reg.fitting_losses(backbone)) or 'none'};"
            f" backbones for {loss}: {', '.join(reg.fitting_backbones(loss)) or 'none'}",
        )


def load(kind: str, name: str, attribute: str = "cls") -> Any:
    """The class (or `attribute`: config, frontend, decode, read, ...) behind an entry."""
    entry = registry().get(kind, name)
    target = getattr(entry, attribute)
    if not target:
        fix = LISTINGS.get(kind) or f"name one in the entry that {entry.origin} registers"
        raise UsageError(f"{kind} {name!r} has no {attribute}", fix=fix)
    try:
        return resolve(target)
    except PluginError as error:
        raise PluginError(f"{kind} {name!r} of {entry.origin}: {error.message}", fix=error.fix) from error


def listing(kind: str) -> list[Mapping[str, Any]]:
    """Entries of a kind as plain data, for `--json`."""
    from avssl.schema import unstructure

    return [unstructure(e) for e in registry().all(kind)]
