"""What clouds call the accelerators of `poet.planning.topologies`, and how many hosts a topology has."""

from __future__ import annotations

import dataclasses
import math
import re

from poet.planning.topologies import GPUS_PER_HOST, Topology
from poet.spec import UserError

_CHIPS_PER_HOST = 4
# v5e and v6e have single machines with up to so many chips.
_CHIPS_ALONE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """Names of one chip.

    Attributes:
      google: what accelerator types of TPU VMs begin with.
      runtime: the software of a TPU VM (cloud.google.com/tpu/docs/runtimes).
      gke: the value of the label by which nodes are selected.
      sky: SkyPilot's name, of GPUs without their number.
    """

    google: str = ""
    runtime: str = ""
    gke: str
    sky: str


NAMES = {
    "v4": Names(google="v4", runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice", sky="tpu-v4"),
    "v5e": Names(google="v5litepod", runtime="v2-alpha-tpuv5-lite", gke="tpu-v5-lite-podslice", sky="tpu-v5litepod"),
    "v5p": Names(google="v5p", runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice", sky="tpu-v5p"),
    "v6e": Names(google="v6e", runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice", sky="tpu-v6e"),
    "h100": Names(gke="nvidia-h100-80gb", sky="H100"),
    "h200": Names(gke="nvidia-h200-141gb", sky="H200"),
}


def names(topology: Topology) -> Names:
    """The names of a topology's chip; UserError for CPUs, which clouds do not rent by that name."""
    chip = _parts(topology)[0]
    if chip not in NAMES:
        raise UserError(f"topology {topology.name!r}: this needs accelerators, such as v5e-16 or h100-8")
    return NAMES[chip]


def size(topology: Topology) -> str:
    """The number in the name of one slice: 256 of 2xv6e-256."""
    return _parts(topology)[1]


def _parts(topology: Topology) -> tuple[str, str]:
    chip, _, number = re.sub(r"^\d+x", "", topology.name).partition("-")
    return chip, number


def devices_per_host(topology: Topology) -> int:
    """Chips of one machine of TPUs, GPUs of one host; all of `cpu-N`."""
    slice_size = math.prod(topology.grid)
    if topology.chip.platform == "cpu":
        return slice_size
    if topology.chip.platform == "cuda":
        return min(slice_size, GPUS_PER_HOST)
    if len(topology.grid) == 2 and slice_size <= _CHIPS_ALONE:
        return slice_size
    return min(slice_size, _CHIPS_PER_HOST)


def hosts(topology: Topology) -> int:
    """Machines of a topology, all slices together."""
    return topology.size // devices_per_host(topology)
