"""The MAGVIT-v2 network and its facade: causality, shapes, sizes, round trips, refusals."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.distributed.mesh import Rules, abstract, is_axes
from poet.models import declaration
from poet.spec import MeshSpec, UserError, VideoTokenizerSpec, config
from poet.tokenizers import frozen
from poet.tokenizers.video import layers, lfq, magvit
from poet.tokenizers.video.base import VideoTokenizer

# Two levels, temporal downsampling in stem and network: every code path at a small size.
TINY = VideoTokenizerSpec(
    base_channels=8, multipliers=(1, 2), blocks=1, temporal_downsample=(True,), stem=(2, 4, 4), norm_groups=4, bits=6
)


def clips(count: int, frames: int, side: int = 16, seed: int = 0) -> np.ndarray:
    shape = (count, frames, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 normals drawn by numpy, which compiles nothing."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weights(spec: VideoTokenizerSpec) -> declaration.Tree:
    """Normals of every declared shape, biases and norms too."""
    shapes = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    return jax.tree.map(
        lambda s: normal(*s.shape, seed=s.size) / np.float32(max(np.prod(s.shape[:-1]), 4) ** 0.5), shapes
    )


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    return VideoTokenizer.from_params(TINY, weights(TINY), batch=4)


# ------------------------------------------------------------------------------------- causality


@pytest.mark.parametrize("prefix", [1, 5, 9])
def test_codes_of_a_prefix_never_change_with_later_frames(tokenizer: VideoTokenizer, prefix: int) -> None:
    long = clips(2, 13)
    changed = long.copy()
    changed[:, prefix:] = clips(2, 13 - prefix, seed=1)
    kept = 1 + (prefix - 1) // 4
    ids = tokenizer.encode(long)
    np.testing.assert_array_equal(ids[:, :kept], tokenizer.encode(changed)[:, :kept])
    np.testing.assert_array_equal(ids[:, :kept], tokenizer.encode(long[:, :prefix]))
    assert (ids[:, kept:] != tokenizer.encode(changed)[:, kept:]).any()


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_decoded_frames_never_depend_on_later_codes(tokenizer: VideoTokenizer, kept: int) -> None:
    ids = np.random.default_rng(0).integers(0, 64, (2, 4, 2, 2))
    changed = ids.copy()
    changed[:, kept:] = np.random.default_rng(1).integers(0, 64, changed[:, kept:].shape)
    frames = 1 + 4 * (kept - 1)
    whole, other = tokenizer.decode(ids), tokenizer.decode(changed)
    np.testing.assert_array_equal(whole[:, :frames], other[:, :frames])
    assert (whole[:, frames:] != other[:, frames:]).any()


@pytest.mark.parametrize("down_kernel", [3, 4])
@pytest.mark.parametrize("frames,grid", [(1, (1, 2, 3)), (5, (2, 2, 3)), (17, (5, 2, 3))])
def test_shapes_with_either_down_kernel(frames: int, grid: tuple[int, int, int], down_kernel: int) -> None:
    spec = TINY.replace(down_kernel=down_kernel)
    params = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    video = jax.ShapeDtypeStruct((2, frames, 16, 24, 3), jnp.float32)
    out, z, ids = jax.eval_shape(lambda p, v: magvit.reconstruct(spec, p, v), params, video)
    assert out.shape == video.shape
    assert ids.shape == (2, *grid) == (2, *spec.grid(frames, 16, 24))
    assert z.dtype == jnp.float32 and ids.dtype == jnp.int32


def test_norm_statistics_are_per_frame() -> None:
    x = normal(2, 3, 4, 4, 8) * 5 + 2
    y = np.asarray(layers.standardize(x, 2), np.float64).reshape(2, 3, 16, 2, 4)
    np.testing.assert_allclose(y.mean((2, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((2, 4)), 1, atol=1e-4)


# ------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_conv_implementations_agree_in_values_and_gradients(kernel: int, stride: tuple[int, int, int]) -> None:
    x = normal(2, 5, 6, 8, 3)
    weights = {"kernel": normal(kernel, kernel, kernel, 3, 4, seed=1), "bias": np.arange(4, dtype=np.float32)}

    def run(name: str) -> tuple:
        f = lambda x, w: layers.causal_conv(x, w, stride=stride, implementation=name)  # noqa: E731
        shape = jax.eval_shape(f, x, weights).shape

        def both(x: jax.Array, weights: dict, g: jax.Array) -> tuple:
            y, pullback = jax.vjp(f, x, weights)
            return y, pullback(g)

        return jax.jit(both)(x, weights, normal(*shape, seed=2))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), run("native"), run("taps"))


def test_conv_pads_with_edges_in_front_only() -> None:
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4, 2)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 2, 1)).astype(np.float32)
    got = np.asarray(layers.causal_conv(jnp.asarray(x), {"kernel": jnp.asarray(kernel)}))
    for t, h, w in np.ndindex(3, 4, 4):
        expected = 0.0
        for i, j, k in np.ndindex(3, 3, 3):
            frame, row, col = max(t + i - 2, 0), np.clip(h + j - 1, 0, 3), np.clip(w + k - 1, 0, 3)
            expected += x[0, frame, row, col] @ kernel[i, j, k, :, 0]
        np.testing.assert_allclose(got[0, t, h, w, 0], expected, rtol=1e-4, atol=1e-4)


def test_depth_to_space_undoes_space_to_depth() -> None:
    x = normal(2, 9, 8, 12, 3)
    for factor in ((1, 2, 2), (2, 4, 2), (4, 2, 4)):
        packed = layers.space_to_depth(x, factor)
        assert packed.shape[1] == 1 + 8 // factor[0]
        np.testing.assert_array_equal(layers.depth_to_space(packed, factor), x)


def test_repeat_nearest_equals_repeated_doubling() -> None:
    x = normal(1, 3, 2, 2, 1)
    twice = layers.repeat_nearest(layers.repeat_nearest(x, (2, 2, 2)), (2, 2, 2))
    np.testing.assert_array_equal(layers.repeat_nearest(x, (4, 4, 4)), twice)
    frames = np.asarray(twice)[0, :, 0, 0, 0]
    np.testing.assert_array_equal(frames, np.asarray(x)[0, [0, 1, 1, 1, 1, 2, 2, 2, 2], 0, 0, 0])


# ------------------------------------------------------------------------------------------ sizes


def of_file(name: str) -> VideoTokenizerSpec:
    return config.load([f"gin/models/{name}.gin"], []).video_tokenizer


def test_parameter_counts_of_the_paper() -> None:
    full = magvit.declare(of_file("magvit_v2"))
    assert declaration.count(full["encoder"]) / 1e6 == pytest.approx(144.87, abs=0.005)
    assert declaration.count(full["decoder"]) / 1e6 == pytest.approx(225.68, abs=0.005)
    small = magvit.declare(of_file("magvit_v2_58m"))
    assert declaration.count(small) / 1e6 == pytest.approx(57.81, abs=0.005)


@pytest.mark.parametrize(
    "clip, grid",
    [
        ((17, 128, 128), (5, 16, 16)),
        ((17, 224, 128), (5, 28, 16)),
        ((41, 128, 128), (11, 16, 16)),
        ((1, 256, 128), (1, 32, 16)),
        ((5, 8, 72), (2, 1, 9)),
    ],
)
@pytest.mark.parametrize("name", ["magvit_v2", "magvit_v2_58m"])
def test_grids_of_the_paper(name: str, clip: tuple, grid: tuple) -> None:
    spec = of_file(name)
    assert spec.grid(*clip) == grid
    params = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    video = jax.ShapeDtypeStruct((2, *clip, 3), jnp.float32)
    out, _, ids = jax.eval_shape(functools.partial(magvit.reconstruct, spec), params, video)
    assert ids.shape == (2, *grid) and out.shape == video.shape


def test_temporal_kernel_caps_the_frames_of_every_convolution() -> None:
    spec = VideoTokenizerSpec(base_channels=32, temporal_downsample=(False, False, False), down_kernel=4)
    cubic, flat = (
        jax.tree.leaves(magvit.declare(spec.replace(temporal_kernel=k)), is_leaf=declaration.is_weight) for k in (3, 1)
    )
    kernels = [(a, b) for a, b in zip(cubic, flat, strict=True) if len(a.shape) == 5]
    assert {a.shape[0] for a, _ in kernels} == {1, 3, 4}
    for a, b in kernels:
        assert a.shape[0] == a.shape[1] and b.shape == (1, *a.shape[1:])
        assert b.initializer.stddev == pytest.approx(a.initializer.stddev * a.shape[0] ** 0.5)


@pytest.mark.parametrize("changes", [{"temporal_kernel": 0}, {"temporal_kernel": 1}])
def test_temporal_kernel_must_span_what_it_halves(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="VIDEO_TOKENIZER.temporal_kernel"):
        VideoTokenizerSpec(**changes)
    assert VideoTokenizerSpec(temporal_kernel=2).factor == (4, 8, 8)


def test_an_image_network_sees_every_frame_alone() -> None:
    spec = TINY.replace(temporal_kernel=1, temporal_downsample=(False,), stem=(1, 4, 4))
    tokenizer = VideoTokenizer.from_params(spec, weights(spec))
    video = clips(1, 3)
    ids = tokenizer.encode(video)
    frames = video.reshape(3, 1, *video.shape[2:])
    np.testing.assert_array_equal(ids.reshape(3, 1, *ids.shape[2:]), tokenizer.encode(frames))


def test_declared_shapes_are_those_of_the_initial_weights() -> None:
    spec = VideoTokenizerSpec()
    arrays = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    assert sum(a.size for a in jax.tree.leaves(arrays)) == declaration.count(magvit.declare(spec))


def test_every_large_weight_is_sharded_over_fsdp() -> None:
    spec = VideoTokenizerSpec()
    axes = declaration.axes(magvit.declare(spec))
    arrays = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    mesh = abstract(MeshSpec(), 8)
    Rules().check(mesh, axes, arrays)
    shardings = jax.tree.leaves(Rules().shardings(mesh, axes))
    replicated = [array.size for array, s in zip(jax.tree.leaves(arrays), shardings) if "fsdp" not in s.spec]
    assert max(replicated) < 20_000
    assert all(is_axes(a) for a in jax.tree.leaves(axes, is_leaf=is_axes))


# ----------------------------------------------------------------------------------------- facade


def test_decoded_codes_equal_the_forward_reconstruction(tokenizer: VideoTokenizer) -> None:
    video = clips(3, 5)
    ids = tokenizer.encode(video)
    forward = jax.jit(functools.partial(magvit.reconstruct, TINY))
    out, _, forward_ids = forward(tokenizer.params, np.float32(video) / np.float32(255))
    np.testing.assert_array_equal(ids, forward_ids)
    expected = np.clip(np.asarray(out), 0, 1) * 255
    assert np.abs(tokenizer.decode(ids) - expected).max() <= 0.51


def test_sub_batches_do_not_change_the_result(tokenizer: VideoTokenizer) -> None:
    video = clips(7, 5)
    ids = tokenizer.encode(video)
    assert ids.shape == (7, 2, 2, 2) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids, np.concatenate([tokenizer.encode(v[None]) for v in video]))
    assert tokenizer.decode(ids).shape == video.shape


@pytest.mark.parametrize(
    "shape,named",
    [
        ((1, 4, 16, 16, 3), ("4 frames", "1 and 5")),
        ((1, 18, 16, 16, 3), ("18 frames", "17 and 21")),
        ((1, 5, 20, 16, 3), ("height 20", "16 and 24")),
        ((1, 5, 16, 12, 3), ("width 12", "8 and 16")),
        ((5, 16, 16, 3), ("shape (5, 16, 16, 3)",)),
        ((1, 5, 16, 16, 4), ("(batch, frames, height, width, 3)",)),
    ],
)
def test_illegal_clips_are_refused_naming_legal_ones(
    tokenizer: VideoTokenizer, shape: tuple[int, ...], named: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        tokenizer.encode(np.zeros(shape, np.uint8))
    assert all(text in str(error.value) for text in named), str(error.value)


def test_foreign_ids_are_refused(tokenizer: VideoTokenizer) -> None:
    with pytest.raises(UserError, match=r"0\.\.63"):
        tokenizer.decode(np.full((1, 1, 2, 2), 64))
    with pytest.raises(UserError, match="integers"):
        tokenizer.decode(np.zeros((1, 1, 2, 2)))
    with pytest.raises(UserError, match="integers"):
        tokenizer.decode(np.zeros((1, 0, 2, 2), np.int32))


def test_fingerprint_follows_every_weight_and_the_spec(tokenizer: VideoTokenizer) -> None:
    assert len(tokenizer.fingerprint) == 16
    params = jax.tree.map(np.array, tokenizer.params)
    assert frozen.fingerprint(TINY.replace(path="elsewhere"), params) == tokenizer.fingerprint
    assert frozen.fingerprint(TINY.replace(dtype="bfloat16"), params) != tokenizer.fingerprint
    bias = params["decoder"]["out"]["bias"]
    bias[-1] = np.nextafter(bias[-1], np.float32(1))
    assert frozen.fingerprint(TINY, params) != tokenizer.fingerprint


def test_fingerprint_of_shipped_weights_is_that_of_their_card() -> None:
    folder = frozen.find_pretrained("magvit_v2_64x8")
    stated = re.search(r"fingerprint \| `(\w+)`", (folder / "README.md").read_text()).group(1)
    assert VideoTokenizer.load(folder).fingerprint == stated


def test_a_field_added_later_counts_only_away_from_its_default(tokenizer: VideoTokenizer) -> None:
    """By hand: the specs of earlier weights had these fields."""
    first = (
        "base_channels multipliers blocks temporal_downsample stem stem_kernel down_kernel norm_groups bits dtype path"
    )
    fields = {n: v for n, v in dataclasses.asdict(TINY).items() if n in first.split()}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    kernel = tokenizer.params["encoder"]["in"]["kernel"]
    digest.update(f"kernel{kernel.shape}{kernel.dtype}".encode() + kernel.tobytes())
    assert frozen.fingerprint(TINY, {"kernel": kernel}) == digest.hexdigest()[:16]
    assert frozen.fingerprint(TINY.replace(temporal_kernel=2), {"kernel": kernel}) != (digest.hexdigest()[:16])


def test_save_and_load_round_trip(tokenizer: VideoTokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.save("net")
    loaded = VideoTokenizer.of(TINY.replace(path="net"))
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.spec == TINY
    np.testing.assert_array_equal(loaded.encode(clips(2, 5)), tokenizer.encode(clips(2, 5)))


def test_loading_refuses_another_network(tokenizer: VideoTokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="bits = 7"):
        VideoTokenizer.of(TINY.replace(path=str(tmp_path), bits=7))
    with pytest.raises(UserError, match="path is empty"):
        VideoTokenizer.of(TINY)
    with pytest.raises(UserError, match="nowhere"):
        VideoTokenizer.of(TINY.replace(path="nowhere"))
    text = (tmp_path / "spec.json").read_text().replace('"bits": 6', '"bits": 7')
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(UserError, match="spec.json was altered"):
        VideoTokenizer.load(tmp_path)
    (tmp_path / "MANIFEST").unlink()
    with pytest.raises(UserError, match="model.safetensors holds another network"):
        VideoTokenizer.load(tmp_path)


def test_quantized_latents_reach_the_decoder_unchanged() -> None:
    z = normal(1, 1, 2, 2, 6)
    q, ids = lfq.quantize(z)
    np.testing.assert_array_equal(q, lfq.ids_to_bits(ids, 6))
