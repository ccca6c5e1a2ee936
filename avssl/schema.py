"""Configuration: frozen dataclasses, validated strictly, with errors that name the key and the nearest right one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform, get_type_hints

from avssl.errors import UsageError, nearest

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass whose unknown keys are errors. A default exists once: here.

    Raises TypeError for a field that may be None and is not by default: TOML has no word for None, so that a model saved
    with it would be opened with the default.
    """
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    for field in dataclasses.fields(made):  # type: ignore[arg-type]
        if "None" in str(field.type) and field.default is not None and field.default is not dataclasses.MISSING:
            raise TypeError(f"{cls.__name__}.{field.name}: None cannot be saved; let another value, 0 say, mean it")
    return made


_PLAIN = {"str", "int", "float", "bool"}  # pydantic's names of the branches of `str | int`


def structure(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain TOML-like data.

    Strict: an integer is accepted for a float and a list for a tuple, nothing else is converted. Raises UsageError with
    the dotted key (prefixed by `where`), the reason, and for an unknown key the nearest right one.
    """
    from pydantic import TypeAdapter, ValidationError

    if "__pydantic_config__" not in cls.__dict__:
        cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    try:
        return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        first = errors[0]
        loc, message = first["loc"], first["msg"]
        if loc[-1:] and loc[-1] in _PLAIN and loc[-1] not in _owner(cls, loc[:-1]):  # no key: one of several types
            loc = loc[:-1]
            message = " or ".join(e["msg"].removeprefix("Input should be ") for e in errors if e["loc"][:-1] == loc)
            message = f"Input should be {message}"
        key = ".".join([where, *map(str, loc)] if where else map(str, loc))
        if first["type"] == "unexpected_keyword_argument":
            owner = _owner(cls, first["loc"][:-1])
            raise UsageError(f"unknown key {key}", fix=nearest(str(first["loc"][-1]), owner)) from None
        if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            raise UsageError(f"{key} is missing", fix=f"set it, e.g. --set {key}=...") from None
        raise UsageError(f"{key} = {first.get('input')!r}: {message}", fix="see `avssl recipes show`") from None
    except TypeError as error:
        raise UsageError(f"{where or cls.__name__}: {error}", fix="use strings, numbers, booleans and lists") from None


def unstructure(value: Any) -> Any:
    """Dataclasses to plain dicts, tuples to lists, frozensets to sorted lists, paths to strings; None entries go."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: unstructure(v) for f in dataclasses.fields(value) if (v := getattr(value, f.name)) is not None}
    if isinstance(value, Mapping):
        return {str(k): unstructure(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [unstructure(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(unstructure(v) for v in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def keys(cls: type) -> set[str]:
    """The field names of a config dataclass."""
    return {f.name for f in dataclasses.fields(cls)}


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a config dataclass."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls).json_schema()


def _owner(cls: type, loc: tuple[Any, ...]) -> set[str]:
    """The keys of the nested dataclass that an error location points into."""
    for part in loc:
        hints = get_type_hints(cls)
        if part not in hints:
            break
        candidates = [hints[part], *getattr(hints[part], "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)), None)
        if inner is None:
            break
        cls = inner
    return keys(cls)
