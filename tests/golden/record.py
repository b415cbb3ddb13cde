"""Records what a tiny run of every task makes, bit by bit: `python tests/golden/record.py`.

Run it on a commit that is known to be right; `tests/golden/test_golden.py` compares later ones with it.
It writes into `expected/`

    anywhere.json         layouts and batches, which integers alone decide
    <machine>.json        stores, losses, parameters, samples, exports and scores, for this kind of machine and
                          these versions of libraries: one file for each

`--compare` writes nothing and prints what differs from what is recorded; `--few` keeps to three tasks.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).resolve().parent / "expected"
# What is measured: integers of every task, results of three tasks, results of every task.
PARTS = ("anywhere", "few", "all")
# They may change the last bit of a result.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow", "av", "opencv-python-headless")
# One thread and one device: sums have one order.  Programs that run a few times are not worth optimising.
ENVIRONMENT = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # Programs name source files without their folders.
    "JAX_HLO_SOURCE_FILE_CANONICALIZATION_REGEX": "^.*/",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def key() -> dict[str, Any]:
    """What must be the same for floating-point results to be: the processor's instructions, and libraries."""
    return {
        "machine": platform.machine(),
        "instructions": _instructions(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _instructions() -> str:
    """Those that compilers choose among, such as 'avx avx2 fma'."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [platform.processor()])
    return " ".join(sorted(f for f in flags if f.startswith(("avx", "fma", "f16c", "amx", "sse4"))))


def file_of(machine: dict[str, Any]) -> Path:
    """Where results for such a key lie."""
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()
    return EXPECTED / f"{machine['machine']}-{digest[:8]}.json"


def prepare() -> None:
    """Sets what the process compiles with; before JAX is imported."""
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(ROOT))


def measure(parts: Sequence[str]) -> dict[str, Any]:
    """Part -> what was found, of `PARTS`."""
    import world

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        found = {"anywhere": world.anywhere(base)} if "anywhere" in parts else {}
        tasks = {"few": world.FEW, "all": world.ALL}
        return found | {part: world.here(base / part, tasks[part]) for part in parts if part in tasks}


def recorded(machine: dict[str, Any]) -> dict[str, Any]:
    """What was recorded that holds on such a machine."""
    found = {"anywhere": json.loads((EXPECTED / "anywhere.json").read_text())}
    if file_of(machine).exists():
        found |= json.loads(file_of(machine).read_text())
    return found


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """One line for each leaf that is not the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        return [line for name in names for line in differences(before.get(name), now.get(name), f"{where}/{name}")]
    return [] if before == now else [f"{where}: {before} was recorded, now {now}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="write nothing, print what differs")
    parser.add_argument("--few", action="store_const", dest="parts", const=PARTS[:2], help="three tasks alone")
    parser.add_argument("--out", default="", metavar="FILE", help="write all that was measured to this file instead")
    args = parser.parse_args()
    prepare()
    found, machine = measure(args.parts or PARTS), key()
    if args.out:
        _write(Path(args.out), found)
    elif args.compare:
        known = recorded(machine)
        wrong = [d for part in found for d in differences(known.get(part), found[part], part)]
        print("\n".join(wrong) or "the same, bit by bit")
        return int(bool(wrong))
    else:
        _write(EXPECTED / "anywhere.json", found.pop("anywhere"))
        before = json.loads(file_of(machine).read_text()) if file_of(machine).exists() else {}
        _write(file_of(machine), {"key": machine, **before, **found})
    return 0


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
