"""Measures cached decoding of a size on one device, against what its memory can deliver.

    python tests/gpu/decode.py --size=1b --batch=8 --guidance=2

The programs are those of `poet generate`: one prefill, then one loop over the rest of the layout, drawn
parameters in bfloat16, guided samples as twice the rows.  Bytes per token are what must be read at
least: the layers, the legal rows of the head, the whole cache (`poet.planning.decoding.cost`).
"""

from __future__ import annotations

from typing import Any

import common
import harness
import jax
import jax.numpy as jnp
import numpy as np

from poet.distributed import mesh as mesh_lib
from poet.models.transformer import build_model
from poet.planning import decoding
from poet.sampling.decode import Decoder, Plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import Experiment, choose
from poet.tasks.resolved import Resolved


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = common.arguments(__doc__)
    parser.add_argument("--group", default="text-to-video", help="layout")
    parser.add_argument("--guidance", type=float, default=1.0, help="1: no unconditional rows")
    parser.add_argument("--top_k", type=int, default=0)
    flags = parser.parse_args(argv)
    device = common.start(flags)
    experiment = common.pretraining(flags.size, flags.batch)
    sample = experiment.sample.replace(guidance=flags.guidance, top_k=flags.top_k)
    memory = common.memory_rate(device)
    result = measure(experiment.replace(sample=sample), device, flags.group, flags.batch, flags.steps)
    result["memory_bytes_per_s"] = memory
    result["fraction_of_memory"] = result["bytes_per_s"] / memory
    return common.report(flags, device, result)


def measure(experiment: Experiment, device: jax.Device, group: str, batch: int, runs: int) -> dict[str, Any]:
    """Seconds of the prefill and of the loop, and tokens and bytes of the loop a second."""
    layout, _ = choose(group, Resolved(experiment).groups, "group")
    guided = layout.text_span is not None and experiment.sample.guidance != 1
    plan = Plan(layout=layout, guided=guided, truncation=Truncation.of(experiment.sample))
    model, decoder = build_model(Resolved(experiment)), Decoder(build_model(Resolved(experiment)), plan)
    # As `poet generate` does it: one device, no mesh.
    params = jax.jit(lambda: model.compute_params(model.init(jax.random.key(0))))()
    given, rows_B = prefilled(experiment, plan, batch), jnp.arange(batch, dtype=jnp.int32)
    sampling_params, state = SamplingParams.of(experiment.sample), []

    def prefill() -> None:
        state[:] = decoder.prefill(params, *given)
        jax.block_until_ready(state)

    def decode() -> None:
        tokens, cache = decoder.decode(params, *state, rows_B, sampling_params)
        # The cache that was given is gone; the next run begins with the one that came back.
        state[0] = cache
        jax.block_until_ready(tokens)

    before = harness.timed(prefill, runs)
    loop = harness.timed(decode, runs)
    cost = decoding.cost(Resolved(experiment), plan, mesh_lib.build(experiment.mesh, [device]), batch)
    times, positions = common.spread(loop["wall"]), plan.sampled_stop - plan.prefilled
    return {
        "group": group,
        "samples": batch,
        "rows": batch * plan.fan,
        "positions": positions,
        "prefill": common.spread(before["wall"]),
        "loop": times,
        "ms_per_position": 1000 * times["median_s"] / positions,
        "tokens_per_s": batch * positions / times["median_s"],
        "bytes_per_position": cost.traffic / positions,
        "bytes_per_s": cost.traffic / times["median_s"],
        "peak_bytes": common.peak_bytes(device),
    }


def prefilled(experiment: Experiment, plan: Plan, batch: int) -> tuple[jax.Array, ...]:
    """Arguments of `Decoder.prefill` after the parameters: ids, and states and lengths of a text."""
    layout, rng = plan.layout, np.random.default_rng(0)
    size = {s.stream: s.ids.size for s in layout.segments if not s.forced}
    streams = {
        name: rng.integers(0, size[name], (batch, length)).astype(np.int32) for name, length in layout.streams.items()
    }
    arrays: list[np.ndarray] = [layout.assemble(streams)[:, : plan.prefilled]]
    if layout.text_span:
        length, width = experiment.text.length, experiment.text.width
        arrays.append(rng.standard_normal((batch * plan.fan, length, width), np.float32))
        lengths = np.full(batch * plan.fan, length, np.int32)
        lengths[batch:] = 0  # Unconditional rows have no text.
        arrays.append(lengths)
    return tuple(map(jnp.asarray, arrays))


if __name__ == "__main__":
    main()
