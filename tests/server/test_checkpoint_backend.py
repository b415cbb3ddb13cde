"""What may be asked of a checkpoint, and what its sessions make: with the tiny model of the sampling tests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/sampling"), str(ROOT / "tests/sampling/films")]

import film_fakes  # noqa: E402
import tiny  # noqa: E402

from poet import media  # noqa: E402
from poet.media.lossless import TimedFrame, write_mov  # noqa: E402
from poet.runs.run import Checkpoint, Run  # noqa: E402
from poet.sampling import command, record  # noqa: E402
from poet.sampling.generate import Generator  # noqa: E402
from poet.server.backend import Cancelled, Work  # noqa: E402
from poet.server.checkpoint import CheckpointBackend  # noqa: E402
from poet.server.fields import in_fields  # noqa: E402
from poet.server.making import CheckpointMaker, OneSession, flattened  # noqa: E402
from poet.server.settings import ServeSpec  # noqa: E402
from poet.server.store import new_id  # noqa: E402
from poet.spec import DataSpec, SampleSpec, UserError  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

RATES = dict.fromkeys(
    "unconditional text_to_image text_to_video image_to_video frame_prediction inpainting stylization".split(), 1.0
)
SAMPLE = SampleSpec(temperature=1.2, block=3)


def backend(**limits) -> CheckpointBackend:
    clip = tiny.EXPERIMENT.clip.replace(frames=9, rate_hz=25.0)
    data = DataSpec(mixture_rates=RATES, text_dropout=0.1)
    spec = tiny.EXPERIMENT.replace(clip=clip, sample=SAMPLE, data=data)
    return CheckpointBackend(tiny.RUN, Resolved(spec), (), ServeSpec(**limits))


def refused(asked: dict, said: str, **limits) -> None:
    with pytest.raises(UserError, match=said):
        backend(**limits).admit({"seed": 1, **asked})


def test_requests_are_checked_without_a_model():
    accepted = backend().admit({"task": "text_to_video", "prompt": ["a door", "a hall"], "num": 2, "seed": 1})
    assert accepted.samples == 3 and accepted.seconds == pytest.approx(4 * 9 / 25) and accepted.batch_key
    refused({"task": "text_to_vide"}, "did you mean text_to_video")
    refused({"task": "video_to_audio"}, "is no task of this model")
    refused({"task": "text_to_video", "prompt": "x", "batch": 2}, "has no field 'batch'")
    refused({"task": "text_to_video", "prompt": "x", "block": 2}, "has no field 'block'")
    refused({"task": "text_to_video"}, "needs a text")
    refused({"task": "unconditional", "prompt": "x"}, "takes no text")
    refused({"task": "image_to_video", "prompt": "x"}, "needs a clip")
    refused({"task": "inpainting", "clip": "inputs/0.mov", "region": "middle"}, "unknown region 'middle'")
    refused({"task": "text_to_video", "prompt": "x", "temperature": -1}, "must lie in")
    refused({"task": "text_to_video", "prompt": "x", "num": 9}, "at most 8")
    refused({"task": "text_to_video", "prompt": "x" * 11}, "takes 10", max_prompt=10)
    refused({"task": "text_to_video", "prompt": "x", "format": "avi"}, "--format=avi")
    refused({"task": "long", "seconds": 1e9}, "at most 120")
    refused({"task": "long", "seconds": 1, "sound": True}, "no sound")
    refused({"task": "long", "seconds": 1, "camera": "fly"}, "fly")
    refused({"task": "storyboard", "scenes": []}, "at least one scene")
    refused({"task": "storyboard", "scenes": [{"promt": "x"}]}, "no field 'promt'")
    refused({"task": "chain", "jobs": [{"task": "text_to_audio"}]}, "job 1: this film needs the task text_to_audio")
    assert backend().admit({"task": "long", "prompt": "x", "seconds": 1, "seed": 2}).request["clips"] == 9


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"task": "text_to_video"}, "give prompt"),
        ({"task": "text_to_video", "prompt": "x", "temperature": "hot"}, "temperature = 'hot': expected a number"),
        ({"task": "text_to_video", "prompt": "x", "num": 0}, "num = 0: must lie in 1.."),
        ({"task": "text_to_video", "prompt": "--num: a door", "format": "avi"}, "format=avi: task"),
        ({"task": "inpainting", "clip": "a"}, "give region, one of"),
        ({"task": "stylization", "clip": "a", "prompt": "x"}, "near is bright, as depth; with depth=flat"),
    ],
)
def test_what_is_refused_is_said_in_the_words_of_the_api(asked, said):
    """Commands have flags and settings for the same; their words stand in no answer."""
    with pytest.raises(UserError) as found:
        backend().admit({"seed": 1, **asked})
    message = in_fields(str(found.value), backend().requests[asked["task"]])
    assert said in message and "--" not in message and "SAMPLE" not in message and "REQUEST" not in message


def test_uploads_that_lack_what_a_task_takes_are_refused():
    about = {"kind": "sound", "has_sound": True, "seconds": 1.0}
    asked = {"task": "image_to_video", "prompt": "x", "clip": "inputs/0.wav", "seed": 1}
    with pytest.raises(UserError, match="inputs/0.wav is a sound, and task image_to_video takes a picture"):
        backend().admit(asked, {"inputs/0.wav": about})
    assert backend().admit({**asked, "clip": "inputs/0.png"}, {"inputs/0.png": {**about, "kind": "picture"}})
    refused({"task": "upscale", "clip": "inputs/0.mov"}, "is no task of this model")


def larger_run() -> Run:
    """Of a super-resolution network of which nothing but the experiment is read."""
    run = Run(Path("nowhere"), Checkpoint(Path("nowhere")))
    spec = tiny.EXPERIMENT.replace(clip=tiny.EXPERIMENT.clip.replace(height=32, width=32))
    run.checkpoint.__dict__.update(fingerprint="0" * 16, spec=spec)
    return run


class Nearest:
    """In the place of a super-resolution network: repeats pixels."""

    on_part = None

    def __init__(self, experiment):
        self.experiment, self.video_tokenizer = experiment, tiny.video_tokenizer()

    def upscale(self, video, prompts=(), **more):
        self.on_part(1.0)
        return video.repeat(2, 2).repeat(2, 3)

    def check(self, shape, prompts=()):
        pass


def test_clips_are_made_larger_with_reports(tmp_path):
    one = dataclasses.replace(backend(), upscalers=(larger_run(), larger_run()))
    nets = [Nearest(one.resolved.spec), Nearest(one.resolved.spec)]
    asked = {"task": "upscale", "clip": "inputs/0.mov", "seed": 1}
    about = {"kind": "video", "has_sound": False, "seconds": 0.36, "frames": 9, "height": 16, "width": 16}
    accepted = one.admit(asked, {"inputs/0.mov": about})
    assert accepted.seconds == 0.36 and accepted.batch_key == "" and "clip" in one.requests["upscale"]
    with pytest.raises(UserError, match="takes one clip"):
        one.admit({"task": "upscale", "seed": 1})
    with pytest.raises(UserError, match="8x16 is smaller than what the model upscales, 16x16"):
        one.admit(asked, {"inputs/0.mov": {**about, "height": 8}})
    place, reports = tmp_path / "job", []
    (place / "inputs").mkdir(parents=True)
    (place / "work").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    write_mov(place / "inputs/0.mov", [TimedFrame(frame, n / 25, 1 / 25) for n, frame in enumerate(frames)])
    maker = types.SimpleNamespace(backend=one, upscalers=nets, generator=types.SimpleNamespace(on_step=None))
    session = OneSession(maker, reports.append)
    session.add(Work("job", accepted.task, accepted.request, 1, place))
    assert end(session)["job"]["files"] == ["000.mp4", "000.png"]
    assert [news.fraction for news in reports] == [0.5, 1.0]
    strip = np.asarray(Image.open(place / "work/000.png").convert("RGB"))
    np.testing.assert_array_equal(strip[:64, :64], frames[0].repeat(4, 0).repeat(4, 1))


def test_a_job_that_another_model_accepted_is_refused(tmp_path):
    """A store may be served by another checkpoint than before, or by an export, which makes no films."""
    one = backend()
    maker = types.SimpleNamespace(backend=one, upscalers=[], generator=types.SimpleNamespace(on_step=None))
    session = OneSession(maker, lambda news: None)
    with pytest.raises(UserError, match="does not make 'upscale'"):
        session.add(Work("job", "upscale", {"upscale": "inputs/0.mov"}, 1, tmp_path))
    assert session.names == [] and session.step() == []


def test_the_last_result_of_a_chain_comes_first(tmp_path):
    files = [tmp_path / name for name in ("1/made.png", "1/made.mp4", "2/made.png", "2/made.mp4", "2/made.wav")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(file))
    found = [path.name for path in flattened([*files, tmp_path / "film.json"], tmp_path)]
    assert found == ["2_made.mp4", "1_made.mp4", "2_made.wav", "2_made.png", "1_made.png"]


def test_fields_that_the_schema_requires_are_those_without_which_a_request_is_refused():
    one = dataclasses.replace(backend(), upscalers=(larger_run(),))
    values = {"prompt": "x", "clip": "inputs/0.png", "depth": "flat"}
    values |= {"scenes": [{"prompt": "x"}], "jobs": [{"task": "image_to_video"}]}
    for task in one.requests:
        least = {"task": task, "seed": 1, **{name: values[name] for name in one.required.get(task, ())}}
        least |= {"region": "central"} if task == "inpainting" else {}  # Or a mask of one's own.
        one.admit(least)
        for name in one.required.get(task, ()):
            with pytest.raises(UserError):
                one.admit({key: value for key, value in least.items() if key != name})


def test_only_equal_programs_and_settings_share_a_batch():
    batch_key = lambda **asked: backend().admit({"task": "text_to_video", "prompt": "x", **asked}).batch_key
    same = batch_key(seed=1)
    assert batch_key(seed=2) == same and batch_key(seed=1, prompt="y", num=2) == same
    assert (
        len({same, batch_key(seed=1, temperature=0.5), batch_key(seed=1, top_k=5), batch_key(seed=1, guidance=2.0)})
        == 4
    )
    assert backend().admit({"task": "long", "seconds": 1, "seed": 1}).batch_key == ""


def test_the_card_is_enough_for_a_form():
    card = backend().card()
    tasks = {task["name"]: task for task in card["tasks"]}
    assert set(tasks) == set(RATES) and card["films"] == ["long", "storyboard", "chain"]
    assert tasks["image_to_video"]["clip_needed"] and tasks["image_to_video"]["conditioning_frames"] == [1]
    assert tasks["inpainting"]["regions"] and tasks["inpainting"]["mask"] and not tasks["text_to_video"]["clip"]
    assert tasks["stylization"]["depth"] and tasks["text_to_image"]["formats"][0] == "mp4"
    schemas = backend().requests
    assert schemas["text_to_video"]["num"]["maximum"] == 8 and "default" not in schemas["text_to_video"]["seed"]
    json.dumps([card, schemas])


def work_of(one: CheckpointBackend, folder: Path, clip: Path | None = None, **asked) -> Work:
    """A job in its folder."""
    job_id = new_id("job")
    place = folder / job_id
    (place / "inputs").mkdir(parents=True)
    (place / "work").mkdir()
    if clip is not None:
        (place / "inputs/0.png").hardlink_to(clip)
        asked["clip"] = "inputs/0.png"
    accepted = one.admit(asked)
    return Work(job_id, accepted.task, accepted.request, asked["seed"], place)


def digests(work: Work, names) -> list[str]:
    return [hashlib.sha256((work.place / name).read_bytes()).hexdigest() for name in names]


@pytest.fixture
def maker(monkeypatch):
    one = backend()
    loaded = {"video": tiny.video_tokenizer(), "text": film_fakes.Words()}
    generator = Generator(one.resolved, tiny.params(), loaded)
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: generator)
    monkeypatch.setattr("poet.sampling.films.studio.Studio.made_by", {"checkpoint": "tiny"})
    return CheckpointMaker(one)


def end(session) -> dict[str, dict]:
    results = {}
    while session.names:
        for news in session.step():
            assert news.error is None, news.error
            if news.result is not None:
                results[news.id] = news.result
    return results


@pytest.mark.slow
def test_files_are_the_same_alone_in_a_batch_and_by_a_replay(maker, tmp_path):
    still = tmp_path / "still.png"
    media.write_png_strip(still, np.random.default_rng(0).integers(0, 256, (1, 20, 16, 3), np.uint8))
    asked = lambda seed: {"task": "image_to_video", "prompt": f"door {seed}", "seed": seed, "format": ["apng"]}
    alone = work_of(maker.backend, tmp_path, still, **asked(1))
    session = maker.session("key", lambda news: None)
    session.add(alone)
    names = end(session)[alone.id]["files"]
    assert names == ["000.apng"]
    works = [work_of(maker.backend, tmp_path, still, **asked(seed)) for seed in (3, 1, 2)]
    session = maker.session("key", lambda news: None)
    session.add(works[0])
    session.step()
    for work in works[1:]:
        session.add(work)
    assert set(end(session)) == {work.id for work in works}
    assert digests(works[1], names) == digests(alone, names) != digests(works[0], names)
    replay = record.read(str(alone.place))
    resolved = command.as_recorded(maker.backend.resolved, replay)
    files = command.run(replay.request, resolved, tiny.RUN, tmp_path / "again", replay.settings)
    assert record.differing(replay, files, tmp_path / "again") == []


def test_a_request_may_ask_for_its_pictures_larger():
    """By a field that is there where networks are, which count in what the job takes of memory."""
    refused({"task": "text_to_video", "prompt": "x", "upscale": True}, "has no field 'upscale'")
    one = dataclasses.replace(backend(), upscalers=(larger_run(), larger_run()))
    assert "4 times" in one.requests["text_to_video"]["upscale"]["description"]
    asked = {"task": "text_to_video", "prompt": "x", "seed": 1}
    small, large = one.admit(asked), one.admit({**asked, "upscale": True})
    assert small.batch_key == large.batch_key and one.admit({**asked, "upscale": False}).need == small.need
    assert large.need.total > small.need.total and len(large.request["request"]["upscale"]) == 2
    with pytest.raises(UserError, match="upscale = 'yes': expected true or false"):
        one.admit({**asked, "upscale": "yes"})


@pytest.mark.slow
def test_a_clip_is_made_and_made_larger_in_one_job(maker, tmp_path, monkeypatch):
    """Its pixels are those of the small clip, enlarged; one that is cancelled while it grows ends without a result."""
    monkeypatch.setattr("poet.sampling.record.larger.find", lambda path: larger_run())
    maker.backend = dataclasses.replace(maker.backend, upscalers=(larger_run(),))
    maker.upscalers = [Nearest(maker.backend.resolved.spec)]
    asked = {"task": "text_to_video", "prompt": "a door", "seed": 1, "format": ["png"]}
    small, large, cancelled = (work_of(maker.backend, tmp_path, **asked, upscale=one) for one in (False, True, True))
    reports = []

    def watch(news):
        reports.append(news)
        if news.id == cancelled.id and news.fraction > 0.5:
            raise Cancelled

    session = maker.session("key", watch)
    for work in (small, large, cancelled):
        session.add(work)
    assert set(end(session)) == {small.id, large.id}
    fractions = [news.fraction for news in reports if news.id == large.id]
    assert fractions == [0.5, 1.0]
    pixels = [np.asarray(Image.open(work.place / "000.png").convert("RGB")).astype(int) for work in (small, large)]
    # Each carries a watermark of its own.
    assert np.abs(pixels[0].repeat(2, 0).repeat(2, 1) - pixels[1]).mean() < 4


@pytest.mark.slow
def test_a_film_is_reported_cancelled_and_continued(maker, tmp_path):
    asked = {"task": "long", "prompt": "a door", "seconds": 0.6, "seed": 4}
    whole, broken = (work_of(maker.backend, tmp_path, **asked) for _ in range(2))
    reports = []
    session = maker.session("", reports.append)
    session.add(whole)
    names = end(session)[whole.id]["files"]
    fractions = [news.fraction for news in reports]
    assert names == ["film.mp4", "film.png"] and fractions == sorted(fractions) and fractions[-1] == 1
    assert reports[0].frames().dtype == np.uint8

    def stop(news):
        if news.fraction > 0.5:
            raise Cancelled

    session = maker.session("", stop)
    session.add(broken)
    with pytest.raises(Cancelled):
        session.step()
    assert session.names == [] and (broken.place / "clips/00001.npz").exists()
    session = maker.session("", reports.append)
    session.add(broken)
    end(session)
    assert digests(broken, names) == digests(whole, names)
