"""Conditions derived from a clip's pixels: each is a clip of the same shape, which the ordinary video
tokenizer encodes.

A task names a condition in `Task.condition`. `poet tokenize` makes those of the mixture's tasks,
`poet generate` those of the requested task.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json

import numpy as np

from poet import streams
from poet.conditioning import networks, regions
from poet.conditioning.nearest import opencv
from poet.spec import ConditioningSpec, UserError, choose
from poet.streams.base import HIDDEN, Grid, reach


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What the caller chooses of a condition; empty fields are sampled, as in training.

    region: of `regions_of`.  frames: number of conditioning frames, of `Derived.frames`.
    mask: bool (T, H, W), the caller's own region.
    """

    region: str = ""
    frames: int = 0
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The inputs of a recipe of conditions.

    video: uint8 (T, H, W, 3).  depth: distances (T, h, w) of any size and scale, or None.
    choices: random numbers of this clip.  factor: frames, rows and columns of a latent.  chosen: by the
    caller.
    """

    video: np.ndarray
    depth: np.ndarray | None
    choices: np.random.Generator
    factor: Grid
    chosen: Choice = Choice()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A derived condition.

    video: uint8 (T, H, W, 3).  cells: bool (t, h, w) on the latent grid, True where a cell is visible: it
    contains no filling.
    """

    video: np.ndarray
    cells: np.ndarray


CONDITIONS = streams.derived()


# Called for every example of a training; a network's file is read once.
@functools.lru_cache(maxsize=64)
def possible(spec: ConditioningSpec, frames: int, *, has_depth: bool) -> tuple[str, ...]:
    """Names of the conditions that can be made from clips of so many frames."""
    found = []
    for name, condition in streams.derived().items():
        try:
            check(name, spec, frames, has_depth=has_depth)
        except UserError:
            continue
        if frames > 1 or not condition.moving:
            found.append(name)
    return tuple(found)


def regions_of(name: str, spec: ConditioningSpec) -> tuple[str, ...]:
    """The regions that a condition may keep or hide; () if it has none."""
    condition = streams.derived().get(name)
    return condition.regions(spec) if condition else ()


def hole_of(condition: streams.Derived, chosen: Choice, grid: Grid) -> np.ndarray:
    """bool of a grid (T, H, W), True where in- or outpainting fills: by the mask or the region of `chosen`."""
    marked = regions.area(chosen.region, grid) if chosen.mask is None else chosen.mask
    return marked if condition.region_is == "fills" else ~marked


def make(
    name: str,
    video: np.ndarray,
    spec: ConditioningSpec,
    *,
    key: str = "",
    factor: Grid,
    depth: np.ndarray | None = None,
    chosen: Choice = Choice(),
) -> Made:
    """The condition of this name for a clip uint8 (T, H, W, 3).

    Args:
      key: the clip's name: with the spec's seed and the condition's name it determines what is
        sampled, such as the region.
      depth: distances (T, h, w), any size and scale, where the source has them.
      factor: frames, rows and columns of a latent.
      chosen: by the caller; its empty fields are sampled.

    Raises:
      UserError: an unknown name, or see `structure.compose`.
    """
    condition = choose(name, streams.derived(), "condition")
    digest = hashlib.sha256(f"{spec.seed}/{name}/{key}".encode()).digest()
    choices = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    recipe = reach(condition.recipe) if isinstance(condition.recipe, str) else condition.recipe
    made = recipe(Source(video=video, depth=depth, choices=choices, factor=factor, chosen=chosen), spec)
    if not isinstance(made, Made):
        made = Made(video=made, cells=np.ones(regions.latent_grid(video.shape[:3], factor), bool))
    return dataclasses.replace(made, video=np.ascontiguousarray(made.video))


def hide_codes(codes: np.ndarray, cells: np.ndarray, spec: ConditioningSpec) -> np.ndarray:
    """Codes, -1 where a cell (of the same shape) is filled and `spec.hide_cells`."""
    return np.where(cells, codes, HIDDEN) if spec.hide_cells else codes


def fingerprint(name: str, spec: ConditioningSpec, tokenizer: str) -> str:
    """16 hex characters for a stream: the tokenizer's fingerprint and what shapes the condition."""
    condition = streams.derived()[name]
    values = {field: getattr(spec, field) for field in condition.fields}
    values |= {f: networks.file_hash(values[f]) for f in _network_fields(name, spec)}
    described = json.dumps([tokenizer, name, condition.version, values], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _network_fields(name: str, spec: ConditioningSpec) -> dict[str, int]:
    """Fields that name an ONNX file -> images that its network takes."""
    networks_of = {"flow": 2, "depth": 1}
    return {
        field: images
        for field, images in networks_of.items()
        if field in streams.derived()[name].fields and getattr(spec, field) not in spec.BUILT_IN
    }


def check(name: str, spec: ConditioningSpec, frames: int, *, has_depth: bool) -> None:
    """Raises UserError, before any clip is read, if the condition cannot be made.

    Args:
      frames: of a clip.
      has_depth: whether the source has distances.
    """
    condition = choose(name, streams.derived(), "condition")
    for field, images in _network_fields(name, spec).items():
        networks.check(getattr(spec, field), images)
    if "flow" in condition.fields:
        opencv("the flow of a clip")
    condition.check_clips(spec, frames, has_depth=has_depth)
