"""Movements of the camera: phrases of prompts, and the measure of a movement by optical flow.

A preset is a phrase behind the prompt (VideoPoet §4.4).  Signs of the flow: x > 0 is a picture that moves to the right,
as under a pan to the left; y > 0 one that moves down, as under a tilt up; `zoom` > 0 one that grows.

T frames, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from poet.conditioning import structure
from poet.spec import ConditioningSpec, choose


@dataclasses.dataclass(frozen=True)
class Move:
    """A movement of the camera.

    Attributes:
      phrase: behind a prompt.
      axis: what of `Motion` tells it.
      sign: of that: 1 or -1; 0 for one that is told by being small.
    """

    phrase: str
    axis: str
    sign: int


# The classes of VBench-2.0, by the names of the field.
MOVES: dict[str, Move] = {
    "pan left": Move("the camera pans left", "x", 1),
    "pan right": Move("the camera pans right", "x", -1),
    "truck left": Move("the camera moves left", "x", 1),
    "truck right": Move("the camera moves right", "x", -1),
    "tilt up": Move("the camera tilts up", "y", 1),
    "tilt down": Move("the camera tilts down", "y", -1),
    "zoom in": Move("the camera zooms in", "zoom", 1),
    "zoom out": Move("the camera zooms out", "zoom", -1),
    "dolly in": Move("the camera moves forward", "zoom", 1),
    "dolly out": Move("the camera moves backward", "zoom", -1),
    "orbit left": Move("arc shot, the camera circles to the left", "x", -1),
    "orbit right": Move("arc shot, the camera circles to the right", "x", 1),
    "static": Move("static camera, locked shot", "speed", 0),
    "handheld": Move("handheld camera, slightly shaking", "shake", 1),
}
# Of static clips, pixels a frame for each 64 of width.
STILL = 0.25


def phrase(name: str, words: Mapping[str, str] | None = None) -> str:
    """The phrase of a movement; the run's `words` replace those of the table; '' means no movement.

    Raises UserError for an unknown name, with near ones.
    """
    if not name:
        return ""
    known = {move: declared.phrase for move, declared in MOVES.items()} | dict(words or {})
    return choose(name.strip().lower().replace("_", " ").replace("-", " "), known, "camera movement")


@dataclasses.dataclass(frozen=True)
class Motion:
    """The movement of a clip, in pixels a frame for each 64 of width.

    Attributes:
      x, y: to the right and down, the median over pixels, the mean over time.
      zoom: speed of a point at the border, outwards.
      speed: mean length of the flow.
      shake: change of the motion from one frame to the next, relative to its mean: about 0 for a steady one, 1 and
        more for one that comes and goes.
    """

    x: float
    y: float
    zoom: float
    speed: float
    shake: float

    def agrees(self, name: str) -> bool:
        """Whether it has the sign of a movement of `MOVES`."""
        move = MOVES[name]
        value = getattr(self, move.axis)
        if move.axis == "shake":
            return self.speed > STILL and value > 1
        return value < STILL if not move.sign else value * move.sign > 0


def motion(video_TxHxWx3: np.ndarray) -> Motion:
    """The movement of a clip uint8 [T >= 2, H, W, 3], by the flow that structure is made of."""
    flow = structure.flow(video_TxHxWx3, ConditioningSpec()) * (64 / video_TxHxWx3.shape[2])
    _, height, width, _ = flow.shape
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mean = np.median(flow, axis=(1, 2))  # [T - 1, 2]
    rest = flow - mean[:, None, None]
    outwards = (rest[..., 0] * columns + rest[..., 1] * rows).mean(axis=(1, 2)) / (rows**2 + columns**2).mean()
    steps = np.linalg.norm(np.diff(mean, axis=0), axis=1).mean() if len(mean) > 1 else 0.0
    return Motion(
        x=float(mean[:, 0].mean()),
        y=float(mean[:, 1].mean()),
        zoom=float(outwards.mean()),
        speed=float(np.linalg.norm(flow, axis=-1).mean()),
        shake=float(steps / (np.linalg.norm(mean.mean(axis=0)) + 1e-6)),
    )
