"""Networks that the user points at, as ONNX files: optical flow and depth of a clip.

Flow (such as RAFT): two inputs, images (N, 3, H, W) in [-1, 1], of a frame and of the next; the last
output is the motion (N, 2, H, W) in pixels.  Depth (such as MiDaS, Depth-Anything): one input,
images (N, 3, H, W) normalised by the mean and the deviation of ImageNet; the first output is the
inverse depth (N, H, W) or (N, 1, H, W).  A network of fixed size gets resized images.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from typing import Any

import numpy as np

from poet.runs import assets
from poet.spec import UserError, limited

INSTALL = assets.install("onnx")
# Of a file, as its format has it.
MOST_BYTES = 2**31
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def file_hash(path: str) -> str:
    """16 hex characters of the SHA-256 of a network's file; UserError if it cannot be read."""
    try:
        content = limited(pathlib.Path(path).expanduser(), MOST_BYTES).read_bytes()
        return hashlib.sha256(content).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"the network {path} cannot be read: {error}") from None


def check(path: str, images: int) -> None:
    """Raises UserError unless the file is a network that takes so many images (2 flow, 1 depth)."""
    _session(path, images)


def flow(path: str, video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 (T - 1, H, W, 2): motion (x, y) in pixels from each frame to the next."""
    session = _session(path, 2)
    height, width = video_TxHxWx3.shape[1:3]
    images = _images(session, video_TxHxWx3) * np.float32(2 / 255) - 1
    pairs = [_run(session, images[i : i + 1], images[i + 1 : i + 2])[-1] for i in range(len(images) - 1)]
    found = _checked(path, np.concatenate(pairs), 2)
    scale = np.array([width / found.shape[3], height / found.shape[2]], np.float32)
    return _resized(found.transpose(0, 2, 3, 1), height, width) * scale


def inverse_depth(path: str, video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 (T, H, W), larger is nearer; its scale is the network's own."""
    session = _session(path, 1)
    images = _images(session, video_TxHxWx3) / np.float32(255)
    images = (images - MEAN[:, None, None]) / DEVIATION[:, None, None]
    found = np.concatenate([_run(session, image[None])[0] for image in images])
    found = found[:, None] if found.ndim == 3 else found
    return _resized(_checked(path, found, 1).transpose(0, 2, 3, 1), *video_TxHxWx3.shape[1:3])[..., 0]


def open_session(network: str | bytes, name: str) -> Any:
    """An onnxruntime session on the CPU, of a file or of a serialized network; `name` is what errors call it.

    Raises:
      UserError: onnxruntime is not installed, or it is no network that can be run.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"the network {name} needs onnxruntime: {INSTALL}") from None
    try:
        return onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    except Exception as error:  # The library raises several kinds, all of them its own.
        raise UserError(f"{name} is not an ONNX network that can be run: {error}") from None


@functools.lru_cache(maxsize=4)
def _session(path: str, images: int) -> Any:
    file_hash(path)
    session = open_session(str(pathlib.Path(path).expanduser()), path)
    inputs = [(i.name, i.shape) for i in session.get_inputs()]
    fit = all(len(shape) == 4 and shape[1] in (3, None) or isinstance(shape[1], str) for _, shape in inputs)
    if len(inputs) != images or not fit:
        raise UserError(
            f"{path} takes {', '.join(f'{n} {s}' for n, s in inputs)}; expected {images} input(s) "
            "of shape (N, 3, H, W): see poet/conditioning/networks.py for what a network must be"
        )
    return session


def _run(session: Any, *images: np.ndarray) -> list[np.ndarray]:
    feeds = {i.name: image for i, image in zip(session.get_inputs(), images)}
    return session.run(None, feeds)


def _images(session: Any, video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 (T, 3, H, W) in 0..255, at the size that the network asks for."""
    sides = [side if isinstance(side, int) else None for side in session.get_inputs()[0].shape[2:]]
    height, width = (s or own for s, own in zip(sides, video_TxHxWx3.shape[1:3]))
    return _resized(video_TxHxWx3.astype(np.float32), height, width).transpose(0, 3, 1, 2)


def _checked(path: str, found: np.ndarray, channels: int) -> np.ndarray:
    if found.ndim != 4 or found.shape[1] != channels:
        raise UserError(f"{path} gave {found.shape}; expected (N, {channels}, H, W)")
    return found


def _resized(images_TxHxWxC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear; the same array where the size is already right."""
    import cv2

    if images_TxHxWxC.shape[1:3] == (height, width):
        return images_TxHxWxC
    channels = images_TxHxWxC.shape[3]
    return np.stack(
        [
            cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)
            for image in images_TxHxWxC
        ]
    )
