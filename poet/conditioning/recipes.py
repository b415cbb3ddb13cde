"""How each condition is made of a clip's pixels; `poet.streams` declares what is true of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from poet.conditioning import Made, Source, hole_of, regions
from poet.conditioning.structure import compose
from poet.spec import ConditioningSpec
from poet.streams.base import Grid
from poet.streams.derived import Derived
from poet.streams.inpainting import STREAM as INPAINTING
from poet.streams.outpainting import STREAM as OUTPAINTING
from poet.streams.prediction import STREAM as PREDICTION


def outpainting(source: Source, spec: ConditioningSpec) -> Made:
    return _painted(source, spec, OUTPAINTING)


def inpainting(source: Source, spec: ConditioningSpec) -> Made:
    return _painted(source, spec, INPAINTING)


def _painted(source: Source, spec: ConditioningSpec, stream: Derived) -> Made:
    chosen = source.chosen
    if chosen.mask is None and not chosen.region:
        chosen = dataclasses.replace(chosen, region=str(source.choices.choice(stream.regions(spec))))
    hole = hole_of(stream, chosen, source.video.shape[:3])
    video = regions.fill(source.video, hole, spec.fill)
    return Made(video=video, cells=regions.whole_cells(~hole, source.factor))


def interpolation(source: Source, spec: ConditioningSpec) -> Made:
    frames = source.chosen.frames or spec.interpolation_frames
    kept = np.arange(len(source.video))
    kept = (kept < frames) | (kept >= len(source.video) - frames)
    video = regions.interpolate(source.video, frames)
    return _of_frames(video, kept, source.factor)


def prediction(source: Source, spec: ConditioningSpec) -> Made:
    frames = PREDICTION.frames(spec, len(source.video), source.factor[0])
    sampled = frames[int(source.choices.integers(1, len(frames) + 1)) - 1]
    frames = source.chosen.frames or sampled
    kept = np.arange(len(source.video)) < frames
    return _of_frames(regions.hold(source.video, frames), kept, source.factor)


def _of_frames(video: np.ndarray, kept_T: np.ndarray, factor: Grid) -> Made:
    """Some frames are kept. A latent frame that has one is visible; its other frames repeat the nearest kept one."""
    video, latents_t = regions.hold_in_latents(video, kept_T, factor[0])
    shape = regions.latent_grid(video.shape[:3], factor)
    return Made(video=video, cells=np.broadcast_to(latents_t[:, None, None], shape))


def structure(source: Source, spec: ConditioningSpec) -> np.ndarray:
    return compose(source.video, source.depth, spec, regions.latent_grid(source.video.shape[:3], source.factor))
