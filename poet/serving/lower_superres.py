"""The programs of a super-resolution network in an export: all passes of a chunk, and its tokenizer at any size.

b clips of a call, S and M positions of the high and the low resolution, t, h, w latents, L text positions, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from poet import spec as specs
from poet.runs import networks
from poet.sampling import masked
from poet.sampling.passes import BOTH, LOW, NOTHING, Branch, Passes, SamplingParams, sampling_params
from poet.sampling.superres import Upscaler
from poet.serving.format import PASSES_PARAMS
from poet.serving.lower import Collection, Program, bound, named, struct_of, symbol
from poet.streams.low_resolution import SCALE
from poet.tokenizers import frozen

# The sets of branches that have a program: what guidance by text, by the low resolution or by neither needs.
WITHOUT_TEXT = ((LOW,), (NOTHING, LOW))
WITH_TEXT = ((LOW, BOTH), (NOTHING, LOW, BOTH))


def described(programs: Collection, upscaler: Upscaler, number: int, has_text: bool) -> dict[str, Any]:
    """The record of the export's super-resolution network of this number; its programs go into `programs`.

    Args:
      has_text: whether the export has its text encoder.
    """
    group = f"superres_{number}"
    programs.weights[group] = named(group, upscaler.sampler.params)
    choices = WITHOUT_TEXT + (WITH_TEXT if has_text else ())
    found = {networks.VIDEO: upscaler.video_tokenizer.fingerprint}
    return {
        "experiment": specs.to_dict(frozen.as_loaded(upscaler.experiment)),
        "networks": found | ({networks.TEXT: upscaler.text_encoder.fingerprint} if has_text else {}),
        **{what: _coder(programs, upscaler, group, what) for what in ("encode", "decode")},
        "passes": [
            {"branches": branches, "program": _passes(programs, upscaler, group, branches)} for branches in choices
        ],
    }


def _passes(programs: Collection, upscaler: Upscaler, group: str, branches: tuple[Branch, ...]) -> str:
    plan = Passes(upscaler.grid, branches)
    return programs.named_once("passes", (group, branches), lambda: _sampling(upscaler, plan, group))


def _sampling(upscaler: Upscaler, plan: Passes, group: str) -> Program:
    network: masked.Network = upscaler.sampler
    structure = jax.tree.structure(network.params)

    def run(weights: Sequence[jax.Array], codes: jax.Array, low: jax.Array, *inputs: jax.Array) -> tuple[jax.Array]:
        *text, rows = inputs[: -len(PASSES_PARAMS)]
        numbers = SamplingParams(**dict(zip(PASSES_PARAMS, inputs[-len(PASSES_PARAMS) :])))
        params = jax.tree.unflatten(structure, weights)
        return (masked.sample(network.model, plan, params, codes, low, tuple(text) or None, rows, numbers),)

    return Program(run=run, weights=group, inputs=_inputs(upscaler, plan), outputs=(("codes", 0),))


def _inputs(upscaler: Upscaler, plan: Passes) -> tuple[tuple[str, jax.ShapeDtypeStruct], ...]:
    batch, size, spec = symbol("b"), math.prod(plan.grid), upscaler.experiment.text
    inputs = [("codes", (batch, size), jnp.int32), ("low", (batch, size // SCALE**2), jnp.int32)]
    if plan.reads_text:
        inputs.append(("text_states", (batch, spec.length, spec.width), jnp.float16))
        inputs.append(("text_seen", (batch, spec.length), jnp.bool_))
    inputs.append(("rows", (batch,), jnp.int32))
    numbers = jax.eval_shape(lambda: sampling_params(upscaler.experiment.super_resolution, False, 0))
    own = [(name, getattr(numbers, name).shape, getattr(numbers, name).dtype) for name in PASSES_PARAMS]
    return tuple((name, struct_of(shape, dtype)) for name, shape, dtype in [*inputs, *own])


def _coder(programs: Collection, upscaler: Upscaler, group: str, what: str) -> str:
    """Name of the program that codes clips of any legal length and size; one for all networks with the tokenizer."""
    tokenizer = upscaler.video_tokenizer
    prefix = programs.tokenizers.setdefault(tokenizer.fingerprint, f"{group}.")
    run, weights = tokenizer.traced(f"{what}r")
    group = f"{prefix}{networks.VIDEO}_{what}"
    programs.weights.setdefault(group, named(f"{prefix}{networks.VIDEO}_tokenizer", weights))
    make: Callable[[], Program] = lambda: _of_any_size(tokenizer, what, bound(run, jax.tree.structure(weights)), group)
    return programs.named_once(f"{networks.VIDEO}_{what}_any", (group, "any"), make)


def _of_any_size(tokenizer: Any, what: str, run: Callable[..., Any], group: str) -> Program:
    b, t, h, w = jax.export.symbolic_shape("b, t, h, w")
    frames, rows, columns = tokenizer.spec.factor
    media = struct_of((b, frames * t + 1, rows * h, columns * w, 3), jnp.uint8)
    codes = struct_of((b, t, h, w), jnp.int32)
    given, made = (("media", media), "codes") if what == "encode" else (("codes", codes), "media")
    return Program(run=run, weights=group, inputs=(given,), outputs=((made, 0),))
