"""Conditions that are made from a clip's pixels: each gives a clip of the same shape, which the
ordinary video tokenizer turns into codes.

A task names a condition in `Task.condition`; `poet tokenize` makes those that its mixture names, and
`poet generate` those of the task that it is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable

import numpy as np

from poet.conditioning import networks, regions, structure
from poet.conditioning.regions import Grid
from poet.spec import ConditioningSpec, UserError, choose
from poet.tasks.layout import HIDDEN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What a caller decides of a condition; what it leaves empty is drawn, as in training.

    region: of `regions_of`.  frames: of `frames_of`, that are given.
    """

    region: str = ""
    frames: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What a condition is made from.

    video: uint8 (T, H, W, 3).  depth: distances (T, h, w) of any size and scale, or None.
    choices: random numbers of this clip.  factor: frames, rows and columns of a latent.  chosen: what is not
    drawn.
    """

    video: np.ndarray
    depth: np.ndarray | None
    choices: np.random.Generator
    factor: Grid
    chosen: Choice = Choice()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A condition that was made.

    video: uint8 (T, H, W, 3).  cells: bool (t, h, w) on the latent grid, which of them are given: those that
    hold nothing that was filled in.
    """

    video: np.ndarray
    cells: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition.

    Attributes:
      make: from what is shown; `Made`, or uint8 (T, H, W, 3) alone where all of it is given.
      masks: whether some of it may not be given.
      fields: of `CONDITIONING` that it depends on.
      version: raised when its output changes.
      learned: a model knows only the rendering that it was trained with; of the others it is given a part
        of the clip itself, and any part will do.
    """

    make: Callable[[Shown, ConditioningSpec], Made | np.ndarray]
    fields: tuple[str, ...]
    version: int = 1
    learned: bool = False
    masks: bool = True


def _outpainting(shown: Shown, spec: ConditioningSpec) -> Made:
    region = shown.chosen.region or str(shown.choices.choice(spec.outpainting))
    return _with_hole(shown, ~regions.area(region, shown.video.shape[:3]), spec)


def _inpainting(shown: Shown, spec: ConditioningSpec) -> Made:
    region = shown.chosen.region or str(shown.choices.choice(spec.inpainting))
    return _with_hole(shown, regions.area(region, shown.video.shape[:3]), spec)


def _with_hole(shown: Shown, hole: np.ndarray, spec: ConditioningSpec) -> Made:
    video = regions.fill(shown.video, hole, spec.fill)
    return Made(video=video, cells=regions.whole_cells(~hole, shown.factor))


def _interpolation(shown: Shown, spec: ConditioningSpec) -> Made:
    frames = shown.chosen.frames or spec.interpolation_frames
    given = np.arange(len(shown.video))
    given = (given < frames) | (given >= len(shown.video) - frames)
    video = regions.interpolate(shown.video, frames)
    return _of_frames(video, given, shown.factor)


def _prediction(shown: Shown, spec: ConditioningSpec) -> Made:
    frames = frames_of("prediction", spec, len(shown.video), shown.factor[0])
    drawn = frames[int(shown.choices.integers(1, len(frames) + 1)) - 1]
    frames = shown.chosen.frames or drawn
    given = np.arange(len(shown.video)) < frames
    return _of_frames(regions.hold(shown.video, frames), given, shown.factor)


def _of_frames(video: np.ndarray, given_T: np.ndarray, factor: Grid) -> Made:
    """Some frames are given: every latent frame that has one, in which the nearest of them fills the others."""
    video, latents_t = regions.hold_in_latents(video, given_T, factor[0])
    shape = regions.latent_grid(video.shape[:3], factor)
    return Made(video=video, cells=np.broadcast_to(latents_t[:, None, None], shape))


def _structure(shown: Shown, spec: ConditioningSpec) -> np.ndarray:
    return structure.compose(shown.video, shown.depth, spec, regions.latent_grid(shown.video.shape[:3], shown.factor))


CONDITIONS: dict[str, Condition] = {
    "outpainting": Condition(make=_outpainting, fields=("outpainting", "fill", "hide_cells", "seed")),
    "inpainting": Condition(make=_inpainting, fields=("inpainting", "fill", "hide_cells", "seed")),
    "interpolation": Condition(
        make=_interpolation, fields=("interpolation_frames", "hide_cells"), version=2
    ),
    "prediction": Condition(make=_prediction, fields=("prediction_latents", "hide_cells", "seed"), version=2),
    "structure": Condition(
        make=_structure, fields=("flow", "flow_scale", "depth"), version=2, learned=True, masks=False
    ),
}


# Asked for every example of a training; looking into a network's file once is enough.
@functools.lru_cache(maxsize=64)
def possible(spec: ConditioningSpec, frames: int, *, has_depth: bool) -> tuple[str, ...]:
    """Names of the conditions that can be made from clips of so many frames."""
    found = []
    for name in CONDITIONS:
        try:
            check(name, spec, frames, has_depth=has_depth)
        except UserError:
            continue
        if frames > 1 or name in ("inpainting", "outpainting"):
            found.append(name)
    return tuple(found)


def regions_of(name: str, spec: ConditioningSpec) -> tuple[str, ...]:
    """The regions that a condition may keep or hide; () for one that knows none."""
    return {"outpainting": spec.outpainting, "inpainting": spec.inpainting}.get(name, ())


def frames_of(name: str, spec: ConditioningSpec, frames: int, factor: int) -> tuple[int, ...]:
    """How many frames a condition may be given, of clips of `frames`; () where all are.

    Those that open the clip for "prediction", those at either end for "interpolation".
    """
    if name == "prediction":
        latents = max(min(spec.prediction_latents, (frames - 1) // factor), 1)
        return tuple(1 + n * factor for n in range(latents))
    if name == "interpolation":
        return tuple(range(1, (frames - 1) // 2 + 1))
    return ()


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
        drawn, such as the region.
      depth: distances (T, h, w), any size and scale, where the source has them.
      factor: frames, rows and columns of a latent.
      chosen: what is decided and not drawn.

    Raises:
      UserError: an unknown name, or see `structure.compose`.
    """
    condition = choose(name, CONDITIONS, "condition")
    digest = hashlib.sha256(f"{spec.seed}/{name}/{key}".encode()).digest()
    choices = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    made = condition.make(
        Shown(video=video, depth=depth, choices=choices, factor=factor, chosen=chosen), spec
    )
    if not isinstance(made, Made):
        made = Made(video=made, cells=np.ones(regions.latent_grid(video.shape[:3], factor), bool))
    return dataclasses.replace(made, video=np.ascontiguousarray(made.video))


def hide_codes(codes: np.ndarray, cells: np.ndarray, spec: ConditioningSpec) -> np.ndarray:
    """Codes of latents shaped alike, -1 where a cell is not given and the spec hides such cells."""
    return np.where(cells, codes, HIDDEN) if spec.hide_cells else codes


def fingerprint(name: str, spec: ConditioningSpec, tokenizer: str) -> str:
    """16 hex characters for a stream: the tokenizer's fingerprint and what shapes the condition."""
    condition = CONDITIONS[name]
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
        if field in CONDITIONS[name].fields and getattr(spec, field) not in spec.BUILT_IN
    }


def check(name: str, spec: ConditioningSpec, frames: int, *, has_depth: bool) -> None:
    """Raises UserError, before any clip is read, if the condition cannot be made.

    Args:
      frames: of a clip.
      has_depth: whether the source has distances.
    """
    choose(name, CONDITIONS, "condition")
    for field, images in _network_fields(name, spec).items():
        networks.check(getattr(spec, field), images)
    if name == "structure" and spec.depth == "dataset" and not has_depth:
        raise UserError(structure.NO_DEPTH.replace("this clip comes", "the source's clips come"))
    if name == "interpolation" and not 2 * spec.interpolation_frames < frames:
        raise UserError(
            f"CONDITIONING.interpolation_frames = {spec.interpolation_frames} at both ends leave "
            f"nothing between them in clips of {frames} frames"
        )
