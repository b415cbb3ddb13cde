"""The interface of feature networks: frozen networks that turn a clip into vectors, which metrics of sets compare.

Shape suffixes: K vectors of a clip, D their width, C classes, T frames, H height, W width, S samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from poet.spec import UserError, choose

# What a network reads of a clip: its frames one by one, all of them in order, its sound, or its text.
Medium = Literal["frames", "video", "sound", "text"]
# Features read sound at this rate.
SOUND_RATE_HZ = 16_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """A loaded network.

    Attributes:
      name: of the network.
      prefix: of the metrics that are made of its vectors, as in `frame_frechet`.
      medium: what it reads.
      width: D.
      fingerprint: 16 hex characters of its weights.
      reads: all that its vectors depend on besides: size, range, resize filter, rate; for the record.
      run: one clip -> float32 [K, D], K at least 1.
      classify: vectors [N, D] -> logits float32 [N, C], of networks that were trained to tell classes apart.
    """

    name: str
    prefix: str
    medium: Medium
    width: int
    fingerprint: str
    reads: Mapping[str, Any]
    run: Callable[[Any], np.ndarray] = dataclasses.field(repr=False)
    classify: Callable[[np.ndarray], np.ndarray] | None = dataclasses.field(default=None, repr=False)

    def __call__(self, media: Any) -> np.ndarray:
        """float32 [K, D] of one clip, which do not depend on any other clip.

        Args:
          media: uint8 [T, H, W, 3] in RGB, int16 [S] at `SOUND_RATE_HZ`, or a string.

        Raises:
          UserError: a clip that the network cannot take, or vectors that are not finite.
        """
        found = np.asarray(self.run(media), np.float32)
        if found.ndim != 2 or found.shape[1] != self.width or not len(found) or not np.isfinite(found).all():
            raise UserError(
                f"{self.name} gave {found.shape}, or values that are not finite: expected (K, {self.width})"
            )
        return found

    @property
    def manifest(self) -> dict[str, Any]:
        """The network in JSON."""
        fields = {"name": self.name, "medium": self.medium, "width": self.width, "fingerprint": self.fingerprint}
        return fields | dict(self.reads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network that comes with an installed package.

    Attributes:
      package: module that must be installed; it is not imported.
      install: the command that installs what `load` needs.
      load: loads it; UserError where a file is missing or is not the one that is known.
    """

    name: str
    prefix: str
    medium: Medium
    package: str
    install: str
    load: Callable[[], Features]

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


NETWORKS: dict[str, Network] = {}


def register(network: Network) -> Network:
    """Adds a network to the registry; its name and its prefix must be new."""
    if network.name in NETWORKS or network.prefix in {other.prefix for other in NETWORKS.values()}:
        raise ValueError(f"two networks are called {network.name}, or {network.prefix}")
    NETWORKS[network.name] = network
    return network


def load(name: str) -> Features:
    """A network by its name; UserError for an unknown one, or a package that is not installed."""
    network = choose(name, NETWORKS, "feature network")
    if not network.is_installed:
        raise UserError(f"the feature network {name} is not installed: {network.install}")
    return network.load()


# ------------------------------------------------------------------------------- for the networks


def find_file(package: str, name: str, install: str) -> Path:
    """A file of an installed package, which is not imported; UserError where there is none."""
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / name if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError(f"there is no {name} of the package {package.replace('_', '-')}: {install}")
    return path


@contextlib.contextmanager
def reading(path: Path, install: str) -> Iterator[None]:
    """What reads the weights of a package runs in it: errors of another file than the known one are UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Damaged files raise errors of any kind.
        raise UserError(f"{path} cannot be read: {error}; known to work: {install}") from error


def fingerprint(*parts: bytes) -> str:
    """16 hex characters of the SHA-256 of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def resized(frames_TxHxWx3: np.ndarray, height: int, width: int, filter_name: str = "bicubic") -> np.ndarray:
    """uint8 [T, height, width, 3]: whole frames, antialiased where they shrink; their aspect may change."""
    if frames_TxHxWx3.shape[1:3] == (height, width):
        return frames_TxHxWx3
    kind = Image.Resampling[filter_name.upper()]
    images = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames_TxHxWx3)
    return np.stack([np.asarray(image.resize((width, height), kind)) for image in images])


def batch_norm(tensors: Mapping[str, np.ndarray], name: str, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the term of each channel, float32, that torch's batch norm `name` comes to."""
    weight, bias, mean, variance = (
        tensors[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = weight / np.sqrt(variance + epsilon)
    return factor.astype(np.float32), (bias - mean * factor).astype(np.float32)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What TensorFlow's SAME adds before and after: the odd one after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
