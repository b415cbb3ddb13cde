"""Chains of jobs: each takes what the one before it made, and what was made is found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from film_fakes import SAMPLE, generator

from poet.sampling.films import chain, pieces
from poet.sampling.films.sampler import FilmSampler
from poet.spec import UserError

TEXT = """
- {task: text_to_image, prompt: a dog}
- {task: image_to_video, prompt: it runs, camera: pan left}
- {task: video_to_audio}
- {task: long, prompt: it rains, seconds: 0.5, sound: true}
"""


def made(folder: Path) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    return [pieces.load_media(path) for path in sorted(folder.glob("*/made.npz"))]


def test_each_job_takes_what_the_one_before_it_made(tmp_path: Path):
    (tmp_path / "jobs.yaml").write_text(TEXT)
    jobs = chain.read(tmp_path / "jobs.yaml")
    silent, with_audio = (FilmSampler(generator(), has_audio=sound, context=3) for sound in (False, True))
    runner = chain.Chain(silent, with_audio, SAMPLE, {"checkpoint": "tiny"})
    files = runner.run(jobs, tmp_path / "out")
    assert all(file.exists() for file in files)
    (picture, _), (clip, none), (same, sound), (film, track) = made(tmp_path / "out")
    tokenizer = silent.pictures.tokenizer
    np.testing.assert_array_equal(clip[:1], tokenizer.decode(tokenizer.encode(picture[None]))[0])
    np.testing.assert_array_equal(same, clip)
    np.testing.assert_array_equal(film[:9], clip)
    assert none is None and len(sound) == 2880 and len(track) == len(film) * 320
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/made.npz")}
    runner.run([*jobs[:3], jobs[3].replace(prompt="it snows")], tmp_path / "out")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/made.npz")}
    assert times.items() <= after.items() and len(after) == 5
    with pytest.raises(UserError, match="job 2, text_to_video: it does not use the result of the job before it"):
        runner.run([jobs[0], chain.Job(task="text_to_video", prompt="a")], tmp_path / "out")


@pytest.mark.parametrize(
    "change, message",
    [
        (("video_to_audio", "video_to_sound"), "job 3: unknown task 'video_to_sound'.*video_to_audio"),
        (("seconds", "second"), "job 4: it has the unknown field 'second'.*seconds"),
        (("pan left", "pan lft"), "job 2: unknown camera movement"),
        (("task: text_to_image, ", ""), "job 1: it has no task"),
        (("- {task: t", "- [task: t"), "not YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: tuple[str, str], message: str, tmp_path: Path):
    (tmp_path / "jobs.yaml").write_text(TEXT.replace(*change))
    with pytest.raises(UserError, match=f"jobs.yaml: {message}"):
        chain.read(tmp_path / "jobs.yaml")
