"""The fixed list of clips of a benchmark, and the clips themselves, found in a data set and compared with the list.

Shape suffixes: T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.evaluation.score.sides import Item, content_hash
from poet.evaluation.suites.tasks import TASKS, SuiteTask
from poet.spec import ClipSpec, UserError, choose
from poet.store.raw import RawClip, usable
from poet.store.sources import open_source

FOLDER = Path(__file__).parent
# Name of a benchmark -> its newest list.
LISTS = {"arenas": "arenas_v2.json", "freedoom": "freedoom_v1.json"}
TRAINING_SPLIT = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A line of the list.

    Attributes:
      name: what files of it are called.
      key: of the clip in the data set.
      episode: clips of one episode are not independent.
      video: `content_hash` of its frames.  Sound is not compared: it depends on the library that renders it.
      shots: frames that follow a shot, by the engine's record; None where the list does not say.
    """

    name: str
    key: str
    episode: str
    text: str
    video: str
    shots: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark: `name` and `version` stand beside every number.

    Attributes:
      data: how its data set is made, in words.
      split: that its clips are of.
      clip: the format of clips.
      cases: in an order of which every beginning has all places alike.
      without: metrics that do not hold on its clips, such as those of places where captions name none.
    """

    name: str
    version: int
    data: str
    split: str
    clip: ClipSpec
    cases: tuple[Case, ...]
    without: tuple[str, ...] = ()

    @property
    def tasks(self) -> dict[str, SuiteTask]:
        """Its tasks, with the metrics that hold."""
        return {name: task.without(self.without) for name, task in TASKS.items()}

    @property
    def fingerprint(self) -> str:
        """16 hex characters of the list."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        return f"{self.name} v{self.version}"


def load(name: str) -> Suite:
    """The benchmark of a name; UserError for an unknown one."""
    return read(FOLDER / choose(name, LISTS, "benchmark"))


def read(file: Path) -> Suite:
    found = json.loads(file.read_text(encoding="utf-8"))
    cases = tuple(Case(**{**case, "shots": _tuple(case.get("shots"))}) for case in found.pop("cases"))
    without = tuple(found.pop("without", ()))
    return Suite(**{**found, "clip": ClipSpec(**found["clip"]), "cases": cases, "without": without})


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Real:
    """A clip of the list, as the data set has it.

    Attributes:
      video: uint8 [T, H, W, 3].
      sound: int16 [S], or None.
      depth: distances [T, h, w], or None.
    """

    case: Case
    video: np.ndarray
    sound: np.ndarray | None
    depth: np.ndarray | None


def clips(suite: Suite, path: str, count: int = 0) -> list[Real]:
    """The first `count` clips of the list (0: all), in its order.

    Raises:
      UserError: the data set lacks clips of the list, or has others under their keys.
    """
    wanted = suite.cases[: count or None]
    found = {clip.key: clip for clip in raw(suite, path, suite.split) if clip.key in {case.key for case in wanted}}
    made = [_real(case, found.get(case.key)) for case in wanted]
    missing = [case.key for case, real in zip(wanted, made) if real is None]
    if missing:
        raise UserError(
            f"{path} is not the data set of {suite.title}: {len(missing)} of {len(wanted)} clips are missing or "
            f"differ, such as {missing[0]}. Make it by: {suite.data}"
        )
    return [real for real in made if real]


def _real(case: Case, clip: RawClip | None) -> Real | None:
    if clip is None or content_hash(clip.video) != case.video:
        return None
    return Real(case=case, video=clip.video, sound=clip.audio, depth=clip.depth)


def raw(suite: Suite, path: str, split: str) -> Iterator[RawClip]:
    """The clips of a split of the data set, `--data`."""
    try:
        source = open_source(path, split, suite.clip)
    except UserError as error:
        raise UserError(str(error).replace("STORE.source", "--data")) from None
    return usable(source.read(0, len(source)))


def others(suite: Suite, path: str, split: str) -> Iterator[Item]:
    """All clips of a split, without their sound."""
    for place, clip in enumerate(raw(suite, path, split)):
        yield Item(place=place, key=clip.key, group=clip.key, caption=clip.caption, video=clip.video, sound=None)


def items(reals: Sequence[Real], videos: Sequence[np.ndarray] = ()) -> list[Item]:
    """Clips of the list, or others under their names, as `poet score` has them."""
    return [
        Item(
            place=n, key=real.case.name, group=real.case.episode, caption=real.case.text, video=video, sound=real.sound
        )
        for n, (real, video) in enumerate(zip(reals, videos or [real.video for real in reals]))
    ]


def chosen(suite_fields: dict[str, Any], clips: Sequence[tuple[RawClip, dict[str, Any]]], per_place: int) -> Suite:
    """A list of so many clips of each place: (clip, the engine's record), as different in episodes as there are any.

    Places and episodes take turns, so that every beginning of the list has all of them alike.
    """
    places: dict[str, dict[str, list[Case]]] = {}
    for clip, record in clips:
        place, episode = clip.key.rsplit("/", 2)[-2], str(record["episode"])
        places.setdefault(place, {}).setdefault(episode, []).append(_case(clip, place, record))
    turns = {place: [case for _, case in sorted(_turns(episodes))][:per_place] for place, episodes in places.items()}
    order = [turns[place][n] for n in range(per_place) for place in sorted(turns) if n < len(turns[place])]
    return Suite(**suite_fields, cases=tuple(order))


def _case(clip: RawClip, place: str, record: dict[str, Any]) -> Case:
    frames = {step + 1 for step, kind, _ in record["events"] if kind == "shot" and step + 1 < len(clip.video)}
    return Case(
        name=clip.key.partition("/")[2].replace("/", "_"),
        key=clip.key,
        episode=f"{place}/{record['episode']}",
        text=clip.caption,
        video=content_hash(clip.video),
        shots=tuple(sorted(frames)),
    )


def _turns(episodes: dict[str, list[Case]]) -> Iterator[tuple[tuple[int, int, str], Case]]:
    """Each clip with its turn: its number within its episode, then the episode."""
    for number, cases in enumerate(episodes.values()):
        for turn, case in enumerate(cases):
            yield (turn, number, case.name), case
