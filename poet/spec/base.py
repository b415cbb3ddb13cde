"""The base of every spec: a frozen dataclass that checks its types and values at construction.

A wrong name, type or value raises `UserError`, before any device work.
"""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import functools
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

DTYPES = ("float32", "bfloat16")
# What numbers of a kind can be at most, whatever they count.
MOST_STEPS = 10**9
MOST_BATCH = 2**20
MOST_SIDE = 8192
MOST_FRAMES = 65_536
MOST_SEED = 2**32 - 1

# What another value of a field makes of a trained model: see `setting`.
CHANGES = ("arrays", "meaning", "layout", "course", "decoder", "nothing")
_SETTING = "setting"


class Failure(RuntimeError):
    """A failure while a command works, such as a full disk, described in one line."""


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
        if isinstance(value, str) and args == (str, ...):
            value = (value,)  # One name, where names are expected.
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
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The declaration of a field besides its type and default; see `setting`."""

    changes: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] | None = None
    adds: str = ""
    grows: bool = False

    def broken_rule(self, value: Any) -> str:
        """The rule that `value`, or a part of it, does not keep; '' if it keeps all."""
        for part in _leaves(value):
            if isinstance(part, str):
                if self.one_of is not None and part not in self.one_of:
                    return f"not allowed{near_names(part, self.one_of)}"
            elif not isinstance(part, bool) and not self._holds(part):
                return f"must lie in {self.range}"
        return ""

    def _holds(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    @property
    def low(self) -> float | None:
        return self.at_least if self.at_least is not None else self.above

    @property
    def high(self) -> float | None:
        return self.at_most if self.at_most is not None else self.below

    @property
    def range(self) -> str:
        """'1..8192'; '(0, 1]' where an end is not of it."""
        if self.above is None and self.below is None:
            return f"{self.at_least}..{self.at_most}"
        opening, closing = "[" if self.above is None else "(", "]" if self.below is None else ")"
        return f"{opening}{self.low}, {self.high}{closing}"


def setting(
    default: Any = dataclasses.MISSING,
    *,
    changes: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    one_of: Sequence[str] | None = None,
    adds: str = "",
    grows: bool = False,
    default_factory: Any = dataclasses.MISSING,
) -> Any:
    """A field of a spec, with what may be in it and what another value does to a trained model.

    Args:
      changes: 'arrays', the names or shapes of what is trained; 'meaning', what the same arrays and ids
        stand for: codes, positions, the order of data; 'layout', how long sequences of the same ids are;
        'course', how training goes on from here; 'decoder', the arrays of a tokenizer's decoder, on which its codes do
        not depend; 'nothing' beyond rounding: speed, reports, paths.
        `poet.spec.compat` says which of these may differ for what.
      at_least, above, at_most, below: the range of a number, or of every number in a tuple or dict.
      one_of: the strings that are allowed, for every string in a tuple.
      adds: the dotted name of the array, or dict of arrays, that a model has where the field is neither False nor 0.
        With its initial values it does nothing, so that a model which was trained without it can start a training
        with it.
      grows: whether a model can start a training with a larger value, and computes at first what it did.

    Raises:
      ValueError: another word for `changes`.
    """
    if changes not in CHANGES:
        raise ValueError(f"changes = {changes!r}: expected one of {CHANGES}")
    declared = Setting(
        changes=changes,
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        one_of=None if one_of is None else tuple(one_of),
        adds=adds,
        grows=grows,
    )
    return dataclasses.field(default=default, default_factory=default_factory, metadata={_SETTING: declared})


def setting_of(field: dataclasses.Field[Any]) -> Setting | None:
    """The declaration of a field by `setting`; None if it has none."""
    return field.metadata.get(_SETTING)


def _leaves(value: Any) -> Iterator[Any]:
    """A plain value itself; the values in a tuple or a dict, nested ones too."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of a class."""
    hints = typing.get_type_hints(cls)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not ClassVar}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs: checks every field's type and range, then calls `validate`.

    Numbers are finite; `setting` declares what else a field may hold, `validate` has the rules between
    fields.

    `ADDED_LATER` names fields that weights were fingerprinted without before the fields existed; `REMOVED`
    those that stored specs may hold and that say nothing any more.  `BEFORE` has, for fields that a stored
    spec may lack, the value that stands for what was done before they existed, where it is not the default.
    `RENAMED` has the present name of fields by the name that they had in the release before: stored specs are
    read by it in silence, gin by it with a warning.
    """

    BEFORE: ClassVar[Mapping[str, Any]] = {}
    ADDED_LATER: ClassVar[tuple[str, ...]] = ()
    REMOVED: ClassVar[tuple[str, ...]] = ()
    RENAMED: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), type_hints(typing.cast(type, type(self)))[field.name]
            try:
                object.__setattr__(self, field.name, _coerce(value, hint))
            except TypeError:
                raise UserError(
                    f"{self.gin_name()}.{field.name} = {reprlib.repr(value)}: expected {_type_name(hint)}, "
                    f"got {type(value).__name__}"
                ) from None
            self._check_value(field)
        self.validate()

    def _check_value(self, field: dataclasses.Field[Any]) -> None:
        value, declared = getattr(self, field.name), setting_of(field)
        numbers = (part for part in _leaves(value) if isinstance(part, float))
        self.require(all(map(math.isfinite, numbers)), field.name, "must be finite")
        rule = declared.broken_rule(value) if declared else ""
        self.require(not rule, field.name, rule)

    def validate(self) -> None:
        """Raises UserError on a value that no run can use."""

    def require(self, holds: bool, field: str, rule: str) -> None:
        """Raises UserError naming the field, its value and the rule unless `holds`."""
        if not holds:
            raise UserError(f"{self.gin_name()}.{field} = {getattr(self, field)!r}: {rule}")

    @classmethod
    def gin_name(cls) -> str:
        """VideoTokenizerSpec -> VIDEO_TOKENIZER."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Spec")).upper()

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


# A type as gin writes it, for people who do not write Python.
_TYPE_WORDS = {
    int: "a whole number (int)",
    float: "a number (float)",
    str: "text (str)",
    bool: "True or False (bool)",
    tuple[str, ...]: "text, 'train', or several, ('train', 'validation')",
    float | tuple[float, ...]: "a number, 0.9, or several, (1.0, 0.9)",
    dict[str, float]: "names with numbers, as {'text_to_video': 1.0}",
}


def _type_name(hint: Any) -> str:
    if hint in _TYPE_WORDS:
        return _TYPE_WORDS[hint]
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def to_dict(spec: Spec) -> dict[str, Any]:
    """Plain JSON-ready nested dict; tuples become lists."""
    return dataclasses.asdict(spec, dict_factory=lambda kv: {k: list(v) if isinstance(v, tuple) else v for k, v in kv})


def from_stored(cls: type, values: Mapping[str, Any]) -> Any:
    """The spec that an earlier version may have stored as `to_dict` gives it: `from_dict`, with `BEFORE`."""
    return from_dict(cls, _as_stored(cls, values))


def _as_stored(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored spec, and the specs in it, with what their `BEFORE` says of fields that they lack."""
    hints = type_hints(cls)
    inner = {
        key: _as_stored(hints[key], value)
        for key, value in values.items()
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints.get(key))
    }
    return {**getattr(cls, "BEFORE", {}), **values, **inner}


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Inverse of `to_dict`; an unknown key is an error with similar names, those of `cls.REMOVED` are dropped."""
    names = [f.name for f in dataclasses.fields(cls)]
    renamed = getattr(cls, "RENAMED", {})
    values = {renamed.get(key, key): value for key, value in values.items() if key not in getattr(cls, "REMOVED", ())}
    for key in values:
        if key not in names:
            raise UserError(f"{cls.__name__} has no field {key!r}{near_names(key, names)}")
    return cls(**values)
