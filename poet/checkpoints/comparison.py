"""What differs between two checkpoints: settings and arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from poet.checkpoints.contents import PARAMS, Contents
from poet.runs.run import Checkpoint
from poet.spec import compat


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayDifference:
    """One array of two checkpoints, of which at least one holds it.

    Attributes:
      one, two: 'float32[4, 192]', or 'absent'.
      largest: the greatest absolute difference of an element; None where shapes differ.
      relative: the norm of the difference over the norm of the array of `one`; None where that is 0 or shapes differ.
      equal: whether shapes, dtypes and all values are equal.
    """

    name: str
    one: str
    two: str
    largest: float | None = None
    relative: float | None = None
    equal: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The settings and the arrays of two checkpoints; `arrays` has the equal ones too.

    `refused`: names of the settings for which a run does not go on from `one` with the settings of `two`.
    """

    steps: tuple[int, int]
    settings: tuple[compat.Difference, ...]
    refused: frozenset[str]
    arrays: tuple[ArrayDifference, ...]

    @property
    def equal(self) -> bool:
        return not self.settings and all(array.equal for array in self.arrays)

    def as_json(self) -> dict[str, Any]:
        """A JSON object; numbers that are not finite are strings there, as JSON has none."""
        settings = [
            {"name": d.name, "one": d.theirs, "two": d.ours, "changes": d.changes, "refused": d.name in self.refused}
            for d in self.settings
        ]
        arrays = [{k: _plain(v) for k, v in dataclasses.asdict(a).items()} for a in self.arrays]
        return {"equal": self.equal, "steps": list(self.steps), "settings": settings, "arrays": arrays}


def compare(one: Checkpoint, two: Checkpoint) -> Comparison:
    """Reads both, array by array.  Where one of them is released weights, parameters alone are compared.

    Raises:
      UserError: one of them is damaged.
    """
    first, second = Contents(one), Contents(two)
    part = PARAMS if one.released or two.released else ""
    names = [n for n in sorted({*first.shapes, *second.shapes}) if not part or n.split(".")[0] == part]
    theirs, ours = one.spec, two.spec
    refused = {d.name for purpose in ("resume", "resume_tokenizer") for d in compat.differences(theirs, ours, purpose)}
    return Comparison(
        steps=(one.step, two.step),
        settings=tuple(compat.every_difference(theirs, ours)),
        refused=frozenset(refused),
        arrays=tuple(_compare(name, first, second) for name in names),
    )


def _compare(name: str, first: Contents, second: Contents) -> ArrayDifference:
    shapes = [_shape(c, name) for c in (first, second)]
    fields: dict[str, Any] = {"name": name, "one": shapes[0], "two": shapes[1]}
    if name not in first.shapes or name not in second.shapes or first.shapes[name][0] != second.shapes[name][0]:
        return ArrayDifference(**fields)
    largest, relative = distances(first.array(name), second.array(name))
    return ArrayDifference(**fields, largest=largest, relative=relative, equal=largest == 0 and shapes[0] == shapes[1])


def distances(one: np.ndarray, two: np.ndarray) -> tuple[float, float | None]:
    """(greatest absolute difference, norm of the difference over the norm of `one`), in float64.

    Elements that are equal, or NaN in both, differ by 0; NaN in one of them alone makes both results NaN.
    The second is None where `one` is 0 everywhere.
    """
    if not one.size:
        return 0.0, None
    a, b = (np.asarray(x, np.float64) for x in (one, two))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
        apart, norm = float(np.linalg.norm(difference)), float(np.linalg.norm(np.nan_to_num(a)))
    return float(np.abs(difference).max()), apart / norm if norm else None


def _shape(contents: Contents, name: str) -> str:
    if name not in contents.shapes:
        return "absent"
    shape, dtype = contents.shapes[name]
    return f"{dtype}{list(shape)}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
