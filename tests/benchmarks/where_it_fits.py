"""Compiles the shipped sizes for a range of accelerators and writes gin/models/where_it_fits.md.

    python tests/benchmarks/where_it_fits.py             # compile what where_it_fits.jsonl lacks (hours), write the page
    python tests/benchmarks/where_it_fits.py --page      # write the page alone
    python tests/benchmarks/where_it_fits.py 8b:v5p-256  # compile these cells; superres_896:h100-8
    python tests/benchmarks/where_it_fits.py --clips=1   # try no more clips than this

Wants `pip install -e '.[tpu,gpu]'`, and no accelerator.  Each attempt runs in a process of its own
(`poet describe --topology`) and adds a line to where_it_fits.jsonl, so it can be stopped and run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from poet.planning import topologies

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DATA, PAGE = HERE / "results" / "where_it_fits.jsonl", ROOT / "gin" / "models" / "where_it_fits.md"
SIZES = ("300m", "1b", "8b")
NAMES = ("v5e-16", "v5e-256", "v6e-16", "v6e-256", "2xv6e-256", "v4-128", "v5p-32", "v5p-256", "h100-8", "h100-64")
# Mesh of a size, as gin/experiments/pretrain_SIZE.gin has it.
TENSOR = {"300m": 1, "1b": 1, "8b": 4}
# The longest sequence of the pretraining mixture.
GROUP = "text+video-to-video"
# gin/experiments/SIZE.gin, each of one group.
LARGER, LARGER_NAMES = ("superres_448", "superres_896"), ("h100-8",)
CLIPS = (1, 2, 4, 8)
GIB = topologies.GIB
Cell = dict[str, Any]


def main(arguments: list[str]) -> None:
    wanted = [tuple(a.split(":")) for a in arguments if ":" in a]
    most = min([int(a.removeprefix("--clips=")) for a in arguments if a.startswith("--clips=")] or CLIPS[-1:])
    if "--page" not in arguments:
        for size, name in wanted or every():
            fill(size, name, most)
    PAGE.write_text(page(cells()))


def every() -> list[tuple[str, str]]:
    return [(size, name) for size in SIZES for name in NAMES] + larger()


def larger() -> list[tuple[str, str]]:
    return [(size, name) for size in LARGER for name in LARGER_NAMES]


def cells() -> list[Cell]:
    """Attempts so far: {"size", "topology", "clips", "programs"}; no programs if it failed."""
    return [json.loads(line) for line in DATA.read_text().splitlines()] if DATA.exists() else []


def fill(size: str, name: str, most: int) -> None:
    """Compiles a cell with ever more clips, until a step does not fit."""
    done = {cell["clips"]: cell for cell in cells() if (cell["size"], cell["topology"]) == (size, name)}
    for clips in (c for c in CLIPS if c <= most):
        if not fits(done.get(clips) or attempt(size, name, clips)):
            return


def fits(cell: Cell) -> bool:
    return bool(cell["programs"]) and cell["programs"][0]["fits"]


def attempt(size: str, name: str, clips: int) -> Cell:
    """Compiles for `clips` clips on each share of the batch axes."""
    topology = topologies.parse(name)
    ways = topology.size // TENSOR.get(size, 1)
    settings = [f"--gin_file=gin/experiments/pretrain_{size}.gin", f"--group={GROUP}"]
    if size in LARGER:
        settings = [f"--gin_file=gin/experiments/{size}.gin"]
    command = [
        sys.executable,
        "-m",
        "poet.cli",
        "describe",
        *settings,
        f"--topology={name}",
        "--json",
        f"--gin.MESH.data={topology.slices}",
        f"--gin.DATA.batch={clips * ways}",
        f"--gin.DATA.batch_multiple={ways}",
    ]
    if topology.chip.platform == "cuda":
        command.append("--gin.MODEL.attention=xla")
    begin = time.time()
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    cell = {"size": size, "topology": name, "clips": clips, "programs": [json.loads(line) for line in lines]}
    if run.returncode:
        cell["error"] = run.stderr.strip().splitlines()[-1]
    with DATA.open("a") as file:
        file.write(json.dumps(cell) + "\n")
    print(f"{size} {name} {clips} clips: {len(lines)} programs in {time.time() - begin:.0f} s", flush=True)
    return cell


def page(found: list[Cell]) -> str:
    """The page as Markdown."""
    tried: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(found, key=lambda cell: cell["clips"]):
        tried.setdefault((cell["size"], cell["topology"]), []).append(cell)
    rows = {(size, name): _row(size, name, tried.get((size, name), [])) for size, name in every()}
    below = [rows.pop(cell) for cell in larger()]
    return HEAD + "\n".join(rows.values()) + LARGER_HEAD + "\n".join(below) + FOOT


def _row(size: str, name: str, tried: list[Cell]) -> str:
    start = f"| {size} | {name} | {topologies.parse(name).size} |"
    if not tried:
        return f"{start} not computed |" + " |" * 7
    last, fitting = tried[-1], [cell for cell in tried if fits(cell)]
    if not last["programs"]:
        return f"{start} {last['clips']} clips: {last.get('error', 'failed')} |" + " |" * 7
    if not fitting:
        train = last["programs"][0]
        return f"{start} **does not fit** | at least {_room(train)} |" + " |" * 6
    cell, beyond = fitting[-1], "not tried" if fits(last) else "does not fit"
    clips = str(cell["clips"])
    clips += f" ({2 * cell['clips']} {beyond})" if cell["clips"] != CLIPS[-1] else ""
    train, *decode = cell["programs"]
    moved = f"{sum(train['moved'].values()) / GIB:.1f}"
    moved += f" + {train['across'] / GIB:.2f}" if train["across"] else ""
    times = " / ".join(f"{train['seconds'].get(name, 0):.3f}" for name in ("compute", train_link(train), "HBM"))
    return (
        f"{start} {clips} | {_room(train)} | {moved} | {train['flops'] / 1e12:.0f} | {times} "
        f"| {train['time_s']:.3f}, {train['bound']} | {_decode(decode)} | {train['compile_s']:.0f} |"
    )


def _room(program: dict[str, Any]) -> str:
    return f"{program['needed'] / GIB:.1f} of {program['available'] / GIB:.1f}"


def train_link(program: dict[str, Any]) -> str:
    return "ICI" if "ICI" in program["seconds"] else "NVLink"


def _decode(programs: list[dict[str, Any]]) -> str:
    if not programs:
        return "not computed"
    (found,) = programs
    if not found["fits"]:
        return "does not fit"
    return f"{1e3 * found['time_s'] / found['calls']:.2f} ({found['needed'] / GIB:.1f} GiB)"


COLUMNS = """| size | topology | devices | clips | GiB | moved | TFLOP | compute / links / HBM, s | predicted, s | decode, ms | compile, s |
|---|---|---|---|---|---|---|---|---|---|---|
"""
HEAD = f"""# Memory and time by accelerator

Written by `python tests/benchmarks/where_it_fits.py`: nothing here ran on an accelerator. Each row is the real train step of `gin/experiments/pretrain_SIZE.gin`, compiled ahead of
time by the accelerator's own compiler (`poet describe --topology=NAME`), for the group with the longest sequence of the mixture (`{GROUP}`: 2,634 tokens). Other
groups take as many tokens a step in shorter sequences. "Fits" is what the compiler says; predicted times are not measurements.

- **clips**: the largest of {", ".join(map(str, CLIPS))} that was found to fit, for each slice of the batch axes (`MESH.data` x `MESH.fsdp`; the 8B model puts 4 devices on `MESH.tensor`).
- **GiB**: needed at the peak, of what a program may use, on each device.
- **moved**: GiB that collectives move on each device in one step, loops multiplied in; after "+" between slices.
- **compute / links / HBM**: seconds that each alone would need: matrix products at half the peak (no rematerialisation counted), collectives at the full rate of the
  links (of NVLink and adapters for H100), and the least that memory must move. **predicted** is the longest of the three, all else hidden behind it.
- **decode**: predicted ms a token, for 8 clips on each slice of the batch axes, with parameters in bfloat16 split over `tensor` alone; and its GiB.
- Attention is the kernel that `MODEL.attention = 'auto'` takes (splash on TPUs); H100 rows are compiled with 'xla', as cuDNN's needs NVIDIA's libraries.
- **compile**: wall seconds beside other work on a machine of two cores.

{COLUMNS}"""
LARGER_HEAD = f"""

## Super-resolution

The step of `gin/experiments/superres_448.gin` (1.10 B parameters, 8,960 codes a clip) and `superres_896.gin` (496 M, 35,840 codes), alike. **decode**: predicted ms a pass, for 4 clips on each slice with
both branches of guidance; 24 passes make a clip.

{COLUMNS}"""
FOOT = """

Rates of the chips are in [poet/planning/topologies.py](../../poet/planning/topologies.py), assumptions in [poet/planning/forecast.py](../../poet/planning/forecast.py).
[Sharding](../../poet/models/sharding.md) says what moves and why.
"""

if __name__ == "__main__":
    main(sys.argv[1:])
