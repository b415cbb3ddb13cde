"""The programs of an export, lowered from a model in this process: each once, whatever number of tasks share it.

B samples of a call (a symbol: a program compiles for the number that it is called with), R = B * fan rows, S layout
length, P prefilled positions, K codes forced in a loop, L text positions, E width of a text state, T latent frames.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from poet import streams
from poet.checkpoints.weights import flatten
from poet.models.stored import stored
from poet.runs import networks
from poet.sampling import decode as decoding
from poet.sampling.generate import Generator
from poet.sampling.plans import Chunk, Plan
from poet.sampling.samplers import SamplingParams
from poet.serving.format import SAMPLING_PARAMS
from poet.spec import SampleSpec, UserError
from poet.tokenizers.frozen import Steps

Arrays = dict[str, jax.Array]
# What all weights of a language model are called together.
LM, TEXT = "lm", "text_encoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program.

    Attributes:
      run: (weights, *inputs) -> tuple of outputs.
      weights: name of the group of arrays that are its weights.
      inputs: (name, shape and dtype) of each; those named cache.* may be donated.
      outputs: (name, axis of its rows) of each.
    """

    run: Callable[..., Any]
    weights: str
    inputs: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
    outputs: tuple[tuple[str, int], ...]

    @property
    def signature(self) -> dict[str, Any]:
        """What spec.json says of it; a dim of null is any number."""
        return {
            "weights": self.weights,
            "inputs": [
                {"name": name, "shape": [_number(dim) for dim in struct.shape], "dtype": str(struct.dtype)}
                for name, struct in self.inputs
            ],
            "outputs": [{"name": name, "rows": axis} for name, axis in self.outputs],
        }


def _number(dim: Any) -> int | None:
    return dim if isinstance(dim, int) else None


class Collection:
    """Programs by names that say what they do, equal ones once; and their weights.

    Attributes:
      programs: by name, as they are asked for.
      weights: group -> arrays by name, in the order in which the group's programs take them.
      tokenizers: fingerprint of a video tokenizer -> what begins the names of its groups and of its arrays.
    """

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.weights: dict[str, Arrays] = {}
        self.tokenizers: dict[str, str] = {}
        self._names: dict[Hashable, str] = {}

    def named_once(self, what: str, key: Hashable, make: Callable[[], Program]) -> str:
        """The name of the program that `make` makes, which is `what` with a number; that of `key` is made once."""
        key = (what, key)
        if key not in self._names:
            number = sum(name.rpartition("_")[0] == what for name in self.programs)
            self._names[key] = f"{what}_{number}"
            self.programs[self._names[key]] = make()
        return self._names[key]

    def of_text(self, encoder: Any) -> str:
        """Name of the program from ids of pieces to states; UserError as `text_program`."""
        program, self.weights[TEXT] = text_program(encoder)
        return self.named_once("text", ("text",), lambda: program)

    def lowered(self, platforms: Sequence[str], apart: bool) -> Iterator[tuple[str, str, bytes]]:
        """(name, platform, StableHLO) of every program: one for all platforms (''), or one for each."""
        sets = {platform: [platform] for platform in platforms} if apart else {"": platforms}
        for name, program in self.programs.items():
            for platform, chosen in sets.items():
                yield name, platform, serialized(program, self.weights[program.weights], chosen)


class Programs(Collection):
    """Those of a language model's plans and codecs."""

    def __init__(self, generator: Generator, kind: str):
        """`kind`: how the blocks' weights are stored, of `SampleSpec.weights`."""
        super().__init__()
        self._generator, self._states = generator, dict[Hashable, _State]()
        params = jax.jit(stored, static_argnums=1)(generator.params, kind)
        self._params = jax.tree.structure(params)
        self.weights[LM] = named(LM, params)

    # ------------------------------------------------------------------------------------ the model

    def of_plan(self, plan: Plan) -> dict[str, Any]:
        """Names of the programs of a plan: its prefill, and one for each of its chunks."""
        before = (plan.layout, plan.known, plan.guided, plan.scaled, plan.dropped)
        if before not in self._states:
            self._states[before] = self._state(plan)
        state = self._states[before]
        return {
            "prefill": self.named_once("prefill", before, lambda: self._prefill(plan, state)),
            "decode": [self._decode(plan, chunk, state) for chunk in plan.chunks],
        }

    def _inputs(self, plan: Plan) -> list[tuple[str, jax.ShapeDtypeStruct]]:
        """Of the prefill of one sample."""
        inputs, spec = [("tokens", struct_of((1, plan.prefilled), jnp.int32))], self._generator.resolved.spec.text
        if plan.layout.text_span is not None:
            inputs.append(("text_states", struct_of((plan.fan, spec.length, spec.width), jnp.float32)))
            inputs.append(("text_lengths", struct_of((plan.fan,), jnp.int32)))
        if plan.scaled:
            inputs.append(("beta", struct_of((plan.fan,), jnp.float32)))
        return inputs

    def _run_prefill(self, plan: Plan, weights: Sequence[jax.Array], *inputs: jax.Array) -> Any:
        return decoding.prefill(self._generator.model, plan, jax.tree.unflatten(self._params, weights), *inputs)

    def _state(self, plan: Plan) -> _State:
        structs = [struct for _, struct in self._inputs(plan)]
        whole = jax.eval_shape(functools.partial(self._run_prefill, plan), list(self.weights[LM].values()), *structs)
        leaves, structure = jax.tree.flatten(whole)
        twice = [struct_of((2 * struct.shape[0], *struct.shape[1:]), struct.dtype) for struct in structs]
        doubled = jax.eval_shape(functools.partial(self._run_prefill, plan), list(self.weights[LM].values()), *twice)
        axes = [_first_difference(a.shape, b.shape) for a, b in zip(leaves, jax.tree.leaves(doubled))]
        names = [*(f"cache.{i}" for i in range(len(leaves) - 1)), "state"]
        return _State(tuple(zip(names, leaves)), tuple(axes), structure)

    def _prefill(self, plan: Plan, state: _State) -> Program:
        def run(weights: Sequence[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(jax.tree.leaves(self._run_prefill(plan, weights, *inputs)))

        return Program(run=run, weights=LM, inputs=tuple(self._inputs(plan)), outputs=state.outputs)

    def _decode(self, plan: Plan, chunk: Chunk, state: _State) -> str:
        sampled = (plan.layout, plan.guided, plan.truncation, plan.lags, plan.sampled_stop)
        key = (*sampled, chunk.steps, plan.forced if any(s.forced is not None for s in chunk.steps) else 0)
        return self.named_once("decode", key, lambda: self._chunk(plan, chunk, state))

    def _chunk(self, plan: Plan, chunk: Chunk, state: _State) -> Program:
        model, count = self._generator.model, len(state.leaves)
        takes_forced = any(step.forced is not None for step in chunk.steps)

        def run(weights: Sequence[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
            cache, x_RxD = jax.tree.unflatten(state.structure, inputs[:count])
            start, rows_B, *numbers = inputs[count:]
            sampling_params = SamplingParams(**dict(zip(SAMPLING_PARAMS, numbers)))
            params = model.by_layer(jax.tree.unflatten(self._params, weights))
            tokens_BxQ, after = decoding.advance(
                model, plan, chunk.steps, params, cache, x_RxD, start, rows_B, sampling_params,
                *numbers[len(SAMPLING_PARAMS) :],
            )  # fmt: skip
            return (tokens_BxQ, *jax.tree.leaves(after))

        batch = symbol("b")
        inputs = [*state.of(batch), ("start", struct_of((), jnp.int32)), ("rows", struct_of((batch,), jnp.int32))]
        inputs += _settings(plan, batch)
        if takes_forced:
            inputs.append(("forced", struct_of((batch, plan.forced), jnp.int32)))
        return Program(run=run, weights=LM, inputs=tuple(inputs), outputs=(("tokens", 0), *state.outputs))

    # ----------------------------------------------------------------------- frozen networks

    def of_codecs(self, plan: Plan, latents: int) -> dict[str, dict[str, str]]:
        """Names of the programs that code the streams of a plan: those that are given, and those that are sampled."""
        opened = [name for name, codes in plan.opening.items() if codes]
        given = {name: None for name in plan.condition} | {name: latents for name in opened}
        found = {"encode": given, "decode": dict.fromkeys(plan.layout.output_streams)}
        return {
            what: {
                name: self._codec(what, name, latents)
                for name, latents in names.items()
                if streams.in_layout(name).exports
            }
            for what, names in found.items()
        }

    def _codec(self, what: str, name: str, latents: int | None) -> str:
        resolved, stream = self._generator.resolved, streams.in_layout(name)
        network = self._generator.networks[stream.network]
        parts = len(stream.ids(resolved.vocabulary))
        if what == "encode":
            traced = stream.encoder(network, resolved.format, parts, latents)
        else:
            traced = stream.decoder(network, resolved.format, parts)
        group = f"{stream.network}_{what}"
        if stream.network == networks.VIDEO:
            self.tokenizers[network.fingerprint] = ""
        self.weights.setdefault(group, named(f"{stream.network}_tokenizer", traced.weights))
        key = (group, stream.medium, traced.shape, traced.dtype)
        return self.named_once(group, key, lambda: self._traced(traced, group, ("media", "codes"), what))

    def _traced(self, traced: Any, group: str, ends: tuple[str, str], what: str) -> Program:
        given, made = ends if what == "encode" else ends[::-1]
        shape = (symbol("b"), *traced.shape)
        return Program(
            run=bound(traced.run, jax.tree.structure(traced.weights)),
            weights=group,
            inputs=((given, struct_of(shape, traced.dtype)),),
            outputs=((made, 0),),
        )

    def of_steps(self) -> dict[str, dict[str, list[str]]]:
        """Names of the programs that code clips and sounds in chunks, which films need: the first, and every other."""
        spec, found = self._generator.resolved.spec, {}
        sizes = {networks.VIDEO: (spec.clip.height, spec.clip.width)}
        if self._generator.resolved.format.audio_frames:
            sizes[networks.AUDIO] = (spec.vocabulary.audio_levels,)
        for network, size in sizes.items():
            tokenizer = self._generator.networks[network]
            parts = {"encode": "encoder", "decode": "decoder"}
            found[network] = {what: self._steps(network, what, tokenizer.steps(p, *size)) for what, p in parts.items()}
        return found

    def _steps(self, network: str, what: str, steps: Steps) -> list[str]:
        group, structure = f"{network}_{what}", jax.tree.structure(steps.weights)
        self.weights.setdefault(group, named(f"{network}_tokenizer", steps.weights))
        chunks = [struct_of(shape, steps.dtype) for shape in (steps.first, steps.following)]
        _, state = jax.eval_shape(steps.run, steps.weights, chunks[0], None)
        leaves, after = jax.tree.flatten(state)

        def run(weights: Sequence[jax.Array], chunk: jax.Array, *stored: jax.Array) -> tuple[jax.Array, ...]:
            before = jax.tree.unflatten(after, stored) if stored else None
            output, handed_on = steps.run(jax.tree.unflatten(structure, weights), chunk, before)
            return (output, *jax.tree.leaves(handed_on))

        states = [(f"state.{i}", leaf) for i, leaf in enumerate(leaves)]
        outputs = (("output", 0), *((name, 0) for name, _ in states))
        inputs = [(("chunk", chunks[0]),), (("chunk", chunks[1]), *states)]
        programs = [Program(run=run, weights=group, inputs=given, outputs=outputs) for given in inputs]
        return [self.named_once(f"{group}_step", n, lambda: program) for n, program in enumerate(programs)]


def text_program(encoder: Any) -> tuple[Program, Arrays]:
    """From ids of pieces to states, with its weights; UserError for an encoder that cannot be lowered."""
    if not hasattr(encoder, "traced"):
        raise UserError(
            f"the text encoder {encoder.name} cannot be exported: set EXPORT.text_encoder = False, and sample by "
            "`Runtime.tokens` with the states of texts"
        )
    run, weights = encoder.traced()
    rows, length = jax.export.symbolic_shape("b, l", constraints=[f"l <= {encoder.length}"])
    inputs = (("ids", struct_of((rows, length), jnp.int32)), ("lengths", struct_of((rows,), jnp.int32)))
    states = bound(run, jax.tree.structure(weights))
    return Program(run=states, weights=TEXT, inputs=inputs, outputs=(("states", 0),)), named(TEXT, weights)


def serialized(program: Program, weights: Arrays, platforms: Sequence[str]) -> bytes:
    """A program as StableHLO."""
    abstract = [struct_of(array.shape, array.dtype) for array in weights.values()]
    structs = [struct for _, struct in program.inputs]
    return bytes(jax.export.export(jax.jit(program.run), platforms=platforms)(abstract, *structs).serialize())


@dataclasses.dataclass(frozen=True)
class _State:
    """What a prefill of one sample gives: (name, shape) of its leaves, the axes of their rows, and their structure."""

    leaves: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
    axes: tuple[int, ...]
    structure: Any

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, axis) for (name, _), axis in zip(self.leaves, self.axes))

    def of(self, batch: Any) -> list[tuple[str, jax.ShapeDtypeStruct]]:
        """The same of `batch` samples."""
        found = []
        for (name, leaf), axis in zip(self.leaves, self.axes):
            shape = list(leaf.shape)
            shape[axis] = shape[axis] * batch
            found.append((name, struct_of(shape, leaf.dtype)))
        return found


def symbol(name: str) -> Any:
    """A dim that a program takes in any size."""
    return jax.export.symbolic_shape(name)[0]


def _settings(plan: Plan, batch: Any) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Sampling parameters: a seed for each sample, a number for each latent frame where there may be a schedule."""
    latents = int(plan.layout.latents.max()) + 1
    shapes = {"seed": (batch,)} | dict.fromkeys(SampleSpec.SCHEDULES, (latents,))
    return [(name, struct_of(shapes.get(name, ()), jnp.dtype(SamplingParams.dtype(name)))) for name in SAMPLING_PARAMS]


def bound(function: Callable[..., jax.Array], structure: Any) -> Callable[..., tuple[jax.Array]]:
    """A function of a tree of weights as `Program.run`."""

    def run(weights: Sequence[jax.Array], *arrays: jax.Array) -> tuple[jax.Array]:
        return (function(jax.tree.unflatten(structure, weights), *arrays),)

    return run


def struct_of(shape: Sequence[Any], dtype: Any) -> jax.ShapeDtypeStruct:
    """An input of a program."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def named(prefix: str, tree: Any) -> Arrays:
    """Dotted name -> leaf, in the order of `jax.tree.leaves`."""
    return {f"{prefix}.{name}": leaf for name, leaf in flatten(tree).items()}


def _first_difference(shape: Sequence[int], other: Sequence[int]) -> int:
    return next(axis for axis, (a, b) in enumerate(zip(shape, other)) if a != b)
