"""Experiment trackers beside TensorBoard: extras, asked for by name."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from avssl.errors import UsageError, nearest
from avssl.files import write_text

if TYPE_CHECKING:
    from avssl.training.loop import Run


class Tracker(Protocol):
    def log(self, scalars: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class _Wandb:
    def __init__(self, run: Run) -> None:
        import wandb

        known = run.folder / "wandb-id"  # of this run, wherever its directory goes and whatever it is called
        if not known.is_file():
            write_text(known, secrets.token_hex(4))
        self.run = wandb.init(
            project="avssl",
            name=run.folder.name,
            dir=str(run.folder),
            config=run.recipe.plain(),
            resume="allow",
            id=known.read_text(encoding="utf-8").strip(),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


class _Mlflow:
    def __init__(self, run: Run) -> None:
        import mlflow

        self.api: Any = mlflow
        mlflow.set_experiment("avssl")
        mlflow.start_run(run_name=run.folder.name)
        mlflow.log_dict(run.recipe.plain(), "recipe.json")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.api.log_metrics({k.replace(">", "_"): v for k, v in scalars.items()}, step=step)

    def close(self) -> None:
        self.api.end_run()


_KNOWN: dict[str, Callable[[Run], Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow}


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for an unknown one."""
    for name in names:
        if name not in _KNOWN:
            raise UsageError(f"--tracker {name!r}", fix=nearest(name, set(_KNOWN)))


def open_trackers(names: Sequence[str], run: Run) -> tuple[Tracker, ...]:
    """Open trackers by name. Raises UsageError for an unknown or missing one."""
    check_trackers(names)
    out = []
    for name in names:
        try:
            out.append(_KNOWN[name](run))
        except ImportError:
            raise UsageError(
                f"--tracker {name}: the package is not installed", fix=f"pip install 'avssl[{name}]'"
            ) from None
    return tuple(out)
