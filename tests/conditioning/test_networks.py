"""Flow and depth through ONNX files: what a network is fed, what becomes of its answer, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from poet import conditioning
from poet.conditioning import networks, structure
from poet.spec import ConditioningSpec, UserError

CLIP = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), np.uint8)


def write(path: Path, nodes: list, inputs: dict, channels: int | None) -> str:
    """A network of these nodes, whose last output is called `out`."""
    shape = ["n", "c", "h", "w"] if channels is None else ["n", channels, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    save(model, path)
    return str(path)


def depth_network(path: Path, shape: list) -> str:
    """The mean of the normalised channels."""
    node = helper.make_node("ReduceMean", ["image", "axes"], ["out"], keepdims=1)
    return write(path, [node], {"image": shape}, 1)


def flow_network(path: Path, shape: list) -> str:
    """(x, y) = (red of the frame, red of the next)."""
    nodes = [
        helper.make_node("Gather", ["a", "first"], ["red_a"], axis=1),
        helper.make_node("Gather", ["b", "first"], ["red_b"], axis=1),
        helper.make_node("Concat", ["red_a", "red_b"], ["out"], axis=1),
    ]
    return write(path, nodes, {"a": shape, "b": shape}, 2)


FREE = ["n", 3, "h", "w"]


def test_a_depth_network_gets_images_as_imagenet_networks_do(tmp_path):
    path = depth_network(tmp_path / "depth.onnx", FREE)
    expected = ((CLIP / 255 - networks.MEAN) / networks.DEVIATION).mean(-1)
    np.testing.assert_allclose(networks.inverse_depth(path, CLIP), expected, atol=1e-5)
    spec = ConditioningSpec(depth=path)
    shown = conditioning.make("structure", CLIP, spec, key="a", factor=(1, 1, 1)).video
    spread = (expected - expected.min()) / (expected.max() - expected.min())
    assert np.abs(structure.read(shown, spec.flow_scale)[1] - spread).max() < 0.01


def test_a_flow_network_gets_every_pair_of_frames_in_order(tmp_path):
    path = flow_network(tmp_path / "flow.onnx", FREE)
    red = CLIP[..., 0] / 127.5 - 1
    found = networks.flow(path, CLIP)
    np.testing.assert_allclose(found, np.stack([red[:-1], red[1:]], -1), atol=1e-5)


def test_a_network_of_fixed_size_gets_that_size_and_its_motion_is_scaled_back(tmp_path):
    path = flow_network(tmp_path / "fixed.onnx", [1, 3, 32, 96])
    grey = np.full((3, 16, 24, 3), 255, np.uint8)
    found = networks.flow(path, grey)
    assert found.shape == (2, 16, 24, 2)
    np.testing.assert_allclose(found, np.broadcast_to([24 / 96, 16 / 32], found.shape), atol=1e-5)


def test_other_networks_are_refused_before_any_clip_is_read(tmp_path):
    depth = depth_network(tmp_path / "depth.onnx", FREE)
    spec = ConditioningSpec(flow=depth, depth="flat")
    with pytest.raises(UserError, match="depth.onnx takes image.*expected 2 input"):
        conditioning.check("structure", spec, 17, has_depth=False)
    grey = write(
        tmp_path / "grey.onnx", [helper.make_node("Identity", ["image"], ["out"])], {"image": ["n", 1, "h", "w"]}, None
    )
    with pytest.raises(UserError, match="grey.onnx takes.*shape \\(N, 3, H, W\\)"):
        conditioning.check("structure", ConditioningSpec(depth=grey), 17, has_depth=False)
    (tmp_path / "no.onnx").write_bytes(b"text")
    with pytest.raises(UserError, match="no.onnx is not an ONNX network"):
        networks.check(str(tmp_path / "no.onnx"), 1)


def test_a_stream_changes_its_name_with_the_network(tmp_path):
    paths = [depth_network(tmp_path / f"{n}.onnx", [n, 3, "h", "w"]) for n in ("n", "m")]
    names = {conditioning.fingerprint("structure", ConditioningSpec(depth=p), "t") for p in paths}
    assert len(names) == 2
