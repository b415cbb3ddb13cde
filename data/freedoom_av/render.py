"""Renders clips of ViZDoom's Freedoom maps; run as a program it is one worker process.

As a worker it reads one JSON `Job` a line from standard input and answers each with pickled
`(key, example)` pairs on standard output, then None, or the text of an error.

Shape legend: T frames of a clip, H/W engine rows/columns, S resized side, D depth side, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import json
import math
import os
import pickle
import sys
import traceback
from typing import Any

import numpy as np
import vizdoom

from agent import BUTTONS, Wanderer
from captions import caption
from resampling import (FRAME_RATE_HZ, SAMPLE_RATE_HZ, SAMPLES_PER_TIC,
                        area_resize, point_resize, resample_audio, tics_of_step)

CLIP_FRAMES = 17
CLIP_SAMPLES = CLIP_FRAMES * SAMPLE_RATE_HZ // FRAME_RATE_HZ
CLIPS_PER_PLACE = 4
PLACES_PER_EPISODE = 5
MAX_WARM_UP_STEPS = 12
MIN_MOVED_UNITS = 64.0  # a clip that neither moves nor turns this much is not kept
MIN_TURNED_DEG = 30.0
DISPLAY_GAMMA = 1.4  # as a player sets it on a monitor; the engine's own frames are dark
MAX_TRIES = 6  # rendered clips per kept clip before a map counts as unusable
NATIVE_RESOLUTIONS = {64: "RES_160X120", 128: "RES_320X240", 256: "RES_640X480"}

_BRIGHTER = np.round(255 * (np.arange(256) / 255) ** (1 / DISPLAY_GAMMA)).astype(np.uint8)
_VARIABLES = ("POSITION_X", "POSITION_Y", "ANGLE", "HEALTH", "SELECTED_WEAPON",
              "SELECTED_WEAPON_AMMO", "KILLCOUNT", "ITEMCOUNT", "DAMAGE_TAKEN")
_PICKUPS = frozenset({
    "HealthBonus", "ArmorBonus", "Stimpack", "Medikit", "GreenArmor", "BlueArmor", "Clip",
    "ClipBox", "Shell", "ShellBox", "RocketAmmo", "RocketBox", "Cell", "CellPack", "Shotgun",
    "SuperShotgun", "Chaingun", "RocketLauncher", "PlasmaRifle", "Backpack"})
_MONSTERS = frozenset({
    "Zombieman", "ShotgunGuy", "ChaingunGuy", "DoomImp", "Demon", "Spectre", "LostSoul",
    "Cacodemon", "PainElemental", "HellKnight", "BaronOfHell", "Revenant", "Fatso", "Arachnotron",
    "Archvile", "Cyberdemon", "SpiderMastermind", "WolfensteinSS"})


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
    """Starts an engine process for one map, without a window, a status bar or music."""
    game = vizdoom.DoomGame()
    game.set_doom_game_path(os.path.join(os.path.dirname(vizdoom.__file__), job.wad))
    game.set_doom_map(job.map_name)
    game.set_screen_resolution(
        getattr(vizdoom.ScreenResolution, NATIVE_RESOLUTIONS[job.size]))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(True)
    game.set_objects_info_enabled(True)
    game.set_window_visible(False)
    game.set_render_hud(False)
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.set_render_screen_flashes(False)
    # Without blood, smoke and bullet marks and with the fewest monsters, a clip is about motion.
    game.set_render_effects_sprites(False)
    game.set_render_particles(False)
    game.set_render_decals(False)
    game.set_doom_skill(1)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in BUTTONS])
    game.set_available_game_variables(
        [getattr(vizdoom.GameVariable, name) for name in _VARIABLES])
    # Without the last one, "a secret is revealed" stays written over the rest of an episode.
    game.add_game_args("+sv_cheats 1 +con_notifytime 0 +cl_showsecretmessage 0")
    if job.sound:
        game.set_audio_buffer_enabled(True)
        game.set_audio_sampling_rate(vizdoom.SamplingRate.SR_22050)
        game.set_audio_buffer_size(max(tics_of_step(step) for step in range(FRAME_RATE_HZ)))
        # OpenAL Soft 1.19 aborts when the engine turns its effects on.
        game.add_game_args("+snd_efx 0 +snd_musicvolume 0")
    game.set_seed(episode_seed(job, 0))
    game.init()
    return game


class Recorder:
    """Plays one stretch of steps without a gap and cuts it into clips."""

    def __init__(self, game: vizdoom.DoomGame, job: Job, agent: Wanderer):
        self._game, self._job, self._agent = game, job, agent
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
                self._audio.append(state.audio_buffer[-tics * SAMPLES_PER_TIC:].copy())
            moved = math.dist(state.game_variables[:2], self._variables[-1][:2])
        return max(done - 1, 0) // CLIP_FRAMES

    def _keep(self, state: vizdoom.GameState) -> None:
        height, width = state.depth_buffer.shape
        left = (width - height) // 2
        crop = np.s_[:, left:left + height]
        self._frames.append(area_resize(_BRIGHTER[state.screen_buffer[crop]], self._job.size))
        self._depths.append(point_resize(state.depth_buffer[crop], self._job.size // 2))
        self._variables.append(np.array(state.game_variables))
        pixels = np.bincount(state.labels_buffer[crop].ravel(), minlength=256)
        permille = pixels * 1000 // (height * height)
        self._objects.append([
            [label.object_name, int(label.object_id), int(permille[label.value])]
            for label in state.labels
            if label.object_name != "DoomPlayer" and permille[label.value]])

    def _monsters(self) -> int:
        return sum(name in _MONSTERS for name, _, _ in self._objects[-1])

    def clip(self, index: int) -> dict[str, Any]:
        """Clip `index` of the stretch, without its key, text and record."""
        steps = np.s_[index * CLIP_FRAMES:(index + 1) * CLIP_FRAMES]
        audio_N = self._sound[index * CLIP_SAMPLES:(index + 1) * CLIP_SAMPLES]
        return {"video": np.stack(self._frames[steps]), "depth": np.stack(self._depths[steps]),
                "audio": audio_N}

    @functools.cached_property
    def _sound(self) -> np.ndarray:
        if not self._job.sound:
            return np.zeros(CLIPS_PER_PLACE * CLIP_SAMPLES, np.int16)
        stereo_Nx2 = np.concatenate(self._audio).astype(np.int32)
        return resample_audio(stereo_Nx2.sum(1) // 2)

    def record(self, index: int) -> dict[str, Any]:
        """What the engine knows about clip `index`: buttons, poses, objects in view, events."""
        first = index * CLIP_FRAMES
        steps = np.s_[first:first + CLIP_FRAMES]
        variables = np.array(self._variables[first:first + CLIP_FRAMES + 1])
        return {
            "map": self._job.map_name, "wad": self._job.wad, "engine": vizdoom.__version__,
            "rate_hz": FRAME_RATE_HZ, "has_sound": self._job.sound,
            "actions": self._actions[steps], "objects": self._objects[steps],
            "pose": np.round(variables[:CLIP_FRAMES, :3], 1).tolist(),
            "events": clip_events(variables),
        }


def clip_events(variables: np.ndarray) -> list[list[int | str]]:
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
        events += [[step, kind, gain[name]] for kind, name in
                   (("kill", "KILLCOUNT"), ("pickup", "ITEMCOUNT"), ("hurt", "DAMAGE_TAKEN"))
                   if gain[name] > 0]
    return events


def is_lively(record: dict[str, Any]) -> bool:
    """Whether the camera moves or turns enough for the clip to show motion."""
    pose = np.array(record["pose"])
    moved = np.hypot(*np.diff(pose[:, :2], axis=0).T).sum()
    turned = np.abs((np.diff(pose[:, 2]) + 180) % 360 - 180).sum()
    return bool(moved >= MIN_MOVED_UNITS or turned >= MIN_TURNED_DEG)


def go_to_random_place(game: vizdoom.DoomGame, rng: np.random.Generator) -> None:
    """Heals and arms the player and moves it to where an item lies, looking in any direction."""
    game.send_game_command("give health")
    game.send_game_command("give ammo")
    places = sorted({(int(o.position_x), int(o.position_y)) for o in game.get_state().objects
                     if o.name in _PICKUPS})
    if places:
        x, y = places[rng.integers(len(places))]
        game.send_game_command(f"warp {x} {y}")
    turn = [0.0] * len(BUTTONS)
    turn[BUTTONS.index("TURN_LEFT_RIGHT_DELTA")] = float(rng.uniform(-180, 180))
    game.make_action(turn, 1)


def warm_up(game: vizdoom.DoomGame, agent: Wanderer, rng: np.random.Generator) -> None:
    """Walks a random number of unrecorded steps, so that clips start in mid-movement."""
    for _ in range(int(rng.integers(4, MAX_WARM_UP_STEPS + 1))):
        if game.is_episode_finished():
            return
        buttons = agent.act(game.get_state().depth_buffer, 100.0, 0)
        game.make_action([buttons.get(name, 0) for name in BUTTONS], 4)


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
        warm_up(game, agent, rng)
        if game.is_episode_finished():
            return
        recorder = Recorder(game, job, agent)
        for index in range(recorder.play(CLIPS_PER_PLACE)):
            record = {"seed": seed, "episode": episode, "place": place, "clip": index,
                      **recorder.record(index)}
            if is_lively(record):
                yield {**recorder.clip(index), "text": caption(record),
                       "record": json.dumps(record, separators=(",", ":"))}


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


def main() -> None:
    """Serves jobs until standard input ends; pickles go out on the original standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the engine prints to standard output
    for line in sys.stdin:
        try:
            for pair in map_clips(Job(**json.loads(line))):
                pickle.dump(pair, answers, protocol=5)
            pickle.dump(None, answers)
        except Exception:  # noqa: BLE001 - reported to the parent, which raises
            pickle.dump(traceback.format_exc(), answers)
        answers.flush()


if __name__ == "__main__":
    main()
