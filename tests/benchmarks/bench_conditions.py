"""What each choice of the design of conditions is worth, at the real layouts: small runs that differ in one.

    python tests/benchmarks/bench_conditions.py --store=CODES --steps=150     # an hour -> results/conditions.json
    python tests/benchmarks/bench_conditions.py --page                        # -> poet/models/conditions_by_choice.md

Every variant is a model of 4 layers of 128, trained by `poet train` from one seed on the same batches of four tasks (painting,
prediction, structure, sound with picture), and measured by `poet eval` on validation clips.  Run it again and it goes on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve()
RESULTS = HERE.parent / "results" / "conditions.json"
PAGE = HERE.parents[2] / "poet" / "models" / "conditions_by_choice.md"
SMALL = (
    "MODEL.layers=4",
    "MODEL.width=128",
    "MODEL.heads=4",
    "MODEL.kv_heads=4",
    "MODEL.head_dim=32",
    "MODEL.mlp_width=384",
    "MODEL.dtype='float32'",
    "MODEL.remat='none'",
    # Of the experiment, which has what the last rows compare.
    "MODEL.aligned_conditions=False",
    "MODEL.condition_encoder=0",
    "DATA.mixture_rates={'inpainting': 1.0, 'frame_prediction': 1.0, 'stylization': 1.0, 'audio_video_continuation': 1.0}",
    "DATA.batch=4",
    "OPTIMIZER.learning_rate=3e-3",
    "OPTIMIZER.warmup_steps=50",
    "TRAIN.eval_every=0",
    "EVAL.batch=16",
    "EVAL.gain_clips=64",
)
OLD = (
    "MODEL.tables='untied'",
    "MODEL.embedding_scale=0.25",
    "MODEL.axes='separate'",
    "MODEL.query_place='own'",
    "MODEL.condition_marker=False",
    "MODEL.rope_base=10000.0",
    "CONDITIONING.sound_place='output'",
)
# What differs from the defaults, by the name of the row.
VARIANTS: dict[str, tuple[str, ...]] = {
    "the defaults": (),
    "as before": OLD,
    "embedded rows of 0.02": ("MODEL.embedding_scale=0.23",),
    "rotary base 10,000": ("MODEL.rope_base=10000.0",),
    "places apart": ("MODEL.axes='separate'",),
    "queries at their own place": ("MODEL.query_place='own'",),
    "no markers": ("MODEL.condition_marker=False",),
    "conditions where they are predicted": ("MODEL.aligned_conditions=True",),
    "conditions encoded where they are predicted": ("MODEL.aligned_conditions=True", "MODEL.condition_encoder=96"),
    "conditioning sound in the output alone": ("CONDITIONING.sound_place='output'",),
    "steps weigh by tokens": ("TRAIN.step_weight='tokens'",),
    # Its 262,144 rows make a step ten times as dear.
    "whole codes, tied": ("MODEL.visual_head='full'",),
}
COLUMNS = (
    ("inpainting", "clip with a hole", "video"),
    ("frame_prediction", None, "video"),
    ("stylization", "flow and depth", "video"),
    ("stylization", "text", "video"),
    ("audio_video_continuation", "opening sound", "video"),
    ("audio_video_continuation", None, "audio"),
)


def run(options: argparse.Namespace, variant: str, work: pathlib.Path) -> dict[str, Any]:
    """Trains one variant in a work dir, and measures it."""
    bindings = (*SMALL, f"DATA.store={options.store!r}", f"TRAIN.steps={options.steps}", *VARIANTS[variant])
    begin = time.perf_counter()
    poet("train", f"--gin_file={options.config}", *(f"--gin.{b}" for b in bindings), f"--workdir={work}")
    seconds = time.perf_counter() - begin
    poet("eval", f"--checkpoint={work}", "--metric=condition_gain", "--metric=likelihood", f"--out={work / 'eval'}")
    tables = json.loads((work / "eval" / "eval.json").read_text())["metrics"]
    losses = {(row["task"], row["stream"]): row["loss_nats"] for row in tables["likelihood"]["rows"]}
    gains = [{**row, "loss": losses[row["task"], row["stream"]]} for row in tables["condition_gain"]["rows"]]
    return {"variant": variant, "steps": options.steps, "seconds": seconds, "gains": gains}


def poet(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "poet.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def page() -> str:
    """The page, from the results."""
    found = json.loads(RESULTS.read_text())
    steps = found[0]["steps"]
    heads = [f"{task}: {condition or 'first frame'} → {stream}" for task, condition, stream in COLUMNS]
    lines = [
        "# The design of conditions",
        "",
        "A model is told what to draw by what stands before it: frames, a clip with a hole, flow and depth, sound, a text. Each "
        "row of the table is a small model (4 layers of 128, codes of 18 bits on a grid of 5x8x8) that was trained for "
        f"{steps:,} steps of 4 clips on the arenas, from one seed and on the same batches, with one choice other than the default. "
        "Numbers are nats a token that another clip's condition costs (64 validation clips): more is better, 0 is a condition that "
        "is ignored. In brackets, the loss with the right condition, nats a token. Written by "
        "`python tests/benchmarks/bench_conditions.py --page`.",
        "",
        "| variant | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
    ]
    for each in found:
        cells = [_cell(each["gains"], *column) for column in COLUMNS]
        lines.append(f"| {each['variant']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "On codes that could be copied (the right code stands at the same place of the condition), nats that the exchange costs there "
        "and, in brackets, how often the likeliest code is the right one:",
        "",
        "| variant | inpainting | frame_prediction |",
        "|---|---|---|",
    ]
    for each in found:
        cells = [_copied(each["gains"], task) for task in ("inpainting", "frame_prediction")]
        lines.append(f"| {each['variant']} | " + " | ".join(cells) + " |")
    lines += ["", *ABOUT]
    return "\n".join(lines) + "\n"


ABOUT = (
    "What the fields are:",
    "",
    "* `MODEL.tables`, `MODEL.visual_head`, `MODEL.embedding_scale`: rows that embed a code score it too, whole or in two factors, and "
    "embedded rows are as large as what the blocks add ([tables.py](tables.py)).",
    "* `MODEL.rope_base`, `MODEL.axes`, `MODEL.query_place`: where things stand. The same place of the same clip has the same rotary "
    "position in condition and output, sound has the time of its picture, and a query stands at the place of the token that it predicts, "
    "so that 'the same place of the condition' is distance 0 ([layout.py](../tasks/layout.py), [transformer.py](transformer.py)).",
    "* `MODEL.condition_marker`: a learnt vector is added to given codes, another stands where a cell is not given.",
    "* `MODEL.aligned_conditions`: a condition's code is added, through a learnt matrix, where the code of its place is predicted.",
    "* `MODEL.condition_encoder`: what an encoder finds in the bits around a conditioning cell is added there too, and to sound of that time.",
    "* `CONDITIONING.sound_place`: where a task generates picture and sound, conditioning sound stands in the prefix too, so that the generated "
    "picture sees it.",
    "* `TRAIN.step_weight`: whether a step counts by the tokens that it predicts.",
    "",
    "Runs are short, small and from one seed: differences of a few hundredths are noise.",
)


def _of(rows: list[dict[str, Any]], task: str, condition: str | None, stream: str) -> dict[str, Any] | None:
    named = [r for r in rows if r["task"] == task and r["stream"] == stream]
    if condition is None:
        named = [r for r in named if "frame" in r["condition"]]
    else:
        named = [r for r in named if r["condition"] == condition]
    return named[0] if named else None


def _cell(rows: list[dict[str, Any]], task: str, condition: str | None, stream: str) -> str:
    row = _of(rows, task, condition, stream)
    return "–" if row is None else f"{row['nats_per_token']:.3f} ({row['loss']:.2f})"


def _copied(rows: list[dict[str, Any]], task: str) -> str:
    row = next(r for r in rows if r["task"] == task and r["copyable"] is not None)
    return f"{row['copyable_nats']:.2f} ({row['copyable_accuracy']:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="")
    parser.add_argument("--config", default="gin/experiments/arenas.gin")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page())
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    found = [each for each in found if each["steps"] == options.steps]
    done = {each["variant"] for each in found}
    for variant in [v for v in VARIANTS if v not in done]:
        with tempfile.TemporaryDirectory() as folder:
            found.append(run(options, variant, pathlib.Path(folder)))
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(variant, f"{found[-1]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
