"""Attention against a dense float64 oracle built from the definition of a prefix LM."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_oracle import dense, dense_gradients, visibility
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from poet.distributed import mesh as mesh_lib
from poet.models import attention, kernels, layers
from poet.spec import MeshSpec, UserError
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout

KV, GROUP, HEAD = 2, 3, 8
LAYOUTS = {
    name: build_layout(
        task_token=Special.TASK_VIDEO,
        text=text,
        condition=condition,
        output=output,
        fmt=Format(video=(2, 3, 3), text_length=5, audio_frames=4),
        vocabulary=Vocabulary(),
    )
    for name, text, condition, output in (
        ("text", True, (), ("video",)),
        ("no_text", False, (), ("video",)),
        ("conditioned", True, ("video",), ("video", "audio")),
    )
}


def make_inputs(layout, seed=0):
    rng = np.random.default_rng(seed)
    batch, length = 2, layout.length
    q = rng.normal(size=(batch, length, KV, GROUP, HEAD))
    k, v = rng.normal(size=(2, batch, length, KV, HEAD))
    mask = np.ones((batch, length), bool)
    if layout.text_span:
        mask[0, layout.text_span.start + 2 : layout.text_span.stop] = False
        mask[1, layout.text_span.start : layout.text_span.stop] = False
    return q, k, v, mask


def by_blocks(block):
    def attend(q, k, v, **settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "QUERY_BLOCK", block)
            patch.setattr(attention, "PREFIX_BLOCK", block)
            return attention.attend(q, k, v, **settings)

    return attend


def by_kernel(local, **how):
    """A kernel's own function, run here by its interpreter or by XLA instead of its platform."""

    def attend(q, k, v, *, prefix_length, key_mask_BxS):
        run = functools.partial(local, prefix_length=prefix_length, **how)
        masks = () if key_mask_BxS is None else (key_mask_BxS,)
        return kernels._merged_heads(run, q, k, v, *masks)

    return attend


WAYS = {
    "blocks of 4": by_blocks(4),
    "blocks of 128": by_blocks(128),
    "splash": by_kernel(kernels.splash, interpret=True),
    "cudnn": by_kernel(kernels.cudnn, implementation="xla"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_values_and_gradients_equal_the_dense_oracle(name, way):
    layout = LAYOUTS[name]
    q, k, v, mask = make_inputs(layout)
    visible = visibility(layout)[None] & mask[:, None]
    cotangent = np.random.default_rng(1).normal(size=q.shape)

    def loss(q, k, v):
        out = WAYS[way](
            q, k, v, prefix_length=layout.prefix_length, key_mask_BxS=jnp.asarray(mask) if layout.text_span else None
        )
        return jnp.sum(out * cotangent.astype(np.float32)), out

    inputs = [jnp.asarray(a, jnp.float32) for a in (q, k, v)]
    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
    np.testing.assert_allclose(out, dense(q, k, v, visible), atol=1e-5)
    for got, want in zip(grads, dense_gradients(q, k, v, visible, cotangent)):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_kernels_run_on_every_devices_own_clips_and_heads(monkeypatch):
    """Clips over data and fsdp, heads over tensor and sequence: the result is that of one device."""
    monkeypatch.setattr(kernels, "cudnn", functools.partial(kernels.cudnn, implementation="xla"))
    layout = LAYOUTS["text"]
    q, k, v, mask = (np.repeat(a, 2, 0) for a in make_inputs(layout))
    settings = dict(prefix_length=layout.prefix_length)
    arrays = [*(np.float32(a) for a in (q, k, v)), mask]
    mesh = mesh_lib.build(MeshSpec(data=2, fsdp=2, sequence=2))
    with jax.set_mesh(mesh):
        heads = mesh_lib.Rules().shardings(mesh, ("batch", None, "attended_heads"))
        placed = [jax.device_put(a, heads) for a in arrays[:3]]
        placed.append(jax.device_put(mask, mesh_lib.batch_sharding(mesh)))
        run = jax.jit(lambda q, k, v, m: kernels.attend("cudnn", q, k, v, key_mask_BxS=m, **settings))
        out = run(*placed)
    visible = visibility(layout)[None] & mask[:, None]
    np.testing.assert_allclose(out, dense(q, k, v, visible), atol=1e-5)
    assert out.sharding.is_equivalent_to(heads, out.ndim)


def test_the_kernel_follows_the_platform_and_a_foreign_one_is_refused():
    assert kernels.choose_kernel("auto", jnp.bfloat16) == "xla", "no mesh is set"
    with jax.set_mesh(mesh_lib.build(MeshSpec())):
        assert kernels.choose_kernel("auto", jnp.bfloat16) == "xla"
        with pytest.raises(UserError, match="'splash' does not run on cpu in bfloat16"):
            kernels.choose_kernel("splash", jnp.bfloat16)
    for platform, dtype, kernel in (
        ("tpu", "float32", "splash"),
        ("cuda", "bfloat16", "cudnn"),
        ("cuda", "float32", "xla"),
    ):
        device = AbstractDevice(device_kind="", num_cores=None, platform=platform)
        mesh = AbstractMesh((1, 1, 1, 1), mesh_lib.AXES, axis_types=(AxisType.Explicit,) * 4, abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert kernels.choose_kernel("auto", jnp.dtype(dtype)) == kernel


@pytest.mark.parametrize("length", (1, 127, 130, 1284, 2048, 2568, 4928))
def test_tiles_pad_little(length):
    tile = kernels.splash_tile(length)
    assert tile in kernels.TILES
    assert tile == 128 or -length % tile <= 0.05 * length


def test_cached_attention_reads_only_visible_keys():
    layout = LAYOUTS["text"]
    q, k, v, mask = make_inputs(layout)
    position = layout.prefix_length + 3
    visible = mask & (np.arange(layout.length) <= position)
    one = slice(position, position + 1)
    got = attention.scaled_dot_product(
        *(jnp.asarray(a, jnp.float32) for a in (q[:, one], k, v)), jnp.asarray(visible)[:, None]
    )
    want = dense(q, k, v, visibility(layout)[None] & mask[:, None])[:, one]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_grows_with_the_prefix_and_not_with_its_square(gradient):
    def temporary_bytes(prefix, heads=2, head=8):
        shapes = [(1, prefix, heads, 1, head), *[(1, prefix, heads, head)] * 2]
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

        def run(q, k, v):
            return attention.attend(q, k, v, prefix_length=prefix).sum()

        program = jax.jit(jax.grad(run, argnums=(0, 1, 2)) if gradient else run)
        return program.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(2048), temporary_bytes(8192)
    assert long < 5 * short and long < 8192**2 * 2 * 4 / 2


@pytest.mark.parametrize("prefix, length", ((0, 300), (7, 7), (7, 8), (70, 391), (9, 5)))
def test_query_blocks_cover_every_query_once(prefix, length):
    blocks = attention.query_blocks(prefix, length)
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(length))
    assert all(stop <= prefix or stop - start <= attention.QUERY_BLOCK for start, stop in blocks)
    assert all(stop <= prefix or start >= prefix for start, stop in blocks)


@pytest.mark.parametrize("head_dim", (8, 32, 64, 128))
def test_rotation_depends_on_relative_positions_alone(head_dim):
    """A rotated dot product is unchanged when both positions move by the same (t, h, w)."""
    assert sum(layers.rotary_split(head_dim)) == head_dim // 2
    rng = np.random.default_rng(0)
    here, there = rng.integers(0, 50, (2, 6, 3)).astype(np.int32)
    q, k = rng.normal(size=(2, 1, 6, 1, head_dim)).astype(np.float32)

    def products(shift):
        tables = [jnp.asarray(layers.rotary_table(p + np.int32(shift), head_dim, 1e4)) for p in (here, there)]
        return np.sum(layers.rotate(q, tables[0]) * layers.rotate(k, tables[1]), axis=-1)

    np.testing.assert_allclose(products([0, 0, 0]), products([11, 3, 40]), atol=1e-3)
    for axis in range(3):
        moved = there.copy()
        moved[:, axis] += 2
        table = jnp.asarray(layers.rotary_table(moved, head_dim, 1e4))
        same = jnp.asarray(layers.rotary_table(there, head_dim, 1e4))
        assert np.abs(layers.rotate(k, table) - layers.rotate(k, same)).max() > 0.1
