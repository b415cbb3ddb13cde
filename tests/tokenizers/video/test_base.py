"""The facade's options: a mesh, bfloat16, chunks and tiles of a real picture; and bad input."""

from __future__ import annotations

import dataclasses
import functools

import jax
import matplotlib.cbook
import numpy as np
import optimised
import pytest
from PIL import Image

from poet.distributed import mesh as meshes
from poet.spec import MeshSpec, UserError, VideoTokenizerSpec
from poet.tokenizers.video import base, magvit, tiling
from poet.tokenizers.video.base import VideoTokenizer

TINY = VideoTokenizerSpec(
    base_channels=4, multipliers=(1,), blocks=1, temporal_downsample=(), stem=(4, 4, 4), norm_groups=2, bits=6
)


@pytest.fixture(scope="module")
def tiny() -> VideoTokenizer:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: magvit.init(TINY, jax.random.key(0)))
    params = jax.tree.map(lambda s: np.float32(rng.normal(size=s.shape) / max(np.prod(s.shape[:-1]), 4) ** 0.5), shapes)
    return VideoTokenizer.from_params(TINY, params, batch=8)


@functools.cache
def shipped() -> VideoTokenizer:
    return VideoTokenizer.load("magvit_v2_64x8")


def pan(frames: int, height: int, width: int) -> np.ndarray:
    """uint8 (1, T, H, W, 3): a camera that moves over a photograph."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = np.asarray(Image.open(file).convert("RGB"))
    views = [(20 + 3 * t, 60 + 5 * t) for t in range(frames)]
    return np.stack([picture[y : y + height, x : x + width] for y, x in views])[None]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


# ------------------------------------------------------------------------------------------- mesh


@pytest.mark.parametrize("count", [3, 8, 11])
def test_a_mesh_of_eight_devices_gives_what_one_device_gives(tiny: VideoTokenizer, count: int) -> None:
    shared = dataclasses.replace(tiny, mesh=meshes.build(MeshSpec(data=2, fsdp=2, tensor=2)))
    video = noise(count, 5, 12, 16)
    ids = tiny.encode(video)
    np.testing.assert_array_equal(shared.encode(video), ids)
    np.testing.assert_array_equal(shared.decode(ids), tiny.decode(ids))


def test_a_mesh_carries_the_frames_of_chunks(tiny: VideoTokenizer) -> None:
    mesh = meshes.build(MeshSpec(data=1, fsdp=8))
    shared = dataclasses.replace(tiny, mesh=mesh, chunk_frames=4)
    video = noise(8, 9, 12, 16)
    np.testing.assert_array_equal(shared.encode(video), tiny.encode(video))


# ---------------------------------------------------------------------------------------- numbers


def test_floats_in_0_to_1_have_the_codes_of_their_bytes(tiny: VideoTokenizer) -> None:
    video = noise(2, 5, 12, 16)
    ids = tiny.encode(video)
    np.testing.assert_array_equal(tiny.encode(np.float32(video) / np.float32(255)), ids)
    np.testing.assert_array_equal(tiny.encode(video / 255.0), ids)


def test_bfloat16_flips_few_bits_and_has_a_fingerprint_of_its_own() -> None:
    half, video = shipped().in_dtype("bfloat16"), pan(5, 64, 64)
    ids, whole = half.encode(video), shipped().encode(video)
    assert half.fingerprint != shipped().fingerprint and ids.dtype == np.int32
    assert half.in_dtype("float32").fingerprint == shipped().fingerprint
    flipped = np.mean([(ids ^ whole) >> bit & 1 for bit in range(10)])
    assert 0 < flipped < 0.01  # 0.002 measured
    assert np.abs(half.decode(whole).astype(int) - shipped().decode(whole)).mean() < 1


def test_the_dtype_of_a_run_is_that_of_its_configuration(tiny: VideoTokenizer, tmp_path) -> None:
    tiny.save(tmp_path)
    spec = TINY.replace(path=str(tmp_path), dtype="bfloat16")
    loaded = VideoTokenizer.of(spec, chunk_frames=8)
    assert (loaded.spec.dtype, loaded.chunk_frames) == ("bfloat16", 8)
    assert loaded.fingerprint == tiny.in_dtype("bfloat16").fingerprint != tiny.fingerprint


# ------------------------------------------------------------------------------- chunks and tiles


@pytest.mark.slow
def test_chunks_of_the_shipped_network_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the level, of programs that are optimised."""
    monkeypatch.setattr(jax, "jit", optimised.jit)
    monkeypatch.setattr(base, "_compiled", functools.cache(base._compiled.__wrapped__))
    whole, video = VideoTokenizer.load("magvit_v2_64x8"), pan(9, 16, 16)
    cut = dataclasses.replace(whole, chunk_frames=4)
    ids = whole.encode(video)
    np.testing.assert_array_equal(cut.encode(video), ids)
    difference = cut.decode(ids).astype(int) - whole.decode(ids)
    assert np.abs(difference).max() == 0


def test_one_tile_is_the_whole_frame(tiny: VideoTokenizer) -> None:
    video = noise(2, 5, 12, 16)
    tiled = dataclasses.replace(tiny, tile=4, overlap=3)
    ids = tiny.encode(video)
    np.testing.assert_array_equal(tiled.encode(video), ids)
    np.testing.assert_array_equal(tiled.decode(ids), tiny.decode(ids))


def test_blended_tiles_leave_no_seams_in_a_photograph() -> None:
    """The mean step across borders of tiles, over that of the untiled picture.

    Measured with the shipped weights: 3.4 where tiles only meet, 1.0 where they overlap.
    """
    video = pan(1, 64, 256)
    ids = shipped().encode(video)
    whole = np.abs(np.diff(shipped().decode(ids).astype(int), axis=3))

    tile = 8

    def step(overlap: int) -> float:
        tiled = dataclasses.replace(shipped(), tile=tile, overlap=overlap)
        borders = [int(8 * w.high) - 1 for w in tiling.windows(32, tile, overlap)][:-1]
        found = np.abs(np.diff(tiled.decode(ids).astype(int), axis=3))
        return found[..., borders, :].mean() / whole[..., borders, :].mean()

    assert step(overlap=4) <= 1.25 < 1.5 < step(overlap=0)


@pytest.mark.parametrize("tile", [0, 2])
def test_no_clips_are_no_codes(tiny: VideoTokenizer, tile: int) -> None:
    cut = dataclasses.replace(tiny, tile=tile, overlap=0)
    ids = cut.encode(noise(0, 5, 12, 16))
    assert ids.shape == (0, 2, 3, 4) and cut.decode(ids).shape == (0, 5, 12, 16, 3)


def test_illegal_options_are_refused_with_what_is_legal(tiny: VideoTokenizer) -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        dataclasses.replace(tiny, chunk_frames=6)
    with pytest.raises(UserError, match=r"0\.\.7"):
        dataclasses.replace(tiny, tile=8, overlap=8)
    with pytest.raises(UserError, match="at least one clip"):
        dataclasses.replace(tiny, batch=0)


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "value, words",
    [
        (np.nan, ["dog.mp4", "NaN"]),
        (np.inf, ["dog.mp4", "infinite"]),
        (1.5, ["dog.mp4", "..1.5", "[0, 1]", "255"]),
        (-0.1, ["dog.mp4", "-0.1.."]),
    ],
)
def test_bad_pixels_name_their_clip(tiny: VideoTokenizer, value: float, words: list[str]) -> None:
    video = np.zeros((2, 5, 12, 16, 3), np.float32)
    video[1, 2, 3, 4, 0] = value
    with pytest.raises(UserError) as error:
        tiny.encode(video, names=["cat.mp4", "dog.mp4"])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "cat" not in str(error.value)
    with pytest.raises(UserError, match="clip 1 of the batch"):
        tiny.encode(video)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((1, 5, 8, 16, 3), ["8x16", "9 or more"]),
        ((1, 5, 12, 4, 3), ["12x4", "9 or more"]),
        ((1, 5, 12, 16, 1), ["(1, 5, 12, 16, 1)", "width, 3"]),
        ((1, 5, 12, 16, 4), ["(1, 5, 12, 16, 4)", "width, 3"]),
        ((1, 5, 14, 16, 3), ["height 14", "12 and 16"]),
        ((1, 4, 12, 16, 3), ["4 frames", "1 and 5"]),
    ],
)
def test_bad_shapes_name_their_clip(tiny: VideoTokenizer, shape: tuple, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        tiny.encode(np.zeros(shape, np.uint8), names=["cat.mp4"])
    assert all(word in str(error.value) for word in ["cat.mp4", *words]), str(error.value)


def test_integers_other_than_bytes_are_refused(tiny: VideoTokenizer) -> None:
    with pytest.raises(UserError, match="int64.*uint8"):
        tiny.encode(np.zeros((1, 5, 12, 16, 3), np.int64))
