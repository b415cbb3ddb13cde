"""How masked codes are sampled in passes: the branches of guidance, and the numbers that a program takes.

All without the network's code, so that an export is sampled by the same (`poet.sampling.superres`).

B rows, L text positions, E width of text states.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from poet.spec import SuperResolutionSpec
from poet.streams.base import Grid

# States [B, L, E] of texts and bool [B, L], False past their ends.
Text = tuple[jax.Array, jax.Array]
# What a branch of guidance sees: the low resolution, the text.
Branch = tuple[bool, bool]
BRANCHES = NOTHING, LOW, BOTH = (False, False), (True, False), (True, True)


@dataclasses.dataclass(frozen=True)
class Passes:
    """The static part of sampling.

    Attributes:
      grid: (t, h, w) of the high resolution.
      branches: of guidance, some of `BRANCHES`.
    """

    grid: Grid
    branches: tuple[Branch, ...]

    @property
    def reads_text(self) -> bool:
        """Whether a branch sees it."""
        return any(text for _, text in self.branches)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """The traced part: a changed value compiles nothing.

    Attributes:
      seed: uint32 scalar.
      part: int32 scalar: which chunk and tile of a clip this is.
      steps: int32 scalar: passes through the network.
      temperature, choice_temperature: float32 scalars, of codes (0 is greedy) and of what is kept.
      weights: float32 [3], of `BRANCHES`; their sum is 1, and those that a plan leaves out are 0.
    """

    seed: jax.Array
    part: jax.Array
    steps: jax.Array
    temperature: jax.Array
    choice_temperature: jax.Array
    weights: jax.Array


def passes(spec: SuperResolutionSpec, grid: Grid, has_text: bool) -> Passes:
    """Branches of guidance that weigh nothing are not run."""
    found = zip(BRANCHES, weights(spec, has_text))
    return Passes(grid, tuple(branch for branch, weight in found if weight))


def sampling_params(spec: SuperResolutionSpec, has_text: bool, seed: int, part: int = 0) -> SamplingParams:
    """The settings of `spec` as arrays."""
    return SamplingParams(
        seed=jnp.uint32(seed),
        part=jnp.int32(part),
        steps=jnp.int32(spec.steps),
        temperature=jnp.float32(spec.temperature),
        choice_temperature=jnp.float32(spec.choice_temperature),
        weights=jnp.array(weights(spec, has_text), jnp.float32),
    )


def weights(spec: SuperResolutionSpec, has_text: bool) -> tuple[float, float, float]:
    """Of L(none), L(low), L(both): L(none) + guidance (L(low) - L(none)) + text_guidance (L(both) - L(low))."""
    low, text = spec.guidance, spec.text_guidance if has_text else 0.0
    return 1 - low, low - text, text
