"""`poet describe`: what a run is, before any device is touched."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from poet import media
from poet import spec as specs
from poet.distributed import mesh as mesh_lib
from poet.distributed.mesh import Rules, local_bytes
from poet.planning import topologies
from poet.planning.topologies import GIB, Topology
from poet.spec import UserError
from poet.tasks import picture, registry
from poet.tasks.resolved import Resolved
from poet.training import networks
from poet.training.trainable import State, Trainable

if TYPE_CHECKING:
    from poet.planning.forecast import Forecast


def run(
    resolved: Resolved, *, devices: int = 0, topology: str = "", groups: Sequence[str] = (), as_json: bool = False
) -> None:
    """Prints the plan of a run for `devices` devices (0: the smallest mesh that the spec allows).

    With a topology (`poet.planning.topologies`) its programs are compiled too, those of `groups` or of all, and
    each is printed when it is done; as JSON then one line a program.

    Raises UserError, before compiling: a name that is not known, a library that is not installed, a
    mesh that does not divide what it must.
    """
    if not topology:
        if groups:
            raise UserError("--group selects a program of --topology: give a topology")
        shown = [json.dumps(specs.to_dict(resolved.spec), indent=2)] if as_json else lines(resolved, devices)
        print("\n".join(shown))
        return
    if devices:
        raise UserError("--topology determines the number of devices: drop --devices")
    target = topologies.parse(topology)
    # Nothing runs, so no accelerator of this machine need be claimed.
    jax.config.update("jax_platforms", "cpu")
    there = topologies.devices(target)
    page = forecast_json if as_json else forecast_lines
    plan = [] if as_json else lines(resolved, target.size)
    for line in itertools.chain(plan, page(resolved, target, there, groups)):
        print(line, flush=True)


def write_picture(resolved: Resolved, path: str) -> None:
    """Writes the layouts of the mixture's tasks to an SVG file."""
    svg = picture.svg(resolved.layouts)
    with media.replacing(Path(path)) as file:
        file.write_text(svg, encoding="utf-8")
    print(path)


def write_placement(resolved: Resolved, path: str, devices: int = 0) -> None:
    """Writes the shards of a run's parameters to an SVG file."""
    from poet.models import placement

    mesh = mesh_lib.abstract(resolved.spec.mesh, devices or resolved.devices)
    with media.replacing(Path(path)) as file:
        file.write_text(placement.svg(networks.of(resolved).model(resolved), mesh), encoding="utf-8")
    print(path)


def lines(resolved: Resolved, devices: int = 0) -> Iterator[str]:
    """The page, line by line.

    Raises:
      UserError: the mesh does not divide the devices, a parameter or a batch.
    """
    devices = devices or resolved.devices
    mesh = mesh_lib.abstract(resolved.spec.mesh, devices)
    yield from _title(f"Mesh of {devices} device(s)")
    yield "  " + " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    yield from _tasks(resolved)
    if not resolved.spec.data.mixture_rates:
        return
    network = networks.of(resolved)
    trainable = network.trainable(resolved, mesh)
    state = jax.eval_shape(trainable.init, jax.random.key(0))
    yield from _groups(resolved, trainable)
    yield from _parameters(network.title, state, trainable, mesh)


def _title(text: str) -> Iterator[str]:
    yield ""
    yield text
    yield "-" * len(text)


def _tasks(resolved: Resolved) -> Iterator[str]:
    fmt = resolved.format
    yield from _title("Tasks (condition -> output)")
    rates = resolved.spec.data.mixture_rates
    total = sum(rates.values()) or 1.0
    for name, task in registry.TASKS.items():
        share = f"{rates.get(name, 0) / total:6.1%}" if rates else "      "
        yield f"  {share} {name:24s} {registry.group_name(task)}"
    clip = resolved.spec.clip
    yield (
        f"  clip {clip.frames} x {clip.height} x {clip.width} at {clip.rate_hz:g} Hz -> "
        f"latents {fmt.video[0]} x {fmt.video[1]} x {fmt.video[2]} of "
        f"{resolved.spec.vocabulary.visual_bits} bits"
    )
    if fmt.audio_frames:
        levels, codes = resolved.spec.vocabulary.audio_levels, resolved.spec.vocabulary.audio_codes
        yield (
            f"  its sound, {clip.samples} samples at {clip.sample_rate_hz} Hz -> {fmt.audio_frames} "
            f"frames x {levels} levels of {codes} codes"
        )


def _groups(resolved: Resolved, trainable: Trainable) -> Iterator[str]:
    """Fractions are those of the steps, a column for each phase; only text has padding."""
    yield from _title("Groups (one compiled step each)")
    phases, table = resolved.phases, resolved.groups
    ends = "".join(f"{f'<{end}':>9s}" for end, _ in phases)
    yield f"  {'group':24s} {'clips':>7s} {'tokens':>9s} {'TFLOP/step':>11s} {'text':>6s}{ends}"
    for name, group in trainable.groups.items():
        fractions = "".join(f"{float(parts.get(name, 0) / sum(parts.values())):9.1%}" for _, parts in phases)
        layout = table[name][0]
        text = sum(s.length for s in layout.segments if s.is_text or s.padding is not None)
        yield (
            f"  {name:24s} {group.clips:7d} {group.tokens:9d} {group.flops / 1e12:11.4f} "
            f"{text / layout.length:6.1%}{fractions}"
        )


def _parameters(title: str, state: State, trainable: Trainable, mesh: jax.sharding.AbstractMesh) -> Iterator[str]:
    shardings = Rules().shardings(mesh, trainable.axes)
    yield from _title(f"Parameters of {title}")
    yield f"  {'name':44s} {'shape':>24s} {'sharding':>28s} {'MiB/device':>11s}"
    rows = list(_leaves(state["params"], shardings["params"]))
    for name, leaf, sharding in rows:
        size = local_bytes(sharding, leaf.shape, leaf.dtype) / 2**20
        cuts = ("+".join(mesh_lib.several(entry, mesh)) or "-" for entry in sharding.spec)
        placed = f"({', '.join(cuts)})"
        yield f"  {name:44s} {str(leaf.shape):>24s} {placed:>28s} {size:11.2f}"
    count = sum(math.prod(leaf.shape) for _, leaf, _ in rows)
    tables = sum(math.prod(leaf.shape) for name, leaf, _ in rows if ".tables." in name)
    yield f"  {count:,} parameters, {tables:,} of them in embedding and head tables"
    yield from _title("Bytes per device at rest")
    for part in ("params", "opt_state"):
        size = sum(local_bytes(s, leaf.shape, leaf.dtype) for _, leaf, s in _leaves(state[part], shardings[part]))
        yield f"  {part:10s} {size / GIB:9.3f} GiB"
    full = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    yield f"  whole state on one device would be {full / GIB:.3f} GiB"


def forecast_json(
    resolved: Resolved, target: Topology, devices: Sequence[jax.Device], groups: Sequence[str]
) -> Iterator[str]:
    """One JSON object a program: the fields of `forecast.Forecast`, its time and its bound."""
    from poet.planning import forecast

    for found in forecast.forecasts(resolved, target, devices, groups):
        known = {"topology": target.name, "time_s": found.time_s, "bound": found.bound}
        yield json.dumps(known | dataclasses.asdict(found))


def forecast_lines(
    resolved: Resolved, target: Topology, devices: Sequence[jax.Device], groups: Sequence[str]
) -> Iterator[str]:
    """The cost of every program on a topology, a line for each as it is compiled."""
    from poet.planning import forecast

    chip = target.chip
    yield from _title(f"Compiled for {target.name}: {target.size} x {chip.kind}")
    if chip.flops:
        yield (
            f"  of each: {chip.flops / 1e12:.0f} TFLOP/s, {forecast.EFFICIENCY:.0%} of it reached; "
            f"{chip.memory / GIB:.2f} GiB at {chip.memory_rate / 1e12:.2f} TB/s; links take in "
            f"{target.link_rate / 1e9:.0f} GB/s; a step takes as long as the slowest of the three"
        )
    mesh = mesh_lib.abstract(resolved.spec.mesh, target.size)
    for found in forecast.forecasts(resolved, target, devices, groups):
        yield f"  {found.program}: {_room(found)}"
        for change in forecast.advice(resolved, found, target, mesh):
            yield f"      change: {change}"
        if found.refusal:
            continue
        moved = ", ".join(f"{size / GIB:.3f} GiB {kind}" for kind, size in sorted(found.moved.items()))
        across = f", {found.across / GIB:.3f} GiB between slices" if found.across else ""
        yield f"      moves {moved or 'nothing'}{across}; {found.in_loops / GIB:.3f} GiB of it in loops"
        yield f"      {found.flops / 1e12:.3f} TFLOP per device; {_time(found)}"


def _room(found: Forecast) -> str:
    needed, available = f"{found.needed / GIB:.2f}", f"{found.available / GIB:.2f}"
    taken = f"{found.temporary / GIB:.2f} GiB of it temporary; compiled in {found.compile_s:.0f} s"
    if found.refusal:
        return f"DOES NOT FIT: needs at least {needed} of {available} GiB on each device ({found.refusal})"
    if found.fits is None:
        return f"needs {needed} GiB on each device, {taken}"
    verdict = "fits" if found.fits else "DOES NOT FIT"
    return f"{verdict}: needs {needed} of {available} GiB on each device, {taken}"


def _time(found: Forecast) -> str:
    if not found.seconds:
        return "no figures of this device to predict a time from"
    each = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in found.seconds.items())
    per = f" ({1e3 * found.time_s / found.calls:.3g} ms a {found.call})" if found.calls > 1 else ""
    return f"predicted {found.time_s:.3g} s{per}, bound by {found.bound} ({each})"


def _leaves(tree: Any, shardings: Any) -> Iterator[tuple[str, jax.ShapeDtypeStruct, Any]]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), sharding in zip(paths, jax.tree.leaves(shardings), strict=True):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf, sharding
