"""Perceptual distances of images by frozen networks, for training and for scores.

Shape legend: N images, H height, W width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from poet.spec import UserError
from poet.spec.base import choose
from poet.tokenizers.video import resnet, vgg

Distance = Callable[[Any, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perceptual:
    """A loaded network.

    Attributes:
      name: its entry in `NETWORKS`.
      label: what tables and logs call the distance.
      params: the frozen weights, a pytree of float32 arrays, to be handed to `distance`.
      distance: pure function (params, a_NxHxWx3, b_NxHxWx3) -> (N,) float32 of images in [0, 1];
        0 (up to rounding) for equal images; may be jitted, and differentiated by either image.
    """

    name: str
    label: str
    params: Any = dataclasses.field(repr=False)
    distance: Distance = dataclasses.field(repr=False)


def _resnet50(name: str, path: str) -> Perceptual:
    return Perceptual(name=name, label="ResNet-50 logits", params=resnet.load(path), distance=resnet.distance)


def _vgg_hed(name: str, path: str, *, depth: int) -> Perceptual:
    if path:
        raise UserError(
            f"perceptual_path = {path!r}: the network {name} is read from installed packages; "
            "leave the path empty, or choose the network resnet50"
        )
    blocks = "" if depth == len(vgg.WIDTHS) else f" (blocks 1-{depth})"
    return Perceptual(name=name, label=f"LPIPS-HED{blocks}", params=vgg.load(depth), distance=vgg.distance)


# Name -> loader(name, path).
NETWORKS: Mapping[str, Callable[[str, str], Perceptual]] = {
    "resnet50": _resnet50,
    "vgg_hed": functools.partial(_vgg_hed, depth=len(vgg.WIDTHS)),
    # The two finest blocks alone, for training where time is short.
    "vgg_hed2": functools.partial(_vgg_hed, depth=2),
}


def load(name: str, path: str = "") -> Perceptual:
    """Loads a frozen network of `NETWORKS`.

    Args:
      path: weights that the user brings, for networks that come without (resnet50).

    Raises:
      UserError: an unknown name, missing packages, missing or unfit weights; it says what to do.
    """
    return choose(name, NETWORKS, "perceptual network")(name, path)
