"""Measures the tokenizers at the paper's sizes: frames a second, and sound against real time.

    python tests/gpu/tokenizer_fps.py --batch=8 --dtype=bfloat16

MAGVIT-v2 (371 M weights) codes clips of 17 frames of 128x128, SoundStream (8.4 M) the sound of those
clips, both with drawn weights and called as `poet tokenize` calls them: arrays go to the device and
codes come back within the time.  `--size` matters as 'tiny' alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import common
import harness
import jax
import numpy as np

from poet.spec import Experiment
from poet.tokenizers.audio import base as audio_base
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = common.arguments(__doc__)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16, of the networks' products")
    flags = parser.parse_args(argv)
    device = common.start(flags)
    experiment = common.pretraining(flags.size, flags.batch)
    return common.report(
        flags,
        device,
        {
            "video": video(experiment, flags.batch, flags.steps, flags.dtype),
            "audio": audio(experiment, flags.batch, flags.steps, flags.dtype),
            "peak_bytes": common.peak_bytes(device),
        },
    )


def video(experiment: Experiment, batch: int, runs: int, dtype: str) -> dict[str, Any]:
    """Frames a second, in and out."""
    spec, clip = experiment.video_tokenizer, experiment.clip
    params = jax.tree.map(np.asarray, jax.jit(functools.partial(magvit.init, spec))(jax.random.key(0)))
    tokenizer = VideoTokenizer.from_params(spec, params, batch=batch).in_dtype(dtype)
    shape = (batch, clip.frames, clip.height, clip.width, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ids = tokenizer.encode(frames)
    return {
        "clip": list(shape[1:]),
        "codes": list(ids.shape[1:]),
        **rates(
            {"encode": lambda: tokenizer.encode(frames), "decode": lambda: tokenizer.decode(ids)},
            batch * clip.frames,
            "frames_per_s",
            runs,
        ),
    }


def audio(experiment: Experiment, batch: int, runs: int, dtype: str) -> dict[str, Any]:
    """Seconds of sound a second, in and out."""
    spec, clip = experiment.audio_tokenizer, experiment.clip
    tokenizer = audio_base.AudioTokenizer.from_params(spec, audio_base.random_params(spec), batch=batch).in_dtype(dtype)
    waves = np.random.default_rng(0).uniform(-0.5, 0.5, (batch, clip.samples)).astype(np.float32)
    ids = tokenizer.encode(waves)
    return {
        "samples": clip.samples,
        "codes": list(ids.shape[1:]),
        **rates(
            {"encode": lambda: tokenizer.encode(waves), "decode": lambda: tokenizer.decode(ids)},
            batch * clip.samples / spec.sample_rate_hz,
            "times_real_time",
            runs,
        ),
    }


def rates(calls: dict[str, Callable[[], Any]], amount: float, unit: str, runs: int) -> dict[str, dict[str, float]]:
    """Of each call its seconds, and `amount` over their median as `unit`."""
    found = {}
    for name, call in calls.items():
        times = common.spread(harness.timed(call, runs)["wall"])
        found[name] = {**times, unit: amount / times["median_s"]}
    return found


if __name__ == "__main__":
    main()
