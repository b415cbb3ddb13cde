"""What sampling in fronts (`SAMPLE.row_lag`, `SAMPLE.frame_lag`) saves and costs, beside one code at a time.

    python tests/benchmarks/bench_fronts.py [--cases 7m] [--weights=data/pretrained/lm_arenas] [--samples=16]

In one process on one core, in CPU seconds.

- `speed`: random weights, a clip of (5, 16, 16) codes: model steps, and codes a CPU second, which count those of all
  samples.
- `quality`: released weights: mean negative log-likelihood of a sampled code under the exact model, in nats, with its
  standard error over samples; lower is no better, but samples of the exact model have the first row's.  `collapsed`
  counts samples that `poet.sampling.collapse` finds something in.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from typing import Any

import harness

os.environ |= harness.SINGLE_THREAD

import bench_decode_options as options  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from poet.runs.run import Run  # noqa: E402
from poet.sampling import collapse  # noqa: E402
from poet.sampling.decode import Decoder  # noqa: E402
from poet.sampling.engine import Inputs  # noqa: E402
from poet.sampling.generate import Generator  # noqa: E402
from poet.sampling.samplers import SamplingParams  # noqa: E402
from poet.spec import SampleSpec  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.training import losses  # noqa: E402

GRID = (5, 16, 16)
SPEED_LAGS = [(0, 0), (1, 0), (2, 28), (1, 3)]
QUALITY_LAGS = [(0, 0), (8, 0), (4, 0), (2, 0), (1, 0), (2, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=["7m"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--weights", default="", help="a run or released weights, whose samples are scored")
    parser.add_argument("--task", default="unconditional")
    parser.add_argument("--samples", type=int, default=16)
    flags = parser.parse_args()
    found: dict[str, Any] = {"speed": [row for case in flags.cases for row in speeds(case, flags.batches)]}
    if flags.weights:
        found["quality"] = quality(flags.weights, flags.task, flags.samples)
    print(json.dumps(found, indent=1))
    with (harness.RESULTS / "fronts.jsonl").open("a") as file:
        record = {"command": " ".join(harness.shown(sys.argv[1:])), **found, "versions": harness.installed()}
        file.write(json.dumps(record) + "\n")


def speeds(case: str, batches: list[int]) -> list[dict[str, Any]]:
    options.GRID = GRID
    model, plan = options.network(case)
    params = jax.jit(model.init)(jax.random.key(0))
    rows = []
    for batch in batches:
        for lags in SPEED_LAGS:
            fronts = type(plan)(layout=plan.layout, lags=lags)
            seconds = clip_s(model, fronts, params, batch)
            speed = batch * np.prod(GRID) / seconds
            rows.append({"case": case, "batch": batch, "lags": lags, "steps": fronts.model_steps, "codes_per_s": speed})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def clip_s(model: Any, plan: Any, params: Any, batch: int) -> float:
    """CPU seconds of a clip: that of its last chunk, times the chunks."""
    decoder, (start, steps) = Decoder(model, plan), plan.chunks[-1]
    ids = np.concatenate([np.full(s.length, s.ids.low) for s in plan.layout.segments])[: plan.prefilled]
    state = decoder.prefill(params, np.tile(ids, (batch, 1)).astype(np.int32))
    loop, rows, settings = jax.jit(model.by_layer)(params), jnp.arange(batch), SamplingParams.of(SampleSpec())
    for _ in range(2):  # The first one compiles.
        begun = time.process_time()
        tokens, state = decoder.advance(steps, loop, *state, jnp.int32(start), rows, settings)
        jax.block_until_ready((tokens, state))
        seconds = time.process_time() - begun
    return seconds * len(plan.chunks)


def quality(weights: str, task: str, samples: int) -> dict[str, Any]:
    """For each pair of lags what the samples of released weights are under the exact model."""
    run = Run.open(weights)
    generator = Generator.from_checkpoint(run, Resolved(run.checkpoint.spec), task)
    layout = generator.engine(task, SampleSpec()).plan.layout
    score = jax.jit(functools.partial(losses.token_scores, generator.model, layout=layout))
    rows = []
    for lags in QUALITY_LAGS:
        sample = SampleSpec(row_lag=lags[0], frame_lag=lags[1])
        engine = generator.engine(task, sample)
        tokens = engine.sample(Inputs(), samples, sample)
        batch = {"tokens": tokens, "known": np.zeros((samples, len(layout.loss_spans)), np.int32)}
        each = [np.asarray(scores.loss) for scores in score(generator.params, batch)]
        nats = np.mean(np.concatenate(each, axis=1), axis=1, dtype=np.float64)
        found = {"nats": nats.mean(), "error": nats.std(ddof=1) / samples**0.5}
        collapsed = sum(bool(findings) for findings in collapse.findings(layout, tokens))
        rows.append({"lags": lags, "steps": engine.plan.model_steps, **found, "collapsed": collapsed})
        print(rows[-1], file=sys.stderr, flush=True)
    return {"weights": weights, "task": task, "samples": samples, "rows": rows}


if __name__ == "__main__":
    main()
