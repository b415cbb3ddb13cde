"""What an export's folder holds, as sampling takes it: weights, programs, tokenizers and the text encoder.

N samples, B samples of a call, R rows of a batch, P prefilled positions, K codes forced in a loop, q positions.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from poet import streams
from poet.sampling.engine import Prefills
from poet.sampling.frozen import FrozenNetworks
from poet.sampling.plans import Plan
from poet.sampling.samplers import SamplingParams
from poet.serving.format import INDEX, SAMPLING_PARAMS, WEIGHTS, WRITTEN_PIECES
from poet.serving.written import PieceTable
from poet.spec import UserError, limited
from poet.tasks.resolved import Resolved
from poet.tokenizers import text as text_lib
from poet.tokenizers.pieces import Pieces, load_pieces

# Samples that one call of a tokenizer takes at most.
CODEC_BATCH = 16


class Weights:
    """Arrays of a folder by name; each is read and brought to the device when it is first asked for."""

    def __init__(self, folder: Path):
        self._arrays: dict[str, jax.Array] = {}
        index = folder / INDEX
        if index.is_file():
            self._files = {n: folder / file for n, file in json.loads(limited(index).read_text())["weight_map"].items()}
        else:
            file = next(f for f in (folder / WEIGHTS, folder / "weights.safetensors") if f.is_file())
            with safe_open(file, framework="numpy") as opened:
                self._files = dict.fromkeys(opened.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> jax.Array:
        if name not in self._arrays:
            with safe_open(self._files[name], framework="numpy") as opened:
                self._arrays[name] = jnp.asarray(opened.get_tensor(name))
        return self._arrays[name]


class Program:
    """A program, which compiles at its first call, and again for another number of samples.

    Attributes:
      inputs: name, shape (None is any size) and dtype of each.
      outputs: names, and the axis of the rows of each.
    """

    def __init__(self, name: str, signature: Mapping[str, Any], blob: Path, weights: Callable[[], list[jax.Array]]):
        self.name, self.inputs, self.outputs = name, signature["inputs"], signature["outputs"]
        self._blob, self._weights = blob, weights

    @functools.cached_property
    def _run(self) -> Callable[..., tuple[jax.Array, ...]]:
        """The jitted program; cache inputs are donated, so that decoding updates them in place."""
        try:
            exported = jax.export.deserialize(bytearray(self._blob.read_bytes()))
        except Exception as error:  # The library raises several kinds.
            raise UserError(
                f"JAX {jax.__version__} cannot read {self._blob} ({str(error).splitlines()[0]}): write its programs "
                "anew by poet export --refresh"
            ) from None
        donated = [1 + i for i, entry in enumerate(self.inputs) if entry["name"].startswith("cache.")]
        return jax.jit(exported.call, donate_argnums=tuple(donated))

    def __call__(self, *arrays: Any) -> tuple[jax.Array, ...]:
        for array, entry in zip(arrays, self.inputs, strict=True):
            if not self._fits(array, entry):
                shape = [dim or "any" for dim in entry["shape"]]
                raise UserError(
                    f"input {entry['name']!r} of {self.name} is {array.dtype}{list(np.shape(array))}, expected "
                    f"{entry['dtype']}{shape}"
                )
        return self._run(self._weights(), *arrays)

    @staticmethod
    def _fits(array: Any, entry: Mapping[str, Any]) -> bool:
        shape = np.shape(array)
        sizes = len(shape) == len(entry["shape"]) and all(b in (None, a) for a, b in zip(shape, entry["shape"]))
        return sizes and str(array.dtype) == entry["dtype"]

    def in_batches(self, items: np.ndarray) -> np.ndarray:
        """The first output for N items, in calls of a power of two of them, or of as many as the program takes."""
        fixed = self.inputs[0]["shape"][0]
        size, pieces = fixed or min(CODEC_BATCH, 1 << max(len(items) - 1, 0).bit_length()), []
        for start in range(0, len(items), size):
            index = np.minimum(np.arange(start, start + size), len(items) - 1)
            pieces.append(np.asarray(self(items[index])[0]))
        return np.concatenate(pieces)[: len(items)]


class ExportedPrograms:
    """`poet.sampling.engine.Programs` of a plan: a prefill of one sample, a program for each chunk.

    Args:
      batch: samples of a call; 0 takes any number.
    """

    def __init__(self, plan: Plan, prefill: Program, chunks: Sequence[Program], batch: int):
        self.plan, self.batch, self.loops = plan, batch, len(chunks)
        self._prefill, self._chunks = prefill, chunks
        self._prefills = Prefills(prefill, plan.fan)
        self._axes = [entry["rows"] for entry in prefill.outputs]

    @property
    def text_width(self) -> int:
        """Width of a text state; 0 for a task without text."""
        return text_width(self._prefill)

    def prefill(self, tokens_BxP: np.ndarray, *text: np.ndarray) -> list[jax.Array]:
        states = zip(self._axes, *self._prefills(tokens_BxP, *text))
        # A copy where there is one sample: the state is donated, and the next request may begin with it again.
        return [jnp.concatenate(parts, axis) if len(parts) > 1 else jnp.copy(*parts) for axis, *parts in states]

    def decode(
        self,
        loop: int,
        state: list[jax.Array],
        rows_B: np.ndarray,
        sampling_params: SamplingParams,
        forced_BxK: np.ndarray,
    ) -> tuple[np.ndarray, list[jax.Array]]:
        program = self._chunks[loop]
        start = jnp.int32(self.plan.chunks[loop].start)
        forced = (forced_BxK,) if program.inputs[-1]["name"] == "forced" else ()
        tokens, *state = program(*state, start, rows_B, *settings(program, sampling_params, len(rows_B)), *forced)
        tokens_BxQ = np.asarray(tokens)
        if loop == self.loops - 1 and self.plan.tail:
            tail = np.tile(np.int32(self.plan.tail), (len(rows_B), 1))
            tokens_BxQ = np.concatenate([tokens_BxQ, tail], axis=1)
        return tokens_BxQ, state

    def merge(self, state: list[jax.Array], other: list[jax.Array], taken_B: np.ndarray) -> list[jax.Array]:
        """One state of two after the same loop: of each sample the other's where `taken_B` says so."""
        taken_R = np.repeat(taken_B, self.plan.fan)
        return [
            jnp.where(np.expand_dims(taken_R, [d for d in range(mine.ndim) if d != axis]), theirs, mine)
            for axis, mine, theirs in zip(self._axes, state, other)
        ]


class WholePrograms:
    """`poet.sampling.engine.Programs` of an export before format 8: one prefill of a batch, one loop for the rest."""

    loops = 1

    def __init__(self, plan: Plan, prefill: Program, decode: Program, batch: int):
        self.plan, self.batch, self._prefill, self._decode = plan, batch, prefill, decode

    @property
    def text_width(self) -> int:
        return text_width(self._prefill)

    def prefill(self, tokens_BxP: np.ndarray, *text: np.ndarray) -> tuple[jax.Array, ...]:
        return self._prefill(tokens_BxP, *text)

    def decode(
        self,
        loop: int,
        state: tuple[jax.Array, ...],
        rows_B: np.ndarray,
        sampling_params: SamplingParams,
        forced_BxK: np.ndarray,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        forced = (forced_BxK,) if self.plan.forced else ()
        numbers = settings(self._decode, sampling_params, self.batch)
        tokens, *cache = self._decode(*state, rows_B, *numbers, *forced)
        return tokens, tuple(cache)

    def merge(self, state: Any, other: Any, taken_B: np.ndarray) -> Any:
        """Raises ValueError: their only loop is the last, and nothing follows it."""
        raise ValueError("a sequence of one loop is whole after it: there is nothing to merge")


def text_width(prefill: Program) -> int:
    """E; 0 for a plan without text."""
    states = (entry["shape"] for entry in prefill.inputs if entry["name"] == "text_states")
    return next(states, [0])[-1]


def settings(program: Program, sampling_params: SamplingParams, batch: int) -> list[jax.Array]:
    """Sampling parameters as a program takes them; UserError for a schedule where it takes a number."""
    entries = [entry for entry in program.inputs if entry["name"] in SAMPLING_PARAMS]
    return [_setting(entry, sampling_params, batch) for entry in entries]


def _setting(entry: Mapping[str, Any], sampling_params: SamplingParams, batch: int) -> jax.Array:
    value = jnp.asarray(getattr(sampling_params, entry["name"]), entry["dtype"])
    shape = tuple(batch if dim is None else dim for dim in entry["shape"])
    if value.ndim and value.shape != shape:
        takes = f"{shape[0]} numbers" if shape else "a number"
        raise UserError(f"{entry['name']} has {len(value)} numbers, these programs take {takes}")
    return jnp.broadcast_to(value, shape)


# -------------------------------------------------------------------------------------- frozen networks


class ExportedCodecs:
    """`poet.sampling.engine.Codecs` of a task.

    Args:
      encode, decode: by names of streams in the task's layout.
    """

    def __init__(
        self,
        encode: Mapping[str, Program],
        decode: Mapping[str, Program],
        frozen: FrozenNetworks,
        resolved: Resolved,
        task: str,
    ):
        self._encode, self._decode = encode, decode
        self._networks, self._resolved, self._task = frozen, resolved, task

    def tokenize(self, name: str, media: np.ndarray) -> np.ndarray:
        """As many codes as the program gives; media beyond its input are cut."""
        if name not in self._encode:
            raise UserError(f"task {self._task} of this export opens with no {streams.in_layout(name).medium}: drop it")
        program = self._encode[name]
        (entry,) = program.inputs
        shape = tuple(entry["shape"][1:])
        media = np.asarray(media)
        streams.in_layout(name).check_media(media, shape)
        if str(media.dtype) != entry["dtype"]:
            raise UserError(f"{streams.in_layout(name).medium} is {media.dtype}, an export takes {entry['dtype']}")
        return program.in_batches(media[:, : shape[0]]).reshape(len(media), -1).astype(np.int32)

    def detokenize(self, name: str, codes_NxM: np.ndarray) -> Any:
        stream = streams.in_layout(name)
        if name not in self._decode:
            return stream.detokenize(self._networks[stream.network], codes_NxM, self._resolved.format)
        program = self._decode[name]
        return program.in_batches(codes_NxM.astype(np.int32).reshape(-1, *program.inputs[0]["shape"][1:]))


_NO_FILMS = "this export continues no films: export the checkpoint again with EXPORT.films = True"


class ExportedNetworks(FrozenNetworks):
    """The frozen networks of an export, those that no program holds.

    Args:
      fingerprints: of all of them.
      loaded: those that are asked for more than their fingerprint.
    """

    def __init__(self, resolved: Resolved, fingerprints: Mapping[str, str], loaded: Mapping[str, Any]):
        known = {name: _Coded(fingerprint) for name, fingerprint in fingerprints.items()}
        super().__init__(resolved, {**known, **loaded}, fingerprints)

    def _load(self, name: str) -> Any:
        raise UserError(f"this export has no network {name!r}: export again with a task that needs it")


class _Coded:
    """A network whose programs belong to tasks."""

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint

    def encode(self, *media: Any) -> np.ndarray:
        raise UserError(_NO_FILMS)

    def decode_step(self, *codes: Any) -> Any:
        raise UserError(_NO_FILMS)

    def stepper(self, part: str, levels: int) -> Any:
        raise UserError(_NO_FILMS)


class ExportedText:
    """The text encoder of an export; see `poet.tokenizers.text.TextEncoder`."""

    name = "exported"

    def __init__(self, pieces: Callable[[Sequence[str]], list[list[int]]], program: Program, record: Mapping[str, Any]):
        self._pieces, self._program, self._controls = pieces, program, record["controls"]
        self.length, self.width, self.fingerprint = record["length"], record["width"], record["fingerprint"]

    def __call__(self, texts: Sequence[str]) -> text_lib.EncodedText:
        found = self._pieces(text_lib.check_texts(texts))
        found = [ids if len(ids) > self._controls else [] for ids in found]
        return text_lib.encode_pieces(found, self._states, length=self.length, width=self.width)

    def _states(self, ids_bxl: np.ndarray, lengths_b: np.ndarray) -> jax.Array:
        return self._program(ids_bxl, lengths_b)[0]


class NoText:
    """In the place of a text encoder that the folder does not hold."""

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint

    def __call__(self, texts: Sequence[str]) -> text_lib.EncodedText:
        raise UserError(
            "this export has no text encoder: sample by Runtime.tokens with the states of texts, or export again with "
            "EXPORT.text_encoder = True"
        )


def text_encoder(folder: Path, record: Mapping[str, Any], programs: Mapping[str, Program]) -> Any:
    """The text encoder that spec.json records as `record`."""
    if "program" not in record:
        return NoText(record["fingerprint"])
    return ExportedText(_pieces_of(folder / record["pieces"]), programs[record["program"]], record)


def _pieces_of(file: Path) -> Callable[[Sequence[str]], list[list[int]]]:
    if file.name != text_lib.PIECES_FILE:
        try:
            return load_pieces(file).ids
        except ImportError:
            raise UserError(f"{file} needs the package sentencepiece: pip install sentencepiece") from None
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"{file} needs the package tokenizers: pip install tokenizers") from None
    tokenizer = tokenizers.Tokenizer.from_file(str(limited(file)))
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def written_pieces(folder: Path, fingerprint: str) -> Pieces:
    """The vocabulary of written texts."""
    table = PieceTable.of(json.loads(limited(folder / WRITTEN_PIECES).read_text()))
    return Pieces(size=len(table.pieces), fingerprint=fingerprint, processor=table)
