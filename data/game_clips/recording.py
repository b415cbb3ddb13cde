"""Clips of a ViZDoom game: opening an engine, playing a stretch, cutting it; serving jobs as a worker.

Shape legend: T frames of a clip, H/W engine rows/columns, S resized side, D depth side, N samples.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import vizdoom

from game_clips.agent import BUTTONS, Wanderer
from game_clips.resampling import (
    FRAME_RATE_HZ,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_TIC,
    area_resize,
    point_resize,
    resample_audio,
    tics_of_step,
)

CLIP_FRAMES = 17
CLIP_SAMPLES = CLIP_FRAMES * SAMPLE_RATE_HZ // FRAME_RATE_HZ
MIN_MOVED_UNITS = 64.0  # a clip that neither moves nor turns this much is not kept
MIN_TURNED_DEG = 30.0
DISPLAY_GAMMA = 1.4  # as a player sets it on a monitor; the engine's own frames are dark
NATIVE_RESOLUTIONS = {64: "RES_160X120", 128: "RES_320X240", 256: "RES_640X480"}

_BRIGHTER = np.round(255 * (np.arange(256) / 255) ** (1 / DISPLAY_GAMMA)).astype(np.uint8)
_VARIABLES = (
    "POSITION_X",
    "POSITION_Y",
    "ANGLE",
    "HEALTH",
    "SELECTED_WEAPON",
    "SELECTED_WEAPON_AMMO",
    "KILLCOUNT",
    "ITEMCOUNT",
    "DAMAGE_TAKEN",
)
# Event kind -> the variable whose rise tells it.
GAINS = {"kill": "KILLCOUNT", "pickup": "ITEMCOUNT", "hurt": "DAMAGE_TAKEN"}
_MONSTERS = frozenset(
    {
        "Zombieman",
        "ShotgunGuy",
        "ChaingunGuy",
        "DoomImp",
        "Demon",
        "Spectre",
        "LostSoul",
        "Cacodemon",
        "PainElemental",
        "HellKnight",
        "BaronOfHell",
        "Revenant",
        "Fatso",
        "Arachnotron",
        "Archvile",
        "Cyberdemon",
        "SpiderMastermind",
        "WolfensteinSS",
        "MarineChainsawVzd",
    }
)


class Job(Protocol):
    """What every recipe's job has."""

    size: int
    sound: bool


def engine_file(name: str) -> str:
    """The path of a file that ships in the package vizdoom, such as `freedoom2.wad`."""
    return os.path.join(os.path.dirname(vizdoom.__file__), name)


def configured_game(job: Job, wad: str, map_name: str, skill: int) -> vizdoom.DoomGame:
    """An engine that is not started yet, without a window, a status bar or music.

    `init` it after what else a recipe sets.  `wad` is a game's, such as `freedoom2.wad`.
    """
    game = vizdoom.DoomGame()
    game.set_doom_game_path(engine_file(wad))
    game.set_doom_map(map_name)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, NATIVE_RESOLUTIONS[job.size]))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(True)
    game.set_objects_info_enabled(True)
    game.set_window_visible(False)
    game.set_render_hud(False)
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.set_render_screen_flashes(False)
    # Without blood, smoke and bullet marks, a clip is about motion.
    game.set_render_effects_sprites(False)
    game.set_render_particles(False)
    game.set_render_decals(False)
    game.set_doom_skill(skill)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in BUTTONS])
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in _VARIABLES])
    # Without the last one, "a secret is revealed" stays written over the rest of an episode.
    game.add_game_args("+sv_cheats 1 +con_notifytime 0 +cl_showsecretmessage 0")
    if job.sound:
        game.set_audio_buffer_enabled(True)
        game.set_audio_sampling_rate(vizdoom.SamplingRate.SR_22050)
        game.set_audio_buffer_size(max(tics_of_step(step) for step in range(FRAME_RATE_HZ)))
        # OpenAL Soft 1.19 aborts when the engine turns its effects on.
        game.add_game_args("+snd_efx 0 +snd_musicvolume 0")
    return game


class Recorder:
    """Plays one stretch of steps without a gap and cuts it into clips.

    `gains` are the events that a variable's rise tells, see `GAINS`.
    """

    def __init__(self, game: vizdoom.DoomGame, job: Job, agent: Wanderer, gains: Mapping[str, str] = GAINS):
        self._game, self._job, self._agent, self._gains = game, job, agent, gains
        self._frames, self._depths, self._objects = [], [], []
        self._variables, self._actions, self._audio = [], [], []

    def play(self, clips: int) -> int:
        """Records up to `clips` clips; returns how many are whole (fewer when the map ends)."""
        moved, done = 100.0, 0
        state = self._game.get_state()
        for step in range(clips * CLIP_FRAMES + 1):  # the extra step feeds the resampler's tail
            self._keep(state)
            buttons = self._agent.act(state.depth_buffer, moved, self._monsters())
            self._actions.append(buttons)
            tics = tics_of_step(step)
            self._game.make_action([buttons.get(name, 0) for name in BUTTONS], tics)
            if self._game.is_episode_finished():
                break
            done += 1
            state = self._game.get_state()
            if self._job.sound:
                self._audio.append(state.audio_buffer[-tics * SAMPLES_PER_TIC :].copy())
            moved = math.dist(state.game_variables[:2], self._variables[-1][:2])
        return max(done - 1, 0) // CLIP_FRAMES

    def _keep(self, state: vizdoom.GameState) -> None:
        height, width = state.depth_buffer.shape
        left = (width - height) // 2
        crop = np.s_[:, left : left + height]
        self._frames.append(area_resize(_BRIGHTER[state.screen_buffer[crop]], self._job.size))
        self._depths.append(point_resize(state.depth_buffer[crop], self._job.size // 2))
        self._variables.append(np.array(state.game_variables))
        pixels = np.bincount(state.labels_buffer[crop].ravel(), minlength=256)
        permille = pixels * 1000 // (height * height)
        self._objects.append(
            [
                [label.object_name, int(label.object_id), int(permille[label.value])]
                for label in state.labels
                if label.object_name != "DoomPlayer" and permille[label.value]
            ]
        )

    def _monsters(self) -> int:
        return sum(name in _MONSTERS for name, _, _ in self._objects[-1])

    def clip(self, index: int) -> dict[str, Any]:
        """Clip `index` of the stretch, without its key, text and record."""
        steps = np.s_[index * CLIP_FRAMES : (index + 1) * CLIP_FRAMES]
        audio_N = self._sound[index * CLIP_SAMPLES : (index + 1) * CLIP_SAMPLES]
        return {"video": np.stack(self._frames[steps]), "depth": np.stack(self._depths[steps]), "audio": audio_N}

    @functools.cached_property
    def _sound(self) -> np.ndarray:
        if not self._job.sound:
            return np.zeros(len(self._frames) * SAMPLE_RATE_HZ // FRAME_RATE_HZ, np.int16)
        stereo_Nx2 = np.concatenate(self._audio).astype(np.int32)
        return resample_audio(stereo_Nx2.sum(1) // 2)

    def record(self, index: int) -> dict[str, Any]:
        """What the engine knows about clip `index`: buttons, poses, objects in view, events."""
        first = index * CLIP_FRAMES
        steps = np.s_[first : first + CLIP_FRAMES]
        variables = np.array(self._variables[first : first + CLIP_FRAMES + 1])
        return {
            "engine": vizdoom.__version__,
            "rate_hz": FRAME_RATE_HZ,
            "has_sound": self._job.sound,
            "actions": self._actions[steps],
            "objects": self._objects[steps],
            "pose": np.round(variables[:CLIP_FRAMES, :3], 1).tolist(),
            "events": clip_events(variables, self._gains),
        }


def clip_events(variables: np.ndarray, gains: Mapping[str, str] = GAINS) -> list[list[int | str]]:
    """Events `[step, kind, detail]` between consecutive rows of the engine's game variables."""
    events = []
    column = {name: index for index, name in enumerate(_VARIABLES)}
    for step, (before, after) in enumerate(zip(variables, variables[1:])):
        gain = {name: int(after[i] - before[i]) for name, i in column.items()}
        weapon = int(after[column["SELECTED_WEAPON"]])
        if gain["SELECTED_WEAPON"]:
            events.append([step, "weapon", weapon])
        elif gain["SELECTED_WEAPON_AMMO"] < 0:
            events.append([step, "shot", weapon])
        events += [[step, kind, gain[name]] for kind, name in gains.items() if gain[name] > 0]
    return events


def is_lively(record: dict[str, Any]) -> bool:
    """Whether the camera moves or turns enough for the clip to show motion."""
    pose = np.array(record["pose"])
    moved = np.hypot(*np.diff(pose[:, :2], axis=0).T).sum()
    turned = np.abs((np.diff(pose[:, 2]) + 180) % 360 - 180).sum()
    return bool(moved >= MIN_MOVED_UNITS or turned >= MIN_TURNED_DEG)


def warm_up(game: vizdoom.DoomGame, agent: Wanderer, steps: int) -> None:
    """Walks unrecorded steps, so that clips start in mid-movement; stops where the episode ends."""
    for _ in range(steps):
        if game.is_episode_finished():
            return
        buttons = agent.act(game.get_state().depth_buffer, 100.0, 0)
        game.make_action([buttons.get(name, 0) for name in BUTTONS], 4)


def look_around(game: vizdoom.DoomGame, rng: np.random.Generator) -> None:
    """Turns the player to a random direction in one tic."""
    turn = [0.0] * len(BUTTONS)
    turn[BUTTONS.index("TURN_LEFT_RIGHT_DELTA")] = float(rng.uniform(-180, 180))
    game.make_action(turn, 1)


def serve(clips_of: Callable[[dict[str, Any]], Iterator[tuple[str, dict[str, Any]]]]) -> None:
    """A worker's whole life: one JSON job a line from standard input, answered on standard output.

    Each job is answered with pickled `(key, example)` pairs and then None, or the text of an error.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the engine prints to standard output
    for line in sys.stdin:
        try:
            for pair in clips_of(json.loads(line)):
                pickle.dump(pair, answers, protocol=5)
            pickle.dump(None, answers)
        except Exception:  # noqa: BLE001 - reported to the parent, which raises
            pickle.dump(traceback.format_exc(), answers)
        answers.flush()
