"""Renders clips of ViZDoom's scenarios; run as a program it is one worker process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import vizdoom

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))  # game_clips

import arenas  # noqa: E402
from captions import camera, caption  # noqa: E402
from game_clips.agent import Habits, Wanderer  # noqa: E402
from game_clips.recording import GAINS, Recorder, configured_game, is_lively, look_around, serve, warm_up  # noqa: E402

CLIPS_PER_STRETCH = 3
STRETCHES_PER_EPISODE = 3
MAX_WARM_UP_STEPS = 32  # most arenas have one start: the player walks away from it first
MAX_EPISODES_PER_CLIP = 40  # a held-out start comes in one episode of about nine
GAME_WAD = "freedoom2.wad"  # whose pictures and sounds the scenarios use
# Arenas are small: a player that turns early does not end in front of a wall.
HABITS = Habits(near=26, pressing=30, narrow=40, fires=(0.2, 0.05), weapons=0.0, doors=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The clips of one arena in one split."""

    split: str
    arena: str
    clips: int
    size: int
    seed: int
    sound: bool


def episode_seed(job: Job, episode: int) -> int:
    """A 31-bit seed that depends on nothing but the global seed, the split, the arena and the episode."""
    text = f"{job.seed}/{job.split}/{job.arena}/{episode}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def open_game(job: Job) -> vizdoom.DoomGame:
    """Starts an engine process for one scenario."""
    arena = arenas.BY_NAME[job.arena]
    game = configured_game(job, GAME_WAD, "map01", arena.skill)
    game.set_doom_scenario_path(str(arenas.scenario_file(arena.name)))
    game.set_seed(episode_seed(job, 0))
    game.init()
    return game


def starts_here(game: vizdoom.DoomGame, job: Job) -> bool:
    """Whether the episode starts where this split's may."""
    x, y = game.get_state().game_variables[:2]
    return arenas.BY_NAME[job.arena].split_of_start(x, y) in (None, job.split)


def episode_clips(game: vizdoom.DoomGame, job: Job, episode: int) -> Iterator[dict[str, Any]]:
    """Every lively clip of one episode; clips of a stretch follow each other and never overlap."""
    seed = episode_seed(job, episode)
    rng = np.random.default_rng(seed)
    game.set_seed(seed)
    game.new_episode()
    if not starts_here(game, job):
        return
    place = arenas.BY_NAME[job.arena].place
    game.send_game_command("buddha")
    for stretch in range(STRETCHES_PER_EPISODE):
        agent = Wanderer(rng, HABITS)
        game.send_game_command("give ammo")
        look_around(game, rng)
        warm_up(game, agent, int(rng.integers(4, MAX_WARM_UP_STEPS + 1)))
        if game.is_episode_finished():
            return
        recorder = Recorder(game, job, agent, GAINS | {"heal": "HEALTH"})
        for index in range(recorder.play(CLIPS_PER_STRETCH)):
            record = {
                "seed": seed,
                "episode": episode,
                "stretch": stretch,
                "clip": index,
                "arena": job.arena,
                "place": place,
                **recorder.record(index),
            }
            record["camera"] = camera(record)
            if is_lively(record):
                yield {
                    **recorder.clip(index),
                    "text": caption(record),
                    "record": json.dumps(record, separators=(",", ":")),
                }
        if game.is_episode_finished():
            return


def arena_clips(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    """`job.clips` clips of one arena as `(key, example)`; fewer clips are a prefix of more."""
    game, made = open_game(job), 0
    try:
        for episode in range(MAX_EPISODES_PER_CLIP * job.clips):
            for example in episode_clips(game, job, episode):
                key = f"{job.split}/{job.arena}/{made:05d}"
                yield key, {"key": key, **example}
                made += 1
                if made == job.clips:
                    return
        raise RuntimeError(f"{job.arena}: only {made} of {job.clips} clips move")
    finally:
        game.close()


if __name__ == "__main__":
    serve(lambda fields: arena_clips(Job(**fields)))
