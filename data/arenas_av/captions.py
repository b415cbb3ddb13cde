"""Plain-English captions of arena clips, made from the engine's own record and from nothing else.

`caption(record)` is a pure function of what is stored beside the text.  It says where the player
is, how the camera moves (measured from the poses), what happens, and what comes closer or goes.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections import defaultdict
from typing import Any

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

from game_clips import words  # noqa: E402

SLOW_DEG_PER_S, QUICK_DEG_PER_S = 25.0, 45.0
RATE_HZ = 8
MIN_MOTION_FRAMES = 6  # an object seen in fewer frames neither comes nor goes
GROWTH = 2.0  # of its area in the view, from its first to its last three frames
MAX_OBJECTS = 2
# The camera's words for the player's motions.
CAMERA = {
    "walks forward": "forward",
    "walks backward": "backward",
    "steps left": "strafe left",
    "steps right": "strafe right",
    "turns left": "pan left",
    "turns right": "pan right",
    "hardly moves": "static",
}
_NAMES = {"MarineChainsawVzd": "soldier with a chainsaw", "CustomMedikit": "medical kit", "Poison": "vial of poison"}
_UNNAMED = words.UNNAMED | {"PatrolPoint"}


def camera(record: dict[str, Any]) -> dict[str, Any]:
    """How the camera moves: its words, and its mean speeds (left and forward are positive)."""
    pose = record["pose"]
    seconds = (len(pose) - 1) / RATE_HZ
    turned = forward = leftward = 0.0
    for (x0, y0, angle0), (x1, y1, angle1) in zip(pose, pose[1:]):
        heading = math.radians(angle0)
        turned += (angle1 - angle0 + 180.0) % 360.0 - 180.0
        forward += (x1 - x0) * math.cos(heading) + (y1 - y0) * math.sin(heading)
        leftward += (y1 - y0) * math.cos(heading) - (x1 - x0) * math.sin(heading)
    return {
        "words": [CAMERA[phrase] for phrase in words.action_phrases(record)],
        "pan_left_deg_per_s": round(turned / seconds, 1),
        "forward_units_per_s": round(forward / seconds, 1),
        "left_units_per_s": round(leftward / seconds, 1),
    }


def motion_phrases(record: dict[str, Any]) -> list[str]:
    """The one or two commonest motions; a turn says whether it is slow or quick."""
    rate = _turning_deg_per_s(record["pose"])
    manner = " slowly" if rate < SLOW_DEG_PER_S else " quickly" if rate > QUICK_DEG_PER_S else ""
    return [phrase + manner if phrase.startswith("turns") else phrase for phrase in words.action_phrases(record)]


def _turning_deg_per_s(pose: list[list[float]]) -> float:
    """Mean rate over the steps in which the player turns; 0 if there is none."""
    turns = [abs((b[2] - a[2] + 180.0) % 360.0 - 180.0) for a, b in zip(pose, pose[1:])]
    turning = [turn for turn in turns if turn >= words.MIN_STEP_DEG]
    return sum(turning) / len(turning) * RATE_HZ if turning else 0.0


def object_phrases(record: dict[str, Any]) -> list[str]:
    """Up to two kinds of object, the largest first: each comes closer, goes away or is in view."""
    tracks: dict[tuple[str, int], list[int]] = defaultdict(list)
    for labels in record["objects"]:
        for engine_class, number, permille in labels:
            if engine_class not in _UNNAMED and permille >= words.MIN_AREA_PERMILLE:
                tracks[engine_class, number].append(permille)
    kinds: dict[str, list[list[int]]] = defaultdict(list)
    for (engine_class, _), areas in tracks.items():
        if len(areas) >= words.MIN_FRAMES_IN_VIEW:
            kinds[_NAMES.get(engine_class, words.plain_name(engine_class))].append(areas)
    largest = sorted(kinds, key=lambda name: (-sum(map(sum, kinds[name])), name))[:MAX_OBJECTS]
    return [_object_phrase(name, kinds[name]) for name in largest]


def _object_phrase(name: str, tracks: list[list[int]]) -> str:
    """The largest of a kind says what it does; the others are counted with it."""
    areas = max(tracks, key=sum)
    one = len(tracks) == 1
    subject = words.counted(name, len(tracks))
    if len(areas) >= MIN_MOTION_FRAMES:
        first, last = sum(areas[:3]), sum(areas[-3:])
        if last >= GROWTH * first:
            return f"{subject} {'comes' if one else 'come'} closer"
        if first >= GROWTH * last:
            return f"{subject} {'goes' if one else 'go'} away"
    return f"{subject} in view"


def caption(record: dict[str, Any]) -> str:
    """One sentence in lower case without a full stop: place, motions, events, objects."""
    clauses = [
        f"{record['place']} the player {words.joined(motion_phrases(record))}",
        *words.event_phrases(record),
        *object_phrases(record),
    ]
    return ", ".join(clauses)
