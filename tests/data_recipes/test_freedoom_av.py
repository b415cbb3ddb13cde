"""The Freedoom-AV recipe: clock, resampling, captions, splits, and small rendered builds."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

DATA = pathlib.Path(__file__).parents[2] / "data"
FOLDER = DATA / "freedoom_av"
sys.path.insert(1, str(DATA))

from game_clips import resampling, words, workers  # noqa: E402


@functools.cache
def recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"freedoom_av_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def still_record(**fields):
    return {"pose": [[0.0, 0.0, 0.0]] * 17, "objects": [[]] * 17, "events": [], **fields}


def walk(units: float, angle_deg: float = 0.0, turn_deg: float = 0.0):
    """Poses of a player that walks `units` a step along its heading and turns between steps."""
    poses, x, y, angle = [], 0.0, 0.0, angle_deg
    for _ in range(17):
        poses.append([x, y, angle])
        x += units * np.cos(np.radians(angle))
        y += units * np.sin(np.radians(angle))
        angle = (angle + turn_deg) % 360
    return poses


# --- the clock and the filters


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 17, 800, 12_345])
def test_steps_keep_exactly_eight_a_second(steps):
    tics_of_step = resampling.tics_of_step
    assert sum(map(tics_of_step, range(steps))) == steps * 35 // 8
    assert [tics_of_step(s) for s in range(8)] == [4, 4, 5, 4, 4, 5, 4, 5]


@pytest.mark.parametrize("source, size", [(120, 64), (240, 128), (480, 256), (12, 5)])
def test_area_resize_is_the_rounded_area_mean(source, size):
    frame = np.random.default_rng(source).integers(0, 256, (source, source, 3), dtype=np.uint8)
    frame[0, 0] = 255
    scale = source / size
    overlap = np.zeros((size, source))
    for m in range(size):
        for h in range(source):
            overlap[m, h] = max(0.0, min((m + 1) * scale, h + 1) - max(m * scale, h))
    mean = np.einsum("mh,nw,hwc->mnc", overlap, overlap, frame.astype(float), optimize=True) / scale**2
    resized = resampling.area_resize(frame, size)
    assert resized.shape == (size, size, 3) and resized.dtype == np.uint8
    assert np.abs(resized - mean).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_area_resize_keeps_a_flat_frame(value):
    frame = np.full((120, 120, 3), value, np.uint8)
    assert (resampling.area_resize(frame, 64) == value).all()


def test_point_resize_takes_only_values_that_exist():
    image = np.arange(120 * 120).reshape(120, 120)
    small = resampling.point_resize(image, 32)
    rows, columns = np.divmod(small, 120)
    centres = (np.arange(32) + 0.5) * 120 / 32
    assert np.abs(rows + 0.5 - centres[:, None]).max() <= 0.5
    assert np.abs(columns + 0.5 - centres).max() <= 0.5


@pytest.mark.parametrize("frequency_hz", [50, 440, 3_000, 6_500])
def test_resampled_sine_is_the_sine_at_16_khz_without_delay(frequency_hz):
    wave = lambda rate_hz, n: 12_000 * np.sin(2 * np.pi * frequency_hz * np.arange(n) / rate_hz)
    sound = resampling.resample_audio(np.round(wave(22_050, 22_050)).astype(np.int32))
    assert len(sound) == 16_000 and sound.dtype == np.int16
    inner = slice(100, -100)
    error = sound[inner] - wave(16_000, 16_000)[inner]
    assert 10 * np.log10(np.mean(error**2) / (12_000**2 / 2)) < -40


def test_resampling_removes_what_16_khz_cannot_hold():
    wave = 12_000 * np.sin(2 * np.pi * 9_800 * np.arange(22_050) / 22_050)
    sound = resampling.resample_audio(np.round(wave).astype(np.int32))
    assert np.abs(sound[100:-100].astype(float)).max() < 12_000 * 0.03


@hypothesis.given(length=st.integers(0, 3_000), level=st.integers(-32_768, 32_767))
def test_resampled_constant_stays_constant_and_length_is_exact(length, level):
    sound = resampling.resample_audio(np.full(length, level, np.int32))
    assert len(sound) == -(-length * 320 // 441)
    assert (sound[24:-24] == level).all()


# --- captions


def test_caption_of_an_imp_and_a_barrel():
    objects = [[["DoomImp", 7, 30], ["ExplosiveBarrel", 8, 12], ["BulletPuff", 9, 50]]] * 17
    record = still_record(
        pose=walk(30, angle_deg=350, turn_deg=4),
        objects=objects,
        events=[[3, "shot", 3], [4, "shot", 3], [6, "kill", 1]],
    )
    assert recipe("captions").caption(record) == (
        "the player turns left and walks forward, fires the shotgun, kills a monster, an imp and a barrel in view"
    )


@pytest.mark.parametrize(
    "pose, words",
    [
        (walk(0), "the player hardly moves"),
        (walk(20), "the player walks forward"),
        (walk(-20, angle_deg=123), "the player walks backward"),
        (walk(0, turn_deg=-5), "the player turns right"),
        ([[0.0, 10.0 * i, 0.0] for i in range(17)], "the player steps left"),
        ([[0.0, 10.0 * i, 180.0] for i in range(17)], "the player steps right"),
    ],
)
def test_motion_words_follow_the_poses(pose, words):
    assert recipe("captions").caption(still_record(pose=pose)) == words


def test_buttons_pressed_against_a_wall_are_not_called_walking():
    record = still_record(actions=[{"MOVE_FORWARD": 1}] * 17)
    assert "walks" not in recipe("captions").caption(record)


def test_objects_too_small_or_too_brief_are_not_named():
    tiny = [[["DoomImp", 1, 3]]] * 17
    brief = [[["Cacodemon", 2, 200]]] * 2 + [[]] * 15
    assert "in view" not in recipe("captions").caption(still_record(objects=tiny))
    assert "in view" not in recipe("captions").caption(still_record(objects=brief))


def test_what_happens_after_the_last_frame_is_not_told():
    assert "fires" not in recipe("captions").caption(still_record(events=[[16, "shot", 2]]))
    assert "fires the pistol" in recipe("captions").caption(still_record(events=[[15, "shot", 2]]))


@pytest.mark.parametrize(
    "engine_class, spoken",
    [
        ("DoomImp", "imp"),
        ("DeadDoomImp", "dead imp"),
        ("DeadMarine", "dead marine"),
        ("HeadOnAStick", "head on a stick"),
        ("NonsolidMeat5", "hanging body"),
        ("ShortBlueTorch", "short blue torch"),
        ("BFG9000", "energy cannon"),
        ("SomeNewThing3", "some new thing 3"),
    ],
)
def test_plain_names(engine_class, spoken):
    assert words.plain_name(engine_class) == spoken


@pytest.mark.parametrize(
    "name, many",
    [
        ("imp", "imps"),
        ("box of shells", "boxes of shells"),
        ("torch", "torches"),
        ("column with a skull", "columns with a skull"),
        ("head on a stick", "heads on a stick"),
        ("hanging body", "hanging bodies"),
        ("green armor vest", "green armor vests"),
    ],
)
def test_plural(name, many):
    assert words.plural(name) == many


def test_events_are_told_in_order_and_scratches_are_not():
    told = [[2, "hurt", 3], [4, "weapon", 4], [7, "hurt", 30], [9, "shot", 4], [11, "kill", 2]]
    assert recipe("captions").caption(still_record(events=told)) == (
        "the player hardly moves, changes to the chaingun, gets hurt, fires the chaingun, kills two monsters"
    )


def test_counts_and_plurals():
    labels = [["ShellBox", i, 20] for i in range(2)] + [["DoomImp", 9 + i, 5] for i in range(5)]
    text = recipe("captions").caption(still_record(objects=[labels] * 17))
    assert text.endswith("two boxes of shells and several imps in view")


labels = st.tuples(
    st.sampled_from(["DoomImp", "Medikit", "BulletPuff", "SomeNewThing3"]), st.integers(0, 9), st.integers(0, 999)
)
records = st.builds(
    still_record,
    pose=st.lists(st.tuples(*[st.floats(-500, 500)] * 3), min_size=17, max_size=17),
    objects=st.lists(st.lists(labels, max_size=4), min_size=17, max_size=17),
    events=st.lists(
        st.tuples(st.integers(0, 16), st.sampled_from(["shot", "kill", "weapon", "hurt", "pickup"]), st.integers(1, 7)),
        max_size=6,
    ),
)


@hypothesis.given(record=records)
def test_caption_is_deterministic_short_and_names_only_what_is_recorded(record):
    captions = recipe("captions")
    text = captions.caption(record)
    assert text == captions.caption(json.loads(json.dumps(record)))
    assert text.startswith("the player ") and len(text) < 250 and "  " not in text
    seen = {name for frame in record["objects"] for name, _, _ in frame}
    for engine_class, word in (("DoomImp", "imp"), ("Medikit", "medical kit"), ("SomeNewThing3", "some new thing 3")):
        assert engine_class in seen or word not in text
    kinds = {kind for _, kind, _ in record["events"]}
    assert ("fires" in text) <= ("shot" in kinds) and ("kills" in text) <= ("kill" in kinds)


# --- splits, records, agent


def test_splits_share_no_map_and_cover_all_68():
    maps = recipe("splits").MAPS
    every = [pair for split in maps.values() for pair in split]
    assert len(every) == len(set(every)) == 68
    assert [len(maps[split]) for split in ("train", "validation", "test")] == [51, 4, 13]
    assert ("freedoom2.wad", "map28") in maps["validation"]
    assert ("freedoom1.wad", "e4m9") in maps["test"]


def test_the_recipe_does_not_depend_on_the_library():
    lists = {"cases.py", "case_list.py"}  # Made of the finished data, for benchmarks.
    for path in (p for folder in (FOLDER, DATA / "game_clips") for p in folder.glob("*.py") if p.name not in lists):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "poet" for name in names), path


def test_missing_engine_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[freedoom\]'"):
        workers.check_engine()


# --- rendered builds


def build(data_dir, *flags, cwd=None):
    return subprocess.run(
        [
            sys.executable,
            str(FOLDER / "build.py"),
            f"--data_dir={data_dir}",
            "--clips_per_map=2",
            "--max_maps=1",
            *flags,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
    )


def read(data_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(data_dir / "freedoom_av" / "1.0.0"))
    return {
        example["key"].decode(): example
        for split in ("train", "validation", "test")
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


def digest(clips):
    state = hashlib.sha256()
    for key in sorted(clips):
        for name in ("video", "audio", "depth"):
            state.update(clips[key][name].tobytes())
        for name in ("text", "record"):
            value = clips[key][name]
            state.update(value if isinstance(value, bytes) else value.encode())
    return state.hexdigest()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("vizdoom")
    data_dir, here = tmp_path_factory.mktemp("one_worker"), tmp_path_factory.mktemp("here")
    result = build(data_dir, "--workers=1", cwd=here)
    assert result.returncode == 0, result.stderr
    # Engines that share a working folder trip over each other's files.
    assert not list(here.iterdir())
    return data_dir, result


def test_a_build_has_the_promised_clips(built):
    clips = read(built[0])
    assert sorted(clips) == [
        f"{place}/0000{n}"
        for place in ("test/freedoom2-map29", "train/freedoom2-map01", "validation/freedoom2-map25")
        for n in (0, 1)
    ]
    assert "6 clips, 0.2 minutes" in built[1].stdout
    for clip in clips.values():
        assert clip["video"].shape == (17, 64, 64, 3) and clip["video"].dtype == np.uint8
        assert clip["audio"].shape == (34_000,) and clip["audio"].dtype == np.int16
        assert clip["depth"].shape == (17, 32, 32) and clip["depth"].dtype == np.uint8
        assert np.abs(np.diff(clip["video"].astype(int), axis=0)).mean() > 1
        assert len(np.unique(clip["depth"])) > 8


def test_captions_can_be_derived_again_from_the_stored_record(built):
    for clip in read(built[0]).values():
        assert recipe("captions").caption(json.loads(clip["record"])) == clip["text"].decode()


def test_consecutive_clips_do_not_overlap(built):
    clips = read(built[0])
    places = {
        tuple(json.loads(c["record"])[k] for k in ("wad", "map", "episode", "place", "clip")) for c in clips.values()
    }
    assert len(places) == len(clips)
    first, second = (clips[f"train/freedoom2-map01/0000{n}"]["video"] for n in (0, 1))
    assert not (first[:, None] == second[None]).all((2, 3, 4)).any()


def rendered(count, seed=0):
    jobs = [
        {
            "split": split,
            "wad": "freedoom2.wad",
            "map_name": name,
            "clips": 2,
            "size": 64,
            "seed": seed,
            "sound": workers.sound_available(),
        }
        for split, name in (("validation", "map25"), ("test", "map29"), ("train", "map01"))
    ]
    return dict(workers.render_jobs(FOLDER / "render.py", jobs, count))


def test_worker_count_does_not_change_a_bit_and_the_seed_does(built):
    stored = read(built[0])
    assert digest(rendered(2)) == digest(stored)
    other = rendered(3, seed=1)
    assert sorted(other) == sorted(stored)
    for key, clip in other.items():
        assert not np.array_equal(clip["video"], stored[key]["video"])


def test_a_build_without_sound_says_so_in_every_record():
    pytest.importorskip("vizdoom")
    job = {
        "split": "train",
        "wad": "freedoom1.wad",
        "map_name": "e1m1",
        "clips": 2,
        "size": 128,
        "seed": 0,
        "sound": False,
    }
    for _, clip in workers.render_jobs(FOLDER / "render.py", [job], workers=1):
        assert clip["video"].shape == (17, 128, 128, 3) and clip["depth"].shape == (17, 64, 64)
        assert clip["audio"].shape == (34_000,) and not clip["audio"].any()
        assert json.loads(clip["record"])["has_sound"] is False


def test_a_failing_worker_reports_its_traceback():
    pytest.importorskip("vizdoom")
    with pytest.raises(RuntimeError, match="no_such.wad"):
        list(
            workers.render_jobs(
                FOLDER / "render.py",
                [
                    {
                        "split": "train",
                        "wad": "no_such.wad",
                        "map_name": "map01",
                        "clips": 1,
                        "size": 64,
                        "seed": 0,
                        "sound": False,
                    }
                ],
                workers=1,
            )
        )


def test_a_finished_set_is_kept_and_other_settings_are_refused(built):
    again = build(built[0], "--workers=1")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    refused = build(built[0], "--seed=5")
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_wrong_size_is_refused(tmp_path):
    refused = build(tmp_path, "--size=100")
    assert refused.returncode == 2 and "(64, 128, 256)" in refused.stderr
