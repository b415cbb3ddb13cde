"""From logits to a token: temperature, top-k, nucleus, min-p, greedy, and classifier-free guidance.

A token is the argmax of logits plus Gumbel noise over the kept ids.  The noise of an id is a pure
function of (seed, row, position, id): a sample depends neither on the batch it is sampled in nor on
how many ids are kept beside it.

B rows, V legal ids, K kept candidates.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from poet.spec import SampleSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncation:
    """The part of sampling that shapes the compiled program.

    Attributes:
      top_k: most probable ids kept; 0 keeps all.
      nucleus: whether the program can apply a top_p below 1 (it then sorts what top_k keeps).
      fewer: whether latent frames may keep fewer than `top_k` (all, where that is 0).
      floor: whether it can apply a min_p above 0.
      capped, projected, momentum: which parts of adaptive guidance it applies (`guide`).
    """

    top_k: int = 0
    nucleus: bool = False
    fewer: bool = False
    floor: bool = False
    capped: bool = False
    projected: bool = False
    momentum: bool = False

    @classmethod
    def of(cls, sample: SampleSpec) -> Truncation:
        """The truncation of this spec; greedy decoding needs none."""
        guidance = {
            "capped": sample.guides and sample.guidance_cap > 0,
            "projected": sample.guides and sample.guidance_parallel != 1,
            "momentum": sample.guides and sample.guidance_momentum != 0,
        }
        if not any(sample.schedule("temperature")):
            return cls(**guidance)
        kept = sample.schedule("top_k")
        return cls(
            top_k=0 if 0 in kept else int(max(kept)),
            nucleus=min(sample.schedule("top_p")) < 1,
            fewer=len(set(kept)) > 1,
            floor=max(sample.schedule("min_p")) > 0,
            **guidance,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The part of sampling that is traced: a changed value compiles nothing.

    All are scalars; temperature, top_p, guidance, top_k and min_p may be schedules [T] of T latent frames, float32.

    Attributes:
      seed: uint32 scalar, or [B] where the rows are of several requests.
      temperature: >= 0; 0 is greedy.
      top_p: in (0, 1]; read only by a program with `Truncation.nucleus`.
      guidance: read only by a guided program.
      top_k: int32, 0 keeps all; read only by a program with `Truncation.fewer`.
      min_p: in [0, 1]; read only by a program with `Truncation.floor`.
      guidance_cap: > 0; read only by a program with `Truncation.capped`.
      guidance_parallel: >= 0; read only by a program with `Truncation.projected`.
      guidance_momentum: in (-1, 1); read only by a program with `Truncation.momentum`.
    """

    seed: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    guidance: jax.Array
    top_k: jax.Array | int = 0
    min_p: jax.Array | float = 0.0
    guidance_cap: jax.Array | float = 0.0
    guidance_parallel: jax.Array | float = 1.0
    guidance_momentum: jax.Array | float = 0.0

    @classmethod
    def of(cls, sample: SampleSpec) -> SamplingParams:
        return cls(
            **{
                field.name: jnp.asarray(getattr(sample, field.name), cls.dtype(field.name))
                for field in dataclasses.fields(cls)
            }
        )

    @staticmethod
    def dtype(field: str) -> str:
        """The dtype of a field."""
        return {"seed": "uint32", "top_k": "int32"}.get(field, "float32")

    def at(self, latents: np.ndarray, position: jax.Array | int) -> SamplingParams:
        """The parameters at a position, all scalars; `latents` int32 [S] has the latent frame of every position."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        schedules = {name: value for name, value in settings.items() if name != "seed" and jnp.ndim(value)}
        if not schedules:
            return self
        latent = jnp.asarray(latents)[position]
        return dataclasses.replace(self, **{name: value[latent] for name, value in schedules.items()})


def row_keys(seed: jax.Array, rows_B: jax.Array) -> jax.Array:
    """One key per row; `rows_B` are ids of samples within a request, not places in a batch.

    `seed` is that of all rows, a scalar, or has one for each [B]: a row's key depends on its own alone.
    """
    if jnp.ndim(seed):
        return jax.vmap(lambda seed, row: jax.random.fold_in(_root(seed), row))(seed, rows_B)
    root = _root(seed)
    return jax.vmap(lambda row: jax.random.fold_in(root, row))(rows_B)


def _root(seed: jax.Array) -> jax.Array:
    return jax.random.key(seed, impl="threefry2x32")


def factor_keys(keys_B: jax.Array, number: int) -> jax.Array:
    """The keys of a position's later factors; those of the first are the row's."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B) if number else keys_B


def fan_out(x_B: jax.Array, fan: int) -> jax.Array:
    """Every row `fan` times, one after the other; further dims may follow.

    Copies of a row lie on the row's device; jnp.repeat and jnp.tile refuse rows that are split.
    """
    if fan == 1:
        return x_B
    x_Bx1 = jnp.expand_dims(x_B, 1)
    copies = jnp.concatenate([x_Bx1] * fan, axis=1)
    return copies.reshape(-1, *x_B.shape[1:])


def guide(
    logits_2BxV: jax.Array,
    sampling_params: SamplingParams,
    truncation: Truncation = Truncation(),
    before_BxV: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Classifier-free guidance over the conditional and the unconditional row of every sample.

    With what `truncation` names it is adaptive projected guidance (2410.02416) of cond + (guidance - 1) * update, where
    the update begins as cond - uncond without what all ids have in common, which says nothing:

    *   momentum: guidance_momentum times the former update is added;
    *   capped: an update whose root mean square over the ids exceeds guidance_cap is scaled down to it;
    *   projected: of its part along cond, which makes cond steeper or flatter as a temperature does, guidance_parallel
        times as much is kept.

    Args:
      sampling_params: scalars, those of the position.
      before_BxV: the second result at the position before; read only with `truncation.momentum`.

    Returns:
      Guided logits [B, V], and the update with its momentum alone [B, V].
    """
    logits_Bx2xV = logits_2BxV.reshape(-1, 2, logits_2BxV.shape[-1])
    cond_BxV, uncond_BxV = logits_Bx2xV[:, 0], logits_Bx2xV[:, 1]
    apart_BxV, scale = cond_BxV - uncond_BxV, sampling_params.guidance - 1
    if not (truncation.capped or truncation.projected or truncation.momentum):
        return uncond_BxV + sampling_params.guidance * apart_BxV, apart_BxV
    apart_BxV = update_BxV = _centred(apart_BxV)
    if truncation.momentum:
        apart_BxV = update_BxV = apart_BxV + sampling_params.guidance_momentum * before_BxV
    if truncation.capped:
        size_Bx1 = jnp.sqrt(jnp.mean(jnp.square(apart_BxV), axis=-1, keepdims=True))
        scale = scale * jnp.minimum(1, sampling_params.guidance_cap / jnp.maximum(size_Bx1, 1e-30))
    if truncation.projected:
        parallel_BxV = _along(apart_BxV, _centred(cond_BxV))
        update_BxV = apart_BxV + (sampling_params.guidance_parallel - 1) * parallel_BxV
    return cond_BxV + scale * update_BxV, apart_BxV


def _centred(x_BxV: jax.Array) -> jax.Array:
    return x_BxV - jnp.mean(x_BxV, axis=-1, keepdims=True)


def _along(x_BxV: jax.Array, direction_BxV: jax.Array) -> jax.Array:
    """The part of x that is parallel to a direction; 0 where that is 0."""
    product_Bx1 = jnp.sum(x_BxV * direction_BxV, axis=-1, keepdims=True)
    square_Bx1 = jnp.sum(jnp.square(direction_BxV), axis=-1, keepdims=True)
    return product_Bx1 / jnp.maximum(square_Bx1, 1e-30) * direction_BxV


def floor(logits_BxV: jax.Array, min_p: jax.Array) -> jax.Array:
    """Ids less probable than `min_p` times the most probable one become -inf; 0 keeps everything."""
    least_Bx1 = jnp.max(logits_BxV, axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits_BxV >= least_Bx1, logits_BxV, -jnp.inf)


def nucleus(logits_BxK: jax.Array, top_p: jax.Array) -> jax.Array:
    """Keeps the smallest head of descending logits whose probability reaches `top_p`.

    The rest becomes -inf.  The most probable id always stays; top_p = 1 keeps everything exactly.
    """
    probabilities_BxK = jax.nn.softmax(logits_BxK, axis=-1)
    before_BxK = jnp.cumsum(probabilities_BxK, axis=-1) - probabilities_BxK
    first_K = jnp.arange(logits_BxK.shape[-1]) == 0
    return jnp.where((before_BxK < top_p) | (top_p >= 1) | first_K, logits_BxK, -jnp.inf)


def candidates(
    logits_BxV: jax.Array, top_p: jax.Array, truncation: Truncation, top_k: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """(logits_BxK, ids_BxK) that may be sampled, most probable first; dropped ones hold -inf.

    Top-k comes first and the nucleus is taken of what it keeps.  Among equal logits the lower id is
    kept.
    """
    size = logits_BxV.shape[-1]
    # top_k orders by bits, where -0.0 comes after 0.0.
    logits_BxV = jnp.where(logits_BxV == 0, 0.0, logits_BxV)
    logits_BxK, ids_BxK = jax.lax.top_k(logits_BxV, min(truncation.top_k or size, size))
    if truncation.fewer:
        kept_K = (jnp.arange(ids_BxK.shape[-1]) < top_k) | (top_k == 0)
        logits_BxK = jnp.where(kept_K, logits_BxK, -jnp.inf)
    if truncation.nucleus:
        logits_BxK = nucleus(logits_BxK, top_p)
    return logits_BxK, ids_BxK


def sample(
    logits_BxV: jax.Array,
    keys_B: jax.Array,
    position: jax.Array | int,
    sampling_params: SamplingParams,
    truncation: Truncation,
) -> jax.Array:
    """Samples one index in [0, V) per row, int32 [B].

    Args:
      logits_BxV: guided logits of the legal ids; computed on in float32.
      keys_B: `row_keys` of the request.
      position: sequence position of the token, so that every token has its own noise.
      sampling_params: traced settings, those of the position (`SamplingParams.at`).
      truncation: static settings.
    """
    scaled_BxV = logits_BxV.astype(jnp.float32) / jnp.where(
        sampling_params.temperature == 0, 1, sampling_params.temperature
    )
    noise_BxV = _noise(keys_B, position, logits_BxV.shape[-1])
    # Without noise the result is the most probable id, the lower one of equals.
    noise_BxV = jnp.where(sampling_params.temperature == 0, 0, noise_BxV)
    if truncation.floor:
        scaled_BxV = floor(scaled_BxV, sampling_params.min_p)
    if not (truncation.top_k or truncation.nucleus or truncation.fewer):
        return jnp.argmax(scaled_BxV + noise_BxV, axis=-1).astype(jnp.int32)
    logits_BxK, ids_BxK = candidates(scaled_BxV, sampling_params.top_p, truncation, sampling_params.top_k)
    noise_BxK = jnp.take_along_axis(noise_BxV, ids_BxK, axis=-1)
    choice_Bx1 = jnp.argmax(logits_BxK + noise_BxK, axis=-1, keepdims=True)
    return jnp.take_along_axis(ids_BxK, choice_Bx1, axis=-1)[:, 0].astype(jnp.int32)


def _noise(keys_B: jax.Array, position: jax.Array | int, size: int) -> jax.Array:
    """Gumbel noise [B, size] of one position.

    mode="high": the default samples from a grid of 2^23 values, coarse enough for ties among the
    largest of 2^18 ids.
    """

    def row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, position)
        return jax.random.gumbel(key, (size,), jnp.float32, mode="high")

    return jax.vmap(row)(keys_B)
