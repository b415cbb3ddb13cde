"""From the frames of a media file to clips: shot boundaries, and where a random crop lies."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from poet import media
from poet.spec import IngestSpec

# A frame opens a shot if its colours differ from those of the frame before by SHOT_DISTANCE (0 is
# equal, 1 has no colour in common), and by SHOT_RATIO times the mean distance of the shot's last
# SHOT_MEMORY frames: the first finds cuts, the second keeps flicker and fast pans together.  The three
# numbers are judgement, made on clips at 8 Hz; they were not fitted to labelled cuts.
SHOT_DISTANCE = 0.25
SHOT_RATIO = 2.5
SHOT_MEMORY = 8
# Bins per channel, each 16 levels wide.
BINS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """video: uint8 (frames, H, W, 3) from frame `start` of the file on; None for a shot that is
    too short to give a clip, which has `length` frames."""

    start: int
    length: int
    video: np.ndarray | None


def cut(frames: Iterable[np.ndarray], length: int, spec: IngestSpec) -> Iterator[Cut]:
    """Cuts frames, uint8 (H, W, 3) at the clip's rate, into clips of `length` frames.

    Clips follow one another from the start of every shot (of the file, without `spec.shots`); what
    remains at its end is no clip, and is reported only if the shot had none.
    """
    detector = ShotDetector() if spec.shots else None
    run: list[np.ndarray] = []
    start = clips = of_shot = 0
    for index, frame in enumerate(frames):
        if detector and detector.opens_shot(frame):
            if not of_shot:
                yield Cut(start=start, length=len(run), video=None)
            run, start, of_shot = [], index, 0
        run.append(frame)
        if len(run) == length:
            yield Cut(start=start, length=length, video=np.stack(run))
            run, start, of_shot, clips = [], index + 1, of_shot + 1, clips + 1
            if clips == spec.clips_per_file:
                return
    if not of_shot:
        yield Cut(start=start, length=len(run), video=None)


class ShotDetector:
    """Finds shot boundaries in a stream of frames, by the distance of their colour histograms."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._distances: collections.deque[float] = collections.deque(maxlen=SHOT_MEMORY)

    def opens_shot(self, frame_HxWx3: np.ndarray) -> bool:
        """Whether this frame, the next of the stream, is the first of another shot."""
        histogram, before = colour_histogram(frame_HxWx3), self._before
        self._before = histogram
        if before is None:
            return False
        distance = float(np.abs(histogram - before).sum(axis=1).mean() / 2)
        # Of a few frames a mean says little: a single flicker at the head of a shot is not usual.
        usual = sum(self._distances) / max(len(self._distances), SHOT_MEMORY // 2)
        if distance >= max(SHOT_DISTANCE, SHOT_RATIO * usual):
            self._distances.clear()
            return True
        self._distances.append(distance)
        return False


def colour_histogram(frame_HxWx3: np.ndarray) -> np.ndarray:
    """float64 (3, BINS), every channel of sum 1.

    A pixel counts for the two nearest bins by its distance from their centres, so that a small
    change of brightness is a small change of the histogram.
    """
    levels = np.arange(256)
    place = np.clip((levels + 0.5) * BINS / 256 - 0.5, 0, BINS - 1)
    weights_256xB = np.maximum(1 - np.abs(place[:, None] - np.arange(BINS)), 0)
    channels = frame_HxWx3.reshape(-1, 3).T
    counts = np.stack([np.bincount(channel, minlength=256) for channel in channels])
    return counts @ weights_256xB / channels.shape[1]


def crop_place(key: str, spec: IngestSpec) -> media.Place:
    """The place of the crop of a file's frames: a function of its key."""
    if spec.crop == "centre":
        return media.CENTRE
    digest = hashlib.blake2b(f"crop/{key}".encode(), digest_size=8).digest()
    x, y = (int.from_bytes(part) / 2**32 for part in (digest[:4], digest[4:]))
    return x, y
