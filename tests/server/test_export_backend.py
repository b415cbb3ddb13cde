"""The service of an export: what may be asked of it, and files that are those of the runtime alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/serving")]

import exports  # noqa: E402

from poet import media  # noqa: E402
from poet.runs.run import Checkpoint, Run  # noqa: E402
from poet.sampling.films.folder import FilmFolder  # noqa: E402
from poet.sampling.films.sampler import FilmSampler, Wish  # noqa: E402
from poet.server.backend import Work  # noqa: E402
from poet.server.exported import ExportBackend  # noqa: E402
from poet.server.making import ExportMaker  # noqa: E402
from poet.server.store import new_id  # noqa: E402
from poet.serving.runtime import Runtime  # noqa: E402
from poet.spec import SampleSpec, UserError  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = exports.generator(SampleSpec(temperature=0.9))
    return exports.export(made, tmp_path_factory.mktemp("export") / "tasks", "text_to_video")


@pytest.fixture(scope="module")
def backend(folder: Path) -> ExportBackend:
    return ExportBackend.of(folder, 3)


def work_of(backend: ExportBackend, folder: Path, **asked) -> Work:
    job_id = new_id("job")
    place = folder / job_id
    (place / "work").mkdir(parents=True)
    accepted = backend.admit(asked)
    return Work(job_id, accepted.task, accepted.request, asked["seed"], place)


def test_it_offers_the_tasks_of_the_folder_and_no_films(backend, folder):
    card = backend.card()
    assert [task["name"] for task in card["tasks"]] == ["text_to_video"] and card["films"] == []
    assert [*backend.requests] == ["text_to_video"] and card["batch"] == 3
    with pytest.raises(UserError, match="is no task of this model"):
        backend.admit({"task": "long", "prompt": "a door", "seed": 1})
    assert Checkpoint(folder).exported
    assert not Checkpoint(ROOT / "data/pretrained/lm_arenas").exported and not Checkpoint(ROOT).exported
    with pytest.raises(UserError, match="is an export, for `poet serve`"):
        Run.open(folder)


def test_jobs_of_one_batch_have_the_frames_of_the_runtime(backend, folder, tmp_path):
    session = ExportMaker(backend).session("key", lambda news: None)
    works = {}
    for seed in (4, 5):
        works[seed] = work_of(backend, tmp_path, task="text_to_video", prompt="a red door", seed=seed, format=["apng"])
        session.add(works[seed])
        session.step()
    results = {}
    while session.names:
        results |= {news.id: news.result for news in session.step() if news.result is not None}
    runtime = Runtime.load(folder)
    for seed, work in works.items():
        (name,) = results[work.id]["files"]
        wanted = runtime.text_to_video("a red door", seed=seed, block=3).video[0]
        np.testing.assert_array_equal(media.read_clip(work.place / name, backend.resolved.spec.clip).video, wanted)


def test_it_makes_films_where_the_folder_has_their_programs(tmp_path):
    """The frames are those of the film that the runtime continues by itself."""
    made = exports.generator(SampleSpec(temperature=0.9))
    folder = exports.export(made, tmp_path / "export", "text_to_video", "image_to_video")
    backend = ExportBackend.of(folder, 3)
    assert backend.card()["films"] == ["long", "storyboard", "chain"]
    with pytest.raises(UserError, match="continues films by at most 2 latent frames"):
        backend.admit({"task": "long", "prompt": "a red door", "seed": 1, "context": 3})
    with pytest.raises(UserError, match="needs the task text_to_video_with_audio"):
        backend.admit({"task": "long", "prompt": "a red door", "seed": 1, "sound": True})
    work = work_of(backend, tmp_path, task="long", prompt="a red door", seed=4, seconds=1.0)
    session = ExportMaker(backend).session("", lambda news: None)
    session.add(work)
    (news,) = session.step()
    assert news.error is None and news.result["files"][0].endswith(".mp4")
    sampler, piece = FilmSampler(Runtime.load(folder)), None
    kept = [*FilmFolder(work.place).pieces()]
    assert len(kept) > 2
    for number, made in enumerate(kept):
        asked = dict(seed=4, number=number, sample=backend.resolved.spec.sample)
        piece = sampler.go_on(piece, [Wish(prompt="a red door")], **asked)[0] if piece else sampler.begin()
        np.testing.assert_array_equal(made.video, piece.video)
