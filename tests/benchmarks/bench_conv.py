"""Times the two implementations of `causal_conv`, forward and backward, and prints GFLOP/s.

    pytest -m benchmark -s tests/benchmarks/bench_conv.py

`layers.conv_implementation` is chosen by its figures: run it on a quiet machine.
"""

from __future__ import annotations

import time

import jax
import pytest

from poet.tokenizers.video import layers

# (batch, frames, height, width, channels)
SHAPES = ((8, 5, 8, 8, 128), (8, 9, 16, 16, 64), (8, 5, 16, 16, 48), (8, 9, 16, 16, 32))


def seconds(shape: tuple[int, ...], implementation: str, repeats: int = 5) -> float:
    """Best time of one forward and backward pass."""
    channels = shape[-1]
    x, g = jax.random.normal(jax.random.key(0), (2, *shape))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, channels, channels))

    def both(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return layers.causal_conv(x, {"kernel": kernel}, implementation=implementation)

        y, pullback = jax.vjp(forward, x, kernel)
        return y, pullback(g)

    compiled = jax.jit(both).lower(x, kernel, g).compile()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(x, kernel, g))
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.benchmark
def test_conv_speed() -> None:
    for shape in SHAPES:
        b, t, h, w, c = shape
        flops = 3 * 2 * b * t * h * w * 27 * c * c
        for implementation in ("native", "taps"):
            s = seconds(shape, implementation)
            print(f"{shape} {implementation:6} {s * 1e3:7.1f} ms {flops / s / 1e9:5.0f} GFLOP/s")


if __name__ == "__main__":
    test_conv_speed()
