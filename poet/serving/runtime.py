"""Runs an export: needs jax, numpy and safetensors, and neither flax nor the model's code.

    runtime = Runtime.load("export/")
    result = runtime.generate(text_states=states, text_lengths=lengths, seed=7)
    result.video  # uint8 [N, T, H, W, 3]

N samples, B batch of the programs, S layout length, P prefilled positions, L text positions, E width of a text
state, K known codes, M codes of a stream, T video frames, F audio samples.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from poet import streams
from poet.runs import manifest
from poet.sampling.engine import Engine, Inputs, Sampled
from poet.sampling.plans import Text
from poet.sampling.samplers import SamplingParams
from poet.serving.format import READ, SAMPLING_PARAMS, SPEC, WEIGHTS, plan_of, program
from poet.spec import SampleSpec, UserError, from_dict
from poet.tasks import given as given_lib

# What the name of media begins with that open the output.
KNOWN = "known_"


class Result(Sampled):
    """The media of N samples, and tokens: int32 [N, S], their whole sequences."""

    tokens = property(lambda self: self["tokens"])


def verify(folder: Path) -> None:
    """Raises UserError unless every file is the one that the manifest lists."""
    if not (folder / manifest.NAME).is_file():
        raise UserError(f"{folder} is not an export: it holds no {manifest.NAME}")
    try:
        found = manifest.verify(folder)
    except manifest.Corrupt as error:
        raise UserError(f"{error}; export again") from None
    if found.get("format") not in READ:
        raise UserError(
            f"{folder} has export format {found.get('format')}, this version reads {' and '.join(map(str, READ))}"
        )


class ExportedPrograms:
    """`poet.sampling.engine`'s `Programs` and `Codecs` of an export; one loop decodes everything.

    Args:
      spec: the contents of spec.json.
      programs: name -> (weights, *inputs) -> outputs.
      weights: name -> array.
    """

    loops = 1

    def __init__(self, spec: Mapping[str, Any], programs: dict[str, Callable], weights: Mapping[str, Any]):
        self.plan, self.batch = plan_of(spec), spec["batch"]
        self._programs = programs
        self._inputs = {name: signature["inputs"] for name, signature in spec["programs"].items()}
        self._weights = {
            name: [weights[w] for w in signature["weights"]] for name, signature in spec["programs"].items()
        }

    @property
    def text_width(self) -> int:
        """Width of a text state; 0 for a task without text."""
        states = (i["shape"] for i in self._inputs["prefill"] if i["name"] == "text_states")
        return next(states, [0])[-1]

    def prefill(self, tokens_BxP: np.ndarray, *text: np.ndarray) -> tuple[jax.Array, ...]:
        return self._call("prefill", tokens_BxP, *text)

    def decode(
        self,
        loop: int,
        state: tuple[jax.Array, ...],
        rows_B: np.ndarray,
        sampling_params: SamplingParams,
        forced_BxK: np.ndarray,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        del loop
        forced = (forced_BxK,) if self.plan.forced else ()
        tokens, *cache = self._call("decode", *state, rows_B, *self.settings(sampling_params), *forced)
        return tokens, tuple(cache)

    def settings(self, sampling_params: SamplingParams) -> list[jax.Array]:
        """As `decode` takes them; UserError for a schedule that it was not exported for."""
        return [self._setting(i, sampling_params) for i in self._inputs["decode"] if i["name"] in SAMPLING_PARAMS]

    @staticmethod
    def _setting(expected: Mapping[str, Any], sampling_params: SamplingParams) -> jax.Array:
        """A number for each latent frame where the programs take a schedule, one where they do not."""
        name, shape = expected["name"], tuple(expected["shape"])
        value = jnp.asarray(getattr(sampling_params, name), expected["dtype"])
        if value.ndim and value.shape != shape:
            takes = f"{shape[0]} numbers" if shape else "a number"
            raise UserError(
                f"{name} has {len(value)} numbers, these programs take {takes}: export again with a schedule of that "
                f"length as SAMPLE.{name}"
            )
        return jnp.broadcast_to(value, shape)

    def tokenize(self, stream: str, media: np.ndarray) -> np.ndarray:
        """As many codes as the program gives; what exceeds its input is cut."""
        name = program("tokenize", stream)
        (expected,) = self._inputs[name]
        shape, found = expected["shape"], np.shape(media)
        if len(found) != len(shape) or found[1] < shape[1]:
            raise UserError(f"{stream} has shape {list(found)}, expected at least {[len(media), *shape[1:]]}")
        return self._in_batches(name, media[:, : shape[1]]).reshape(len(media), -1)

    def detokenize(self, stream: str, codes_NxM: np.ndarray) -> np.ndarray:
        name = program("detokenize", stream)
        (expected,) = self._inputs[name]
        return self._in_batches(name, codes_NxM.reshape(-1, *expected["shape"][1:]))

    def _in_batches(self, name: str, items: np.ndarray) -> np.ndarray:
        pieces = []
        for start in range(0, len(items), self.batch):
            index = np.minimum(np.arange(start, start + self.batch), len(items) - 1)
            pieces.append(np.asarray(self._call(name, items[index])[0]))
        return np.concatenate(pieces)[: len(items)]

    def _call(self, name: str, *inputs: Any) -> tuple[jax.Array, ...]:
        for value, expected in zip(inputs, self._inputs[name], strict=True):
            shape, dtype = list(np.shape(value)), str(value.dtype)
            if shape != expected["shape"] or dtype != expected["dtype"]:
                raise UserError(
                    f"input {expected['name']!r} of {name} is {dtype}{shape}, expected "
                    f"{expected['dtype']}{expected['shape']}"
                )
        return self._programs[name](self._weights[name], *inputs)


class Runtime:
    """A loaded export; programs compile at their first call.

    Attributes:
      spec: the contents of spec.json.
      batch: samples that one call of the programs makes; requests of any size are cut into these.
      engine: what samples with them.
    """

    def __init__(self, spec: dict[str, Any], programs: dict[str, Callable], weights: dict):
        exported = ExportedPrograms(spec, programs, weights)
        self.spec, self.batch = spec, exported.batch
        self.engine = Engine(exported, exported, spec["task"])

    @classmethod
    def load(cls, folder: str | Path) -> Runtime:
        """Verifies and loads a folder that `poet export` wrote.

        Raises:
          UserError: not an export, damaged, or made for other platforms than this machine's.
        """
        folder = Path(folder).expanduser()
        verify(folder)
        spec = json.loads((folder / SPEC).read_text())
        if "programs" not in spec:
            raise UserError(f"{folder} holds weights alone: export without --weights_only")
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            weights = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}
        programs = {
            name: _program((folder / f"{name}.stablehlo").read_bytes(), signature)
            for name, signature in spec["programs"].items()
        }
        return cls(spec, programs, weights)

    def generate(
        self,
        *,
        text_states: np.ndarray | None = None,
        text_lengths: np.ndarray | None = None,
        negative_states: np.ndarray | None = None,
        negative_lengths: np.ndarray | None = None,
        known: np.ndarray | None = None,
        cells: np.ndarray | None = None,
        count: int | None = None,
        source: int = 0,
        seed: int | None = None,
        temperature: float | Sequence[float] | None = None,
        top_p: float | Sequence[float] | None = None,
        min_p: float | Sequence[float] | None = None,
        guidance: float | Sequence[float] | None = None,
        **media: np.ndarray | None,
    ) -> Result:
        """Samples N sequences; omitted settings are the export's, with the ranges of `SampleSpec`.

        Every array has a row for each sample.

        Args:
          text_states, text_lengths: float32 [N, L, E] and int32 [N]; absent means no text.
          negative_states, negative_lengths: the text that guidance steers away from; absent means no text.
          known: conditioning codes [N, K] that open the output, segment by segment; or their media below.
          cells: bool [N, t, h, w], visible latent cells of `video`; absent means all of them.
          count: N; default: the rows of the arrays, or 1.
          source: index of the data source to imitate.
          media: by name:
            known_video: uint8 [N, conditioning frames, H, W, 3] that open the output, and if it has sound also
            known_audio: int16 [N, at least as long as its conditioning codes];
            video, audio: conditions of the task: uint8 [N, T, H, W, 3] or int16 [N, F].  Derived conditions come from
              `poet.conditioning`.  Other media have names of the same form.

        Raises:
          UserError: the arrays do not fit the programs.
        """
        settings = self._settings(seed, temperature=temperature, top_p=top_p, min_p=min_p, guidance=guidance)
        self.engine.programs.settings(SamplingParams.of(settings))  # Refused before anything runs.
        count = given_lib.rows(
            {
                "text_states": text_states,
                "text_lengths": text_lengths,
                "negative_states": negative_states,
                "negative_lengths": negative_lengths,
                "known": known,
                **media,
                "cells": cells,
            },
            count,
        )
        texts = {"text": _text(text_states, text_lengths), "negative": _text(negative_states, negative_lengths)}
        if texts["negative"] is not None and not self.spec["guided"]:
            raise UserError(
                "a negative text needs a program exported with SAMPLE.guidance other than 1: export again with it"
            )
        media = {name: array for name, array in media.items() if array is not None}
        condition = {name: array for name, array in media.items() if not name.startswith(KNOWN)}
        opening = {name.removeprefix(KNOWN): array for name, array in media.items() if name not in condition}
        if opening:
            known = self._known(known, opening)
        codes = self._condition(condition, cells)
        inputs = Inputs(**texts, condition=codes, known=known, source=source)
        tokens_NxS = self.engine.sample(inputs, count, settings)
        found = self.engine.detokenize(tokens_NxS)
        result = Result(found, tokens=tokens_NxS)
        result.findings = found.findings
        return result

    def _known(self, known: np.ndarray | None, media: Mapping[str, np.ndarray]) -> np.ndarray:
        """Codes [N, K] of conditioning frames and, where the output has sound, of theirs."""
        if known is not None:
            raise UserError(f"known and {KNOWN}{next(iter(media))} are alternatives: give one of them")
        wanted = [streams.in_layout(name).medium for name, codes in self.engine.plan.opening.items() if codes]
        for medium in wanted:
            if medium not in media:
                raise UserError(f"the conditioning frames take {' and '.join(wanted)}: give {KNOWN}{medium}")
        return self.engine.conditioning_codes(media)

    def _condition(self, media: Mapping[str, np.ndarray], cells: np.ndarray | None) -> dict[str, np.ndarray]:
        """Codes of what the task is conditioned on; refuses what it does not take."""
        taken = {streams.in_layout(name).medium for name in self.engine.plan.condition}
        for name in media:
            if name not in taken:
                raise UserError(f"task {self.spec['task']} takes no {name}: drop {name}")
        return self.engine.condition_codes(media, cells)

    def tokenize(self, media: np.ndarray, stream: str = "video") -> np.ndarray:
        """Codes [N, M] of media of a stream: of what is known, or of the whole condition; what exceeds it is cut."""
        return self.engine.codecs.tokenize(stream, media)

    def detokenize(self, tokens_NxS: np.ndarray, stream: str = "video") -> Any:
        """Media of a stream of whole sequences: uint8 video [N, T, H, W, 3], int16 sound [N, F]."""
        return self.engine.codecs.detokenize(stream, self.engine.plan.layout.parse(tokens_NxS)[stream])

    def _settings(self, seed: int | None, **given: float | Sequence[float] | None) -> SampleSpec:
        """The export's, but for what is given; UserError for a setting that the programs were not built for."""
        flags = {"top_p": ("nucleus", 1.0), "min_p": ("floor", 0.0), "guidance": ("guided", 1.0)}
        values = {name: value for name, value in given.items() if value is not None}
        for name, (flag, neutral) in flags.items():
            if not self.spec.get(flag) and np.any(np.asarray(values.get(name, neutral)) != neutral):
                raise UserError(
                    f"{name} = {values[name]} needs a program exported with SAMPLE.{name} other than "
                    f"{neutral:g}: export again with it"
                )
        try:
            found = {"seed": operator.index(seed)} if seed is not None else {}
            found |= {name: np.asarray(value, float).tolist() for name, value in values.items()}
        except (TypeError, ValueError) as error:
            raise UserError(f"seed is an integer, {', '.join(given)} are numbers: {error}") from None
        return from_dict(SampleSpec, {**self.spec["experiment"]["sample"], **found})


def _text(states: np.ndarray | None, lengths: np.ndarray | None) -> Text | None:
    if (states is None) != (lengths is None):
        raise UserError("give the states of a text and their lengths together")
    return None if states is None else Text(np.asarray(states), np.asarray(lengths))


def _program(blob: bytes, signature: dict[str, Any]) -> Callable:
    """The jitted artefact; cache inputs are donated, so that decoding updates them in place."""
    exported = jax.export.deserialize(bytearray(blob))
    platform = jax.default_backend()
    platform = "cuda" if platform == "gpu" else platform
    if platform not in exported.platforms:
        raise UserError(
            f"this export runs on {', '.join(exported.platforms)}, this machine has {platform}: "
            f"export with EXPORT.platforms = ('{platform}',)"
        )
    names = [i["name"] for i in signature["inputs"]]
    donated = tuple(1 + i for i, name in enumerate(names) if name.startswith("cache."))
    return jax.jit(exported.call, donate_argnums=donated)


def main(arguments: Sequence[str]) -> None:
    """`python -m poet.serving.runtime EXPORT INPUTS.npz OUTPUT.npz`: one request, file to file.

    INPUTS holds arguments of `Runtime.generate` by name; OUTPUT gets what is in the `Result` and
    the names of the `modules` that were loaded, to show what a serving host needs.
    """
    folder, inputs, output = arguments
    given = {name: a.item() if a.ndim == 0 else a for name, a in np.load(inputs).items()}
    result = Runtime.load(folder).generate(**given)
    modules = np.array(sorted({name.split(".")[0] for name in sys.modules}))
    np.savez(output, modules=modules, **result)


if __name__ == "__main__":
    main(sys.argv[1:])
