"""Compares the attention kernels of this accelerator with a float64 oracle, at every pretraining layout.

    python tests/gpu/kernels.py

cuDNN's flash attention on GPUs, splash on TPUs, XLA's products anywhere, in bfloat16 with grouped keys
and values and captions of several lengths, two sequences each: values, and gradients to queries, keys and
values of a random weighting of them.  The error is the largest difference over the largest value of the
oracle, which gets the same rounded inputs.  Exits with 1 if one exceeds `--limit`.  On a CPU cuDNN's
calls are made by XLA, which shows that the script works, no more.
`--size` matters as 'tiny' alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from attention_oracle import dense, dense_gradients, visibility

from poet.models import attention, kernels
from poet.spec import choose
from poet.tasks.layout import Layout
from poet.tasks.resolved import Resolved

# Key-value heads, query heads of each, head dim.  Two heads keep the oracle's scores below 1 GB.
HEADS = {"tiny": (1, 2, 8), "": (1, 2, 128)}
# bfloat16 keeps 8 bits: the softmax's weights and each result are rounded to 2^-9 of themselves.
LIMIT = 0.02

Attend = Callable[..., jax.Array]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = common.arguments(__doc__)
    parser.add_argument("--groups", nargs="*", default=[], help="layouts; none names all")
    parser.add_argument("--limit", type=float, default=LIMIT)
    flags = parser.parse_args(argv)
    device = common.start(flags)
    heads = HEADS.get(flags.size, HEADS[""])
    groups = Resolved(common.pretraining(flags.size, flags.batch)).groups
    layouts = {name: choose(name, groups, "group")[0] for name in flags.groups or groups}
    found = []
    for kernel, attend in ways(device.platform).items():
        for name, layout in layouts.items():
            errors = compare(attend, layout, heads)
            found.append(
                {
                    "kernel": kernel,
                    "layout": name,
                    "positions": layout.length,
                    **errors,
                    "passes": max(errors.values()) <= flags.limit,
                }
            )
    passes = all(row["passes"] for row in found)
    return common.report(flags, device, {"passes": passes, "comparisons": found})


def ways(platform: str) -> dict[str, Attend]:
    """Kernel -> what runs it, for those that this platform has; on a CPU a stand-in for cuDNN."""
    kernel = kernels.KERNELS.get(platform, "xla")
    found = {"xla": attention.attend}
    if kernel != "xla":
        found[kernel] = functools.partial(kernels.attend, kernel)
    elif platform == "cpu":
        found["cudnn by XLA"] = _cudnn_by_xla
    return found


def _cudnn_by_xla(q: jax.Array, k: jax.Array, v: jax.Array, *, prefix_length: int, key_mask_BxS: Any) -> jax.Array:
    merged = q.reshape(*q.shape[:2], -1, q.shape[-1])
    out = kernels.cudnn(merged, k, v, key_mask_BxS, prefix_length=prefix_length, implementation="xla")
    return out.reshape(q.shape)


def compare(attend: Attend, layout: Layout, heads: tuple[int, int, int]) -> dict[str, float]:
    """Relative errors of the values and of three gradients."""
    q, k, v, weights, mask = draw(layout, heads)
    key_mask = jnp.asarray(mask) if layout.text_span else None

    def weighted(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v, prefix_length=layout.prefix_length, key_mask_BxS=key_mask)
        return jnp.sum((out * weights).astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    exact = [np.asarray(x, np.float64) for x in (q, k, v, weights)]
    visible = visibility(layout)[None] & mask[:, None]
    wanted = [dense(*exact[:3], visible), *dense_gradients(*exact[:3], visible, exact[3])]
    return {
        name: relative(got, want) for name, got, want in zip(("values", "dq", "dk", "dv"), (out, *gradients), wanted)
    }


def relative(got: jax.Array, want: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())


def draw(layout: Layout, heads: tuple[int, int, int]) -> tuple[Any, ...]:
    """bfloat16 q, k, v and weights of the output, and which keys may be seen, bool [2, S].

    The first sequence has a text of a third of its positions, the second has none.
    """
    rng, (kv, group, dim), length = np.random.default_rng(0), heads, layout.length
    queries, keys = (2, length, kv, group, dim), (2, length, kv, dim)
    shapes = (queries, keys, keys, queries)
    arrays = [jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16) for shape in shapes]
    mask = np.ones((2, length), bool)
    if span := layout.text_span:
        mask[0, span.start + (span.stop - span.start) // 3 : span.stop] = False
        mask[1, span.start : span.stop] = False
    return *arrays, mask


if __name__ == "__main__":
    sys.exit(0 if main()["passes"] else 1)
