"""The bytes that a compiled program moves between devices, from its HLO text.

XLA's own cost analysis counts the body of a loop once and does not report collectives.  Here every
collective is found, with the number of times that the loops around it run.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

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
# libtpu runs one collective piece by piece beside several fusions, and writes it into each of them.
_CHAIN = re.compile(r'channel_id=(\d+),.*frontend_attributes=\{[^}]*chain_id="(\d+)"')
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
      group: numbers of the devices of its first group (of a permute, of its first two partners), as
        they stand in the mesh; () if all devices are one group.
    """

    kind: str
    bytes: int
    times: int
    in_loop: bool
    group: tuple[int, ...] = ()

    def crosses(self, shape: Sequence[int], axis: int) -> bool:
        """Whether devices that differ along one axis of a mesh of this shape take part."""
        group = self.group or range(math.prod(shape))
        stride, size = math.prod(shape[axis + 1 :]), shape[axis]
        return len({device // stride % size for device in group}) > 1


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program (`compiled.as_text()`).

    A loop whose trip count the compiler did not write down counts by the largest integer constant of
    its condition, which is the bound of a counted loop.

    Raises:
      ValueError: the text has no entry computation, or a loop has no visible bound.
    """
    entry, bodies = _computations(text)
    found, chains = [], set()
    for chain, collective in _walk(bodies, entry, 1, False):
        if chain is None or chain not in chains:
            found.append(collective)
            chains.add(chain)
    return found


def totals(found: list[Collective]) -> dict[str, int]:
    """Bytes per call of the program and kind, loops multiplied in; kinds that do not occur are absent."""
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
) -> Iterator[tuple[tuple[str, ...] | None, Collective]]:
    """Collectives, each with the chain of fusions that shares it, if there is one."""
    for line in bodies.get(name, ()):
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        result, opcode, rest = instruction[2], instruction[3], instruction[4]
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            group = _group(rest)
            chain = _CHAIN.search(rest)
            found = Collective(kind, _moved(opcode, result, len(group)), times, in_loop, group)
            yield chain and chain.groups(), found
            continue
        called = _CALLED.findall(rest)
        for branch in _BRANCHES.findall(rest):
            called += [part.strip().lstrip("%") for part in branch.split(",")]
        loop = opcode == "while"
        trips = _trips(bodies, rest) if loop and called else 1
        for inner in called:
            yield from _walk(bodies, inner, times * trips, in_loop or loop)


def _moved(opcode: str, result: str, members: int) -> int:
    """Bytes of the larger side.  Starts, but of sums, name their operands, then their results."""
    sizes = [_size(dtype, dims) for dtype, dims in _ARRAY.findall(result)]
    if opcode == "reduce-scatter":
        if not members:
            raise ValueError("a reduce-scatter over one group of all devices: their number is not written")
        return sum(sizes) * members
    if opcode in ("all-gather-start", "collective-permute-start", "reduce-scatter-start"):
        arrays = [size for size in sizes if size > 4]
        half = len(arrays) // 2
        return max(sum(arrays[:half]), sum(arrays[half:]))
    return sum(sizes)


def _group(rest: str) -> tuple[int, ...]:
    """The first group, or the first partners that are not one device; () for one group of all."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest)
    if pairs:
        partners = re.findall(r"(\d+),(\d+)", pairs[1])
        return next(((int(a), int(b)) for a, b in partners if a != b), (0,))
    listed = re.search(r"replica_groups=\{(?:\{([0-9,]+)\}|\})", rest)
    if listed:
        return tuple(map(int, listed[1].split(","))) if listed[1] else ()
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", rest)
    if axes:
        return _along_axes(*axes.groups())
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[0-9,]+\](?:T\([0-9,]+\))?)", rest)
    if not iota:
        raise ValueError(f"a collective without replica groups: {rest[:200]}")
    return tuple(_numbers(iota[3]).reshape(int(iota[1]), int(iota[2]))[0].tolist())


def _along_axes(mesh: str, order: str | None, named: str) -> tuple[int, ...]:
    """The first group along axes of a mesh, or parts of them: `'a'=2,'b'=8` and `'b':(2)4`, the 4 that
    follow the 2 slowest of b.  `order` is that of the devices in the mesh (see `_numbers`)."""
    found = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named)
    parts = {name: (int(before or 1), int(size or 0)) for name, before, size in found}
    shape, first = [], []
    for name, size in re.findall(r"'(\w+)'=(\d+)", mesh):
        before, taken = parts.get(name, (1, 1))
        taken = taken or int(size)
        shape += [before, taken, int(size) // before // taken]
        first += [0, slice(None), 0]
    numbers = _numbers(order) if order else np.arange(math.prod(shape))
    return tuple(numbers.reshape(shape)[tuple(first)].reshape(-1).tolist())


def _numbers(order: str) -> np.ndarray:
    """`[4,2]T(1,0)`: 0 to 7 as [4, 2], transposed; or the numbers themselves, `0,2,1,3`."""
    iota = re.match(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?", order)
    if not iota:
        return np.array([int(n) for n in order.split(",")])
    shape = [int(n) for n in iota[1].split(",")]
    axes = [int(n) for n in iota[2].split(",")] if iota[2] else range(len(shape))
    return np.arange(math.prod(shape)).reshape(shape).transpose(axes).reshape(-1)


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
