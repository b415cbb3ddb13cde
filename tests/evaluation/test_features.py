"""Feature networks: their parts against other implementations, what they read, and known answers where installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import skimage.data
from onnx import TensorProto, helper, save

from poet.evaluation import features
from poet.evaluation.features import base, efficientnet, own, transnet, yamnet
from poet.spec import UserError

CLIP = np.random.default_rng(0).integers(0, 256, (17, 20, 24, 3), np.uint8)


def installed(name: str) -> pytest.MarkDecorator:
    network = features.NETWORKS[name]
    return pytest.mark.skipif(not network.is_installed, reason=network.install)


# ----------------------------------------------------------------------------- the parts of networks


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, (6, 7)), (3, 2, (6, 7)), (5, 2, (8, 5))])
def test_a_depthwise_convolution_is_scipy_s_correlation(kernel: int, stride: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, weights, bias = rng.normal(size=(1, *size, 2)), rng.normal(size=(kernel, kernel, 1, 2)), rng.normal(size=2)
    found = efficientnet._depthwise({"kernel": weights, "bias": bias}, x, kernel, stride)[0]
    # SAME puts the first window so that what is added before is half of all, rounded down.
    before = [base.same_padding(n, kernel, stride)[0] for n in size]
    for channel in range(2):
        whole = scipy.ndimage.correlate(np.pad(x[0, ..., channel], kernel), weights[..., 0, channel], mode="constant")
        starts = [kernel + kernel // 2 - pad for pad in before]
        want = whole[starts[0] :: stride, starts[1] :: stride][: found.shape[0], : found.shape[1]]
        np.testing.assert_allclose(found[..., channel], want + bias[channel], atol=1e-5)


def test_a_folded_batch_norm_is_the_batch_norm() -> None:
    rng = np.random.default_rng(0)
    parts = {f"bn.{name}": rng.uniform(0.5, 2, 3) for name in ("weight", "bias", "running_mean", "running_var")}
    factor, term = base.batch_norm(parts, "bn", 1e-3)
    x = rng.normal(size=(5, 3))
    want = (x - parts["bn.running_mean"]) / np.sqrt(parts["bn.running_var"] + 1e-3) * parts["bn.weight"]
    np.testing.assert_allclose(x * factor + term, want + parts["bn.bias"], rtol=1e-5)


def test_a_dilated_convolution_of_space_and_time_is_scipy_s() -> None:
    rng = np.random.default_rng(0)
    tensors = {f"p.Conv3D_{d}.layers.0.weight": rng.normal(size=(2, 3, 1, 3, 3)) for d in transnet.DILATIONS}
    tensors |= {f"p.Conv3D_{d}.layers.1.weight": rng.normal(size=(1, 2, 3, 1, 1)) for d in transnet.DILATIONS}
    tensors |= {f"p.bn.{name}": rng.uniform(0.5, 2, 4) for name in ("weight", "bias", "running_mean", "running_var")}
    x = rng.normal(size=(9, 4, 5, 3))
    found = np.asarray(transnet._apply(transnet._block(tensors, "p"), x.astype(np.float32)))
    factor, term = base.batch_norm(tensors, "p.bn", transnet.EPSILON)
    for place, dilation in enumerate(transnet.DILATIONS):
        space, time = (tensors[f"p.Conv3D_{dilation}.layers.{k}.weight"] for k in (0, 1))
        made = [sum(_correlated(x[..., i], space[o, i]) for i in range(3)) for o in range(2)]
        spread = np.zeros((2 * dilation + 1, 1, 1))
        want = 0
        for o in range(2):
            spread[::dilation, 0, 0] = time[0, o, :, 0, 0]
            want = want + _correlated(made[o], spread)
        np.testing.assert_allclose(found[..., place], want * factor[place] + term[place], rtol=1e-3, atol=1e-3)


def _correlated(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return scipy.ndimage.correlate(x, kernel, mode="constant")


def test_the_log_mel_of_yamnet_is_that_of_other_implementations() -> None:
    """Windows by scipy; bands by their definition, a triangle at a time."""
    sound = np.random.default_rng(0).normal(size=4000) * 0.1
    # scipy's boxes of 512 hold the window of 400 at their start, which moves the phase alone.
    window = np.r_[scipy.signal.get_window("hann", yamnet.WINDOW), np.zeros(yamnet.FFT - yamnet.WINDOW)]
    padded = np.pad(sound, (0, yamnet.FFT - yamnet.WINDOW))
    count = 1 + (len(sound) - yamnet.WINDOW) // yamnet.HOP
    magnitudes = _magnitudes(padded, window)
    bands = np.zeros((257, 64))
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    for q in range(1, 257):
        mel = 1127 * np.log(1 + q * 16_000 / 512 / 700)
        for band, (low, peak, high) in enumerate(zip(edges, edges[1:], edges[2:])):
            if low < mel < high:
                bands[q, band] = (mel - low) / (peak - low) if mel <= peak else (high - mel) / (high - peak)
    np.testing.assert_allclose(yamnet.log_mel(sound), np.log(magnitudes[:count] @ bands + 1e-3), atol=1e-9)


def _magnitudes(padded: np.ndarray, window: np.ndarray) -> np.ndarray:
    _, _, found = scipy.signal.stft(
        padded, window=window, nperseg=512, noverlap=512 - 160, boundary=None, padded=False, scaling="spectrum"
    )
    return np.abs(found.T) * window.sum()


@pytest.mark.slow
def test_the_log_mel_of_yamnet_is_that_of_tensorflow() -> None:
    """The functions that YAMNet's own front end calls."""
    import tensorflow as tf

    sound = np.random.default_rng(0).normal(size=16_000) * 0.1
    magnitudes = tf.abs(tf.signal.stft(tf.constant(sound, tf.float32), 400, 160, 512))
    bands = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 125.0, 7500.0)
    np.testing.assert_allclose(yamnet.log_mel(sound), np.log(magnitudes.numpy() @ bands.numpy() + 1e-3), atol=1e-4)


def test_patches_of_sound_overlap_by_half_and_a_short_sound_gives_one() -> None:
    sound = np.random.default_rng(0).normal(size=34_000)
    found = yamnet.patches(sound)
    assert found.shape == (3, 96, 64)
    np.testing.assert_array_equal(found[0, 48:], found[1, :48])
    assert yamnet.patches(sound[:4000]).shape == (1, 96, 64)


# -------------------------------------------------------------------------- the networks, where installed


@installed("efficientnet_lite0")
@pytest.mark.slow
def test_frames_of_a_cat_and_of_coffee_are_known() -> None:
    """Classes 285 and 967 of ImageNet; the first vectors are those that torch computes."""
    network = features.load("efficientnet_lite0")
    for picture, label in ((skimage.data.chelsea(), 285), (skimage.data.coffee(), 967)):
        side = min(picture.shape[:2])
        top, left = ((n - side) // 2 for n in picture.shape[:2])
        assert network.classify(network(picture[None, top : top + side, left : left + side])).argmax() == label
    vectors = network(skimage.data.astronaut()[None, 100:324, 100:324])
    np.testing.assert_allclose(vectors[0, [0, 3]], [0.0021167069, 0.4612738490], atol=1e-5)
    assert vectors.sum() == pytest.approx(282.5608521, rel=1e-5)
    assert network(np.stack([CLIP[0]] * 17)).shape == (3, 1280)


@installed("transnetv2")
@pytest.mark.slow
def test_the_last_stack_of_transnet_is_that_of_torch() -> None:
    network = features.load("transnetv2")
    small = skimage.data.astronaut()[::8, ::8][:48, :64]
    video = np.stack([np.roll(small, i, 1)[:27, :48] for i in range(17)])
    stack = transnet.last_stack(network.run.args[0], video.astype(np.float32) / 255)
    assert float(stack.sum()) == pytest.approx(52908.453125, rel=1e-5)
    np.testing.assert_allclose(stack[5, 1, 2, :4], [2.0592415, 0.2092428, 0.0435661, 0.5656150], atol=1e-4)
    np.testing.assert_allclose(network(video)[0], stack.mean(axis=(0, 1, 2)), atol=1e-5)


@installed("yamnet")
@pytest.mark.slow
def test_yamnet_tells_sounds_apart() -> None:
    network, rng = features.load("yamnet"), np.random.default_rng(0)
    time_s = np.arange(32_000) / 16_000
    tone = (8000 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16)
    noises = [(rng.normal(size=32_000) * 3000).astype(np.int16) for _ in range(2)]
    a, b, c = (network(sound).mean(axis=0) for sound in (tone, *noises))
    assert np.linalg.norm(b - c) < 0.3 * np.linalg.norm(a - b)


@installed("minilm")
@pytest.mark.slow
def test_texts_of_one_meaning_are_near() -> None:
    network = features.load("minilm")
    a, b, c = (network(t)[0] for t in ("a zombie walks in a dark room", "an undead strolls in a dim hall", "tax law"))
    assert a @ b > a @ c + 0.2 and np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
    assert not network("").any()


# --------------------------------------------------------------------------- networks of one's own


def write_network(folder: Path, dims: list, axes: list[int], fields: dict, keep: int = 0) -> Path:
    """A network that takes the mean over some axes of its input, and its JSON file."""
    kept = [1 if axis in axes else dim for axis, dim in enumerate(dims) if keep or axis not in axes]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["in", "axes"], ["out"], keepdims=keep)],
        "network",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, kept)],
        [helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    save(model, folder / "net.onnx")
    path = folder / "net.json"
    path.write_text(json.dumps({"name": "mine", "onnx": "net.onnx"} | fields))
    return path


def test_a_network_of_one_s_own_reads_frames_as_its_file_says(tmp_path: Path) -> None:
    fields = {"medium": "frames", "size": [20, 24], "range": [-1, 1], "mean": [0.1, 0, 0], "deviation": [2, 1, 1]}
    network = own.load(write_network(tmp_path, ["n", 3, 20, 24], [2, 3], fields | {"every": 8}), rate_hz=8)
    want = (CLIP[::8] / 127.5 - 1).mean(axis=(1, 2))
    want[:, 0] = (want[:, 0] - 0.1) / 2
    np.testing.assert_allclose(network(CLIP), want, atol=1e-5)
    assert (network.prefix, network.width, len(network.fingerprint)) == ("mine", 3, 16)
    assert network.manifest["range"] == (-1, 1) and network.manifest["resize"] == "bicubic"


@pytest.mark.parametrize("layout", own.LAYOUTS["video"])
def test_a_network_of_one_s_own_reads_windows_of_frames_at_its_rate(tmp_path: Path, layout: str) -> None:
    sizes = {"N": "n", "C": 3, "T": 4, "H": 20, "W": 24}
    axes = [layout.index(dim) for dim in "THW"]
    fields = {"medium": "video", "layout": layout, "size": [20, 24], "frames": 4, "rate_hz": 4}
    network = own.load(write_network(tmp_path, [sizes[d] for d in layout], axes, fields), rate_hz=8)
    # 17 frames at 8 Hz are 9 at 4 Hz: two windows of 4.
    want = (CLIP[:16:2] / 255).reshape(2, 4, 20, 24, 3).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(network(CLIP), want, atol=1e-5)
    with pytest.raises(UserError, match="windows of 4 frames, a clip has 3"):
        network(CLIP[:5])


def test_a_network_of_one_s_own_reads_sound(tmp_path: Path) -> None:
    fields, sound = {"medium": "sound", "samples": 1000}, np.arange(-1500, 1500, dtype=np.int16)
    network = own.load(write_network(tmp_path, ["n", 1000], [1], fields, keep=1), rate_hz=8)
    np.testing.assert_allclose(network(sound)[:, 0], sound.reshape(3, 1000).mean(axis=1) / 32768, atol=1e-6)
    assert network(sound[:10]).shape == (1, 1)
    path = write_network(tmp_path, ["n", 4, 250], [2], fields)
    with pytest.raises(UserError, match="does not run on what its JSON file says"):
        own.load(path, rate_hz=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "fvd"}, "not fid, fvd"),
        ({"medium": "smell"}, "one of frames, video, sound"),
        ({"medium": "video", "layout": "NCHW"}, "NCTHW, NTHWC"),
        ({"size": []}, "height and width"),
        ({"resize": "nearest"}, "bicubic, bilinear"),
        ({"fps": 25}, "fps: the keys are"),
        ({"size": 224}, "size = 224: expected"),
        ({"size": ["a", "b"]}, "size = .*: expected"),
        ({"every": 0}, "every = 0"),
        ({"rate_hz": None}, "rate_hz = None: expected"),
        ({"range": [1, 1]}, "range = .*: two numbers"),
        ({"deviation": [1, 0, 1]}, "none 0"),
        ({"onnx": 5}, "onnx = 5: expected"),
        ({"onnx": ""}, "beside the JSON file"),
        ({"onnx": "other.onnx"}, "there is no network"),
        ({"output": "logits"}, "the outputs out"),
    ],
)
def test_what_a_network_s_file_may_not_say(tmp_path: Path, fields: dict, message: str) -> None:
    base_fields = {"medium": "frames", "size": [20, 24]}
    path = write_network(tmp_path, ["n", 3, 20, 24], [2, 3], base_fields | fields)
    with pytest.raises(UserError, match=message):
        own.load(path, rate_hz=8)


def test_a_network_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = features.Network(
        name="x", prefix="x", medium="frames", package="no_such_package", install="pip install it", load=lambda: None
    )
    monkeypatch.setitem(base.NETWORKS, "x", missing)
    with pytest.raises(UserError, match="pip install it"):
        features.load("x")
    with pytest.raises(UserError, match="no such.onnx of the package no-such-package: do"):
        base.find_file("no_such_package", "such.onnx", "do")


def test_vectors_that_are_not_finite_are_refused() -> None:
    network = features.Features(
        name="x", prefix="x", medium="frames", width=2, fingerprint="", reads={}, run=lambda _: np.array([[1, np.nan]])
    )
    with pytest.raises(UserError, match="not finite"):
        network(CLIP)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "transnetv2", "yamnet"])
def test_weights_that_are_damaged_say_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="pip install -e '.[features]'")
    file = tmp_path / "weights"
    file.write_bytes(b"no weights")
    monkeypatch.setattr(base, "find_file", lambda *_: file)
    with pytest.raises(UserError, match=r"weights cannot be read: .*known to work: pip install"):
        features.NETWORKS[name].load()
