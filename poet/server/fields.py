"""Fields of requests: their names, their JSON schemas, and which of them name media."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from poet.spec import SampleSpec, Spec, UserError, near_names, type_hints
from poet.spec.base import setting_of

# What names media, wherever it stands in a request.
MEDIA = ("clip", "end", "mask", "depth", "frame")
MEDIA_ID = re.compile(r"(file|job|video)_[0-9a-f]{32}")
# Settings of sampling that are the operator's.
_OPERATORS = ("block", "devices", "weights", "watermark")
SAMPLE = tuple(field.name for field in dataclasses.fields(SampleSpec) if field.name not in _OPERATORS)

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}

Schema = dict[str, Any]


def check_names(asked: Mapping[str, Any], allowed: Iterable[str], what: str) -> None:
    """Raises UserError, with near names, for a field that a request has not."""
    allowed = [*allowed]
    for name in asked:
        if name not in allowed:
            raise UserError(f"{what} has no field {name!r}{near_names(name, allowed)}")


def in_fields(message: str, names: Iterable[str]) -> str:
    """A message that names the fields of a request (`names`) where it names flags and settings of commands."""
    message = re.sub(r" or --prompt_file|, or the [^;]* as --gin\.[^;\s]*", "", message)  # Which only commands have.
    listed = "|".join(map(re.escape, names)) or "(?!)"
    return re.sub(rf"(?:--|\bSAMPLE\.|\bREQUEST\.)({listed})\b(?:=FILE)?", r"\1", message)


def replaced(asked: Any, change: Callable[[str, str], str], name: str = "") -> Any:
    """A request whose media are changed by a function of (field, value)."""
    if isinstance(asked, Mapping):
        return {key: replaced(value, change, key) for key, value in asked.items()}
    if isinstance(asked, (list, tuple)):
        return [replaced(value, change, name) for value in asked]
    return change(name, asked) if name in MEDIA and isinstance(asked, str) and asked else asked


def schemas(cls: type[Spec], names: Sequence[str] | None = None) -> dict[str, Schema]:
    """JSON schema of each field of a spec."""
    hints = type_hints(cls)
    found = {field.name: field for field in dataclasses.fields(cls)}
    return {name: _schema(found[name], hints[name]) for name in names or found}


def _schema(field: dataclasses.Field[Any], hint: Any) -> Schema:
    schema, declared = _of_type(hint, field.name), setting_of(field)
    if declared:
        limits = {
            "minimum": declared.at_least,
            "maximum": declared.at_most,
            "exclusiveMinimum": declared.above,
            "exclusiveMaximum": declared.below,
            "enum": list(declared.one_of) if declared.one_of else None,
        }
        _limit(schema, {name: value for name, value in limits.items() if value is not None})
    if field.default is not dataclasses.MISSING:
        default = field.default
        schema["default"] = list(default) if isinstance(default, tuple) else default
    return schema


def _limit(schema: Schema, limits: Mapping[str, Any]) -> None:
    if "anyOf" in schema:
        for part in schema["anyOf"]:
            _limit(part, limits)
    elif schema["type"] == "array":
        _limit(schema["items"], limits)
    else:
        schema |= limits


def _of_type(hint: Any, name: str = "") -> Schema:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of_type(part) for part in arguments]}
    if origin is tuple:
        items = _of_type(arguments[0], name)
        array = {"type": "array", "items": items}
        return {"anyOf": [dict(items), array]} if arguments[0] is str else array
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {"type": "object", "additionalProperties": False, "properties": schemas(hint)}
    schema: Schema = {"type": _PLAIN[hint]}
    if name in MEDIA:
        schema["description"] = "the id of an upload (`file_...`) or of a job whose result it takes"
    return schema
