"""The base of every spec: a frozen dataclass that checks its types and values at construction.

A wrong name, type or value raises `UserError`, before any device work.
"""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import functools
import re
import types
import typing
from typing import Any, ClassVar, Mapping, Self, Sequence


DTYPES = ("float32", "bfloat16")


class UserError(ValueError):
    """A mistake in what the user gave: says what was given, what is allowed and what to do."""


def as_written(number: float) -> fractions.Fraction:
    """The decimal that a number was written as: 0.1 is one tenth, not its nearest binary fraction."""
    return fractions.Fraction(repr(float(number)))


def near_names(name: str, allowed: Sequence[str]) -> str:
    """Returns ' (did you mean x, y?)', or the whole list when nothing is near."""
    near = difflib.get_close_matches(name, allowed, n=3)
    return f" (did you mean {', '.join(near)}?)" if near else f" (allowed: {', '.join(allowed)})"


def choose(name: str, table: Mapping[str, Any], what: str) -> Any:
    """Looks `name` up in a registry; an unknown name is an error that lists near names."""
    if name not in table:
        raise UserError(f"unknown {what} {name!r}{near_names(name, sorted(table))}")
    return table[name]


def _coerce(value: Any, hint: Any) -> Any:
    """Returns `value` as the annotated type, or raises TypeError.  Only lossless steps are taken."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(inner) != len(value):
            raise TypeError
        return tuple(_coerce(v, a) for v, a in zip(value, inner))
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return {_coerce(k, args[0]): _coerce(v, args[1]) for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _first_match(value, args)
    if hint is float and type(value) is int:
        return float(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)
    if hint is bool or isinstance(value, bool):
        if type(value) is not hint:
            raise TypeError
        return value
    if not isinstance(value, hint):
        raise TypeError
    return value


def _first_match(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        try:
            return _coerce(value, hint)
        except TypeError:
            continue
    raise TypeError


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of a class."""
    hints = typing.get_type_hints(cls)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not ClassVar}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs: checks every field's type, then calls `validate`.

    `ADDED_LATER` names fields that weights were fingerprinted without before the fields existed.
    """

    ADDED_LATER: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), type_hints(type(self))[field.name]
            try:
                object.__setattr__(self, field.name, _coerce(value, hint))
            except TypeError:
                raise UserError(
                    f"{self.gin_name()}.{field.name} = {value!r}: expected {_type_name(hint)}, "
                    f"got {type(value).__name__}"
                ) from None
        self.validate()

    def validate(self) -> None:
        """Raises UserError on a value that no run can use."""

    def require(self, holds: bool, field: str, rule: str) -> None:
        """Raises UserError naming the field, its value and the rule unless `holds`."""
        if not holds:
            raise UserError(f"{self.gin_name()}.{field} = {getattr(self, field)!r}: {rule}")

    def require_positive(self, *fields: str) -> None:
        for field in fields:
            self.require(getattr(self, field) > 0, field, "must be positive")

    def require_one_of(self, field: str, allowed: Sequence[str]) -> None:
        value = getattr(self, field)
        self.require(value in allowed, field, f"not allowed{near_names(str(value), allowed)}")

    @classmethod
    def gin_name(cls) -> str:
        """VideoTokenizerSpec -> VIDEO_TOKENIZER."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Spec")).upper()

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def to_dict(spec: Spec) -> dict[str, Any]:
    """Plain JSON-ready nested dict; tuples become lists."""
    return dataclasses.asdict(
        spec,
        dict_factory=lambda kv: {k: list(v) if isinstance(v, tuple) else v for k, v in kv},
    )


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Inverse of `to_dict`; an unknown key is an error with near names."""
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise UserError(f"{cls.__name__} has no field {key!r}{near_names(key, names)}")
    return cls(**values)
