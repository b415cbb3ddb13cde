"""Linear probes: what a clip of the arenas shows and sounds like, read from a few numbers of its frames.

They were fitted on training clips (`data/arenas_av/probes.py`); their card (`data/pretrained/arenas_probes`) has their
accuracy on clips of other episodes.

Shape suffixes: N rows, K classes, D numbers of a row, T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as tensors_as_bytes

from poet.evaluation.features.base import resized
from poet.evaluation.metrics.sounds import mel_db, to_float
from poet.media import replacing
from poet.runs import assets
from poet.spec import UserError

PLACES, FLASHES, BANGS = "places", "flashes", "bangs"
SHIPPED = "data/pretrained/arenas_probes"
FILE = "model.safetensors"
# The rate of the clips that they were fitted on: changes from frame to frame depend on it.
RATE_HZ = 8.0
# Pixels of a side that places, and that flashes, are read from.
PLACE_SIDE, FLASH_SIDE = 8, 16
_PARTS = ("mean_D", "scale_D", "weights_DxK", "bias_K")
_LEAST_SCALE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Multinomial logistic regression.

    Attributes:
      labels: of the classes, K.
      mean_D, scale_D: float32, what rows are standardised by.
      weights_DxK, bias_K: float32.
    """

    labels: tuple[str, ...]
    mean_D: np.ndarray
    scale_D: np.ndarray
    weights_DxK: np.ndarray
    bias_K: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """float64 [..., K]: log-probabilities of rows [..., D]."""
        logits = ((rows.astype(np.float64) - self.mean_D) / self.scale_D) @ self.weights_DxK + self.bias_K
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    @property
    def fingerprint(self) -> str:
        """16 hex characters."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for part in _PARTS:
            digest.update(getattr(self, part).tobytes())
        return digest.hexdigest()[:16]


def fit(rows_NxD: np.ndarray, classes_N: np.ndarray, labels: Sequence[str], penalty: float) -> Probe:
    """The probe that maximises the likelihood of the classes, each class counted alike, less a ridge penalty.

    Args:
      classes_N: int, indices of `labels`.
      penalty: times the sum of squared weights.
    """
    from scipy.optimize import minimize

    mean_D, scale_D = rows_NxD.mean(axis=0), rows_NxD.std(axis=0) + _LEAST_SCALE
    inputs = np.concatenate([(rows_NxD - mean_D) / scale_D, np.ones((len(rows_NxD), 1))], axis=1)
    shape, targets = (inputs.shape[1], len(labels)), np.eye(len(labels))[classes_N]
    shares_N = (1 / (len(labels) * targets.sum(axis=0)))[classes_N]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = inputs @ weights
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        ridge = penalty * np.concatenate([weights[:-1], np.zeros((1, shape[1]))])
        slope = inputs.T @ (shares_N[:, None] * (np.exp(logs) - targets)) + 2 * ridge
        return float(-(shares_N * (logs * targets).sum(axis=1)).sum() + (ridge * weights).sum()), slope.ravel()

    options = {"maxiter": 300}
    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
    parts = dict(zip(_PARTS, (mean_D, scale_D, found[:-1], found[-1])))
    return Probe(labels=tuple(labels), **{name: x.astype(np.float32) for name, x in parts.items()})


def save(folder: Path, probes: dict[str, Probe]) -> None:
    """Writes FOLDER/model.safetensors."""
    tensors = {f"{name}.{part}": getattr(probe, part) for name, probe in probes.items() for part in _PARTS}
    labels = {name: json.dumps(probe.labels) for name, probe in probes.items()}
    with replacing(folder / FILE) as file:
        file.write_bytes(tensors_as_bytes(tensors, labels))


@functools.lru_cache(maxsize=1)
def load(folder: Path | None = None) -> dict[str, Probe]:
    """Name -> probe, of a folder; None: those that ship.

    Raises:
      UserError: there is no file of probes.
    """
    folder = folder or assets.root() / SHIPPED
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} has no {FILE}: it is written by data/arenas_av/probes.py")
    with safe_open(folder / FILE, "np") as file:
        return {
            name: Probe(
                labels=tuple(json.loads(labels)), **{part: file.get_tensor(f"{name}.{part}") for part in _PARTS}
            )
            for name, labels in file.metadata().items()
        }


# --------------------------------------------------------------------------------------- what they read


def place_rows(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 [T, D]: each frame at 8x8 pixels, so that detail does not count."""
    return _small(video_TxHxWx3, PLACE_SIDE).reshape(len(video_TxHxWx3), -1)


def flash_rows(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 [T, D]: by how much each frame at 16x16 pixels differs from the mean of its neighbours, and the part of
    it where the player's hands are."""
    frames = _small(video_TxHxWx3, FLASH_SIDE)
    padded = np.pad(frames, ((1, 1), (0, 0), (0, 0), (0, 0)), mode="edge")
    bumps = frames - (padded[:-2] + padded[2:]) / 2
    hands = frames[:, FLASH_SIDE // 2 :, FLASH_SIDE // 4 : 3 * FLASH_SIDE // 4]
    return np.concatenate([x.reshape(len(frames), -1) for x in (bumps, hands)], axis=1)


def bang_rows(sound_S: np.ndarray, frames: int) -> np.ndarray:
    """float32 [frames, D]: loudness and mel bands while each frame lasts, and their changes from the frame before.

    Args:
      sound_S: int16 at 16 kHz, as long as the frames.
    """
    sound = to_float(sound_S)
    bands = mel_db(sound)
    edges, places = (np.arange(frames + 1) * len(x) // frames for x in (sound, bands))
    rows = np.array(
        [
            [np.sqrt(np.mean(sound[a:b] ** 2)), *bands[c:d].mean(axis=0)]
            for a, b, c, d in zip(edges, edges[1:], places, places[1:])
        ]
    )
    return np.concatenate([rows, np.diff(rows, axis=0, prepend=rows[:1])], axis=1).astype(np.float32)


def _small(video_TxHxWx3: np.ndarray, side: int) -> np.ndarray:
    return resized(video_TxHxWx3, side, side, "box").astype(np.float32) / 255


# -------------------------------------------------------------------------------------- what they say


def place_of(video_TxHxWx3: np.ndarray) -> str:
    """The place that is the most probable over all frames, as captions call it."""
    probe = load()[PLACES]
    return probe.labels[int(probe(place_rows(video_TxHxWx3)).mean(axis=0).argmax())]


def flashes(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """bool [T]: frames with the flash of a shot."""
    return _second_is_likelier(load()[FLASHES], flash_rows(video_TxHxWx3))


def bangs(sound_S: np.ndarray, frames: int) -> np.ndarray:
    """bool [frames]: frames with the sound of a shot."""
    return _second_is_likelier(load()[BANGS], bang_rows(sound_S, frames))


def _second_is_likelier(probe: Probe, rows_TxD: np.ndarray) -> np.ndarray:
    logs_TxK = probe(rows_TxD)
    return logs_TxK[:, 1] >= logs_TxK[:, 0]
