"""What each choice of the design of conditions is worth, at the real layouts: small runs that differ in one.

    python tests/benchmarks/bench_conditions.py --store=CODES --config=gin/experiments/arenas.gin     # hours -> results/conditions.json
    python tests/benchmarks/bench_conditions.py --store=CODES --config=... --only="as shipped"         # one variant, for the others' page
    python tests/benchmarks/bench_conditions.py --page                                  # -> poet/models/conditions_by_choice.md

Every variant is a model of 4 layers of 128, trained from one seed on the same batches of four tasks (painting, prediction,
structure, sound with picture), in a process of its own; then `poet.evaluation.condition_gain` of validation clips.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from poet.tasks.resolved import Resolved

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
    "DATA.mixture_rates={'inpainting': 1.0, 'frame_prediction': 1.0, 'stylization': 1.0, 'audio_video_continuation': 1.0}",
    "DATA.batch=4",
    "OPTIMIZER.learning_rate=3e-3",
    "OPTIMIZER.warmup_steps=50",
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
    "whole codes, tied": ("MODEL.visual_head='full'",),
    "embedded rows of 0.02": ("MODEL.embedding_scale=0.23",),
    "rotary base 10,000": ("MODEL.rope_base=10000.0",),
    "places apart": ("MODEL.axes='separate'",),
    "queries at their own place": ("MODEL.query_place='own'",),
    "no markers": ("MODEL.condition_marker=False",),
    "conditions where they are predicted": ("MODEL.aligned_conditions=True",),
    "conditions encoded where they are predicted": ("MODEL.aligned_conditions=True", "MODEL.condition_encoder=96"),
    "conditioning sound in the output alone": ("CONDITIONING.sound_place='output'",),
    "steps weigh by tokens": ("TRAIN.step_weight='tokens'",),
}
COLUMNS = (
    ("inpainting", "clip with a hole", "video"),
    ("frame_prediction", None, "video"),
    ("stylization", "flow and depth", "video"),
    ("stylization", "text", "video"),
    ("audio_video_continuation", "opening sound", "video"),
    ("audio_video_continuation", None, "audio"),
)


def experiment(config_file: str, store: str, steps: int, variant: str) -> Any:
    from poet.spec import config

    # A run of the small model on the store; weights of the tokenizers are not read.
    bindings = [*SMALL, f"DATA.store={store!r}", f"TRAIN.steps={steps}", *VARIANTS[variant]]
    return config.load([config_file], bindings)


def run(config_file: str, store: str, steps: int, variant: str) -> dict[str, Any]:
    """Trains one variant and measures it."""
    import jax
    import numpy as np

    from poet.data import loader
    from poet.distributed import mesh as mesh_lib
    from poet.training import schedule, step

    spec = experiment(config_file, store, steps, variant)
    mesh = mesh_lib.build(spec.mesh)
    begin, losses = time.perf_counter(), []
    with jax.set_mesh(mesh):
        trainable = step.language_model(Resolved(spec), mesh)
        batches = loader.batches(Resolved(spec))
        order = schedule.PhasedSchedule(Resolved(spec).phases, seed=spec.train.seed)
        state = jax.jit(trainable.init)(jax.random.key(spec.train.seed))
        steps_of = {name: jax.jit(group.step, donate_argnums=0) for name, group in trainable.groups.items()}
        for number in range(steps):
            group = order(number)
            batch = next(batches[group])
            key = jax.random.fold_in(jax.random.key(1), number)
            state, metrics = steps_of[group](state, batch, key, trainable.rate(number))
            losses.append(float(metrics["loss"].value()))
        seconds = time.perf_counter() - begin
        rows = list(gains(spec, mesh, state["params"]))
    return {
        "variant": variant,
        "steps": steps,
        "seconds": seconds,
        "gains": rows,
        "training_loss": float(np.mean(losses[-max(steps // 10, 1) :])),
    }


def gains(spec: Any, mesh: Any, params: Any) -> Iterator[dict[str, Any]]:
    """Rows of `condition_gain`, with the own loss of each task and stream."""
    import numpy as np

    from poet.data.loader import eval_batches
    from poet.evaluation import condition_gain
    from poet.models.transformer import build_model

    model, clips, size = build_model(Resolved(spec)), spec.eval.gain_clips, spec.eval.batch
    for task in Resolved(spec).mixture:
        parts = list(eval_batches(Resolved(spec), task.name, "validation", size, clips // size))
        batch = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        partners = (np.arange(clips) + clips // 2) % clips
        layout = Resolved(spec).layout(task)
        found = condition_gain.gains(
            model, params, batch, layout, condition_gain.kinds(Resolved(spec), task), partners, mesh, size=size
        )
        for names_and_tokens in found:
            tokens = names_and_tokens[-1]
            loss = tokens["loss"].sum() / tokens["count"].sum()
            yield {**condition_gain.row(task.name, *names_and_tokens)[0], "loss": float(loss)}


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
    parser.add_argument("--only", choices=VARIANTS, help="run this one and print its result")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page())
        return
    if options.only:
        print(json.dumps(run(options.config, options.store, options.steps, options.only)))
        return
    found = []
    for name in VARIANTS:
        command = [
            sys.executable,
            str(HERE),
            f"--store={options.store}",
            f"--config={options.config}",
            f"--steps={options.steps}",
            f"--only={name}",
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(name, f"{found[-1]['training_loss']:.3f}", f"{found[-1]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
