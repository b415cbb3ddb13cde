"""A frozen audio tokenizer: sounds to levels of codes and back, with a fingerprint.

Shape legend: B batch, S samples, L levels, F frames of codes, D latent width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from poet.distributed.mesh import BATCH_AXES, batch_ways
from poet.models.declaration import Tree
from poet.spec import AudioTokenizerSpec, UserError
from poet.tokenizers import frozen
from poet.tokenizers.audio import rvq, soundstream
from poet.tokenizers.audio.soundstream import Stored

INT16 = 32768.0
CODEBOOKS = "codebooks"


def encode_chunk(
    spec: AudioTokenizerSpec,
    levels: int,
    params: Tree,
    wave_BxS: jax.Array,
    denoise_B: jax.Array | None,
    stored: Stored,
) -> tuple[jax.Array, Stored]:
    """int16 or float waves of whole frames -> (ids (B, levels, F), what the next chunk needs)."""
    scale = INT16 if wave_BxS.dtype == jnp.int16 else 1.0
    wave = wave_BxS.astype(jnp.float32) / scale
    z, stored = soundstream.encode(spec, params, wave, denoise_B, stored)
    return rvq.encode(z, params[CODEBOOKS][:levels]), stored


def decode_chunk(
    spec: AudioTokenizerSpec, params: Tree, ids_BxLxF: jax.Array, denoise_B: jax.Array | None, stored: Stored
) -> tuple[jax.Array, Stored]:
    """Ids of any number of levels -> (int16 waves (B, F * hop), what the next chunk needs)."""
    z = rvq.decode(ids_BxLxF, params[CODEBOOKS])
    wave, stored = soundstream.decode(spec, params, z, denoise_B, stored)
    return jnp.round(jnp.clip(wave * INT16, -INT16, INT16 - 1)).astype(jnp.int16), stored


@functools.cache
def _compiled(run: Callable[..., Any], mesh: Mesh | None) -> Callable[..., jax.Array]:
    """(weights, batch, denoise) -> output, jitted; on a mesh every device takes its part."""

    def whole(params: Tree, batch: jax.Array, denoise_B: jax.Array | None) -> jax.Array:
        return run(params, batch, denoise_B, None)[0]

    if mesh is not None:
        replicated, parts = PartitionSpec(), PartitionSpec(BATCH_AXES)
        whole = jax.shard_map(whole, mesh=mesh, in_specs=(replicated, parts, parts), out_specs=parts)
    return jax.jit(whole)


@functools.cache
def _encoder(spec: AudioTokenizerSpec, levels: int) -> Callable[..., Any]:
    return functools.partial(encode_chunk, spec, levels)


@functools.cache
def _decoder(spec: AudioTokenizerSpec) -> Callable[..., Any]:
    return functools.partial(decode_chunk, spec)


# Shared by all streams, so that a new one compiles nothing that another has compiled.
_ENCODE = jax.jit(encode_chunk, static_argnums=(0, 1))
_DECODE = jax.jit(decode_chunk, static_argnums=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioTokenizer(frozen.FrozenTokenizer):
    """Encodes and decodes sounds of any length, all levels of codes or the first few.

    Attributes:
      params: as `soundstream.declare`, and `codebooks` (L, N, D).
      denoise: sets the network's switch, so that noise is taken away.
    """

    SPEC = AudioTokenizerSpec

    denoise: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"batch = {self.batch}: a batch has at least one sound")
        if self.denoise and not self.spec.denoise:
            raise UserError(
                "this tokenizer has no denoise switch: train one with AUDIO_TOKENIZER.denoise = "
                "'encoder' or 'decoder' and AUDIO_TRAIN.noise_source"
            )

    @classmethod
    def shapes(cls, spec: AudioTokenizerSpec) -> Tree:
        return jax.eval_shape(lambda: init(spec, jax.random.key(0)))

    def encode(self, audio_BxS: np.ndarray, levels: int = 0, names: Sequence[str] = ()) -> np.ndarray:
        """Mono sounds at `spec.sample_rate_hz` -> int32 ids (B, levels, F), F = spec.frames(S).

        What exceeds whole frames is not heard; a sound shorter than a frame is filled with silence.

        Args:
          audio_BxS: int16, or floats in [-1, 1].
          levels: 1..spec.levels; 0 takes all.
          names: what errors call the sounds; () counts them.

        Raises UserError on another dtype or rank, no samples, NaN, or floats out of range.
        """
        audio = self._checked_audio(np.asarray(audio_BxS), names)
        levels = self._checked_levels(levels)
        frames, hop = self.spec.frames(audio.shape[1]), self.spec.hop
        whole = audio[:, : frames * hop]
        whole = np.pad(whole, ((0, 0), (0, frames * hop - whole.shape[1])))
        return self._run(_encoder(self.spec, levels), whole, (levels, frames), np.int32)

    def decode(self, ids_BxLxF: np.ndarray, samples: int = 0) -> np.ndarray:
        """Ids (B, L, F) of the first L levels -> int16 sounds (B, samples).

        Args:
          samples: length of the sound that was encoded, of F frames (`spec.frames`); samples behind
            the last whole frame are decoded from that frame once more.  0: F * hop.

        Raises UserError on another rank, ids that are not integers or outside the codebook, more
        levels than there are, or a length of another number of frames.
        """
        ids = self._checked_ids(np.asarray(ids_BxLxF))
        frames, hop = ids.shape[2], self.spec.hop
        samples = samples or frames * hop
        if self.spec.frames(samples) != frames:
            raise UserError(
                f"{frames} frames of codes cannot become {samples} samples: they are those of "
                f"{frames * hop}..{(frames + 1) * hop - 1} samples"
            )
        if samples > frames * hop:
            ids = np.concatenate([ids, ids[:, :, -1:]], axis=2)
        sounds = self._run(_decoder(self.spec), ids, (ids.shape[2] * hop,), np.int16)
        return sounds[:, :samples]

    def traced_encoder(self, levels: int) -> tuple[Callable[[Tree, jax.Array], jax.Array], Tree]:
        """`encode` of int16 (B, whole frames) as a pure function of weights and sounds, and those weights."""

        def run(params: Tree, wave_BxS: jax.Array) -> jax.Array:
            return encode_chunk(self.spec, levels, params, wave_BxS, self._traced_switch(wave_BxS), None)[0]

        return run, self._read_by("encoder")

    def traced_decoder(self, samples: int) -> tuple[Callable[[Tree, jax.Array], jax.Array], Tree]:
        """`decode` of int32 (B, L, F) as a pure function of weights and codes, and those weights."""

        def run(params: Tree, ids_BxLxF: jax.Array) -> jax.Array:
            if samples > ids_BxLxF.shape[2] * self.spec.hop:
                ids_BxLxF = jnp.concatenate([ids_BxLxF, ids_BxLxF[:, :, -1:]], axis=2)
            return decode_chunk(self.spec, params, ids_BxLxF, self._traced_switch(ids_BxLxF), None)[0][:, :samples]

        return run, self._read_by("decoder")

    def stepper(self, part: str, levels: int) -> tuple[Callable[[np.ndarray, Stored], tuple[Any, Stored]], Stored]:
        """Runs one sound in chunks: (chunk, what was handed on) -> (output, what it hands on), and the start.

        Args:
          part: 'encoder', of int16 (1, whole frames), or 'decoder', of int32 (1, levels, frames).
        """
        if part == "encoder":
            step, example = functools.partial(_ENCODE, self.spec, levels), ((1, self.spec.hop), np.int16)
        else:
            step, example = functools.partial(_DECODE, self.spec), ((1, levels, 1), np.int32)
        switch = self.switch(1)
        _, stored = jax.eval_shape(step, self.weights, jax.ShapeDtypeStruct(*example), switch, None)
        start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), stored)
        return lambda chunk, stored: step(self.weights, chunk, switch, stored), start

    def steps(self, part: str, levels: int) -> frozen.Steps:
        """One frame of codes at a time as a pure function, `part` as in `stepper`."""

        def run(params: Tree, chunk: jax.Array, stored: Stored) -> tuple[jax.Array, Stored]:
            switch = self._traced_switch(chunk)
            if part == "encoder":
                return encode_chunk(self.spec, levels, params, chunk, switch, stored)
            return decode_chunk(self.spec, params, chunk, switch, stored)

        shape, dtype = ((1, self.spec.hop), "int16") if part == "encoder" else ((1, levels, 1), "int32")
        return frozen.Steps(run, self._read_by(part), shape, shape, dtype)

    def _traced_switch(self, batch: jax.Array) -> jax.Array | None:
        """`switch` for the rows of a traced batch, whose number need not be known."""
        return jnp.full(batch.shape[0], self.denoise, jnp.int32) if self.spec.denoise else None

    def _read_by(self, part: str) -> Tree:
        return {name: self.params[name] for name in (part, CODEBOOKS, "film") if name in self.params}

    def _checked_audio(self, audio: np.ndarray, names: Sequence[str]) -> np.ndarray:
        prefix = f"{', '.join(names)}: " if names else ""
        floating = np.issubdtype(audio.dtype, np.floating)
        if audio.ndim != 2 or not (floating or audio.dtype == np.int16):
            raise UserError(
                f"{prefix}a batch of sounds has dtype {audio.dtype} and shape {audio.shape}: "
                "expected mono (batch, samples), int16 or floats in [-1, 1]"
            )
        if not audio.shape[1]:
            raise UserError(f"{prefix}a sound of no samples cannot be tokenized")
        for i, sound in enumerate(audio if floating else ()):
            name = names[i] if names else f"sound {i} of the batch"
            if not np.isfinite(sound).all():
                raise UserError(f"{name} has samples that are NaN or infinite")
            if np.abs(sound).max() > 1:
                raise UserError(
                    f"{name} has samples in {sound.min():g}..{sound.max():g}: floats must lie in "
                    "[-1, 1]; divide by the full scale, or give int16"
                )
        return audio if audio.dtype == np.int16 else audio.astype(np.float32)

    def _checked_levels(self, levels: int) -> int:
        if not 0 <= levels <= self.spec.levels:
            raise UserError(f"levels = {levels}: this tokenizer has 1..{self.spec.levels}, 0 for all")
        return levels or self.spec.levels

    def _checked_ids(self, ids: np.ndarray) -> np.ndarray:
        if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 3 or 0 in ids.shape[1:]:
            raise UserError(
                f"codes have dtype {ids.dtype} and shape {ids.shape}: expected integers (batch, levels, frames)"
            )
        self._checked_levels(ids.shape[1])
        if ids.size and (ids.min() < 0 or ids.max() >= self.spec.codes):
            raise UserError(
                f"codes lie in {ids.min()}..{ids.max()}: this tokenizer has "
                f"0..{self.spec.codes - 1}; subtract the vocabulary offset of each level first"
            )
        return ids.astype(np.int32)

    def switch(self, count: int) -> np.ndarray | None:
        """The network's condition for that many sounds; None if it has no switch."""
        return np.full(count, self.denoise, np.int32) if self.spec.denoise else None

    def _run(self, step: Callable[..., Any], batch: np.ndarray, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Runs `step` over sub-batches of one size."""
        out = np.empty((len(batch), *shape), dtype)
        run = _compiled(step, self.mesh)
        for rows, part in self._parts(batch):
            switch = self.placed(self.switch(len(part)))
            out[rows] = np.asarray(run(self.weights, self.placed(part), switch))[: rows.stop - rows.start]
        return out

    def _parts(self, batch: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Sub-batches of one size, a power of two up to `batch`; the last is filled up."""
        size = min(self.batch, 1 << max(len(batch) - 1, 0).bit_length())
        size += -size % (batch_ways(self.mesh) if self.mesh is not None else 1)
        for start in range(0, len(batch), size):
            rows = slice(start, min(start + size, len(batch)))
            part = batch[rows]
            yield rows, np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])


def init(spec: AudioTokenizerSpec, key: jax.Array) -> Tree:
    """Untrained weights, and codebooks of random vectors."""
    books = jax.random.normal(key, (spec.levels, spec.codes, spec.dim))
    return soundstream.init(spec, key) | {CODEBOOKS: books}


def random_params(spec: AudioTokenizerSpec, seed: int = 0) -> Tree:
    """`init` as numpy arrays: an untrained network, for tests and for measuring speed."""
    return jax.tree.map(np.asarray, jax.jit(functools.partial(init, spec))(jax.random.key(seed)))
