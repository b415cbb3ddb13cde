"""Whether shots are heard when they are fired: fields `shots`, a list of the frames that follow a shot by the engine's
record, or None where there is none, `sound`, a list of int16 [S] at 16 kHz or None, `video` [N, T, H, W, 3].

Sounds of shots are found by the probe of bangs.  Shots in frames that follow one another are one, on both sides.

T frames, N clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from poet.evaluation import probes
from poet.evaluation.metric import Batch, Metric, Values, register
from poet.evaluation.metrics.arenas import NEAR_FRAMES


def begins(frames_T: np.ndarray) -> np.ndarray:
    """int [n]: frames that are set and whose predecessor is not."""
    return np.flatnonzero(np.diff(np.asarray(frames_T, np.int8), prepend=0) == 1)


def matched(found: Sequence[int], true: Sequence[int]) -> int:
    """The most pairs of an event found and a true one within `NEAR_FRAMES`, each in one pair; both ascending."""
    pairs = i = k = 0
    while i < len(found) and k < len(true):
        if abs(found[i] - true[k]) <= NEAR_FRAMES:
            pairs, i, k = pairs + 1, i + 1, k + 1
        elif found[i] < true[k]:
            i += 1
        else:
            k += 1
    return pairs


def _measure(batch: Batch) -> Values:
    sums, counts = np.zeros(len(batch["sound"])), np.zeros(len(batch["sound"]))
    for place, (shots, sound, video) in enumerate(zip(batch["shots"], batch["sound"], batch["video"], strict=True)):
        if shots is None or sound is None:
            continue
        fired = np.zeros(len(video), bool)
        fired[list(shots)] = True
        heard, true = begins(probes.bangs(sound, len(video))), begins(fired)
        sums[place], counts[place] = 2 * matched(heard, true), len(heard) + len(true)
    return Values.of(batch, sums, counts)


register(
    Metric(
        name="shot_onset_f1",
        better="more",
        tables=("shots",),
        needs=("shots", "sound", "video"),
        measure=_measure,
        note="F1 of the beginnings of shots that are heard, against the engine's record, within a frame.",
        protocol={"near_frames": NEAR_FRAMES},
    )
)
