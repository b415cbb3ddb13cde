"""The Arenas-AV recipe: places and splits, camera and captions, small rendered builds."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

DATA = pathlib.Path(__file__).parents[2] / "data"
FOLDER = DATA / "arenas_av"
sys.path.insert(1, str(DATA))

from game_clips import workers  # noqa: E402

PROGRAM = FOLDER / "render.py"


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"arenas_av_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ARENAS, CAPTIONS = recipe("arenas"), recipe("captions")


def record(pose=None, objects=None, events=()):
    return {
        "place": "in the brown hall",
        "pose": pose or [[0.0, 0.0, 0.0]] * 17,
        "objects": objects or [[]] * 17,
        "events": list(events),
    }


def path(units=0.0, leftward=0.0, turn_deg=0.0):
    """Poses of a player that walks, strafes and turns by these in every step."""
    poses, x, y, angle = [], 0.0, 0.0, 30.0
    for _ in range(17):
        poses.append([x, y, angle])
        ahead, left = np.radians(angle), np.radians(angle + 90)
        x += units * np.cos(ahead) + leftward * np.cos(left)
        y += units * np.sin(ahead) + leftward * np.sin(left)
        angle = (angle + turn_deg) % 360
    return poses


# --- camera and captions


@pytest.mark.parametrize(
    "motion, words, speed",
    [
        ({"units": 12.0}, ["forward"], ("forward_units_per_s", 96.0)),
        ({"units": -12.0}, ["backward"], ("forward_units_per_s", -96.0)),
        ({"leftward": 10.0}, ["strafe left"], ("left_units_per_s", 80.0)),
        ({"leftward": -10.0}, ["strafe right"], ("left_units_per_s", -80.0)),
        ({"turn_deg": 5.0}, ["pan left"], ("pan_left_deg_per_s", 40.0)),
        ({"turn_deg": -5.0}, ["pan right"], ("pan_left_deg_per_s", -40.0)),
        ({}, ["static"], ("pan_left_deg_per_s", 0.0)),
    ],
)
def test_camera_words_and_speeds_are_those_of_the_poses(motion, words, speed):
    camera = CAPTIONS.camera(record(path(**motion)))
    assert camera["words"] == words and camera[speed[0]] == pytest.approx(speed[1], abs=0.11)


@pytest.mark.parametrize("turn_deg, manner", [(3.0, " slowly"), (4.5, ""), (7.0, " quickly")])
def test_a_turn_tells_its_rate(turn_deg, manner):
    assert CAPTIONS.caption(record(path(turn_deg=turn_deg))) == (f"in the brown hall the player turns left{manner}")


@pytest.mark.parametrize(
    "areas, verb",
    [
        (range(10, 180, 10), "comes closer"),
        (range(170, 0, -10), "goes away"),
        ([50] * 17, "in view"),
        ([5, 50, 200], "in view"),
    ],
)
def test_an_object_comes_goes_or_stays_by_its_area(areas, verb):
    seen = [[["DoomImp", 7, area]] for area in areas]
    objects = seen + [[]] * (17 - len(seen))
    assert CAPTIONS.caption(record(objects=objects)).endswith(f"an imp {verb}")


def test_place_action_and_events_stand_in_one_sentence():
    text = CAPTIONS.caption(
        record(
            path(units=20.0),
            [[["DoomImp", 1, 9], ["DoomImp", 2, 9], ["PatrolPoint", 3, 90]]] * 17,
            [[3, "shot", 2], [5, "kill", 1], [7, "heal", 25], [9, "heal", 3]],
        )
    )
    assert text == (
        "in the brown hall the player walks forward, fires the pistol, kills a monster, "
        "picks up a medical kit, two imps in view"
    )


# --- places and splits


def test_every_arena_has_a_place_of_its_own_and_they_all_ship():
    assert len({arena.place for arena in ARENAS.ARENAS}) == len(ARENAS.ARENAS) == 11
    pytest.importorskip("vizdoom")
    assert ARENAS.present() == ARENAS.ARENAS


def test_a_start_belongs_to_one_split():
    for arena in ARENAS.ARENAS:
        for split, regions in arena.held_out.items():
            for x0, y0, x1, y1 in regions:
                assert arena.split_of_start((x0 + x1) / 2, (y0 + y1) / 2) == split
    assert ARENAS.BY_NAME["my_way_home"].split_of_start(1e4, 1e4) == "train"
    assert ARENAS.BY_NAME["basic"].split_of_start(0, 0) is None


# --- rendered builds


def build(data_dir, *flags):
    return subprocess.run(
        [sys.executable, str(FOLDER / "build.py"), f"--data_dir={data_dir}", *flags],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("vizdoom")
    data_dir = tmp_path_factory.mktemp("arenas")
    result = build(data_dir, "--clips_per_arena=3", "--arena=my_way_home", "--arena=basic")
    assert result.returncode == 0, result.stderr
    return data_dir


@pytest.fixture(scope="module")
def clips(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(built / "arenas_av" / "1.0.0"))
    return {
        clip["key"].decode(): clip
        for split in ("train", "validation", "test")
        for clip in tfds.as_numpy(builder.as_dataset(split=split))
    }


def test_a_build_has_the_promised_clips(clips):
    assert sorted(clips) == [
        f"{split}/{arena}/0000{n}"
        for split in ("test", "train", "validation")
        for arena in ("basic", "my_way_home")
        for n in range(3)
    ]
    for clip in clips.values():
        assert clip["video"].shape == (17, 64, 64, 3) and clip["audio"].shape == (34_000,)
        assert np.abs(np.diff(clip["video"].astype(int), axis=0)).mean() > 1


def test_captions_and_camera_follow_from_the_stored_record(clips):
    for clip in clips.values():
        stored = json.loads(clip["record"])
        assert CAPTIONS.caption(stored) == clip["text"].decode()
        assert CAPTIONS.camera(stored) == stored["camera"]


def test_no_episode_stands_in_two_splits(clips):
    seeds = {
        split: {json.loads(clip["record"])["seed"] for key, clip in clips.items() if key.startswith(split)}
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, seeds.values())) == len(set().union(*seeds.values()))


def test_a_finished_set_is_kept_and_other_settings_are_refused(built):
    flags = ("--clips_per_arena=3", "--arena=my_way_home", "--arena=basic")
    again = build(built, *flags)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    refused = build(built, *flags[:2])
    assert refused.returncode == 2 and "--overwrite" in refused.stderr


def test_episodes_of_a_held_out_start_begin_there_and_nowhere_else():
    pytest.importorskip("vizdoom")
    program = "\n".join(
        [
            f"import sys; sys.path.insert(0, {str(FOLDER)!r})",
            "import json, render",
            "for split in ('train', 'validation', 'test'):",
            "    job = render.Job(split=split, arena='my_way_home', clips=1, size=64, seed=0, sound=False)",
            "    game = render.open_game(job)",
            "    for episode in range(40):",
            "        game.set_seed(render.episode_seed(job, episode)); game.new_episode()",
            "        if render.starts_here(game, job):",
            "            print(json.dumps([split, *game.get_state().game_variables[:2]]))",
            "    game.close()",
        ]
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    starts = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert {split for split, _, _ in starts} == {"train", "validation", "test"}, result.stderr
    for split, x, y in starts:
        assert ARENAS.BY_NAME["my_way_home"].split_of_start(x, y) == split


def test_a_missing_scenario_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    (tmp_path / "basic.wad").touch()
    module = recipe("arenas_av_dataset_builder")
    monkeypatch.setattr(module, "load_arenas", lambda: ARENAS)
    monkeypatch.setattr(ARENAS, "scenario_file", lambda name: tmp_path / f"{name}.wad")
    builder = module.Builder(data_dir=str(tmp_path), arenas=("basic", "take_cover"))
    assert builder.places("train") == ["basic"] and builder.missing == ["take_cover"]


def test_an_unknown_arena_is_refused(tmp_path):
    refused = build(tmp_path, "--arena=nowhere")
    assert refused.returncode == 2 and "my_way_home" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_worker_count_does_not_change_a_bit(clips):
    jobs = [
        {"split": "train", "arena": arena, "clips": 3, "size": 64, "seed": 0, "sound": workers.sound_available()}
        for arena in ("basic", "my_way_home")
    ]
    for key, clip in workers.render_jobs(PROGRAM, jobs, workers=1):
        assert np.array_equal(clip["video"], clips[key]["video"])
        assert np.array_equal(clip["audio"], clips[key]["audio"])
        assert clip["record"] == clips[key]["record"].decode()
