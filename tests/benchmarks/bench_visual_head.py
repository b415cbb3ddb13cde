"""What the two heads over visual codes cost, and how well they learn, at the tiny size.

    python tests/benchmarks/bench_visual_head.py                          # cost -> results/visual_head.*.json
    python tests/benchmarks/bench_visual_head.py --quality NAME ABOUT RUN ...   # the scores of runs
    python tests/benchmarks/bench_visual_head.py --page                   # -> poet/models/visual_head.md

Cost: one train step of a clip of 1,280 codes of 18 bits (4 layers of 128, float32, AdamW), by
process and round; random parameters.  Quality: the work dirs (RUN) of `poet train` runs that differ in
`MODEL.visual_head` and `MODEL.visual_leading` alone, after equally many steps; their last
evaluation is taken; NAME and ABOUT say what they learnt from.
"""

from __future__ import annotations

import json
import pathlib
import resource
import statistics
import sys
from typing import Any

import bench_train_step
import harness

TINY = {
    "layers": 4,
    "width": 128,
    "heads": 4,
    "head_dim": 32,
    "mlp_width": 512,
    "batch": 1,
    "sequence": ((), ("video",)),
    "bits": 18,
    "runs": 2,
}
HEADS: dict[str, dict[str, Any]] = {
    "9 + 9": {"visual_head": "factorised"},
    "6 + 12": {"visual_head": "factorised", "visual_leading": 6},
    "full": {},
}
PAGE = pathlib.Path(__file__).resolve().parents[2] / "poet" / "models" / "visual_head.md"
COST, QUALITY = harness.RESULTS / "visual_head.18_bits.json", harness.RESULTS / "visual_head_quality"
bench_train_step.CASES |= {name: {**TINY, "model": model} for name, model in HEADS.items()}


def cost(rounds: int, core: int) -> None:
    runs = {name: lambda name=name: harness.child(sys.executable, __file__, [name], core) for name in HEADS}
    unit = "step of 1,280 codes of 18 bits, 4 layers of 128, by bits of the factors"
    found = harness.interleave(runs, rounds)
    peaks = ", ".join(f"{name} {least(results, 'peak_mb'):,.0f} MB" for name, results in found.items())
    harness.save("visual_head", "18_bits", found, unit=unit, agreement=f"peak memory: {peaks}")


def least(results: list[dict[str, Any]], key: str) -> float:
    return min(result[key] for result in results)


def case(name: str) -> dict[str, Any]:
    """A step's seconds, its compilation, GFLOP, and the process's peak of resident memory."""
    times = bench_train_step.poet_case(name, "", False)
    return {**times, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def quality(name: str, about: str, workdirs: list[str]) -> None:
    """Takes the last evaluation of each run."""
    rows = [score(pathlib.Path(workdir)) for workdir in workdirs]
    QUALITY.mkdir(exist_ok=True)
    text = json.dumps({"name": name, "about": [about], "rows": rows}, indent=1, ensure_ascii=False)
    (QUALITY / f"{rows[0]['bits']}_bits.json").write_text(text + "\n")


def score(workdir: pathlib.Path) -> dict[str, Any]:
    spec = json.loads((workdir / "spec.json").read_text())
    model, bits = spec["model"], spec["vocabulary"]["visual_bits"]
    leading = model["visual_leading"] or bits // 2
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [r for r in records if r["kind"] == "validation"][-1]
    (loss,) = (value for key, value in last.items() if key.endswith("/loss/video"))
    (accuracy,) = (value for key, value in last.items() if key.endswith("/accuracy/video"))
    head = "full" if model["visual_head"] == "full" else f"{leading} + {bits - leading}"
    return {"head": head, "bits": bits, "steps": last["step"], "loss": loss, "accuracy": accuracy}


def page() -> str:
    """The page, from the results."""
    cost = json.loads(COST.read_text())["rounds"]
    full = cost["full"]
    lines = [
        "# The head over visual codes",
        "",
        "`MODEL.visual_head = 'factorised'` takes a code as two factors, the leading bits and then the rest given these "
        "([tables.py](tables.py)); `MODEL.visual_leading` says how many bits lead (0: half). The likelihood stays exact: "
        "log p(code) = log p(leading) + log p(rest | leading), so losses of both heads compare. Top-k, top-p, temperature and "
        "guidance act on each factor by itself. Written by `python tests/benchmarks/bench_visual_head.py --page`.",
        "",
        "## Cost",
        "",
        "One train step of 1,280 codes of 18 bits, 4 layers of 128, float32 with AdamW, one core; ratios are to the full head in "
        "the same round.",
        "",
        "| factors | seconds a step, median | ratio (least – greatest) | peak memory, MB | GFLOP |",
        "|---|---|---|---|---|",
    ]
    for name, results in cost.items():
        ratios = [statistics.median(f["wall"]) / statistics.median(r["wall"]) for f, r in zip(full, results)]
        seconds = statistics.median(s for r in results for s in r["wall"])
        lines.append(
            f"| {name} | {seconds:.3g} | {statistics.median(ratios):.3g} ({min(ratios):.3g} – {max(ratios):.3g}) "
            f"| {least(results, 'peak_mb'):,.0f} | {results[0]['gflop']:,.0f} |"
        )
    for path in sorted(QUALITY.glob("*.json")):
        found = json.loads(path.read_text())
        lines += ["", f"## Quality: {found['name']}", "", *found["about"], ""]
        lines += ["| head | steps | validation loss, nats a code | accuracy |", "|---|---|---|---|"]
        lines += [f"| {r['head']} | {r['steps']} | {r['loss']:.3f} | {r['accuracy']:.4f} |" for r in found["rows"]]
    lines += [
        "",
        "Runs are short, from one seed, and small tables learn early: the tables say what a start costs, not where training ends. Accuracy of "
        "factors is that of greedy decoding: the likeliest leading bits, then the likeliest rest given the code's own.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = harness.arguments(__doc__, list(HEADS))
    parser.add_argument("--quality", nargs="+", default=[], help="a name, what the runs had in common, work dirs")
    parser.add_argument("--page", action="store_true")
    flags = parser.parse_args()
    if flags.case:
        print(json.dumps(case(flags.case)))
    elif flags.quality:
        quality(*flags.quality[:2], flags.quality[2:])
    elif flags.page:
        PAGE.write_text(page())
    else:
        cost(flags.rounds, flags.core)
