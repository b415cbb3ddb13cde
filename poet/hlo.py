"""What a compiled program moves between devices, read from its HLO text.

XLA's own cost analysis counts the body of a loop once and tells nothing of collectives.  Here every
collective is found, with the number of times that the loops around it run.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|"
    r"async_execution_thread_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = s32\[\]\S* constant\((\d+)\)")
_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "token": 0}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: of KINDS.
      bytes: of its larger side on one device: what a gather makes, what a scatter reads.
      times: how often it runs in one call of the program.
      in_loop: whether any loop stands around it.
    """

    kind: str
    bytes: int
    times: int
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program (`compiled.as_text()`).

    A loop whose trip count the compiler did not write down counts by the largest integer constant of
    its condition, which is the bound of a counted loop.

    Raises:
      ValueError: the text has no entry computation, or a loop has no visible bound.
    """
    entry, bodies = _computations(text)
    return list(_walk(bodies, entry, 1, False))


def totals(found: list[Collective]) -> dict[str, int]:
    """Bytes per call of the program and kind, loops multiplied in; kinds that do not occur are left out."""
    table: dict[str, int] = collections.defaultdict(int)
    for collective in found:
        table[collective.kind] += collective.bytes * collective.times
    return dict(table)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    entry, bodies, current = "", {}, None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and line.startswith(" "):
            current.append(line)
    if not entry:
        raise ValueError("no ENTRY computation: pass the text of a compiled program")
    return entry, bodies


def _walk(
    bodies: dict[str, list[str]], name: str, times: int, in_loop: bool
) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        result, opcode, rest = instruction[2], instruction[3], instruction[4]
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            yield Collective(kind, _moved(opcode, result, rest), times, in_loop)
            continue
        called = _CALLED.findall(rest)
        for branch in _BRANCHES.findall(rest):
            called += [part.strip().lstrip("%") for part in branch.split(",")]
        loop = opcode == "while"
        trips = _trips(bodies, rest) if loop and called else 1
        for inner in called:
            yield from _walk(bodies, inner, times * trips, in_loop or loop)


def _moved(opcode: str, result: str, rest: str) -> int:
    """Bytes of the larger side.  A start of a gather names its operands, then its results."""
    sizes = [_size(dtype, dims) for dtype, dims in _ARRAY.findall(result)]
    if opcode == "reduce-scatter":
        return sum(sizes) * _group_size(rest)
    if opcode in ("all-gather-start", "collective-permute-start"):
        arrays = [size for size in sizes if size > 4]
        return sum(arrays[len(arrays) // 2 :]) if arrays else 0
    return sum(sizes)


def _group_size(rest: str) -> int:
    listed = re.search(r"replica_groups=\{\{([0-9,]+)\}", rest)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if not iota:
        raise ValueError(f"a collective without replica groups: {rest[:200]}")
    return int(iota[1])


def _size(dtype: str, dims: str) -> int:
    bits = _BITS.get(dtype)
    if bits is None:
        digits = re.search(r"\d+", dtype)
        bits = int(digits[0]) if digits else 0
    count = 1
    for dim in filter(None, dims.split(",")):
        count *= int(dim)
    return count * bits // 8


def _trips(bodies: dict[str, list[str]], rest: str) -> int:
    known = _TRIPS.search(rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    lines = bodies.get(condition[1], ()) if condition else ()
    bounds = [int(found[1]) for line in lines if (found := _CONSTANT.match(line))]
    if not bounds:
        raise ValueError(f"a loop without a visible bound: {rest[:200]}")
    return max(bounds)
