"""Whether clips of the arenas show what their captions say: fields `caption` (a list), `video`, uint8 [N, T, H, W,
3], of 8 Hz, `rate_hz`, and `sound`, a list of int16 [S] at 16 kHz or None.

Clips whose caption names no place, no single direction or no arena do not count; the same numbers of real clips stand
beside these: the ceiling.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from poet.conditioning.structure import flow
from poet.evaluation import probes
from poet.evaluation.columns import Columns
from poet.evaluation.metric import Batch, Metric, Values, register
from poet.spec import ConditioningSpec

TABLE = "clips"
LEFT, RIGHT, SHOT = "turns left", "turns right", "fires the"
# A frame of 8 Hz: a shot that begins at the end of one is heard in the next.
NEAR_FRAMES = 1


def named_place(caption: str) -> str | None:
    """The place that a caption begins with, or None."""
    return next((place for place in _places() if caption.startswith(f"{place} ")), None)


@functools.cache
def _places() -> tuple[str, ...]:
    return probes.load()[probes.PLACES].labels


def named_turn(caption: str) -> int:
    """1 for a turn to the left alone, -1 to the right alone, else 0."""
    return int(LEFT in caption) - int(RIGHT in caption)


def turn(video_TxHxWx3: np.ndarray) -> int:
    """1 where the picture moves to the right, as in a turn to the left, -1 where it moves to the left, 0 of a still."""
    if len(video_TxHxWx3) < 2:
        return 0
    upper = flow(video_TxHxWx3, ConditioningSpec())[:, : 5 * video_TxHxWx3.shape[1] // 8, :, 0]
    return int(np.sign(np.sign(np.median(upper, axis=(1, 2))).sum()))


def _place(batch: Batch) -> Values:
    named = [named_place(caption) for caption in batch["caption"]]
    hits = [place is not None and probes.place_of(video) == place for place, video in zip(named, batch["video"])]
    return Values.of(batch, hits, [place is not None for place in named])


def _turn(batch: Batch) -> Values:
    named = [named_turn(caption) if batch["rate_hz"] == probes.RATE_HZ else 0 for caption in batch["caption"]]
    hits = [bool(way) and turn(video) == way for way, video in zip(named, batch["video"])]
    return Values.of(batch, hits, np.abs(named))


def shots_told(seen: Callable[[Batch, int], bool | None]) -> Callable[[Batch], Columns]:
    """Counts of clips with and without a shot in their captions, and of those that have it rightly."""

    def measure(batch: Batch) -> Columns:
        counts = {name: np.zeros(len(batch["caption"])) for name in ("shot", "shot_hit", "calm", "calm_hit")}
        for place, caption in enumerate(batch["caption"]):
            found = seen(batch, place)
            if found is not None:
                said = SHOT in caption
                counts["shot" if said else "calm"][place] = 1
                counts["shot_hit" if said else "calm_hit"][place] = found == said
        return Columns.of(batch, **counts)

    return measure


def balanced(totals: Mapping[str, np.ndarray]) -> float | None:
    """The mean of the fractions that are right of clips with and without a shot: 0.5 by chance."""
    shots, calm = float(totals["shot"]), float(totals["calm"])
    return (totals["shot_hit"] / shots + totals["calm_hit"] / calm) / 2 if shots and calm else None


def _probed(batch: Batch, place: int) -> bool:
    """Whether the clip is one that probes of shots were made for."""
    return bool(named_place(batch["caption"][place])) and batch["rate_hz"] == probes.RATE_HZ


def _flashes(batch: Batch, place: int) -> bool | None:
    return bool(probes.flashes(batch["video"][place]).any()) if _probed(batch, place) else None


def _bangs(batch: Batch, place: int) -> bool | None:
    sound = batch["sound"][place]
    if sound is None or not _probed(batch, place):
        return None
    return bool(probes.bangs(sound, len(batch["video"][place])).any())


def _together(batch: Batch) -> Values:
    """Frames with a flash or a bang, and those of them that have the other one within a frame."""
    sums, counts = np.zeros(len(batch["video"])), np.zeros(len(batch["video"]))
    for place, (video, sound) in enumerate(zip(batch["video"], batch["sound"])):
        if sound is not None and _probed(batch, place):
            seen, heard = probes.flashes(video), probes.bangs(sound, len(video))
            sums[place] = (seen & near(heard)).sum() + (heard & near(seen)).sum()
            counts[place] = seen.sum() + heard.sum()
    return Values.of(batch, sums, counts)


def near(frames_T: np.ndarray) -> np.ndarray:
    """bool [T]: frames within `NEAR_FRAMES` of one that is set."""
    return np.convolve(frames_T, np.ones(2 * NEAR_FRAMES + 1), mode="same") > 0.5


def _declare(
    name: str, measure: Callable[[Batch], Values | Columns], needs: tuple[str, ...], note: str, **more
) -> None:
    register(Metric(name=name, better="more", tables=(TABLE,), needs=needs, measure=measure, note=note, **more))


_VIDEO, _SOUND = ("caption", "video", "rate_hz"), ("caption", "video", "sound", "rate_hz")
_declare("place_agreement", _place, _VIDEO, "Fraction of clips in the place that their caption names; chance: 1/11.")
_declare(
    "turn_agreement",
    _turn,
    _VIDEO,
    "Fraction of clips that turn to the side that their caption names, by the sign of optical flow; chance: 0.5.",
    protocol={"flow": "dis"},
)
_declare(
    "shot_seen",
    shots_told(_flashes),
    _VIDEO,
    "Balanced accuracy of the flash of a shot, against whether the caption has one; chance: 0.5.",
    finish=balanced,
)
_declare(
    "shot_heard",
    shots_told(_bangs),
    _SOUND,
    "Balanced accuracy of the sound of a shot, against whether the caption has one; chance: 0.5.",
    finish=balanced,
)
_declare(
    "shots_together",
    _together,
    _SOUND,
    "Fraction of flashes that are heard, and of bangs that are seen, within a frame.",
)
