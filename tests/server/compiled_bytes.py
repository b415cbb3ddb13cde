"""Prints what the compiler, as it works outside the suite, says that networks take beside their weights: JSON by name.

Each is [bytes, bytes that `poet.server.needs` predicts].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("sampling", "serving")]

import exports  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tiny  # noqa: E402

from poet.sampling.passes import passes, sampling_params  # noqa: E402
from poet.server import needs  # noqa: E402
from poet.spec import VideoTokenizerSpec  # noqa: E402
from poet.tokenizers.video import magvit  # noqa: E402
from poet.tokenizers.video.base import decode_chunk, encode_chunk  # noqa: E402

LEVELS = VideoTokenizerSpec(base_channels=16, multipliers=(1, 2), blocks=1, temporal_downsample=(True,), norm_groups=8)
PATCHES = VideoTokenizerSpec(
    base_channels=192, multipliers=(1,), blocks=1, temporal_downsample=(), stem=(4, 8, 8), stem_kernel=1, norm_groups=16
)


def compiled_bytes(function, *arguments) -> int:
    found = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes


def of_tokenizer(spec: VideoTokenizerSpec, size: tuple[int, int, int], step, clips: int = 2) -> list[int]:
    params = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    shapes = {encode_chunk: ((clips, *size, 3), jnp.uint8), decode_chunk: ((clips, *spec.grid(*size)), jnp.int32)}
    block = jax.ShapeDtypeStruct(*shapes[step])
    found = compiled_bytes(lambda params, block: step(spec, params, block, None)[0], params, block)
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    return [found, weights + clips * needs.video_bytes(spec, size)]


def of_passes() -> list[int]:
    one = exports.upscaler()
    spec = one.experiment.super_resolution
    plan, size = passes(spec, one.grid, True), int(np.prod(one.grid))
    text = jnp.zeros((1, 8, tiny.TEXT_WIDTH), jnp.float16), jnp.ones((1, 8), bool)
    inputs = jnp.zeros((1, size), jnp.int32), jnp.zeros((1, size // 4), jnp.int32), text, jnp.zeros(1, jnp.int32)
    found = compiled_bytes(lambda *given: one.sampler(plan, *given), *inputs, sampling_params(spec, True, 0))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(one.sampler.params))
    return [found, weights + needs.passes_bytes(one.resolved)]


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "levels, encoder": of_tokenizer(LEVELS, (5, 32, 32), encode_chunk),
                "levels, decoder": of_tokenizer(LEVELS, (5, 32, 32), decode_chunk),
                "patches, encoder": of_tokenizer(PATCHES, (17, 64, 64), encode_chunk),
                "patches, decoder": of_tokenizer(PATCHES, (17, 64, 64), decode_chunk),
                "passes": of_passes(),
            }
        )
    )
