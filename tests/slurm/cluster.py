"""A SLURM cluster of one node on this machine, in a folder: its own munged, slurmctld and slurmd."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
JobRequeue=1
KillWait=30
MinJobAge=300
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000
PartitionName=long Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; '' where one can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    return "" if os.getuid() == 0 else "slurmd starts jobs as root alone"


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """A cluster, which commands of SLURM find by SLURM_CONF; its daemons end with the context."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    ports = {"controller": _free_port(), "daemon": _free_port()}
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, **ports))
    os.environ["SLURM_CONF"] = str(config)
    munge = [
        f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")
    ]
    daemons = [
        _start(folder, ["munged", "--foreground", "--force", f"--key-file={key}", *munge]),
        _start(folder, ["slurmctld", "-D", "-c", "-f", str(config)]),
        _start(folder, ["slurmd", "-D", "-c", "-f", str(config)]),
    ]
    try:
        _wait_for_node(folder)
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
        del os.environ["SLURM_CONF"]


def _start(folder: Path, command: list[str]) -> subprocess.Popen:
    with open(folder / f"{command[0]}.out", "wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"PATH": _path()})


def _wait_for_node(folder: Path) -> None:
    for _ in range(60):
        done = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text(errors="replace")[-800:] for path in sorted(folder.glob("*.out")))
    raise AssertionError(f"no node became idle: {done.stdout}{done.stderr}\n{logs}")
