"""Makes the table of tests/benchmarks/README.md from the JSON files of tests/benchmarks/results/.

python tests/benchmarks/table.py            # writes it between the marks of the read-me
python tests/benchmarks/table.py --check    # says whether it is up to date
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
# Benchmarks in the order of the table.
ORDER = (
    "train_step",
    "visual_head",
    "decode",
    "magvit_encode",
    "lfq",
    "rvq",
    "soundstream",
    "loader",
    "checkpoint",
    "compile",
)
HEAD = (
    "| what one run does | who | seconds: median (least – greatest) | CPU seconds: median, least "
    "| ratio by clock | ratio by CPU | compile s |\n|---|---|---|---|---|---|---|"
)


def load(folder: pathlib.Path) -> list[dict[str, Any]]:
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda r: ORDER.index(r["benchmark"]))


def ratios(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Of each round their median over ours: above 1, this project is faster."""
    return [statistics.median(their[key]) / statistics.median(our[key]) for our, their in zip(ours, theirs)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} – {max(values):.2f})"


def rows(result: dict[str, Any]) -> list[str]:
    """One line of each competitor; the first is what ratios compare to."""
    lines = []
    first = next(iter(result["rounds"]))
    for who, rounds in result["rounds"].items():
        wall, cpu = ([value for r in rounds for value in r[key]] for key in ("wall", "cpu"))
        compared = (
            ["1", "1"]
            if who == first
            else [spread(ratios(result["rounds"][first], rounds, key)) for key in ("wall", "cpu")]
        )
        # The first round found no cache of compiled programs.
        compiled = rounds[0].get("compile_s", 0.0)
        lines.append(
            f"| {result['unit'] if who == first else ''} | {who} "
            f"| {statistics.median(wall):.4g} ({min(wall):.4g} – {max(wall):.4g}) "
            f"| {statistics.median(cpu):.4g}, {min(cpu):.4g} "
            f"| {compared[0]} | {compared[1]} | {f'{compiled:.0f}' if compiled else '–'} |"
        )
    return lines


def readers(results: Sequence[dict[str, Any]]) -> list[str]:
    """Of results with a fill, what reading is beside its seconds, those of a million tokens."""
    lines = ["", "| loader | million tokens a CPU second | fill | state, bytes | save s, restore s |"]
    lines.append("|---|---|---|---|---|")
    for who, rounds in ((w, r) for result in results for w, r in result["rounds"].items()):
        if "fill" in rounds[0]:
            cpu = statistics.median(value for r in rounds for value in r["cpu"])
            first = rounds[0]
            lines.append(
                f"| {who} | {1 / cpu:.2f} | {100 * first['fill']:.1f} % | {first['state_bytes']:,} "
                f"| {first['save_s']:.2g}, {first['restore_s']:.2g} |"
            )
    return lines if len(lines) > 3 else []


def notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """Commands, dates, load, and what was checked."""
    lines = ["", "| benchmark, case | command | date, load at the end | rounds | checked |"]
    lines.append("|---|---|---|---|---|")
    for r in results:
        count = len(next(iter(r["rounds"].values())))
        lines.append(
            f"| {r['benchmark']}, {r['case']} | `{r['command']}` | {r['date']}, {r['load']:.1f} "
            f"| {count} | {r.get('agreement', '')} |"
        )
    versions = {name: version for r in results for name, version in r["versions"].items()}
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines += ["", f"Versions: {named}."]
    machines = sorted({r["machine"] for r in results})
    return lines + ["Machine: " + "; ".join(machines) + "; **shared with other jobs all the while**."]


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [HEAD] + [line for result in results for line in rows(result)]
    lines += readers(results) + notes(results)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    flags = parser.parse_args()
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    fresh = f"{before}{BEGIN}\n{table(load(HERE / 'results'))}\n{END}{after}"
    if flags.check:
        sys.exit(0 if fresh == text else f"{README} is not what {HERE / 'results'} makes: run table.py")
    README.write_text(fresh)


if __name__ == "__main__":
    main()
