"""Poet's own benchmarks: the list, what is given, trivial submissions, scores with known answers, the command."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from poet import cli, media
from poet.evaluation.metric import METRICS
from poet.evaluation.score.sides import content_hash
from poet.evaluation.suites import cases, run, scoring, submissions, tasks, trivial, writing
from poet.evaluation.suites.cases import Case, Real
from poet.spec import ClipSpec, SampleSpec, UserError
from poet.store import captions
from poet.store.raw import RawClip

SUITE = cases.load("arenas")
CLIP = SUITE.clip


def video(seed: int) -> np.ndarray:
    """uint8 [17, 64, 64, 3]: smooth colours that move."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(30, 220, (12, 20, 3)), np.ones((8, 8, 1)))
    return np.stack([ground[:64, t : t + 64] for t in range(17)]).astype(np.uint8)


def real(n: int, text: str = "in the brown hall the player turns right") -> Real:
    case = Case(
        name=f"basic_{n:05d}", key=f"test/basic/{n:05d}", episode=f"basic/{n}", text=text, video="", shots=(n + 2,)
    )
    sound = (np.random.default_rng(n).normal(0, 3000, CLIP.samples)).astype(np.int16)
    return Real(case=case, video=video(n), sound=sound, depth=np.linspace(1, 9, 17 * 64).reshape(17, 8, 8))


REALS = [real(n) for n in range(4)]
# A submission that has the true clips, sounds and captions.
TRUE = submissions.Made(
    videos=[one.video for one in REALS], sounds=[one.sound for one in REALS], texts=[one.case.text for one in REALS]
)


@pytest.fixture(scope="module")
def simple() -> trivial.Trivial:
    training = cases_items([video(n) for n in range(10, 15)])
    return trivial.of(REALS, training)


def cases_items(videos):
    return cases.items([real(n) for n in range(len(videos))], videos)


# ------------------------------------------------------------------------------------------- the list


def test_the_list_is_balanced_and_of_different_clips():
    places = [case.key.split("/")[1] for case in SUITE.cases]
    assert len(set(places)) == 11 and len(SUITE.cases) == 132
    for count in (11, 22, 33):
        assert len(set(places[:count])) == 11, "a beginning has all places"
        assert len({case.episode for case in SUITE.cases[:count]}) >= count * 2 // 3
    for field in ("name", "key", "video"):
        assert len({getattr(case, field) for case in SUITE.cases}) == 132, field
    assert all(case.key.startswith("test/") for case in SUITE.cases), "no clip of another split"


def test_a_list_takes_turns_of_places_and_episodes():
    clips = [
        (
            RawClip(key=f"test/{place}/{n:05d}", caption=f"{place} {n}", video=video(n), audio=None),
            {"episode": n // 2, "events": [[n, "shot", 2], [16, "shot", 2], [1, "kill", 1]]},
        )
        for place in ("b", "a")
        for n in range(4)
    ]
    fields = {name: getattr(SUITE, name) for name in ("name", "version", "data", "split", "clip")}
    made = cases.chosen(fields, clips, per_place=3)
    assert [case.name for case in made.cases] == ["a_00000", "b_00000", "a_00002", "b_00002", "a_00001", "b_00001"]
    assert made.cases[0].video == content_hash(video(0)) and made.cases[0].episode == "a/0"
    assert made.cases[2].shots == (3,), "the frame after the shot; none follows the last one"
    assert made.fingerprint != dataclasses.replace(made, version=3).fingerprint


def test_other_clips_under_the_same_keys_are_refused(monkeypatch):
    found = [RawClip(key=case.key, caption="", video=video(n), audio=None) for n, case in enumerate(SUITE.cases[:2])]
    monkeypatch.setattr(cases, "raw", lambda *_: found)
    with pytest.raises(UserError, match="2 of 2 clips are missing or differ.*build.py"):
        cases.clips(SUITE, "elsewhere", 2)
    same = [dataclasses.replace(case, video=content_hash(video(n))) for n, case in enumerate(SUITE.cases[:2])]
    reals = cases.clips(dataclasses.replace(SUITE, cases=tuple(same[::-1])), "here")
    assert [one.case.key for one in reals] == [same[1].key, same[0].key], "in the order of the list"


# -------------------------------------------------------------------------------------------- the tasks


def test_tasks_name_metrics_and_baselines_that_are_there(simple):
    for task in tasks.TASKS.values():
        assert set(task.metrics) <= METRICS.keys() and set(task.baselines) <= tasks.BASELINES.keys()
        found = scoring.candidates(task, REALS, TRUE, simple, ())
        ceiling = [] if task.writes else [scoring.TRUE]
        assert [one.name for one in found] == [scoring.SUBMISSION, *task.baselines, *ceiling]
        dtype = np.asarray(TRUE.of(task)[0]).dtype.kind
        assert all(len(one.made) == len(REALS) and np.asarray(one.made[0]).dtype.kind == dtype for one in found)


@pytest.mark.parametrize(
    "name, share, measured",
    [
        ("text_to_video", 0.0, 17),
        ("image_to_video", 1 / 17, 16),
        ("frame_prediction", 5 / 17, 12),
        ("frame_interpolation", 2 / 17, 15),
        ("inpainting", 0.75, 17),
        ("outpainting", 0.25, 17),
    ],
)
def test_what_the_condition_holds_is_put_into_every_submission(name, share, measured):
    task, other = tasks.TASKS[name], 255 - REALS[0].video
    assert task.given(64, 64).mean() == pytest.approx(share) and len(task.measured) == measured
    whole = submissions.complete(task, REALS[0], other)
    same = (whole == REALS[0].video).all(-1)
    assert same[task.given(64, 64)].all() and (whole[~task.given(64, 64)] == other[~task.given(64, 64)]).all()


def test_conditions_hold_nothing_of_what_is_to_be_made(tmp_path):
    submissions.write_conditions(SUITE, REALS[:1], tmp_path)
    for name, task in tasks.TASKS.items():
        [line] = map(json.loads, (tmp_path / name / submissions.CASES).read_text().splitlines())
        assert line["name"] == REALS[0].case.name and ("prompt" in line) == task.text
        assert ("clip" in line) == (name != "text_to_video")
    hole = media.read_clip(tmp_path / "inpainting" / "basic_00000.apng", CLIP).video
    given = tasks.TASKS["inpainting"].given(64, 64)
    assert (hole[given] == REALS[0].video[given]).all() and len(np.unique(hole[~given])) == 1
    five = dataclasses.replace(CLIP, frames=5)
    np.testing.assert_array_equal(
        media.read_clip(tmp_path / "frame_prediction" / "basic_00000.apng", five).video, REALS[0].video[:5]
    )
    with pytest.raises(media.MediaError, match="too short"):
        media.read_clip(tmp_path / "frame_prediction" / "basic_00000.apng", CLIP)


def test_a_crossfade_goes_from_end_to_end():
    mixed = trivial.crossfade(REALS[0].video)
    np.testing.assert_array_equal(mixed[[0, -1]], REALS[0].video[[0, -1]])
    np.testing.assert_allclose(mixed[8], (REALS[0].video[0].astype(float) + REALS[0].video[-1]) / 2, atol=0.5)


# --------------------------------------------------------------------------------------------- scores


def rows_of(task: tasks.SuiteTask, videos, simple) -> dict[tuple[str, str], dict]:
    chosen = scoring.candidates(task, REALS, submissions.Made(videos=videos), simple, ())
    return {(row["candidate"], row["metric"]): row for row in scoring.measure(task, REALS, chosen, CLIP.rate_hz)}


def test_psnr_is_that_of_the_frames_that_are_made_and_differences_are_paired(simple):
    task = tasks.TASKS["frame_prediction"]
    noisy = [np.clip(one.video + 16.0 * (-1) ** n, 0, 255).astype(np.uint8) for n, one in enumerate(REALS)]
    rows = rows_of(task, noisy, simple)
    own, held = rows[scoring.SUBMISSION, "psnr_db"], rows["last frame", "psnr_db"]
    assert own["value"] == pytest.approx(20 * np.log10(255 / 16), abs=0.02), "frames that are given would raise it"
    by_hand = [
        np.mean([10 * np.log10(255**2 / np.mean((r.video[4].astype(float) - r.video[t]) ** 2)) for t in range(5, 17)])
        for r in REALS
    ]
    assert held["value"] == pytest.approx(np.mean(by_hand))
    assert held["difference"] == pytest.approx(own["value"] - np.mean(by_hand)) and held["pairs"] == 4
    assert held["verdict"] == "better"
    assert scoring.beaten(list(rows.values()), task)["better"] == [
        "last frame",
        "nearest training clip",
        "another clip",
    ]
    assert (scoring.TRUE, "psnr_db") not in rows, "a clip against itself says nothing"


def test_a_clip_that_is_not_there_does_not_count(simple):
    rows = rows_of(tasks.TASKS["frame_interpolation"], [None, *(one.video for one in REALS[1:])], simple)
    assert rows[scoring.SUBMISSION, "psnr_db"]["clips"] == 3 and rows["crossfade", "psnr_db"]["clips"] == 4
    assert rows["crossfade", "psnr_db"]["pairs"] == 3


def test_sounds_are_scored_beside_silence_and_wrong_sounds(simple):
    task = tasks.TASKS["video_to_audio"]
    made = submissions.Made(sounds=[one.sound for one in REALS])
    found = scoring.measure(task, REALS, scoring.candidates(task, REALS, made, simple, ()), CLIP.rate_hz)
    rows = {(row["candidate"], row["metric"]): row for row in found}
    assert rows[scoring.SUBMISSION, "log-mel_db"]["value"] == 0
    assert rows["silence", "log-mel_db"]["value"] > rows["another sound", "log-mel_db"]["value"] > 0
    assert rows["silence", "log-mel_db"]["verdict"] == "better", "less is better"


def test_copies_of_training_clips_are_nearer_than_other_clips():
    training = cases_items([video(n) for n in range(20, 30)])
    made = {"copied": submissions.Made(videos=[video(n) for n in (20, 21, 22, 23)])}
    search = scoring.Search.of(REALS, made, cases_items([video(n) for n in range(40, 50)]))
    assert len(list(search.passing(training))) == 10
    found = search.found["copied"]
    assert found["median"]["submission"] == pytest.approx(1) and found["p"] < 0.01


# --------------------------------------------------------------------------------------------- the command


@pytest.fixture
def little(monkeypatch):
    """A benchmark of the clips above, with five training clips."""
    suite = dataclasses.replace(SUITE, cases=tuple(one.case for one in REALS))
    splits = {"train": [video(n) for n in range(10, 15)], SUITE.split: [video(n) for n in range(30, 33)]}
    monkeypatch.setattr(cases, "load", lambda name: suite)
    monkeypatch.setattr(cases, "clips", lambda suite, path, count: REALS[: count or None])
    monkeypatch.setattr(cases, "others", lambda suite, path, split: iter(cases_items(splits[split])))
    return suite


def write_submission(folder: Path) -> Path:
    for n, one in enumerate(REALS[:3]):
        media.write_mp4(folder / "text_to_video" / f"{one.case.name}.mp4", video(50 + n), CLIP.rate_hz)
        media.write_wav(folder / "video_to_audio" / f"{one.case.name}.wav", one.sound, CLIP.sample_rate_hz)
    (folder / "text_to_video" / f"{REALS[3].case.name}.mp4").write_bytes(b"no film")
    return folder


def test_a_folder_of_another_model_is_scored_without_weights(little, tmp_path, capsys):
    made = write_submission(tmp_path / "made")
    words = ["benchmark", "arenas", f"--data={tmp_path}", f"--submission={made}", f"--out={tmp_path / 'out'}"]
    assert cli.main(words) == 0
    result = json.loads((tmp_path / "out" / writing.RESULT).read_text())
    assert result["list"] == little.fingerprint and list(result["tasks"]) == ["text_to_video", "video_to_audio"]
    unreadable = result["tasks"]["text_to_video"]["unreadable"]
    assert list(unreadable) == ["basic_00003"]
    said = capsys.readouterr().out
    assert "basic_00003" in said and "similarity to the nearest training clip" in said
    page = (tmp_path / "out" / writing.PAGE).read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "whisker" in page
    table = (tmp_path / "out" / writing.CSV).read_text().splitlines()
    assert len(table) - 1 == sum(len(found["rows"]) for found in result["tasks"].values())
    markdown = (tmp_path / "out" / writing.MARKDOWN).read_text()
    assert "| submission | " in markdown and "## Video to audio" in markdown and writing.lead(result) in markdown
    assert cli.main(words) == 2, "an earlier one is not replaced"
    for found in result["tasks"].values():
        del found["ranked_by"], found["best_trivial"]
    for found in result["leaks"].values():
        del found["difference"]
    before = writing.markdown({**result, "version": 1})
    assert "By place_agreement the submission is" in before, "results of version 1 can be read"


@pytest.mark.parametrize(
    "more, said",
    [
        (["--data=x"], "give one of --checkpoint, --submission"),
        (["--submission=x", "--out=y"], "--data is needed: python data/arenas_av/build.py"),
        (["--data=x", "--submission=x", "--conditions=y"], "give one of"),
        (["--data=x", "--submission=x", "--out=y", "--task=text_to_vide"], "text_to_video"),
        (["--data=x", "--submission=x"], "--out=FOLDER is needed"),
        (["--dry_run"], "--data is needed"),
    ],
)
def test_mistakes_are_said(more, said, capsys):
    assert cli.main(["benchmark", "arenas", *more]) == 2
    assert said in capsys.readouterr().err


def test_an_empty_submission_is_refused(little, tmp_path, capsys):
    (tmp_path / "made" / "other").mkdir(parents=True)
    words = [
        "benchmark",
        "arenas",
        f"--data={tmp_path / 'd'}",
        f"--submission={tmp_path / 'made'}",
        f"--out={tmp_path / 'o'}",
    ]
    assert cli.main(words) == 2
    assert "none of the folders text_to_video" in capsys.readouterr().err
    (tmp_path / "made" / "inpainting").mkdir()
    assert cli.main(words) == 2
    assert "no clip of the list, such as basic_00000" in capsys.readouterr().err


def test_samples_of_another_checkpoint_are_not_mixed_in(tmp_path):
    submissions.claim(tmp_path / "samples", {"checkpoint": "a"})
    submissions.claim(tmp_path / "samples", {"checkpoint": "a"})
    with pytest.raises(UserError, match="samples of another checkpoint"):
        submissions.claim(tmp_path / "samples", {"checkpoint": "b"})


def test_the_committed_page_is_of_this_list():
    page = (cases.FOLDER / "arenas_v2_lm_arenas.md").read_text()
    assert f"list {SUITE.fingerprint}" in page
    for name, task in tasks.TASKS.items():
        assert f"## {name.replace('_', ' ').capitalize()}" in page and task.condition in page


def test_every_list_is_whole_and_its_tasks_can_be_ranked():
    for name in cases.LISTS:
        suite = cases.load(name)
        assert suite.name == name and f"data/{name}_av/build.py" in suite.data and len(suite.cases) >= 100
        assert set(suite.without) <= METRICS.keys()
        for task in suite.tasks.values():
            assert task.metrics and not set(task.metrics) & set(suite.without)
        maps = [case.key.split("/")[1] for case in suite.cases]
        assert len(set(maps[: len(set(maps))])) == len(set(maps)), "a beginning has all places"
        for case in suite.cases:
            assert case.key.startswith("test/") and all(0 < frame < 17 for frame in case.shots)
            # Captions tell of shots while frames are seen; a shot after the last frame is in neither.
            assert bool(case.shots) == ("fires the" in case.text), case.name


def test_a_smooth_fill_is_a_plane_where_its_edge_is_one():
    """The solution of Laplace's equation is unique: a linear picture comes back, and nothing outside changes."""
    rows, columns = np.mgrid[:32, :32]
    frame = np.stack([3 * columns + 20, 2 * rows + 30, rows + columns], -1)
    hole = np.zeros((1, 32, 32), bool)
    hole[:, 8:24, 10:20] = True
    clip = np.where(hole[..., None], 255, frame[None]).astype(np.uint8)
    filled = trivial.smooth_fill(clip, hole)
    np.testing.assert_allclose(filled[0], frame, atol=1)
    assert (filled[~hole] == frame[~hole[0]]).all()


def test_psnr_of_a_hole_is_that_of_its_pixels_alone(simple):
    task = tasks.TASKS["inpainting"]
    off = [np.clip(one.video + 10.0, 0, 255).astype(np.uint8) for one in REALS]
    rows = rows_of(task, off, simple)
    assert rows[scoring.SUBMISSION, "hole_psnr_db"]["value"] == pytest.approx(20 * np.log10(255 / 10), abs=0.02)
    # A quarter of the pixels: what is given lowers the error of the whole by as much.
    share = rows[scoring.SUBMISSION, "psnr_db"]["value"] - rows[scoring.SUBMISSION, "hole_psnr_db"]["value"]
    assert share == pytest.approx(10 * np.log10(4), abs=0.02)
    best = scoring.best_trivial(list(rows.values()), task)
    fills = {name: rows[name, "hole_psnr_db"]["value"] for name in task.baselines}
    assert best["candidate"] == max(fills, key=fills.get) and best["value"] == max(fills.values())
    error = (best["difference_high"] - best["difference_low"]) / (2 * 1.959964)
    assert best["deviations"] == pytest.approx(best["difference"] / error)


def test_captions_are_ranked_beside_trivial_ones_and_a_shuffled_submission_is_not_ahead(simple):
    places = ["in the brown hall", "on the green field", "in the round arena", "in the long corridor"]
    motions = ["turns left", "walks forward", "turns right", "steps left"]
    reals = [real(n, f"{place} the player {way}") for n, (place, way) in enumerate(zip(places, motions))]
    task = tasks.TASKS["captioning"]
    made = submissions.Made(texts=[reals[0].case.text, f"{places[1]} the player turns left", "a cat", None])
    chosen = scoring.candidates(task, reals, made, simple, [one.case.text for one in reals])
    rows = {(row["candidate"], row["metric"]): row for row in scoring.measure(task, reals, chosen, CLIP.rate_hz)}
    own = {name: rows[scoring.SUBMISSION, name]["value"] for name in ("caption_place", "caption_place_and_motion")}
    assert own == {"caption_place": pytest.approx(2 / 3), "caption_place_and_motion": pytest.approx(1 / 3)}
    assert rows[scoring.SUBMISSION, "caption_place"]["clips"] == 3, "a text that is not there does not count"
    assert rows[scoring.ROUND_TRIP, "caption_place_and_motion"]["value"] == 1
    assert rows["another caption", "caption_place"]["value"] == 0
    assert rows[tasks.SHUFFLED, "caption_place"]["value"] == 0, "each under another's name"


def test_the_captions_of_training_clips_are_found():
    training = cases_items([video(n) for n in (2, 0, 9)])
    training = [dataclasses.replace(item, caption=text) for item, text in zip(training, ["two", "none", "two"])]
    found = trivial.of(REALS, training).texts
    assert found.commonest == "two" and found.nearest[0] == "none" and found.nearest[2] == "two"


@pytest.mark.parametrize("line", ['{"file": "a"}', "no json", '{"file": "a", "caption": 3}', "[1]"])
def test_texts_that_are_no_such_lines_are_named(tmp_path, line):
    (tmp_path / "captioning").mkdir()
    file = tmp_path / "captioning" / "captions.jsonl"
    file.write_text('{"file": "basic_00000.mp4", "caption": "ok"}\n' + line + "\n")
    with pytest.raises(UserError, match=r'captions.jsonl, line 2: each line is {"file": "NAME"'):
        submissions.read(tmp_path, tasks.TASKS["captioning"], REALS, CLIP)
    file.write_text('{"file": "basic_00000.mp4", "caption": "ok"}\n')
    made = submissions.read(tmp_path, tasks.TASKS["captioning"], REALS, CLIP)
    assert made.texts == ["ok", None, None, None] and list(made.unreadable) == [r.case.name for r in REALS[1:]]
    file.write_text('{"file": "other", "caption": "ok"}\n')
    with pytest.raises(UserError, match="has no text of the list"):
        submissions.read(tmp_path, tasks.TASKS["captioning"], REALS, CLIP)


class Recorder:
    """A sampler that gives back the true clips inverted, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def declared(self, name):
        from poet.tasks.registry import get_task

        return get_task(name)

    def generate(self, task, prompts, **request):
        self.asked.append((task, list(prompts), request))
        count = len(prompts) or len(request["media"]["video"])
        clip = np.zeros((count, 17, 64, 64, 3), np.uint8)
        return type(
            "Sampled", (), {"video": clip, "audio": np.zeros((count, CLIP.samples), np.int16), "texts": ["x"] * count}
        )


def test_sampling_goes_on_where_it_was_stopped_and_asks_for_what_the_task_says(tmp_path):
    sampler = Recorder()
    names = "image_to_video", "inpainting", "frame_interpolation", "video_to_audio", "text_to_video", "captioning"
    for name in names:
        submissions.sample(sampler, tasks.TASKS[name], REALS, tmp_path, CLIP, SampleSpec(seed=7), batch=2)
        submissions.sample(sampler, tasks.TASKS[name], REALS, tmp_path, CLIP, SampleSpec(seed=7), batch=2)
    asked = {task: (prompts, request) for task, prompts, request in sampler.asked}
    assert len(sampler.asked) == 12, "nothing is sampled twice"
    assert [request["sample"].seed for _, _, request in sampler.asked[:2]] == [7, 9], "batches differ in their noise"
    assert (
        asked["image_to_video"][1]["conditioning_frames"] == 1
        and asked["image_to_video"][0] == [REALS[2].case.text] * 2
    )
    assert asked["inpainting"][1]["region"] == "central" and not asked["inpainting"][0]
    assert asked["frame_interpolation"][1]["conditioning_frames"] == 1
    assert not asked["text_to_video"][1]["media"] and len(asked["video_to_audio"][1]["media"]["video"]) == 2
    assert submissions.read(tmp_path, tasks.TASKS["inpainting"], REALS, CLIP).videos[0].shape == (17, 64, 64, 3)
    lines = captions.parse("it", (tmp_path / "text_to_video/captions.jsonl").read_bytes(), lambda name: 1)
    assert {line.file: line.caption for line in lines} == {f"{real.case.name}.apng": real.case.text for real in REALS}
    assert not (tmp_path / "inpainting" / "captions.jsonl").exists()
    (tmp_path / "inpainting" / "basic_00003.apng").unlink()
    submissions.sample(sampler, tasks.TASKS["inpainting"], REALS, tmp_path, CLIP, SampleSpec(seed=7), batch=2)
    assert len(sampler.asked) == 13
    assert run.FORMAT == 1 and isinstance(CLIP, ClipSpec)


def test_a_data_set_that_is_not_there_is_named_by_the_flag(tmp_path):
    with pytest.raises(UserError, match="^--data = .*nowhere"):
        cases.clips(cases.load("arenas"), str(tmp_path / "nowhere"))
