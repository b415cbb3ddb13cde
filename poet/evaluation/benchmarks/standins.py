"""Data, samples and networks of the right shapes for a dry run: all of a preset but the model and what is fetched."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.evaluation.benchmarks import data, sampling
from poet.evaluation.benchmarks.data import Case
from poet.evaluation.benchmarks.presets import Form, Preset
from poet.evaluation.features import SOUND_RATE_HZ, Features
from poet.evaluation.features.base import resized

# Enough for the covariance of WIDTH dimensions in each of two sets.
CASES, WIDTH = 6, 4
_SOURCE = Form(frames=24, height=48, width=64, rate_hz=25.0)
# With sound, longer than a clip of the model.
_LONGER = Form(frames=24, height=48, width=64, rate_hz=8.0)


def small(preset: Preset) -> Preset:
    """The preset with a few cases: as many repeats and sets as two show."""
    samples = 2 * CASES if preset.samples > preset.cases or preset.sets > 1 else 0
    return dataclasses.replace(
        preset, cases=CASES, samples=samples, reals=CASES if preset.reals else 0, sets=min(preset.sets, 2)
    )


def film(form: Form, seed: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: a square that moves over a ground."""
    rng = np.random.default_rng(seed)
    side = max(form.height // 3, 2)
    video = np.broadcast_to(rng.integers(0, 120, 3, np.uint8), (form.frames, form.height, form.width, 3)).copy()
    top, step, colour = rng.integers(form.height - side), rng.integers(1, 4), rng.integers(130, 256, 3)
    for t in range(form.frames):
        left = int(step * t) % (form.width - side)
        video[t, top : top + side, left : left + side] = colour
    return video


def sound(seconds: float, seed: int) -> np.ndarray:
    """float32 [S] at `SOUND_RATE_HZ`: a tone in noise."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * times) + 0.05 * rng.normal(size=len(times))).astype(
        np.float32
    )


def write_data(preset: Preset, folder: Path) -> None:
    """DATA in the layout of `data`, of a preset that `small` made."""
    lines = []
    for place in range(CASES):
        case: dict[str, Any] = {"name": f"{place:04d}"}
        case |= {"prompt": f"a square, {place}"} if preset.prompts else {}
        for key in ("clip", "depth") if preset.takes_depth else ("clip",) if preset.clips else ():
            case[key] = f"{key}s/{place:04d}.mp4"
            _write_film(preset, folder / case[key], place)
        lines.append(json.dumps(case))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / data.CASES).write_text("\n".join(lines) + "\n")
    for place in range(preset.reals):
        _write_film(preset, folder / data.REAL / f"{place:04d}.mp4", 100 + place)
    np.save(folder / data.VECTORS, np.random.default_rng(0).normal(size=(CASES, WIDTH)).astype(np.float32))


def _write_film(preset: Preset, path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if sampling.is_sound(preset):
        heard = sound(_LONGER.frames / _LONGER.rate_hz, seed), SOUND_RATE_HZ
        media.write_mp4(path, film(_LONGER, seed), _LONGER.rate_hz, *heard)
    else:
        media.write_mp4(path, film(_SOURCE, seed), _SOURCE.rate_hz)


def write_samples(preset: Preset, cases: Sequence[Case], folder: Path) -> dict[str, Path]:
    """Clips in place of samples, in the form that the model gives; name -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for place, (name, _) in enumerate(sampling.turns(cases, preset.count or len(cases))):
        form = preset.scored if preset.tool else preset.sampled
        if sampling.is_sound(preset):
            found[name] = folder / f"{place:05d}.wav"
            media.write_wav(found[name], sound(form.frames / form.rate_hz, 200 + place), SOUND_RATE_HZ)
        else:
            found[name] = folder / f"{place:05d}.{'mp4' if preset.tool else 'apng'}"
            write = media.write_mp4 if preset.tool else media.write_apng
            write(found[name], film(form, 200 + place), form.rate_hz)
    return found


def networks(preset: Preset) -> list[Features]:
    """A network of random weights for each measure."""
    return [
        Features(
            name=f"standin{place}",
            prefix=f"standin{place}",
            medium=one.medium,
            width=WIDTH,
            fingerprint=f"{zlib.crc32(one.network.encode()):016x}",
            reads={"standin": True},
            run=_run(one.medium, place),
        )
        for place, one in enumerate(preset.measures)
    ]


def _run(medium: str, seed: int) -> Any:
    weights = np.random.default_rng(seed).normal(size=(192, WIDTH)).astype(np.float32)

    def run(found: np.ndarray) -> np.ndarray:
        if medium == "sound":
            spectrum = np.abs(np.fft.rfft(found[:16_384].astype(np.float32) / 32768))
            return (np.log1p(spectrum[: 192 * 40].reshape(192, -1).mean(1)) @ weights)[None]
        rows = resized(found, 8, 8).reshape(len(found), -1).astype(np.float32) / 255 @ weights
        return rows if medium == "frames" else rows.mean(0, keepdims=True)

    return run
