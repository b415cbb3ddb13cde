"""`poet export`: a checkpoint as StableHLO programs, weights and a spec that run without this code.

A folder holds
  prefill.stablehlo     (weights, tokens_BxN[, states_RxLxE, lengths_R]) -> (*cache, x_RxD)
  decode.stablehlo      (weights, cache, x_RxD, rows_B, seed, temperature, top_p, guidance
                        [, forced_BxK]) -> (tokens_Bx(S-N), *cache): the whole loop, with sampling
  detokenize.stablehlo  (weights, codes_Bxtxhxw) -> uint8 video, where the task generates one
  tokenize.stablehlo    (weights, uint8 video) -> codes, where frames or a whole video are given
  detokenize_MEDIUM, tokenize_MEDIUM  the same of other media: of "audio" codes_BxLxF and int16 sound
  weights.safetensors   arguments of the programs, by name; they are in no program as constants
  spec.json             the experiment, every program's signature, and what the layout says
  MANIFEST              SHA-256 of each file; `poet.serving.runtime` loads nothing that differs

Serialized programs load without complaint after most single bit flips, hence the manifest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from poet import networks, streams
from poet import spec as specs
from poet.checkpoints import checkpoint as checkpoints
from poet.checkpoints import weights as weights_lib
from poet.runs import manifest, outputs
from poet.runs.run import Run
from poet.sampling import decode as decoding
from poet.sampling.generate import Generator
from poet.sampling.plans import Plan
from poet.sampling.requests import check_request, make_plan
from poet.sampling.samplers import SamplingParams
from poet.serving.format import FORMAT, SAMPLING_PARAMS, SPEC, WEIGHTS, describe, program
from poet.spec import ExportSpec, UserError, compat
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One artefact.

    Attributes:
      run: (weights by name, *inputs) -> tuple of outputs.
      weights: names in `weights.safetensors`, in argument order.
      inputs: (name, shape and dtype) of each; those named cache.* may be donated.
      outputs: their names.
    """

    run: Callable[..., Any]
    weights: tuple[str, ...]
    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[str, ...]


def run(run: Run, resolved: Resolved, out: str, *, weights_only: bool = False, overwrite: bool = False) -> Path:
    """The body of `poet export`: checks, loads and writes; returns the folder.

    Args:
      resolved: the checkpoint's experiment, with `export` and `sample` as the user wishes.
      weights_only: write the language model's weights and the spec, and no program.
      overwrite: `out` may hold an earlier output of the same kind, which is replaced.
    """
    spec, kind = resolved.spec.export, outputs.WEIGHTS if weights_only else outputs.EXPORT
    if not weights_only:
        check(resolved, spec)
    outputs.claim(out, kind, overwrite=overwrite, inputs=[run.folder])
    if weights_only:
        return _release(run, resolved, out, overwrite)
    generator = Generator.from_checkpoint(run, in_dtype(resolved), spec.task)
    return export(generator, spec, out, overwrite=overwrite)


def in_dtype(resolved: Resolved) -> Resolved:
    """The experiment whose model computes in EXPORT.dtype, or as it was trained where that is ''."""
    model = resolved.spec.model
    return Resolved(resolved.spec.replace(model=model.replace(dtype=resolved.spec.export.dtype or model.dtype)))


def _release(run: Run, resolved: Resolved, out: str, overwrite: bool) -> Path:
    """Parameters as safetensors in EXPORT.dtype; settings of this command do not go with them."""
    checkpoint, remedy = run.checkpoint, "leave them as they were trained"
    trained, experiment = checkpoint.spec, resolved.spec
    compat.check(trained, experiment, "export", what=str(checkpoint.path), remedy=remedy)
    params = checkpoints.load_params(run, networks.of(resolved).model(resolved).abstract())
    dtype = experiment.export.dtype or None
    experiment = experiment.replace(export=ExportSpec(), sample=trained.sample, eval=trained.eval)
    return weights_lib.save(out, experiment, params, dtype, checkpoint.step, checkpoint.networks, overwrite=overwrite)


def check(resolved: Resolved, spec: ExportSpec) -> int:
    """Latent frames that open the output; UserError unless the task can be exported this way."""
    for platform in spec.platforms:
        specs.choose(platform, dict.fromkeys(PLATFORMS), "export platform")
    if not spec.platforms:
        raise UserError(f"EXPORT.platforms is empty: name at least one of {', '.join(PLATFORMS)}")
    task = get_task(spec.task)
    if apart := [s.title for s in (*task.given, *task.predicted) if not s.exports]:
        raise UserError(f"task {task.name} needs a {apart[0]}, which an export cannot code; use poet generate")
    if spec.conditioning_frames and task.condition:
        raise UserError(
            f"EXPORT.conditioning_frames = {spec.conditioning_frames}: an export of {task.name} takes no opening "
            "frames; set it to 0"
        )
    given = int(spec.conditioning_frames > 0 or len(task.condition) > 0)
    texts = ["any"] if task.text else []
    # A derived condition is an input of the export, made by the caller.
    return check_request(resolved, task, texts, spec.conditioning_frames, given, has_depth=True)


def export(generator: Generator, spec: ExportSpec, out: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the artefacts of one task at a fixed batch; returns the folder, see `outputs.claim`.

    The sampler's static settings (top_k, whether top_p, min_p and guidance take part, what is a schedule) are those of
    the experiment's `sample`; seed, temperature, top_p, min_p and guidance stay inputs.
    """
    resolved = generator.resolved
    latents = check(resolved, spec)
    output = outputs.claim(out, outputs.EXPORT, overwrite=overwrite)
    plan = make_plan(resolved, get_task(spec.task), resolved.spec.sample, latents)
    lm = _named("lm", generator.params)
    programs = _lm_programs(generator, plan, spec.batch, lm)
    tokenizers, network = _tokenizer_programs(generator, plan, spec.batch, latents)
    programs |= tokenizers
    blobs = {name: _serialize(p, lm | network, spec.platforms) for name, p in programs.items()}
    used = {n for p in programs.values() for n in p.weights}
    weights = {n: array for n, array in (lm | network).items() if n in used}
    details = {
        "task": spec.task,
        "batch": spec.batch,
        **describe(plan),
        "programs": {name: _signature(p) for name, p in programs.items()},
        "networks": {**(generator.networks.made_with or {}), **generator.networks.used},
    }
    return write_folder(
        output, {**details, "experiment": specs.to_dict(resolved.spec.replace(export=spec))}, blobs, weights
    )


# ------------------------------------------------------------------------------------- programs


def _lm_programs(generator: Generator, plan: Plan, batch: int, lm: Arrays) -> dict[str, Program]:
    """`prefill` and `decode`: the very functions that the generator compiles."""
    model, structure = generator.model, jax.tree.structure(generator.params)

    def params_of(weights: Sequence[jax.Array]) -> Any:
        return jax.tree.unflatten(structure, weights)

    def prefill(weights: Sequence[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
        cache, x_RxD = decoding.prefill(model, plan, params_of(weights), *inputs)
        return (*jax.tree.leaves(cache), x_RxD)

    inputs = [("tokens", _struct((batch, plan.prefilled), jnp.int32))]
    if plan.layout.text_span is not None:
        rows, text = batch * plan.fan, generator.resolved.spec.text
        inputs.append(("text_states", _struct((rows, text.length, text.width), jnp.float32)))
        inputs.append(("text_lengths", _struct((rows,), jnp.int32)))
    arrays = [array for _, array in inputs]
    cache, x_RxD = jax.eval_shape(
        lambda w, *a: decoding.prefill(model, plan, params_of(w), *a), list(lm.values()), *arrays
    )
    leaves, cache_structure = jax.tree.flatten(cache)

    def decode(weights: Sequence[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
        state, (rows_B, *numbers) = inputs[: len(leaves) + 1], inputs[len(leaves) + 1 :]
        cache = jax.tree.unflatten(cache_structure, state[:-1])
        sampling_params = SamplingParams(**dict(zip(SAMPLING_PARAMS, numbers)))
        tokens, cache = decoding.decode(
            model, plan, params_of(weights), cache, state[-1], rows_B, sampling_params, *numbers[len(SAMPLING_PARAMS) :]
        )
        return (tokens, *jax.tree.leaves(cache))

    names = [f"cache.{i}" for i in range(len(leaves))]
    defaults = SamplingParams.of(generator.resolved.spec.sample)
    sampling_params = [(name, jax.typeof(getattr(defaults, name))) for name in SAMPLING_PARAMS]
    if plan.forced:
        sampling_params.append(("forced", _struct((batch, plan.forced), jnp.int32)))
    state = [*zip(names, leaves), ("state", x_RxD), ("rows", _struct((batch,), jnp.int32))]
    weights = tuple(lm)
    return {
        "prefill": Program(run=prefill, weights=weights, inputs=tuple(inputs), outputs=(*names, "state")),
        "decode": Program(run=decode, weights=weights, inputs=(*state, *sampling_params), outputs=("tokens", *names)),
    }


def _tokenizer_programs(
    generator: Generator, plan: Plan, batch: int, latents: int
) -> tuple[dict[str, Program], Arrays]:
    """`detokenize*` of what is sampled and `tokenize*` of what is given; with their weights."""
    resolved, programs, weights = generator.resolved, {}, {}
    opened = [name for name, codes in plan.opening.items() if codes]
    wanted = [("detokenize", name) for name in plan.layout.output_streams]
    wanted += [("tokenize", name) for name in (*plan.condition, *opened)]
    for what, name in wanted:
        stream = streams.in_layout(name)
        shaped = generator.networks[stream.network], resolved.format, len(stream.ids(resolved.vocabulary))
        if what == "detokenize":
            found, ends = stream.decoder(*shaped), ("codes", stream.medium)
        else:
            found = stream.encoder(*shaped, latents if name in opened else None)
            ends = stream.medium, "codes"
        named = _named(f"{stream.network}_tokenizer", found.weights)
        weights |= named
        programs[program(what, name)] = Program(
            run=_bound(found.run, jax.tree.structure(found.weights)),
            weights=tuple(named),
            inputs=((ends[0], _struct((batch, *found.shape), found.dtype)),),
            outputs=ends[1:],
        )
    return programs, weights


def _bound(function: Callable[[Any, jax.Array], jax.Array], structure: Any) -> Callable[..., tuple[jax.Array]]:
    def run(weights: Sequence[jax.Array], array: jax.Array) -> tuple[jax.Array]:
        return (function(jax.tree.unflatten(structure, weights), array),)

    return run


def _serialize(program: Program, arrays: Arrays, platforms: Sequence[str]) -> bytes:
    weights = [_struct(arrays[n].shape, arrays[n].dtype) for n in program.weights]
    exported = jax.export.export(jax.jit(program.run), platforms=platforms)(
        weights, *(struct for _, struct in program.inputs)
    )
    return bytes(exported.serialize())


def _struct(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _named(prefix: str, tree: Any) -> Arrays:
    """Dotted name -> leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join([prefix, *(str(k.key) for k in path)]): leaf for path, leaf in leaves}


# ---------------------------------------------------------------------------------- descriptions


def _signature(program: Program) -> dict[str, Any]:
    return {
        "weights": list(program.weights),
        "inputs": [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)} for name, array in program.inputs
        ],
        "outputs": list(program.outputs),
    }


# ----------------------------------------------------------------------------------------- files


def write_folder(output: outputs.Output, details: dict[str, Any], blobs: dict[str, bytes], weights: Arrays) -> Path:
    """Writes everything, the manifest last; returns the folder."""
    with output:
        for name, blob in blobs.items():
            (output.folder / f"{name}.stablehlo").write_bytes(blob)
        (output.folder / SPEC).write_text(json.dumps({"format": FORMAT, **details}, indent=2) + "\n")
        weights_lib.write_arrays(output.folder / WEIGHTS, weights)
        fields = {"kind": outputs.EXPORT, "format": FORMAT, "jax": jax.__version__}
        manifest.write(output.folder, fields)
    return output.final
