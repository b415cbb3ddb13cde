"""Whether a training fits its hardware, by the compilers' word, before anything is rented.

Where it does not, changes are tried in the order of what they cost: those that leave every result as it is, more
hardware, and a smaller batch, which makes another training.  The first one that the forecast accepts is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import jax

from poet.distributed import mesh as mesh_lib
from poet.planning import forecast, topologies
from poet.planning.forecast import Forecast
from poet.planning.topologies import GIB, GRIDS, Topology
from poet.spec import DataSpec, TrainSpec, UserError
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)
# A change: how it is written, the run with it, and the hardware.
Change = tuple[str, Resolved, Topology]
Forecaster = Callable[[Resolved, Topology, tuple[str, ...]], Iterator[Forecast]]


def check(resolved: Resolved, topology: Topology) -> None:
    """Raises UserError for a training whose programs do not fit, with the smallest change that would.

    Compiles the step of the group with the longest sequences, which takes minutes for large models; other groups take
    as many tokens a step in shorter ones.  On devices whose memory is not known nothing is compiled.
    """
    if not topology.chip.memory:
        return
    jax.config.update("jax_platforms", "cpu")  # Nothing runs, so no accelerator of this machine need be claimed.
    try:
        topologies.devices(topology)
    except UserError as error:
        raise UserError(f"{error}; or launch without the check, by --no_fit_check") from None
    longest = next(forecaster(resolved, topology, ()))
    _LOG.info("%s on %s needs %s on each device", longest.program, topology.name, _sizes(longest))
    if longest.fits is False:
        said = f"{topology.name}: {longest.program} does not fit: it needs {_sizes(longest)} on each device"
        group = longest.program.removeprefix("train ")
        raise UserError(f"{said}. {smallest(resolved, topology, (group,), forecaster)}")


def forecaster(resolved: Resolved, topology: Topology, groups: tuple[str, ...]) -> Iterator[Forecast]:
    """Forecasts of the steps of a training's groups (none: of all), the longest first."""
    return forecast.forecasts(resolved, topology, topologies.devices(topology), groups, decode=False)


def _sizes(found: Forecast) -> str:
    return f"{found.needed / GIB:.2f} of {found.available / GIB:.2f} GiB"


def smallest(resolved: Resolved, topology: Topology, groups: tuple[str, ...], forecasts: Forecaster) -> str:
    """The first change that the forecast accepts, as a sentence with what it needs; what was tried, if none is."""
    tried = []
    for text, changed, target in changes(resolved, topology):
        try:
            found = list(forecasts(changed, target, groups))
        except UserError as error:  # The mesh does not divide what it must: no change at all.
            _LOG.info("%s: %s", text, error)
            continue
        _LOG.info("with %s: %s", text, ", ".join(map(_sizes, found)))
        if all(each.fits for each in found):
            return f"The smallest change that fits: {text} ({_sizes(found[0])})"
        tried.append(text)
    return f"Nothing that was tried fits: {'; '.join(tried) or 'there is no larger topology of this chip'}"


def changes(resolved: Resolved, topology: Topology) -> Iterator[Change]:
    """Changes for a training that does not fit, the smallest first."""
    spec, text = resolved.spec, ""
    ways = mesh_lib.batch_ways(mesh_lib.abstract(spec.mesh, topology.size))
    changed = spec.replace(model=spec.model.replace(remat="full"))
    if changed != spec:
        text = "MODEL.remat=full"
        yield text, Resolved(changed), topology
    for parts in _microbatches(spec.train, spec.data, ways):
        smaller = changed.replace(train=changed.train.replace(microbatches=parts))
        yield ", ".join(filter(None, [text, f"TRAIN.microbatches={parts}"])), Resolved(smaller), topology
    for larger in _larger(topology):
        yield f"topology: {larger.name}", resolved, larger
    for batch in _batches(spec.train, spec.data, ways):
        smaller = changed.replace(data=changed.data.replace(batch=batch))
        yield ", ".join(filter(None, [text, f"DATA.batch={batch}"])), Resolved(smaller), topology


def _microbatches(train: TrainSpec, data: DataSpec, ways: int) -> Iterator[int]:
    """More parts of a batch, doubling, as far as each of the mesh's ways of a batch has a clip in every part."""
    parts, batch = 2 * train.microbatches, data.batch
    while batch // parts >= ways and batch % (parts * ways) == 0:
        yield parts
        parts *= 2


def _batches(train: TrainSpec, data: DataSpec, ways: int) -> Iterator[int]:
    """Smaller batches, halving, that the mesh and the multiples of the data still divide."""
    ways, batch = ways * train.microbatches, data.batch // 2
    while batch >= ways and batch % ways == 0 and batch % (data.batch_multiple or 1) == 0:
        yield batch
        batch //= 2


def _larger(topology: Topology) -> Iterator[Topology]:
    """Topologies of the same chip with more devices, the smallest first."""
    several, chip = topology.slices, topology.name.split("x")[-1].partition("-")[0]
    prefix = f"{several}x" if several > 1 else ""
    for count in sorted(GRIDS[chip]):
        if count * several > topology.size:
            yield topologies.parse(f"{prefix}{chip}-{count * topology.chip.counts}")
