"""Accelerators by name, here or not: `v5e-16`, `v5p-256`, `2xv6e-256`, `h100-64`, `cpu-8`.

A compiler needs no hardware, only its description.  libtpu (the extra `tpu`) describes and compiles for
every TPU, XLA's CUDA plugin (the extra `gpu`) for GPUs; `cpu-8` stands for eight virtual devices of this
machine.  Numbers after a chip's name count what its makers count: chips of v5e and v6e, TensorCores
of v4 and v5p (two a chip, which JAX runs as one device), GPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re

import jax

from poet.runs import assets
from poet.spec import UserError, choose

GIB = 2**30


# (part of jax.Device.device_kind, dense bf16 FLOP/s of one jax device), first match wins.  From the
# vendors' data sheets; a TPU v3 or TPU7x chip shows as two devices.
_PEAK_FLOPS = (
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("TPU7x", 1153.5e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of one device, or None if it is not known (CPUs)."""
    return next((peak for part, peak in _PEAK_FLOPS if part in device_kind), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Memory and rates of one device.  A rate of 0 is unknown.

    Attributes:
      kind: `jax.Device.device_kind`.
      platform: "tpu", "cuda" or "cpu".
      library: what libtpu calls its generation.
      memory: bytes that a program may use.
      memory_rate: bytes a second from memory.
      link_rate: bytes a second, one way, over one link to a neighbour.
      network_rate: bytes a second of each device to other slices, or, for GPUs, other hosts.
      counts: what a name counts for each device.
      ring: chips along one axis of a slice from which on its ends are joined.
    """

    kind: str
    platform: str = "tpu"
    library: str = ""
    memory: float = 0.0
    memory_rate: float = 0.0
    link_rate: float = 0.0
    network_rate: float = 0.0
    counts: int = 1
    ring: int = 16

    @property
    def flops(self) -> float:
        """Dense bfloat16 operations a second at peak, 0 if unknown."""
        return peak_flops(self.kind) or 0.0


# Memory rates and links: "How to scale your model", chapter 2 (jax-ml.github.io/scaling-book), whose
# links are a tenth below the makers' sheets.  Network: "Data center network bandwidth" of Google's
# pages on each TPU, divided by chips.  Memory of TPUs: what libtpu 0.0.42 refuses to go beyond.
# H100, H200: NVIDIA's data sheets (18 NVLinks; one 400 Gbit/s adapter a GPU); nine
# tenths of the memory, which XLA_PYTHON_CLIENT_MEM_FRACTION has to allow (jax takes three quarters).
CHIPS = {
    "v4": Chip(library="v4", kind="TPU v4", memory=30.75 * GIB, memory_rate=1.2e12, link_rate=45e9, counts=2, ring=4),
    "v5e": Chip(
        library="v5e", kind="TPU v5 lite", memory=15.75 * GIB, memory_rate=0.81e12, link_rate=45e9, network_rate=3.125e9
    ),
    "v5p": Chip(
        library="v5",
        kind="TPU v5",
        memory=95.74 * GIB,
        memory_rate=2.765e12,
        link_rate=90e9,
        network_rate=6.25e9,
        counts=2,
        ring=4,
    ),
    "v6e": Chip(
        library="v6e", kind="TPU v6 lite", memory=31.25 * GIB, memory_rate=1.64e12, link_rate=90e9, network_rate=12.5e9
    ),
    "h100": Chip(
        kind="NVIDIA H100 80GB HBM3",
        platform="cuda",
        memory=0.9 * 84942979072,
        memory_rate=3.35e12,
        link_rate=450e9,
        network_rate=50e9,
    ),
    "h200": Chip(
        kind="NVIDIA H200",
        platform="cuda",
        memory=0.9 * 150754820096,
        memory_rate=4.8e12,
        link_rate=450e9,
        network_rate=50e9,
    ),
    "cpu": Chip(kind="cpu", platform="cpu"),
}

# Chips of a slice along each axis.
FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
CUBES = {
    4: (2, 2, 1),
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
    128: (4, 4, 8),
    256: (4, 8, 8),
    512: (8, 8, 8),
    1024: (8, 8, 16),
    2048: (8, 16, 16),
}
GPUS_PER_HOST = 8
HOSTS = {
    n: (n,) if n <= GPUS_PER_HOST else (n // GPUS_PER_HOST, GPUS_PER_HOST) for n in (2**power for power in range(11))
}
GRIDS = {
    "v4": CUBES,
    "v5e": FLAT,
    "v5p": CUBES,
    "v6e": FLAT,
    "h100": HOSTS,
    "h200": HOSTS,
    "cpu": {n: (n,) for n in (1, 2, 4, 8)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Slices of like chips.

    Attributes:
      grid: devices of a slice along each axis of its network; hosts x devices for GPUs.
    """

    name: str
    chip: Chip
    grid: tuple[int, ...]
    slices: int = 1

    @property
    def size(self) -> int:
        """Devices, as JAX counts them."""
        return self.slices * math.prod(self.grid)

    @property
    def link_rate(self) -> float:
        """Bytes a second that a device can take in from its slice, in a collective over all of it.

        Of a torus: both links of every axis; one where the ends of an axis are not joined, as the
        devices at its ends have no more.  Between hosts of GPUs every host's adapters work at once.
        """
        chip = self.chip
        if chip.platform == "tpu":
            return sum(chip.link_rate * (2 if n >= chip.ring else 1) for n in self.grid if n > 1)
        if len(self.grid) == 1:
            return chip.link_rate
        return min(chip.link_rate, chip.network_rate * GPUS_PER_HOST)


def parse(name: str) -> Topology:
    """The topology of a name.

    Raises UserError, with near names, for one that does not exist.

    >>> parse("2xv6e-256").size
    512
    """
    several = re.fullmatch(r"(\d+)x(.+)", name)
    slices, slice_name = (int(several[1]), several[2]) if several else (1, name)
    known = {
        f"{chip}-{size * CHIPS[chip].counts}": (CHIPS[chip], grid)
        for chip, grids in GRIDS.items()
        for size, grid in grids.items()
    }
    chip, grid = choose(slice_name, known, "topology")
    topology = Topology(name=name, chip=chip, grid=grid, slices=slices)
    if slices < 1 or slices > 1 and topology.chip.platform != "tpu":
        raise UserError(
            f"topology {name!r}: only TPUs come in several slices, 2 or more (2xv6e-256); GPUs of "
            "several hosts are one topology (h100-64)"
        )
    return topology


def devices(topology: Topology) -> list[jax.Device]:
    """Devices to compile for, which need not exist; programs for them cannot run here.

    Raises UserError if the library that describes them is missing; `cpu` needs as many virtual devices.
    """
    return {"tpu": _tpus, "cuda": _gpus, "cpu": _cpus}[topology.chip.platform](topology)


def _cpus(topology: Topology) -> list[jax.Device]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # The backend has started.
            jax.config.update("jax_num_cpu_devices", topology.size)
    here = jax.devices("cpu")
    if len(here) < topology.size:
        raise UserError(
            f"topology {topology.name!r} needs {topology.size} virtual devices, {len(here)} are here: "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={topology.size}"
        )
    return here[: topology.size]


def _tpus(topology: Topology) -> list[jax.Device]:
    from jax.experimental import topologies

    _require("libtpu", "tpu", topology)
    # Off Google's machines libtpu would wait for a metadata server, and refuse a second process.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    options: dict[str, object] = {}
    if topology.chip.counts == 2:  # Both TensorCores of a chip as one device.
        options = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    elif topology.grid == (1, 1):
        options = {"chips_per_host_bounds": (1, 1, 1)}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    grid = "x".join(map(str, topology.grid))
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{topology.chip.library}:{grid}", **options
    ).devices


def _gpus(topology: Topology) -> list[jax.Device]:
    from jax.experimental import topologies

    _require("jax_cuda13_plugin", "gpu", topology)
    # Nothing runs, so the plugin need not find a driver and NVIDIA's libraries.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    hosts = topology.grid if len(topology.grid) == 2 else (1, *topology.grid)
    return topologies.get_topology_desc(
        topology.name.split("-")[0],
        platform="cuda",
        target_config=_target(topology.chip),
        topology="1x" + "x".join(map(str, hosts)),
    ).devices


def _require(module: str, extra: str, topology: Topology) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"topology {topology.name!r} is compiled by {module}, which is not installed: {assets.install(extra)}"
        )


def _target(chip: Chip) -> str:
    """XLA's description of a Hopper GPU (compute capability 9.0), as text."""
    return f"""
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      cuda_compute_capability {{ major: 9 minor: 0 }}
      core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      registers_per_block_limit: 65536 registers_per_core_limit: 65536
      shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
      shared_memory_per_core: 233472 l2_cache_size: 52428800
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      device_memory_size: {round(chip.memory / 0.9)} memory_bandwidth: {round(chip.memory_rate)}
    }}
    """
