"""What the options of sampling cost: CPU seconds of a step beside the memory's, of filled-up batches, nats of stored weights.

    python tests/benchmarks/bench_decode_options.py [--case=59m] [--weights=data/pretrained/lm_arenas] [--samples=8]

In one process on one core, in CPU seconds, so that what else the machine does counts little.  Ratios:

- `of_memory`: the time in which a sum over a large array reads the bytes that a step must read (weights as they are
  stored, legal rows of the head, the cache), over the step's; 1 is the memory's limit.
- `to_float32`: a step with stored weights over one without.
- `block`: a step of 8 samples over one of a program without a fixed block, which is the same program; of 1 sample in a
  block of 8 over 1 by itself (`SAMPLE.block`).
- `nats`: of samples of released weights, mean log-likelihood of a token under them less that under stored ones, with its
  standard error over samples: the Kullback-Leibler divergence that storing costs.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from typing import Any

import harness

os.environ |= harness.SINGLE_THREAD

import bench_decode  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from poet.models.stored import stored  # noqa: E402
from poet.models.transformer import Model, build, build_model  # noqa: E402
from poet.runs.run import Run  # noqa: E402
from poet.sampling.decode import Decoder  # noqa: E402
from poet.sampling.engine import Inputs  # noqa: E402
from poet.sampling.generate import Generator  # noqa: E402
from poet.sampling.plans import Plan  # noqa: E402
from poet.sampling.samplers import SamplingParams  # noqa: E402
from poet.spec import ModelSpec, SampleSpec, VocabularySpec  # noqa: E402
from poet.spec.vocabulary import Special, Vocabulary  # noqa: E402
from poet.tasks.layout import CONDITION, OUTPUT, Layout, Segment  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.training import losses  # noqa: E402

KINDS = ("", "bfloat16", "int8")
GRID, MIB = (2, 8, 8), 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default="59m", choices=list(bench_decode.CASES))
    parser.add_argument("--weights", default="", help="a run or released weights, whose nats are asked for")
    parser.add_argument("--task", default="unconditional")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    flags = parser.parse_args()
    found = {"case": flags.case, **speeds(flags.case, flags.runs), "versions": harness.installed()}
    if flags.weights:
        found["nats"] = nats(flags.weights, flags.task, flags.samples)
    print(json.dumps(found, indent=1))
    with (harness.RESULTS / "decode_options.jsonl").open("a") as file:
        file.write(json.dumps({"command": " ".join(harness.shown(sys.argv[1:])), **found}) + "\n")


def speeds(name: str, runs: int) -> dict[str, Any]:
    model, plan = network(name)
    params = jax.jit(model.init)(jax.random.key(0))
    rate = memory_rate(runs)
    steps = {kind: step_s(model, plan, stored(params, kind), 8, runs) for kind in KINDS}
    alone = step_s(model, plan, params, 1, runs)
    of_memory = {k or "float32": bytes_of(model, stored(params, k), plan, 8) / rate / s for k, s in steps.items()}
    return {
        "of_memory": {"float32, 1 sample": bytes_of(model, params, plan, 1) / rate / alone, **of_memory},
        "to_float32": {kind: steps[kind] / steps[""] for kind in KINDS[1:]},
        "block": {"8 of 8": 1.0, "1 of 8": steps[""] / alone},
    }


def network(name: str) -> tuple[Model, Plan]:
    case = dict(bench_decode.CASES[name])
    words = Vocabulary(VocabularySpec(visual_bits=case.pop("bits"), audio_levels=1, audio_codes=1, text_pieces=1))
    model = build(ModelSpec(**case, kv_heads=case["heads"], dtype="float32", remat="none"), words, 8)
    video = Segment("video", 0, int(np.prod(GRID)), OUTPUT, words.visual, GRID)
    marks = [
        Segment(n, 0, 1, r, words.special(Special[n.upper()]), (1, 1, 1))
        for n, r in (("bos", CONDITION), ("bov_o", OUTPUT))
    ]
    return model, Plan(layout=Layout((*marks, video)))


def step_s(model: Model, plan: Plan, params: Any, batch: int, runs: int) -> float:
    """CPU seconds of one position, the median of `runs` of a latent frame."""
    decoder, (start, steps) = Decoder(model, plan), plan.chunks[-1]
    ids = np.concatenate([np.full(s.length, s.ids.low) for s in plan.layout.segments])[: plan.prefilled]
    state = [decoder.prefill(params, np.tile(ids, (batch, 1)).astype(np.int32))]
    loop, rows = jax.jit(model.by_layer)(params), jnp.arange(batch)
    sampling_params = SamplingParams.of(SampleSpec())

    def run() -> None:
        tokens, state[0] = decoder.advance(steps, loop, *state[0], jnp.int32(start), rows, sampling_params)
        jax.block_until_ready((tokens, state[0]))

    return statistics.median(harness.timed(run, runs)["cpu"]) / (GRID[1] * GRID[2])


def bytes_of(model: Model, params: Any, plan: Plan, batch: int) -> int:
    blocks = sum(leaf.nbytes for leaf in jax.tree.leaves(params["blocks"]))
    spec, positions = model.spec, plan.sampled_stop
    cache = 2 * batch * positions * spec.layers * spec.kv_heads * spec.head_dim * 4
    return blocks + cache + plan.layout.loss_spans[0].segment.ids.size * spec.width * 4


def memory_rate(runs: int) -> float:
    """Bytes a CPU second that a sum over a large array reads."""
    array, run = jnp.ones(MIB * 2**18, jnp.float32), jax.jit(lambda x, y: jnp.sum(x + y))
    times = harness.timed(lambda: jax.block_until_ready(run(array, np.float32(1))), runs + 2)
    return array.nbytes / min(times["cpu"])


def nats(weights: str, task: str, samples: int) -> dict[str, Any]:
    """Stored weights -> nats per token that they cost on samples of the weights themselves."""
    run = Run.open(weights)
    resolved = Resolved(run.checkpoint.spec)
    generator = Generator.from_checkpoint(run, resolved, task)
    engine, model = generator.engine(task, SampleSpec()), build_model(resolved)
    tokens = engine.sample(Inputs(), samples, SampleSpec())
    layout = engine.plan.layout
    batch = {"tokens": tokens, "known": np.zeros((samples, len(layout.loss_spans)), np.int32)}
    score = jax.jit(functools.partial(losses.token_scores, model, layout=layout))

    def likelihood(kind: str) -> np.ndarray:
        scores = score(stored(generator.params, kind), batch)
        return np.mean(np.concatenate([np.asarray(s.loss) for s in scores], axis=1), axis=1, dtype=np.float64)

    whole = likelihood("")
    costs = {kind: likelihood(kind) - whole for kind in KINDS[1:]}
    found = {
        kind: {"nats": cost.mean(), "error": cost.std() / max(samples - 1, 1) ** 0.5} for kind, cost in costs.items()
    }
    return {"weights": weights, "task": task, "samples": samples, "loss": whole.mean(), **found}


if __name__ == "__main__":
    main()
