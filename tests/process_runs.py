"""Several processes on this machine, each with its part of eight virtual CPU devices."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DEVICES = 8
ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 500


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(
    count: int, command: Callable[[str, int], Sequence[str]], devices: Sequence[int] = ()
) -> list[subprocess.Popen]:
    """Starts `command(coordinator, index)` as a Python program for every index.

    `devices` of each; by default they share eight.
    """
    address = free_address()
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    processes = []
    for index in range(count):
        own = devices[index] if devices else DEVICES // count
        environment = os.environ | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={own}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *command(address, index)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes: Sequence[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes and output of all; none outlives the test."""
    try:
        output = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        kill(processes)
    return [process.returncode for process in processes], output


def kill(processes: Sequence[subprocess.Popen]) -> None:
    """Those that still run."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def run(
    count: int, command: Callable[[str, int], Sequence[str]], devices: Sequence[int] = ()
) -> tuple[list[int], list[str]]:
    return finish(start(count, command, devices))
