"""The critic against hand counts, brute force and finite differences; its losses against formulas.

B clips, T frames, H height, W width, C channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from poet.models import declaration
from poet.spec import DiscriminatorSpec, UserError
from poet.tokenizers.video import discriminator, layers

TINY = DiscriminatorSpec(base_channels=2, multipliers=(2, 4), head="mean")


# Compiled: one operation after another would be compiled one by one.
apply = jax.jit(discriminator.apply, static_argnums=0)
blur_pool = jax.jit(discriminator.blur_pool)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def weights(spec: DiscriminatorSpec, shape: tuple[int, int, int], dtype: str = "float32") -> dict:
    """Weights of the declared variances, and biases that are not zero, drawn by numpy."""

    def draw(weight: declaration.Weight) -> np.ndarray:
        inputs = 0 if weight.initializer is declaration.zeros else round(weight.initializer.stddev**-2)
        return (normal(*weight.shape, seed=inputs) * max(inputs, 4) ** -0.5).astype(dtype)

    return jax.tree.map(draw, discriminator.declare(spec, *shape), is_leaf=declaration.is_weight)


# ------------------------------------------------------------------------------------------ network


def test_parameter_count_of_the_papers_critic() -> None:
    """Counted by hand from spec §2.5: 17 x 128 x 128 leaves five halvings as 1 x 4 x 4."""
    w = [128, 256, 512, 512, 512, 512]
    count = 27 * 3 * 128 + 128
    for a, b in zip(w, w[1:]):
        count += (27 * a * a + a) + (27 * a * b + b) + a * b
    count += 27 * 512 * 512 + 512
    count += (1 * 4 * 4 * 512) * 512 + 512
    count += 512 + 1
    declared = discriminator.declare(DiscriminatorSpec(), 17, 128, 128)
    assert declaration.count(declared) == count == 61_341_569


@pytest.mark.parametrize("head", ["mean", "flatten"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 13, 10)])
def test_images_and_clips_of_any_size_get_one_finite_logit_each(head: str, shape: tuple[int, int, int]) -> None:
    spec = TINY.replace(head=head)
    params = weights(spec, shape)
    logits = apply(spec, params, np.abs(normal(3, *shape, 3)).astype(np.float32))
    assert logits.shape == (3,) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_a_clips_logit_does_not_depend_on_the_others() -> None:
    params = weights(TINY, (3, 8, 8))
    clips = normal(3, 3, 8, 8, 3).astype(np.float32)
    alone = apply(TINY, params, clips[1:2])
    np.testing.assert_allclose(apply(TINY, params, clips)[1:2], alone, rtol=1e-4)


def test_every_weight_and_every_pixel_acts() -> None:
    params = weights(TINY, (4, 8, 8))
    clips = normal(2, 4, 8, 8, 3).astype(np.float32)
    gradients = jax.grad(lambda p, x: jnp.sum(discriminator.apply(TINY, p, x) ** 2), argnums=(0, 1))(params, clips)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.all(np.any(np.asarray(leaf) != 0, axis=tuple(range(leaf.ndim - 1)))), path
    assert np.all(np.any(np.asarray(gradients[1]) != 0, axis=-1))


def test_half_precision_is_near_float32_and_gives_float32_logits() -> None:
    params = weights(TINY, (3, 8, 8))
    clips = np.abs(normal(8, 3, 8, 8, 3)).astype(np.float32)
    exact = np.asarray(apply(TINY, params, clips))
    logits = apply(TINY.replace(dtype="bfloat16"), params, clips)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.05 * np.abs(exact).max())


def test_a_flat_head_refuses_another_clip_shape_and_says_what_to_do() -> None:
    spec = TINY.replace(head="flatten")
    params = weights(spec, (1, 8, 8))
    with pytest.raises(UserError, match=r"\(1, 16, 16\).*DISCRIMINATOR.head = 'mean'"):
        apply(spec, params, np.zeros((1, 1, 16, 16, 3), np.float32))


# ---------------------------------------------------------------------------------------- blur pool


@settings(max_examples=50, deadline=None)
@given(size=st.integers(2, 40), seed=st.integers(0, 9))
def test_the_blur_of_a_dim_is_every_second_value_of_a_full_blur(size: int, seed: int) -> None:
    x = normal(size, seed=seed)
    blurred = scipy.ndimage.convolve1d(x, np.array([1, 2, 1]) / 4, mode="constant")
    # Padding of SAME: even sizes start at the second value, odd ones at the first.
    got = discriminator.blur_matrix(size) @ x
    np.testing.assert_allclose(got, blurred.take(range(1 - size % 2, size, 2)), atol=1e-12)


def test_an_image_is_blurred_in_space_alone() -> None:
    image = normal(2, 1, 6, 6, 3).astype(np.float32)
    got = blur_pool(image)
    still = blur_pool(np.repeat(image, 3, axis=1))
    np.testing.assert_allclose(got * 0.75, still[:, :1], atol=1e-6)


def test_blur_pool_is_the_strided_same_convolution_of_the_paper() -> None:
    x = normal(1, 5, 8, 7, 1).astype(np.float32)
    line = np.array([1, 2, 1], np.float32)
    cube = np.einsum("i,j,k->ijk", line, line, line)[..., None, None] / 64
    expected = jax.lax.conv_general_dilated(x, cube, (2, 2, 2), "SAME", dimension_numbers=layers.CONV_DIMS)
    np.testing.assert_allclose(blur_pool(x), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------- losses


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def test_adversarial_losses_are_the_cross_entropies() -> None:
    real, fake = normal(2, 16) * 3
    generator, both = softplus(-fake).mean(), softplus(-real).mean() + softplus(fake).mean()
    np.testing.assert_allclose(discriminator.generator_loss(fake), generator, rtol=1e-5)
    np.testing.assert_allclose(discriminator.discriminator_loss(real, fake), both, rtol=1e-5)
    assert np.isfinite(jax.grad(discriminator.generator_loss)(jnp.array([-1e4, 1e4]))).all()


def test_lecam_and_its_running_means() -> None:
    real, fake = normal(2, 16)
    expected = (np.maximum(real - 0.2, 0) ** 2).mean() + (np.maximum(0.5 - fake, 0) ** 2).mean()
    np.testing.assert_allclose(discriminator.lecam(real, fake, 0.5, 0.2), expected, rtol=1e-5)
    means = discriminator.lecam_update(0.5, 0.2, real, fake, 0.9)
    expected = 0.45 + 0.1 * real.mean(), 0.18 + 0.1 * fake.mean()
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    moved = jax.grad(lambda r: discriminator.lecam_update(0.5, 0.2, r, fake, 0.9)[0])(real)
    np.testing.assert_array_equal(moved, 0)


def test_r1_of_a_known_function() -> None:
    """logit = sum of squares has the gradient 2 x."""
    clips = normal(4, 2, 3, 3, 3).astype(np.float32)
    penalty = discriminator.r1_penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3, 4)), clips)
    np.testing.assert_allclose(penalty, 4 * np.sum(clips**2) / 4, rtol=1e-5)


def test_r1_and_its_gradient_agree_with_finite_differences() -> None:
    """The penalty by differences of logits, its derivative by differences of the penalty."""
    shape, step = (3, 4, 5), 1e-6
    with jax.enable_x64(True):
        params = weights(TINY, shape, "float64")
        clips = np.abs(normal(2, *shape, 3))
        run = jax.jit(functools.partial(discriminator.logits, TINY, params))
        # One clip per pixel, each moved in that pixel alone.
        moves = step * np.eye(clips[0].size).reshape(-1, *clips.shape[1:])
        slopes = [(run(clip + moves) - run(clip - moves)) / (2 * step) for clip in clips]
        expected = np.mean([np.sum(np.square(slope)) for slope in slopes])

        @jax.jit
        def penalty(params: layers.Tree) -> jax.Array:
            critic = functools.partial(discriminator.logits, TINY, params)
            return discriminator.r1_penalty(critic, clips)

        np.testing.assert_allclose(penalty(params), expected, rtol=1e-6)

        direction = jax.tree.map(lambda w: normal(*w.shape, seed=w.size), params)
        ahead, behind = (penalty(jax.tree.map(lambda w, d: w + sign * step * d, params, direction)) for sign in (1, -1))
        gradient = jax.jit(jax.grad(penalty))(params)
        along = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), gradient, direction)
        assert gradient["in"]["kernel"].dtype == np.float64
        np.testing.assert_allclose(sum(jax.tree.leaves(along)), (ahead - behind) / (2 * step), rtol=1e-5)


def test_losses_on_a_mesh_are_those_of_the_global_batch() -> None:
    real, fake = normal(2, 16).astype(np.float32)

    def losses(real: jax.Array, fake: jax.Array, axes: tuple[str, ...] = ()) -> tuple:
        return (
            discriminator.generator_loss(fake, axes),
            discriminator.discriminator_loss(real, fake, axes),
            discriminator.r1_penalty(lambda x: x[:, 0] ** 2, real[:, None], axes),
            discriminator.lecam(real, fake, 0.1, 0.2, axes),
            discriminator.lecam_update(0.1, 0.2, real, fake, 0.9, axes),
        )

    mesh = jax.make_mesh((8,), ("data",))
    local = functools.partial(losses, axes=("data",))
    sharded = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P()))
    shards = jax.device_put((real, fake), NamedSharding(mesh, P("data")))
    got, expected = sharded(*shards), jax.jit(losses)(real, fake)
    np.testing.assert_allclose(jax.tree.leaves(got), jax.tree.leaves(expected), rtol=1e-5)
