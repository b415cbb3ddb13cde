"""Renders clips of ViZDoom's Freedoom maps; run as a program it is one worker process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import vizdoom

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

from captions import caption  # noqa: E402
from game_clips.agent import Wanderer  # noqa: E402
from game_clips.recording import Recorder, configured_game, is_lively, look_around, serve, warm_up  # noqa: E402

CLIPS_PER_PLACE = 4
PLACES_PER_EPISODE = 5
MAX_WARM_UP_STEPS = 12
MAX_TRIES = 6  # rendered clips per kept clip before a map counts as unusable
_PICKUPS = frozenset(
    {
        "HealthBonus",
        "ArmorBonus",
        "Stimpack",
        "Medikit",
        "GreenArmor",
        "BlueArmor",
        "Clip",
        "ClipBox",
        "Shell",
        "ShellBox",
        "RocketAmmo",
        "RocketBox",
        "Cell",
        "CellPack",
        "Shotgun",
        "SuperShotgun",
        "Chaingun",
        "RocketLauncher",
        "PlasmaRifle",
        "Backpack",
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The clips of one map. `map_name` is the engine's own, such as `map01` or `e1m1`."""

    split: str
    wad: str
    map_name: str
    clips: int
    size: int
    seed: int
    sound: bool


def episode_seed(job: Job, episode: int) -> int:
    """A 31-bit seed that depends on nothing but the global seed, the map and the episode."""
    text = f"{job.seed}/{job.wad}/{job.map_name}/{episode}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def open_game(job: Job) -> vizdoom.DoomGame:
    """Starts an engine process for one map, with the fewest monsters."""
    game = configured_game(job, job.wad, job.map_name, skill=1)
    game.set_seed(episode_seed(job, 0))
    game.init()
    return game


def go_to_random_place(game: vizdoom.DoomGame, rng: np.random.Generator) -> None:
    """Heals and arms the player and moves it to where an item lies, looking in any direction."""
    game.send_game_command("give health")
    game.send_game_command("give ammo")
    places = sorted({(int(o.position_x), int(o.position_y)) for o in game.get_state().objects if o.name in _PICKUPS})
    if places:
        x, y = places[rng.integers(len(places))]
        game.send_game_command(f"warp {x} {y}")
    look_around(game, rng)


def episode_clips(game: vizdoom.DoomGame, job: Job, episode: int) -> Iterator[dict[str, Any]]:
    """Every lively clip of one episode; clips of a stretch follow each other and never overlap."""
    seed = episode_seed(job, episode)
    rng = np.random.default_rng(seed)
    game.set_seed(seed)
    game.new_episode()
    game.send_game_command("buddha")
    game.send_game_command("give all")
    for place in range(PLACES_PER_EPISODE):
        if game.is_episode_finished():
            return
        agent = Wanderer(rng)
        go_to_random_place(game, rng)
        warm_up(game, agent, int(rng.integers(4, MAX_WARM_UP_STEPS + 1)))
        if game.is_episode_finished():
            return
        recorder = Recorder(game, job, agent)
        for index in range(recorder.play(CLIPS_PER_PLACE)):
            record = {
                "seed": seed,
                "episode": episode,
                "place": place,
                "clip": index,
                "map": job.map_name,
                "wad": job.wad,
                **recorder.record(index),
            }
            if is_lively(record):
                yield {
                    **recorder.clip(index),
                    "text": caption(record),
                    "record": json.dumps(record, separators=(",", ":")),
                }


def map_clips(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    """`job.clips` clips of one map as `(key, example)`; fewer clips are a prefix of more."""
    game = open_game(job)
    per_episode = CLIPS_PER_PLACE * PLACES_PER_EPISODE
    try:
        made = 0
        for episode in range(1 + MAX_TRIES * job.clips // per_episode):
            for example in episode_clips(game, job, episode):
                key = f"{job.split}/{os.path.splitext(job.wad)[0]}-{job.map_name}/{made:05d}"
                yield key, {"key": key, **example}
                made += 1
                if made == job.clips:
                    return
        raise RuntimeError(f"{job.wad} {job.map_name}: only {made} of {job.clips} clips move")
    finally:
        game.close()


if __name__ == "__main__":
    serve(lambda fields: map_clips(Job(**fields)))
