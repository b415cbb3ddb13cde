"""Runs an export: needs jax, numpy and safetensors, and neither flax nor the model's code.

    runtime = Runtime.load("export/")
    result = runtime.generate(text_states=states, text_lengths=lengths, seed=7)
    result.video  # uint8 [N, T, H, W, 3]

N samples, B batch of the programs, S layout length, L text positions, E width of a text state,
K known codes, F audio samples.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import sys
from pathlib import Path
from typing import Any, Callable, Sequence

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from poet.tasks import given as given_lib
from poet.runs import manifest
from poet.spec import SampleSpec, UserError

FORMAT = 5
# The stream of the prefix that repeats the sound which opens the output, and the code of what is not given.
OPENING, HIDDEN = "opening_audio_in", -1
WEIGHTS, SPEC = "weights.safetensors", "spec.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """tokens: int32 [N, S], whole sequences.

    video: uint8 [N, T, H, W, 3].  audio: int16 [N, F].  None where the task does not draw it.
    """

    tokens: np.ndarray
    video: np.ndarray | None = None
    audio: np.ndarray | None = None


def verify(folder: Path) -> None:
    """Raises UserError unless every file is the one that the manifest lists."""
    if not (folder / manifest.NAME).is_file():
        raise UserError(f"{folder} is not an export: it holds no {manifest.NAME}")
    try:
        found = manifest.verify(folder)
    except manifest.Corrupt as error:
        raise UserError(f"{error}; export again") from None
    if found.get("format") != FORMAT:
        raise UserError(
            f"{folder} has export format {found.get('format')}, this version reads {FORMAT}"
        )


class Runtime:
    """A loaded export; programs compile at their first call.

    Attributes:
      spec: the contents of spec.json.
      batch: samples that one call of the programs makes; requests of any size are cut into these.
    """

    def __init__(self, spec: dict[str, Any], programs: dict[str, Callable], weights: dict):
        self.spec = spec
        self.batch: int = spec["batch"]
        self._programs = programs
        self._weights = {
            name: [weights[w] for w in signature["weights"]]
            for name, signature in spec["programs"].items()
        }

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
        known_video: np.ndarray | None = None,
        known_audio: np.ndarray | None = None,
        video: np.ndarray | None = None,
        audio: np.ndarray | None = None,
        cells: np.ndarray | None = None,
        count: int | None = None,
        source: int = 0,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
    ) -> Result:
        """Draws N samples; settings left out are the export's, and range as `SampleSpec` says.

        Everything that is given has a row for each sample.

        Args:
          text_states, text_lengths: float32 [N, L, E] and int32 [N]; absent means no text.
          negative_states, negative_lengths: the text that guidance steers away from; absent means no text.
          known: codes [N, K] that open the output, segment by segment; or
          known_video: uint8 [N, known frames, H, W, 3], which is tokenized, and with it, where the
            output has sound,
          known_audio: int16 [N, at least as long as its known codes].
          video, audio: what the task is conditioned on: uint8 [N, T, H, W, 3] or int16 [N, F].  A
            painted clip, its structure and the like come as `poet.conditioning` makes them, with
          cells: bool [N, t, h, w], which latent cells of `video` are given; absent means all of them.
          count: N; 1 where nothing that is given tells it.
          source: index of the data source whose look is asked for.

        Raises:
          UserError: what is given does not fit the programs.
        """
        knobs = self._knobs(seed, temperature, top_p, guidance)
        count = given_lib.rows(
            {
                "text_states": text_states, "text_lengths": text_lengths,
                "negative_states": negative_states, "negative_lengths": negative_lengths,
                "known": known, "known_video": known_video, "known_audio": known_audio,
                "video": video, "audio": audio, "cells": cells,
            },
            count,
        )
        if known is not None and (known_video is not None or known_audio is not None):
            raise UserError("known and known_video are two ways to say the same: give one of them")
        if known_audio is not None and known_video is None:
            raise UserError("known_audio is the sound of known_video: give both")
        if known_video is not None:
            known = self._known(known_video, known_audio)
        condition = self._condition(video, audio, cells)
        self._check_texts(text_states, text_lengths, negative_states, negative_lengths)
        self._check_known(known)
        pieces = []
        for start in range(0, count, self.batch):
            rows = np.arange(start, start + self.batch, dtype=np.int32)
            index = np.minimum(rows, count - 1)
            tokens_BxS = self._given_tokens(
                None if known is None else known[index],
                {name: codes[index] for name, codes in condition.items()},
                source,
            )
            text = self._text(
                _rows(index, text_states, text_lengths),
                _rows(index, negative_states, negative_lengths),
            )
            pieces.append(self._draw(tokens_BxS, text, rows, knobs))
        tokens_NxS = np.concatenate(pieces)[:count]
        streams = {name: self.detokenize(tokens_NxS, name) for name in self._layout["output"]}
        shown = next((streams[name] for name in ("video", "image") if name in streams), None)
        return Result(tokens=tokens_NxS, video=shown, audio=streams.get("audio"))

    @property
    def _layout(self) -> dict[str, Any]:
        return self.spec["layout"]

    def _segments(self, stream: str) -> list[dict[str, Any]]:
        return [s for s in self._layout["segments"] if s["stream"] == stream]

    def _draw(
        self, tokens_BxS: np.ndarray, text: tuple, rows: np.ndarray, knobs: tuple
    ) -> np.ndarray:
        """Whole sequences, from those that hold what is given and anything elsewhere."""
        prefilled = self._layout["prefilled"]
        later = [s for s in self._layout["segments"] if s["known"] and s["start"] >= prefilled]
        forced = [tokens_BxS[:, s["start"] : s["start"] + s["known"]] for s in later]
        begin = np.ascontiguousarray(tokens_BxS[:, :prefilled])
        *cache, state = self._call("prefill", begin, *text)
        extra = [np.concatenate(forced, axis=1)] if forced else []
        tokens, *_ = self._call("decode", *cache, state, rows, *knobs, *extra)
        return np.concatenate([begin, np.asarray(tokens)], axis=1)

    def _known(self, video: np.ndarray, audio: np.ndarray | None) -> np.ndarray:
        """Codes [N, K] of known frames and, where the output has sound, of theirs."""
        if not any(s["known"] for s in self._layout["segments"]):
            raise UserError(f"task {self.spec['task']} was exported without known frames")
        codes = [self.tokenize(video)]
        if any(s["known"] for s in self._segments("audio")):
            if audio is None:
                raise UserError("the known frames need their sound too: give known_audio")
            codes.append(self.tokenize_audio(audio))
        return np.concatenate(codes, axis=1)

    def _condition(
        self, video: np.ndarray | None, audio: np.ndarray | None, cells: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Codes [N, n] of the streams that the task is conditioned on, `HIDDEN` where none is given."""
        wanted = self._layout["condition"]
        shown = "image_in" if "image_in" in wanted else "video_in"
        given = {shown: (video, self.tokenize), "audio_in": (audio, self.tokenize_audio)}
        for name, (array, _) in given.items():
            if (array is not None) != (name in wanted):
                what = name.removesuffix("_in")
                says = f"takes no {what}: drop {what}"
                if name in wanted:
                    says = f"starts from a given {what}: pass {what}"
                raise UserError(f"task {self.spec['task']} {says}")
        codes = {name: given[name][1](given[name][0]) for name in wanted}
        if cells is not None:
            codes[shown] = self._hidden(shown, codes.get(shown), np.asarray(cells))
        return codes

    def _hidden(self, name: str, codes_NxK: np.ndarray | None, cells: np.ndarray) -> np.ndarray:
        """Codes of a clip, `HIDDEN` where its cells are not given."""
        if codes_NxK is None:
            raise UserError(f"task {self.spec['task']} is given no clip: drop cells")
        expected = (len(codes_NxK), *self._segments(name)[0]["grid"])
        if cells.shape != expected or cells.dtype != bool:
            raise UserError(f"cells are {cells.dtype}{list(cells.shape)}, expected bool{list(expected)}")
        return np.where(cells.reshape(codes_NxK.shape), codes_NxK, HIDDEN)

    def _opening(self, known_BxK: np.ndarray | None) -> dict[str, np.ndarray]:
        """The stream of the prefix that holds the known sound; {} for a task without one."""
        parts = self._segments(OPENING)
        if not parts:
            return {}
        codes = np.full((self.batch, sum(s["stop"] - s["start"] for s in parts)), HIDDEN, np.int32)
        spans = [s for s in self._layout["segments"] if s["known"]]
        stops = np.cumsum([s["known"] for s in spans])
        sound = [(s["known"], end) for s, end in zip(spans, stops) if s["stream"] == "audio"]
        for part, (known, end) in zip(parts, sound):
            codes[:, part["part"] : part["part"] + known] = known_BxK[:, end - known : end]
        return {OPENING: codes}

    def tokenize(self, video: np.ndarray) -> np.ndarray:
        """Codes [N, K] of uint8 clips: of the known frames, or of the whole condition."""
        codes = self._in_batches("tokenize", video)
        return codes.reshape(len(codes), -1)

    def tokenize_audio(self, audio: np.ndarray) -> np.ndarray:
        """Codes [N, levels * frames] of int16 sounds; what exceeds the program's input is cut."""
        (signature,) = self.spec["programs"]["tokenize_audio"]["inputs"]
        if np.ndim(audio) != 2:
            raise UserError(f"sounds have shape {np.shape(audio)}, expected (samples, time): mono")
        codes = self._in_batches("tokenize_audio", audio[:, : signature["shape"][1]])
        return codes.reshape(len(codes), -1)

    def detokenize(self, tokens_NxS: np.ndarray, stream: str = "video") -> np.ndarray:
        """uint8 video [N, T, H, W, 3], or int16 sound [N, F], of a stream of whole sequences."""
        parts = self._segments(stream)
        codes = [tokens_NxS[:, s["start"] : s["stop"]] - s["low"] for s in parts]
        for part, span in zip(codes, parts):
            given_lib.check_codes(stream, part, span["high"] - span["low"])
        if stream == "audio":
            return self._in_batches("detokenize_audio", np.stack(codes, axis=1).astype(np.int32))
        grid = parts[0]["grid"]
        return self._in_batches("detokenize", codes[0].reshape(-1, *grid).astype(np.int32))

    def _in_batches(self, name: str, items: np.ndarray) -> np.ndarray:
        pieces = []
        for start in range(0, len(items), self.batch):
            index = np.minimum(np.arange(start, start + self.batch), len(items) - 1)
            pieces.append(np.asarray(self._call(name, items[index])[0]))
        return np.concatenate(pieces)[: len(items)]

    def _call(self, name: str, *inputs: Any) -> tuple[jax.Array, ...]:
        signature = self.spec["programs"][name]["inputs"]
        for value, expected in zip(inputs, signature, strict=True):
            shape, dtype = list(np.shape(value)), str(value.dtype)
            if shape != expected["shape"] or dtype != expected["dtype"]:
                raise UserError(
                    f"input {expected['name']!r} of {name} is {dtype}{shape}, expected "
                    f"{expected['dtype']}{expected['shape']}"
                )
        return self._programs[name](self._weights[name], *inputs)

    def _knobs(
        self,
        seed: int | None,
        temperature: float | None,
        top_p: float | None,
        guidance: float | None,
    ) -> tuple[np.generic, ...]:
        """Inputs of `decode`; UserError for a setting that the program was not built for."""
        default = self.spec["experiment"]["sample"]
        seed = default["seed"] if seed is None else seed
        values = {"temperature": default["temperature"] if temperature is None else temperature}
        asked = {"top_p": (top_p, "nucleus", 1.0), "guidance": (guidance, "guided", 1.0)}
        for name, (value, flag, neutral) in asked.items():
            values[name] = default[name] if value is None else value
            if value is not None and value != neutral and not self.spec[flag]:
                raise UserError(
                    f"{name} = {value} needs a program exported with SAMPLE.{name} other than "
                    f"{neutral:g}: export again with it"
                )
        try:
            seed, numbers = operator.index(seed), {name: float(n) for name, n in values.items()}
        except (TypeError, ValueError) as error:
            raise UserError(f"seed is an integer, {', '.join(values)} are numbers: {error}") from None
        asked_for = SampleSpec(seed=seed, **numbers)
        return (np.uint32(asked_for.seed), *(np.float32(getattr(asked_for, n)) for n in numbers))

    def _check_known(self, known: np.ndarray | None) -> None:
        """Raises UserError for codes that the segments which they open do not have."""
        if known is None:
            return
        given_lib.check_codes("known", known, 2**31)
        place = 0
        for span in (s for s in self._layout["segments"] if s["known"]):
            opening = np.asarray(known)[:, place : place + span["known"]]
            given_lib.check_codes("known", opening, span["high"] - span["low"])
            place += span["known"]

    def _check_texts(self, *given: np.ndarray | None) -> None:
        inputs = {i["name"]: i["shape"] for i in self.spec["programs"]["prefill"]["inputs"]}
        if "text_states" not in inputs and any(a is not None for a in given):
            raise UserError(f"task {self.spec['task']} takes no text")
        length = self.spec["experiment"]["text"]["length"]
        for name, states, lengths in (("text", *given[:2]), ("negative", *given[2:])):
            if (states is None) != (lengths is None):
                raise UserError("give the states of a text and their lengths together")
            if states is not None:
                given_lib.check_text(name, states, lengths, length)
        if given[2] is not None and not self.spec["guided"]:
            raise UserError(
                "a negative text needs a program exported with SAMPLE.guidance other than 1: export "
                "again with it"
            )

    def _given_tokens(
        self, known_BxK: np.ndarray | None, condition: dict[str, np.ndarray], source: int
    ) -> np.ndarray:
        """int32 [B, S] that holds the ids of the given positions, from the layout in the spec."""
        segments = self._layout["segments"]
        count = 0 if known_BxK is None else known_BxK.shape[1]
        total = sum(s["known"] for s in segments)
        if count != total:
            raise UserError(
                f"{count} known codes were given; this export takes {total} "
                f"({self.spec['experiment']['export']['known_frames']} frames)"
            )
        condition = {**condition, **self._opening(known_BxK)}
        tokens, place = np.zeros((self.batch, self._layout["length"]), np.int32), 0
        for span in segments:
            tokens[:, span["start"] : span["stop"]] = span["low"]
            if span["stream"] == "source":
                size = span["high"] - span["low"]
                if not 0 <= source < size:
                    raise UserError(f"source = {source}: must lie in 0..{size - 1}")
                tokens[:, span["start"]] += source
            if span["stream"] in condition:
                part = slice(span["part"], span["part"] + span["stop"] - span["start"])
                codes = condition[span["stream"]][:, part]
                ids = np.where(codes == HIDDEN, span["hidden"], span["low"] + codes)
                tokens[:, span["start"] : span["stop"]] = ids
            if span["known"]:
                opening = known_BxK[:, place : place + span["known"]]
                tokens[:, span["start"] : span["start"] + span["known"]] += opening
                place += span["known"]
        return tokens

    def _text(self, text: tuple | None, negative: tuple | None) -> tuple[np.ndarray, ...]:
        """States and lengths of a batch; if guided, a conditional and an unconditional row per sample."""
        inputs = {i["name"]: i["shape"] for i in self.spec["programs"]["prefill"]["inputs"]}
        if "text_states" not in inputs:
            return ()
        shape = (self.batch, *inputs["text_states"][1:])
        none = np.zeros(shape, np.float32), np.zeros(self.batch, np.int32)
        rows = [text or none] + [negative or none] * self.spec["guided"]
        states, lengths = (np.stack(a, 1).reshape(-1, *a[0].shape[1:]) for a in zip(*rows))
        return states.astype(np.float32), lengths.astype(np.int32)


def _rows(
    index: np.ndarray, states: np.ndarray | None, lengths: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    return None if states is None or lengths is None else (np.asarray(states)[index], np.asarray(lengths)[index])


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
    drawn = {name: a for name, a in vars(result).items() if a is not None}
    np.savez(output, modules=modules, **drawn)


if __name__ == "__main__":
    main(sys.argv[1:])
