"""The cost of a run's programs on devices that need not be present (`poet describe --topology`).

The real step of every group, and the decoding program of its network, are compiled ahead of time for the devices
of a topology.  Whether a program fits, its peak and what it moves between devices are the compiler's
word; FLOPs are analytic.  The predicted time is the longest of what each resource needs alone, all
others hidden behind it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from poet.distributed import mesh as mesh_lib
from poet.planning import hlo
from poet.planning.programs import Cost, Program, part_bytes
from poet.planning.topologies import GIB, Topology
from poet.runs import assets
from poet.spec import UserError, choose
from poet.tasks.resolved import Resolved
from poet.training import compiled, networks
from poet.training.trainable import Group

# Share of the peak that matrix products reach, rematerialisation not counted: published training runs
# of 1 to 8 billion parameters reach 0.42 to 0.60 (Levanter, llm-foundry, MaxText).
EFFICIENCY = 0.5
# An all-reduce is a scatter and a gather.  On some slices libtpu 0.0.42 makes all-reduces of scatters,
# even of explicit ones, and of gathers: they are priced as they are compiled.
TRIPS = collections.defaultdict(lambda: 1, {"all-reduce": 2})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """One program on one topology.

    Attributes:
      program: "train GROUP" or "decode GROUP".
      fits: None if the memory of the devices is not known.
      needed, available: bytes of one device; of a refused program the compiler names what it needs at
        the least.  0 is unknown.
      temporary: of `needed`, what is neither input nor output.
      moved: bytes of one device by kind of collective, inside a slice.
      across: bytes of one device that collectives along `data` move, between slices.
      in_loops: of both, bytes that move inside loops.
      flops: of one device, analytic.
      seconds: what each resource needs alone; those of unknown rate are left out.
      calls: of the loop's body, for a decoding program; 1 for a step.
      call: what one of them makes.
      compile_s: seconds of lowering and compiling.
      refusal: the compiler's words, if it found no room; ours, if no compiler need be asked.
    """

    program: str
    fits: bool | None
    needed: float
    available: float
    temporary: float = 0.0
    moved: Mapping[str, int] = dataclasses.field(default_factory=dict)
    across: int = 0
    in_loops: int = 0
    flops: float
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    calls: int = 1
    call: str = "token"
    compile_s: float
    refusal: str = ""

    @property
    def bound(self) -> str:
        """The resource that takes longest, "" if no rate is known."""
        return max(self.seconds, key=self.seconds.__getitem__, default="")

    @property
    def time_s(self) -> float:
        """Predicted seconds, 0 if no rate is known."""
        return self.seconds.get(self.bound, 0.0)


def forecasts(
    resolved: Resolved,
    topology: Topology,
    devices: Sequence[jax.Device],
    groups: Sequence[str] = (),
    decode: bool = True,
) -> Iterator[Forecast]:
    """Forecasts of the step of each group (default: all, the longest first), then of decoding the longest one, if its
    network has a decoding program.

    Raises UserError, before compiling, if the mesh divides the devices, a parameter or a batch badly,
    or a group is not known.
    """
    mesh, network = mesh_lib.build(resolved.spec.mesh, devices), networks.of(resolved)
    trainable = network.trainable(resolved, mesh)
    layouts = {name: layout for name, (layout, _) in resolved.groups.items()}
    chosen = {name: choose(name, layouts, "group") for name in groups or layouts}
    order = sorted(chosen, key=lambda name: -chosen[name].length)
    with jax.set_mesh(mesh):
        for name in order:
            yield train_forecast(resolved, trainable.groups[name], mesh, topology, trainable)
        if decode and (program := network.decoding(resolved, order[0], mesh)):
            yield _forecast(program, mesh, topology)


# ------------------------------------------------------------------------------------- training


def train_forecast(resolved: Resolved, group: Group, mesh: Mesh, topology: Topology, trainable: Any) -> Forecast:
    """The forecast of a group's step, as the loop compiles it."""
    state = compiled.abstract(trainable, mesh)
    at_rest = sum(mesh_lib.local_bytes(x.sharding, x.shape, x.dtype) for x in jax.tree.leaves(state))
    model = networks.of(resolved).model(resolved)
    cost = Cost(
        flops=group.flops / mesh.size,
        # The state is read and written; layers are written when gathered, and read twice or thrice.
        traffic=2 * at_rest + (3 + (model.spec.remat == "full")) * part_bytes(model, mesh, "blocks"),
    )
    lower = functools.partial(compiled.lower, group, state, mesh)
    program = Program(name=f"train {group.name}", lower=lower, cost=cost)
    if at_rest > topology.chip.memory > 0:
        return Forecast(
            program=program.name,
            fits=False,
            needed=at_rest,
            available=topology.chip.memory,
            flops=cost.flops,
            compile_s=0.0,
            refusal="parameters and optimizer alone take more; nothing was compiled",
        )
    return _forecast(program, mesh, topology)


# ------------------------------------------------------------------------------------ any program


def _forecast(program: Program, mesh: Mesh, topology: Topology) -> Forecast:
    """Compiles a program; no room is a result, any other failure is raised."""
    begin, chip, cost = time.perf_counter(), topology.chip, program.cost
    try:
        lowered = program.lower()
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError(
            f"{program.name}: attention by cuDNN is compiled with NVIDIA's library ({error}): install it "
            f"({assets.install('gpu')}), or set MODEL.attention = 'xla'"
        ) from error
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Forecast(
            program=program.name,
            fits=False,
            needed=_refused_bytes(str(error)),
            available=chip.memory,
            flops=cost.flops,
            compile_s=time.perf_counter() - begin,
            refusal=str(error).splitlines()[0],
        )
    seconds, usage = time.perf_counter() - begin, done.memory_analysis()
    # A TPU's compiler has placed every buffer; elsewhere the sum of what is kept apart is all there is.
    needed = usage.peak_memory_in_bytes if chip.platform == "tpu" else compiled.needed_bytes(usage)
    found = hlo.collectives(done.as_text())
    shape = tuple(mesh.shape.values())
    outer = [c for c in found if topology.slices > 1 and c.crosses(shape, 0)]
    inner = [c for c in found if c not in outer]
    return Forecast(
        program=program.name,
        fits=needed <= chip.memory if chip.memory else None,
        needed=needed,
        available=chip.memory,
        temporary=usage.temp_size_in_bytes,
        moved=hlo.totals(inner),
        across=sum(hlo.totals(outer).values()),
        in_loops=sum(hlo.totals([c for c in found if c.in_loop]).values()),
        flops=cost.flops,
        calls=program.calls,
        call=program.call,
        seconds=_seconds(cost, hlo.totals(inner), hlo.totals(outer), topology),
        compile_s=seconds,
    )


def _seconds(cost: Cost, inner: Mapping[str, int], outer: Mapping[str, int], topology: Topology) -> dict[str, float]:
    chip = topology.chip
    needs = {
        "compute": (cost.flops, EFFICIENCY * chip.flops),
        "ICI" if chip.platform == "tpu" else "NVLink": (_transported(inner), topology.link_rate),
        "HBM": (cost.traffic, chip.memory_rate),
        "network": (_transported(outer), chip.network_rate),
    }
    return {name: amount / rate for name, (amount, rate) in needs.items() if rate}


def _transported(moved: Mapping[str, int]) -> float:
    return sum(TRIPS[kind] * size for kind, size in moved.items())


def _refused_bytes(message: str) -> float:
    """The largest size that the compiler's refusal names, 0 if it names none."""
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**10 * GIB}
    sizes = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])(?:i?B)?\b", message)
    return max((float(number) * units[unit] for number, unit in sizes), default=0.0)


# ----------------------------------------------------------------------------------------- advice


def advice(resolved: Resolved, forecast: Forecast, topology: Topology, mesh: Mesh) -> list[str]:
    """Changes for a program that does not fit, the cheapest first."""
    if forecast.fits is not False:
        return []
    if forecast.program.startswith("decode"):
        return ["MESH.tensor higher: decoding splits parameters over it alone", *_more(topology)]
    changes = []
    if resolved.spec.model.remat != "full":
        changes.append("MODEL.remat = 'full'")
    ways, parts = mesh_lib.batch_ways(mesh), resolved.spec.train.microbatches
    if resolved.spec.data.batch // parts > ways:
        changes.append(f"TRAIN.microbatches = {2 * parts}, or a smaller DATA.batch (at least {ways})")
    width, length_ways = mesh.shape["tensor"], mesh.shape["sequence"]
    if resolved.spec.model.kv_heads % (2 * width * length_ways) == 0:
        changes.append(f"MESH.tensor = {2 * width}")
        # Every device holds one clip, or its part of one: only shorter parts take less.
        if resolved.spec.data.batch // parts == ways and ways % 2 == 0:
            batch = resolved.spec.data.batch // 2
            changes.append(f"MESH.sequence = {2 * length_ways} with DATA.batch = {batch}")
    return changes + _more(topology)


def _more(topology: Topology) -> list[str]:
    return [f"more devices or larger ones than {topology.size} of {topology.name}"]
