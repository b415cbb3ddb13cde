"""`poet export`: a checkpoint as StableHLO programs, weights and a spec that run without this code.

A folder holds
  prefill.stablehlo     (weights, tokens_BxN[, states_RxLxE, lengths_R]) -> (*cache, x_RxD)
  decode.stablehlo      (weights, cache, x_RxD, rows_B, seed, temperature, top_p, guidance
                        [, forced_BxK]) -> (tokens_Bx(S-N), *cache): the whole loop, with sampling
  detokenize.stablehlo  (weights, codes_Bxtxhxw) -> uint8 video, where the task generates one
  detokenize_audio.stablehlo  (weights, codes_BxLxF) -> int16 sound, where the task generates it
  tokenize.stablehlo    (weights, uint8 video) -> codes, where frames or a whole video are given
  tokenize_audio.stablehlo  (weights, int16 sound) -> codes, where sound is given
  weights.safetensors   arguments of the programs, by name; they are in no program as constants
  spec.json             the experiment, every program's signature, and what the layout says
  MANIFEST              SHA-256 of each file; `poet.serving.runtime` loads nothing that differs

Serialized programs load without complaint after most single bit flips, hence the manifest.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.export
import jax.numpy as jnp

from poet.checkpoints import checkpoint as checkpoints
from poet import spec as specs
from poet.checkpoints import weights as weights_lib
from poet.runs import manifest, outputs
from poet.runs.run import Run
from poet.spec import compat
from poet.models.transformer import build_model
from poet.sampling import decode as decoding
from poet.sampling.generate import Generator
from poet.sampling.plans import Plan
from poet.sampling.requests import check_request, latents_of_frames, make_plan
from poet.sampling.samplers import SamplingParams
from poet.serving.format import FORMAT, SAMPLING_PARAMS, SPEC, WEIGHTS, describe
from poet.spec import AudioTokenizerSpec, Experiment, ExportSpec, UserError, VideoTokenizerSpec
from poet.tasks.registry import get_task
from poet.tokenizers.audio import base as audio_base
from poet.tokenizers.video import lfq, magvit
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


def run(
    run: Run,
    experiment: Experiment,
    out: str,
    *,
    weights_only: bool = False,
    overwrite: bool = False,
) -> Path:
    """The body of `poet export`: checks, loads and writes; returns the folder.

    Args:
      experiment: the checkpoint's, with `export` and `sample` as the user wishes.
      weights_only: write the language model's weights and the spec, and no program.
      overwrite: `out` may hold an earlier output of the same kind, which is replaced.
    """
    spec, kind = experiment.export, outputs.WEIGHTS if weights_only else outputs.EXPORT
    if not weights_only:
        check(experiment, spec)
    outputs.claim(out, kind, overwrite=overwrite, inputs=[run.folder])
    if weights_only:
        return _release(run, experiment, out, overwrite)
    generator = Generator.from_checkpoint(run, in_dtype(experiment), spec.task)
    return export(generator, spec, out, overwrite=overwrite)


def in_dtype(experiment: Experiment) -> Experiment:
    """The experiment whose model computes in EXPORT.dtype, or as it was trained where that is ''."""
    dtype = experiment.export.dtype or experiment.model.dtype
    return experiment.replace(model=experiment.model.replace(dtype=dtype))


def _release(run: Run, experiment: Experiment, out: str, overwrite: bool) -> Path:
    """Parameters as safetensors in EXPORT.dtype; settings of this command do not go with them."""
    checkpoint, remedy = run.checkpoint, "leave them as they were trained"
    trained = checkpoint.spec
    compat.check(trained, experiment, "export", what=str(checkpoint.path), remedy=remedy)
    params = checkpoints.load_params(run, build_model(Resolved(experiment)).abstract())
    dtype = experiment.export.dtype or None
    experiment = experiment.replace(
        export=ExportSpec(), sample=trained.sample, eval=trained.eval
    )
    return weights_lib.save(out, experiment, params, dtype, checkpoint.step, checkpoint.networks, overwrite=overwrite)


def check(experiment: Experiment, spec: ExportSpec) -> None:
    """Raises UserError unless the task can be exported this way."""
    for platform in spec.platforms:
        specs.choose(platform, dict.fromkeys(PLATFORMS), "export platform")
    if not spec.platforms:
        raise UserError(f"EXPORT.platforms is empty: name at least one of {', '.join(PLATFORMS)}")
    task = get_task(spec.task)
    if task.writes:
        raise UserError(f"task {task.name} writes text, which an export cannot; use poet generate")
    if spec.conditioning_frames and task.condition:
        raise UserError(
            f"EXPORT.conditioning_frames = {spec.conditioning_frames}: an export of {task.name} takes its condition "
            "alone; set it to 0"
        )
    given = int(spec.conditioning_frames > 0 or len(task.condition) > 0)
    texts = ["any"] if task.text else []
    # A made condition is an input of the export: whoever calls it has made it.
    check_request(experiment, spec.task, texts, spec.conditioning_frames, given, has_depth=True)


def export(
    generator: Generator, spec: ExportSpec, out: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes the artefacts of one task at a fixed batch; returns the folder, see `outputs.claim`.

    The sampler's static settings (top_k, whether top_p and guidance take part) are those of the
    experiment's `sample`; seed, temperature, top_p and guidance stay inputs.
    """
    experiment = generator.experiment.replace(export=spec)
    check(experiment, spec)
    output = outputs.claim(out, outputs.EXPORT, overwrite=overwrite)
    latents = latents_of_frames(experiment, spec.conditioning_frames)
    plan = make_plan(experiment, spec.task, experiment.sample, latents)
    lm = _named("lm", generator.params)
    programs = _lm_programs(generator, plan, spec.batch, lm)
    tokenizers, network = _tokenizer_programs(generator, plan, spec)
    programs |= tokenizers
    blobs = {name: _serialize(p, lm | network, spec.platforms) for name, p in programs.items()}
    used = {n for p in programs.values() for n in p.weights}
    weights = {n: array for n, array in (lm | network).items() if n in used}
    details = {
        "task": spec.task,
        "batch": spec.batch,
        **describe(plan),
        "programs": {name: _signature(p) for name, p in programs.items()},
        "networks": {**(generator.made_with or {}), **generator.networks_used},
    }
    return write_folder(output, experiment, blobs, weights, details)


# ------------------------------------------------------------------------------------- programs


def _lm_programs(
    generator: Generator, plan: Plan, batch: int, lm: Arrays
) -> dict[str, Program]:
    """`prefill` and `decode`: the very functions that the generator compiles."""
    model, experiment = generator.model, generator.experiment
    structure = jax.tree.structure(generator.params)

    def params_of(weights: Sequence[jax.Array]) -> Any:
        return jax.tree.unflatten(structure, weights)

    def prefill(weights: Sequence[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
        cache, x_RxD = decoding.prefill(model, plan, params_of(weights), *inputs)
        return (*jax.tree.leaves(cache), x_RxD)

    inputs = [("tokens", _struct((batch, plan.prefilled), jnp.int32))]
    if plan.layout.text_span is not None:
        rows, text = batch * plan.fan, experiment.text
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
    sampling_params = [(name, _struct((), jnp.uint32 if name == "seed" else jnp.float32)) for name in SAMPLING_PARAMS]
    if plan.forced:
        sampling_params.append(("forced", _struct((batch, plan.forced), jnp.int32)))
    state = [*zip(names, leaves), ("state", x_RxD), ("rows", _struct((batch,), jnp.int32))]
    weights = tuple(lm)
    return {
        "prefill": Program(
            run=prefill, weights=weights, inputs=tuple(inputs), outputs=(*names, "state")
        ),
        "decode": Program(
            run=decode, weights=weights, inputs=(*state, *sampling_params), outputs=("tokens", *names)
        ),
    }


class _Codec(NamedTuple):
    """A network of a tokenizer as a program: (weights, array) -> array."""

    run: Callable[[Any, jax.Array], jax.Array]
    weights: Any  # nested dict
    prefix: str
    given: str
    struct: jax.ShapeDtypeStruct
    result: str


def _tokenizer_programs(
    generator: Generator, plan: Plan, spec: ExportSpec
) -> tuple[dict[str, Program], Arrays]:
    """`detokenize*` of what is sampled and `tokenize*` of what is given; with their weights."""
    task = get_task(spec.task)
    codecs = _video_codecs(generator, plan, spec)
    if task.has_audio:
        codecs |= _audio_codecs(generator, plan, spec)
    programs, weights = {}, {}
    for name, codec in codecs.items():
        named = _named(codec.prefix, codec.weights)
        weights |= named
        programs[name] = Program(
            run=_bound(codec.run, jax.tree.structure(codec.weights)),
            weights=tuple(named),
            inputs=((codec.given, codec.struct),),
            outputs=(codec.result,),
        )
    return programs, weights


def _video_codecs(generator: Generator, plan: Plan, spec: ExportSpec) -> dict[str, _Codec]:
    clip, task, codecs = generator.experiment.clip, get_task(spec.task), {}
    grids = [s.segment.grid for s in plan.layout.loss_spans if s.segment.stream != "audio"]
    given = {"video": clip.frames, "image": 1}
    frames = next((given[s] for s in task.condition if s in given), spec.conditioning_frames)
    if not grids and not frames:
        return codecs  # Sound alone: no video tokenizer is loaded for it.
    tokenizer = generator.video_tokenizer
    if grids:
        codecs["detokenize"] = _Codec(
            functools.partial(_to_pixels, tokenizer.spec),
            {"decoder": tokenizer.params["decoder"]}, "video_tokenizer",
            "codes", _struct((spec.batch, *grids[0]), jnp.int32), "video",
        )
    if frames:
        shape = (spec.batch, frames, clip.height, clip.width, 3)
        codecs["tokenize"] = _Codec(
            functools.partial(_to_codes, tokenizer.spec),
            {"encoder": tokenizer.params["encoder"]}, "video_tokenizer",
            "video", _struct(shape, jnp.uint8), "codes",
        )
    return codecs


def _audio_codecs(generator: Generator, plan: Plan, spec: ExportSpec) -> dict[str, _Codec]:
    tokenizer, experiment = generator.audio_tokenizer, generator.experiment
    task, codecs, levels = get_task(spec.task), {}, experiment.vocabulary.audio_levels
    whole = Resolved(experiment).format.audio_frames
    switch = tokenizer.switch(spec.batch)

    def part(name: str) -> dict[str, Any]:
        shared = (name, audio_base.CODEBOOKS, "film")
        return {key: tokenizer.params[key] for key in shared if key in tokenizer.params}

    if "audio" in task.output:
        codecs["detokenize_audio"] = _Codec(
            functools.partial(_to_sound, tokenizer.spec, experiment.clip.samples, switch),
            part("decoder"), "audio_tokenizer",
            "codes", _struct((spec.batch, levels, whole), jnp.int32), "audio",
        )
    frames = whole if "audio" in task.condition else plan.known[-1]
    if frames:
        shape = (spec.batch, frames * tokenizer.spec.hop)
        codecs["tokenize_audio"] = _Codec(
            functools.partial(_to_levels, tokenizer.spec, levels, switch),
            part("encoder"), "audio_tokenizer",
            "audio", _struct(shape, jnp.int16), "codes",
        )
    return codecs


def _to_pixels(spec: VideoTokenizerSpec, params: Any, codes_Bxtxhxw: jax.Array) -> jax.Array:
    """uint8 clips, as `VideoTokenizer.decode` gives them."""
    pixels = magvit.decode(spec, params, lfq.ids_to_bits(codes_Bxtxhxw, spec.bits))
    return jnp.round(jnp.clip(pixels, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _to_codes(spec: VideoTokenizerSpec, params: Any, video_BxTxHxWx3: jax.Array) -> jax.Array:
    """int32 codes, as `VideoTokenizer.encode` gives them."""
    return lfq.quantize(magvit.encode(spec, params, video_BxTxHxWx3.astype(jnp.float32) / 255.0))[1]


def _to_sound(
    spec: AudioTokenizerSpec, samples: int, switch: Any, params: Any, codes_BxLxF: jax.Array
) -> jax.Array:
    """int16 sounds, as `AudioTokenizer.decode` gives them: the last frame sounds on to the end."""
    if samples > codes_BxLxF.shape[2] * spec.hop:
        codes_BxLxF = jnp.concatenate([codes_BxLxF, codes_BxLxF[:, :, -1:]], axis=2)
    return audio_base.decode_chunk(spec, params, codes_BxLxF, switch, None)[0][:, :samples]


def _to_levels(
    spec: AudioTokenizerSpec, levels: int, switch: Any, params: Any, audio_BxS: jax.Array
) -> jax.Array:
    """int32 codes (B, levels, F), as `AudioTokenizer.encode` gives them."""
    return audio_base.encode_chunk(spec, levels, params, audio_BxS, switch, None)[0]


def _bound(
    function: Callable[[Any, jax.Array], jax.Array], structure: Any
) -> Callable[..., tuple[jax.Array]]:
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
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in program.inputs
        ],
        "outputs": list(program.outputs),
    }


# ----------------------------------------------------------------------------------------- files


def write_folder(
    output: outputs.Output,
    experiment: Experiment,
    blobs: dict[str, bytes],
    weights: Arrays,
    details: dict[str, Any],
) -> Path:
    """Writes everything, the manifest last; returns the folder."""
    with output:
        for name, blob in blobs.items():
            (output.folder / f"{name}.stablehlo").write_bytes(blob)
        record = {"format": FORMAT, **details, "experiment": specs.to_dict(experiment)}
        (output.folder / SPEC).write_text(json.dumps(record, indent=2) + "\n")
        weights_lib.write_arrays(output.folder / WEIGHTS, weights)
        fields = {"kind": outputs.EXPORT, "format": FORMAT, "jax": jax.__version__}
        manifest.write(output.folder, fields)
    return output.final
