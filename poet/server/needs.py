"""What jobs need of the worker's memory, predicted from the shapes of a model: no program is compiled for it.

States of the language model are exact.  What programs hold while they run is a multiple of the arrays that they pass
through; `tests/server/test_needs.py` compares these with what the compiler says.

B samples of a batch, P prefilled positions, D width of the model.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence

import numpy as np

from poet.models.tables import factors
from poet.sampling.passes import passes
from poet.sampling.plans import Plan
from poet.server.memory import Need
from poet.spec import AudioTokenizerSpec, ClipSpec, ModelSpec, VideoTokenizerSpec
from poet.streams.low_resolution import SCALE
from poet.tasks.resolved import Resolved

# Of a batch: that which is sampled, that which catches up with it (`poet.sampling.together`), and their union.
_STATES = 3
# Clips that a tokenizer takes in one call.
_CODED = 16
# Arrays that programs hold at once: activations of a position of the models, and of pixels and feature maps.
_WIDTHS, _MLPS, _PIXELS, _MAPS, _LOGITS, _WAVES = 12, 3, 14, 6, 8, 4
# Sides of a convolution, which on CPUs unfolds what it reads: an array for each of its taps.
_KERNEL = 3
# Copies of a clip's frames between the decoder and the files, and bytes of the largest file's writer.
_FRAMES, _WRITING = 4, 16 * 2**20
# What a program takes when it has been compiled; how many a kind of job has beside the chunks of its plan.
PROGRAM_BYTES, _PROGRAMS = 48 * 2**20, 6
_FLOAT = 4
_WEIGHTS = "weights"


@dataclasses.dataclass(frozen=True)
class Held:
    """What a model holds before it makes anything.

    Attributes:
      weights: bytes of all weights that its jobs read and that are not loaded when the worker starts.
      model: of the language model.  codecs: of the tokenizers.  Programs may copy their own while they run.
    """

    weights: int
    model: int
    codecs: int


def of_samples(resolved: Resolved, plan: Plan, count: int, batch: int, held: Held) -> Need:
    """Of `count` samples of a task, made in a batch of B."""
    state = state_bytes(resolved, plan)
    coded = coding_bytes(resolved, min(_CODED, 1 << max(count - 1, 0).bit_length()))
    running = held.model + max(prefill_bytes(resolved.spec.model, plan), batch * decode_bytes(resolved, plan))
    programs = (len(plan.chunks) + _PROGRAMS) * PROGRAM_BYTES
    return Need(
        kept={_WEIGHTS: held.weights, f"programs {zlib.crc32(repr(plan).encode()):08x}": programs},
        batch=_STATES * batch * state,
        own=count * _media_bytes(resolved.spec.clip) + _WRITING,
        passing=max(running, held.codecs + coded),
    )


def state_bytes(resolved: Resolved, plan: Plan) -> int:
    """Keys, values and the last state of one sample, whose rows are `plan.fan`."""
    spec, length = resolved.spec.model, plan.sampled_stop
    item = _itemsize(spec.dtype)
    keys = 2 * spec.layers * length * spec.kv_heads * spec.head_dim * item
    aligned = plan.layout.aligned and (spec.aligned_conditions or spec.condition_encoder)
    added = (length + 1 - plan.layout.prefix_length) * spec.width * item if aligned else 0
    return plan.fan * (keys + length + added + spec.width * item)


def prefill_bytes(spec: ModelSpec, plan: Plan) -> int:
    """What the prefill of one sample holds while it runs."""
    return plan.fan * plan.prefilled * _position(spec, plan.prefilled) * _FLOAT


def decode_bytes(resolved: Resolved, plan: Plan) -> int:
    """What a step of one sample holds while it runs: logits of the widest range, and a layer of its state."""
    spec = resolved.spec.model
    parts = (part for span, _ in plan.steps for part in factors(spec, resolved.vocabulary, span.segment.ids).ranges)
    logits = plan.fan * max(part.size for part in parts) * _LOGITS * _FLOAT
    return logits + 2 * state_bytes(resolved, plan) // spec.layers


def of_film(resolved: Resolved, plans: Sequence[Plan], seconds: float, batch: int, held: Held) -> Need:
    """Of a film, made clip by clip by tasks of these plans."""
    clips = [of_samples(resolved, plan, 1, batch, held) for plan in plans]
    frames = resolved.spec.clip.replace(frames=max(round(seconds * resolved.spec.clip.rate_hz), 1))
    return Need(
        kept={name: size for clip in clips for name, size in clip.kept.items()},
        batch=max(clip.batch for clip in clips),
        own=_media_bytes(frames) + _WRITING,
        passing=max(clip.passing for clip in clips),
    )


def then(first: Need, second: Need) -> Need:
    """Of a job that goes on with what the first has made."""
    return Need(
        kept={**first.kept, **second.kept},
        batch=first.batch + second.batch,
        own=first.own + second.own,
        passing=max(first.passing, second.passing),
    )


def _position(spec: ModelSpec, seen: int) -> int:
    """Numbers that a pass holds for each position, which sees so many."""
    return _WIDTHS * spec.width + _MLPS * spec.mlp_width + spec.heads * seen


def _media_bytes(clip: ClipSpec) -> int:
    """Frames and sound of a clip, on their way to its files."""
    return _FRAMES * (3 * clip.frames * clip.height * clip.width + 2 * clip.samples)


def coding_bytes(resolved: Resolved, count: int) -> int:
    """What the tokenizers hold while they code so many clips at once."""
    clip, spec = resolved.spec.clip, resolved.spec
    video = video_bytes(spec.video_tokenizer, (clip.frames, clip.height, clip.width))
    return count * max(video, sound_bytes(spec.audio_tokenizer, clip.samples))


def video_bytes(spec: VideoTokenizerSpec, size: Sequence[int]) -> int:
    """What a video tokenizer holds while it codes a clip of `size` (frames, height, width)."""
    return sum(_video_bytes(one, size) for one in (spec, spec.fine) if one)


def _video_bytes(spec: VideoTokenizerSpec, size: Sequence[int]) -> int:
    t, h, w = (-(-side // stem) for side, stem in zip(size, spec.stem))
    maps = []
    # A level's first convolution after the coarser one reads the channels of that.
    coarser = (*spec.multipliers[1:], 1)
    for *channels, halved in zip(spec.multipliers, coarser, (*spec.temporal_downsample, False)):
        maps.append(t * h * w * max(channels) * spec.base_channels)
        t, h, w = (-(-t // 2) if halved else t), -(-h // 2), -(-w // 2)
    taps = spec.temporal_kernel * _KERNEL**2
    return _FLOAT * (_PIXELS * 3 * math.prod(size) + (_MAPS + taps) * max(maps))


def sound_bytes(spec: AudioTokenizerSpec, samples: int) -> int:
    """What an audio tokenizer holds while it codes a sound."""
    return _FLOAT * samples * _WAVES * max(spec.encoder_channels, spec.decoder_channels)


def of_larger(networks: Sequence[Resolved], frames: int, height: int, width: int, held: Held) -> Need:
    """Of a clip that is made larger by each of these networks in turn."""
    passing, sides = 0, (height, width)
    for resolved in networks:
        chunk = resolved.spec.clip.frames
        sides = tuple(SCALE * side for side in sides)
        coding = video_bytes(resolved.spec.video_tokenizer, (chunk, *sides))
        passing = max(passing, coding, passes_bytes(resolved))
    clips = [3 * frames * height * width * SCALE ** (2 * n) for n in range(len(networks) + 1)]
    kept = {_WEIGHTS: held.weights, "super-resolution": _PROGRAMS * len(networks) * PROGRAM_BYTES}
    return Need(kept=kept, own=_FRAMES * sum(clips) + _WRITING, passing=held.codecs + passing)


def passes_bytes(resolved: Resolved) -> int:
    """What the passes of a super-resolution network hold for one clip."""
    spec, model = resolved.spec.super_resolution, resolved.spec.model
    grid = resolved.format.video
    windows = [math.prod(min(want or side, side) for want, side in zip(window, grid)) for window in spec.windows]
    seen = max(windows) + max(windows) // SCALE**2 + resolved.spec.text.length
    logits = factors(model, resolved.vocabulary, resolved.vocabulary.tables["visual"]).rows
    rows, positions = len(passes(spec, grid, True).branches), math.prod(grid) + math.prod(grid) // SCALE**2
    return rows * positions * (_position(model, seen) + logits) * _FLOAT


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
