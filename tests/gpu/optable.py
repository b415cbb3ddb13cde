"""Where the time of a traced program goes: seconds by kind of operation.

A trace names operations of the compiled program.  Its text says of each what it is and which lines of
Python it came from, through the tables of stack frames at its head; a fusion is a matrix product if
it holds one.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Iterator

import jax

from poet.planning.hlo import KINDS as COLLECTIVES

# Kind -> files whose operations are of it; the first match wins, before matrix products elsewhere.
FILES = {
    "attention": ("models/attention.py", "models/kernels.py"),
    "cross-entropy": ("training/cross_entropy.py",),
    "optimizer": ("training/optimizer.py", "/optax/"),
}
# Operations that stand for what they hold, which the trace lists as well.
HOLDERS = {"while", "call", "conditional", "async-start", "async-done"}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"calls=%?([\w.\-]+)")
_PRODUCT = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|dot)')
_FLASH = re.compile(r'custom_call_target="[^"]*(?:fmha|flash)')


def seconds_by_kind(program: str, folder: str, steps: int) -> dict[str, float]:
    """Seconds of one step by kind, the longest first; on a CPU those of all threads together.

    Args:
      program: `compiled.as_text()`.
      folder: where `jax.profiler.trace` wrote, of that many runs of the program and nothing else.
    """
    kinds, totals = kinds_of(program), collections.Counter()
    for name, nanoseconds in _events(folder):
        kind = kinds.get(name, "other")
        if kind != "holder":
            totals[kind] += nanoseconds / 1e9 / steps
    return dict(totals.most_common())


def kinds_of(program: str) -> dict[str, str]:
    """Instruction -> kind: a key of FILES, 'collective', 'matmul', 'other', or 'holder'."""
    frames, bodies, current = _frames(program), {}, []
    for line in program.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = bodies.setdefault(head[1], [])
        elif found := _INSTRUCTION.match(line):
            current.append(found.groups())
    with_products = {
        name
        for name, body in bodies.items()
        if any(opcode in ("dot", "convolution") or _PRODUCT.search(rest) for _, opcode, rest in body)
    }

    def kind(opcode: str, rest: str) -> str:
        if opcode in HOLDERS:
            return "holder"
        if opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES:
            return "collective"
        sources = _sources(rest, frames)
        for name, parts in FILES.items():
            if any(part in source for part in parts for source in sources):
                return name
        if _FLASH.search(rest):
            return "attention"
        product = opcode in ("dot", "convolution") or _PRODUCT.search(rest)
        called = set(_CALLED.findall(rest))
        return "matmul" if product or called & with_products else "other"

    return {name: kind(opcode, rest) for body in bodies.values() for name, opcode, rest in body}


def _sources(rest: str, frames: dict[str, set[str]]) -> set[str]:
    """Files of the Python frames that an instruction came from."""
    frame = re.search(r"stack_frame_id=(\d+)", rest)
    named = re.search(r'source_file="([^"]*)"', rest)
    return frames.get(frame[1], set()) if frame else {named[1]} if named else set()


def _frames(program: str) -> dict[str, set[str]]:
    """Stack frame -> files of it and of the frames that called it."""
    tables: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in program.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            current = tables.setdefault(line, {})
        elif entry := re.match(r"^(\d+) (.*)$", line):
            current[entry[1]] = entry[2]
    files = {key: value.strip('"') for key, value in tables.get("FileNames", {}).items()}
    places = {
        key: files.get(_field(value, "file_name_id"), "") for key, value in tables.get("FileLocations", {}).items()
    }
    frames = tables.get("StackFrames", {})

    def chain(key: str) -> Iterator[str]:
        seen: set[str] = set()
        while key in frames and key not in seen:
            seen.add(key)
            yield places.get(_field(frames[key], "file_location_id"), "")
            # Parents are counted from 1, which is none, frames from 1, which is the first.
            key = str(int(_field(frames[key], "parent_frame_id") or 1) - 1)

    return {key: set(chain(key)) for key in frames}


def _field(entry: str, name: str) -> str:
    found = re.search(rf"{name}=(\d+)", entry)
    return found[1] if found else ""


def _events(folder: str) -> Iterator[tuple[str, float]]:
    """(operation, nanoseconds) of the newest trace: of the devices, else of this machine's threads."""
    files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name and not event.name.startswith("end: "):
                    yield str(name), event.duration_ns
