"""How each condition is made of a clip's pixels; `poet.streams` declares what is true of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from poet.conditioning import Made, Shown, hole_of, regions
from poet.conditioning.structure import compose
from poet.spec import ConditioningSpec
from poet.streams.base import Grid
from poet.streams.derived import Derived
from poet.streams.inpainting import STREAM as INPAINTING
from poet.streams.outpainting import STREAM as OUTPAINTING
from poet.streams.prediction import STREAM as PREDICTION


def outpainting(shown: Shown, spec: ConditioningSpec) -> Made:
    return _painted(shown, spec, OUTPAINTING)


def inpainting(shown: Shown, spec: ConditioningSpec) -> Made:
    return _painted(shown, spec, INPAINTING)


def _painted(shown: Shown, spec: ConditioningSpec, stream: Derived) -> Made:
    chosen = shown.chosen
    if chosen.mask is None and not chosen.region:
        chosen = dataclasses.replace(chosen, region=str(shown.choices.choice(stream.regions(spec))))
    hole = hole_of(stream, chosen, shown.video.shape[:3])
    video = regions.fill(shown.video, hole, spec.fill)
    return Made(video=video, cells=regions.whole_cells(~hole, shown.factor))


def interpolation(shown: Shown, spec: ConditioningSpec) -> Made:
    frames = shown.chosen.frames or spec.interpolation_frames
    given = np.arange(len(shown.video))
    given = (given < frames) | (given >= len(shown.video) - frames)
    video = regions.interpolate(shown.video, frames)
    return _of_frames(video, given, shown.factor)


def prediction(shown: Shown, spec: ConditioningSpec) -> Made:
    frames = PREDICTION.frames(spec, len(shown.video), shown.factor[0])
    drawn = frames[int(shown.choices.integers(1, len(frames) + 1)) - 1]
    frames = shown.chosen.frames or drawn
    given = np.arange(len(shown.video)) < frames
    return _of_frames(regions.hold(shown.video, frames), given, shown.factor)


def _of_frames(video: np.ndarray, given_T: np.ndarray, factor: Grid) -> Made:
    """Some frames are given: every latent frame that has one, in which the nearest of them fills the others."""
    video, latents_t = regions.hold_in_latents(video, given_T, factor[0])
    shape = regions.latent_grid(video.shape[:3], factor)
    return Made(video=video, cells=np.broadcast_to(latents_t[:, None, None], shape))


def structure(shown: Shown, spec: ConditioningSpec) -> np.ndarray:
    return compose(shown.video, shown.depth, spec, regions.latent_grid(shown.video.shape[:3], shown.factor))
