"""Records that are replayed, files of jobs, disks that fill up, what is said beforehand."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import tiny

from poet import media, streams
from poet.runs import manifest
from poet.runs.outputs import GENERATION, claim
from poet.sampling import batch_file, command, estimate, jobs, record
from poet.sampling.generate import Generator
from poet.sampling.outputs import Unfinished
from poet.sampling.requests import Request
from poet.spec import PromptSpec, SampleSpec, UserError
from poet.tasks.resolved import Resolved

HOT = SampleSpec(seed=3, temperature=1.5)


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(HOT)


@pytest.fixture(autouse=True)
def loaded(monkeypatch, generator, tmp_path):
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: generator)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))


def run(request, out, generator, sample=HOT):
    resolved = Resolved(generator.resolved.spec.replace(sample=sample))
    return command.run(request, resolved, tiny.RUN, out)


@pytest.fixture
def still(tmp_path):
    path = tmp_path / "still.png"
    media.write_png_strip(path, np.random.default_rng(0).integers(0, 256, (1, 20, 16, 3), np.uint8))
    return path


def test_a_record_is_replayed_to_the_same_bytes(still, tmp_path, generator, monkeypatch):
    asked = Request(task="image_to_video", prompt=["a door"], clip=[str(still)], num=2, format=["apng", "mp4"])
    first = run(asked, tmp_path / "a", generator)
    assert [path.name for path in first] == ["000.apng", "000.mp4", "001.apng", "001.mp4", record.NAME]
    replay = record.read(str(tmp_path / "a"))
    record.check(replay, tiny.RUN)
    again = run(replay.request, tmp_path / "b", generator, command.as_recorded(generator.resolved, replay).spec.sample)
    assert record.differing(replay, again, tmp_path / "b") == []
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, again)] == [True] * 4 + [True]
    other = run(replay.request, tmp_path / "c", generator, HOT.replace(seed=4))
    assert len(record.differing(replay, other, tmp_path / "c")) == 4
    still.write_bytes(still.read_bytes() + b"x")
    with pytest.raises(UserError, match="still.png, which is another file now"):
        record.check(replay, tiny.RUN)
    monkeypatch.setitem(tiny.RUN.checkpoint.__dict__, "fingerprint", "1" * 16)
    with pytest.raises(UserError, match="was made with weights 0000000000000000"):
        record.check(replay, tiny.RUN)


def with_prompt(generator, **said):
    """The experiment with a guided sampler, and this said with every prompt."""
    spec = generator.resolved.spec
    return Resolved(spec.replace(prompt=PromptSpec(**said), sample=HOT.replace(guidance=3.0)))


def test_what_is_said_with_every_prompt_is_sampled_and_recorded(tmp_path, generator):
    """A preset gives the bytes that its words give without it; the record has the prompt as given and as used."""
    preset, none = with_prompt(generator, suffix="by night", negative="noise"), with_prompt(generator)
    given, whole = Request(task="text_to_image", prompt=["a door."]), {"prompt": ["a door, by night"]}
    asked = [(given, preset), (given.replace(**whole, negative_prompt="noise"), none), (given, none)]
    found = [command.run(one, resolved, tiny.RUN, tmp_path / str(n)) for n, (one, resolved) in enumerate(asked)]
    pictures, records = zip(*[(files[0].read_bytes(), json.loads(files[-1].read_text())) for files in found])
    strip = lambda record: {k: v for k, v in record.items() if k in ("prompts", "negative_prompt")}
    used = "a door, by night"
    assert strip(records[0]) == {"prompts": [{"given": "a door.", "used": used}], "negative_prompt": "noise"}
    assert strip(records[1]) == {"prompts": [{"given": used, "used": used}], "negative_prompt": "noise"}
    assert records[0]["request"]["prompt"] == ["a door."] and records[0]["request"]["negative_prompt"] == ""
    assert pictures[0] == pictures[1] != pictures[2]
    assert jobs.admit(Request(task="unconditional"), preset).negative == ""
    plain = Resolved(preset.spec.replace(sample=HOT))
    with pytest.raises(UserError, match="guidance = 1.0 means none"):
        jobs.admit(given, plain)


def test_files_say_what_they_are(tmp_path, generator):
    asked = Request(task="text_to_video", prompt=["a door"], format=["apng", "mp4", "webm", "gif", "png"])
    files = run(asked, tmp_path / "a", generator)
    for path in files[:-1]:
        assert "generative model" in media.read_comment(path) and "seed 3, row 0" in media.read_comment(path), path


def test_a_disk_that_is_full_at_the_last_file_costs_no_finished_sample(tmp_path, generator, monkeypatch):
    write = type(streams.get("video")).write

    def full(self, item, target):
        paths = write(self, item, target)
        if target.stem.name == "002":
            raise OSError(28, "No space left on device")
        return paths

    monkeypatch.setattr(type(streams.get("video")), "write", full)
    output = claim(tmp_path / "out", GENERATION)
    with output:
        files, failure = command.finished(
            lambda: run(Request(prompt=["a door"], num=3, format=["gif"]), output.folder, generator)
        )
    assert isinstance(failure, Unfinished) and "2 of 3 samples are written" in str(failure)
    assert sorted(path.name for path in output.final.iterdir()) == ["000.gif", "001.gif", "MANIFEST", record.NAME]
    assert len(json.loads((output.final / record.NAME).read_text())["samples"]) == 2


def test_names_sort_as_samples_do(generator):
    job = jobs.admit(Request(prompt=["a"], num=1001), generator.resolved)
    names = [command.write_outputs.__globals__["_name"](job, row) for row in (0, 9, 10, 999, 1000)]
    assert names == sorted(names) and names[0] == "0000"


LINES = [
    {"name": "door", "prompt": "a door", "seed": 5, "format": "gif"},
    {"prompt": "a hall", "promt": "x"},
    {"name": "gone", "task": "image_to_video", "prompt": "a hall", "clip": "gone.png"},
    {"name": "door", "prompt": "a second door"},
    {
        "name": "from_a_picture",
        "task": "image_to_video",
        "prompt": "a hall",
        "clip": "still.png",
        "num": 2,
        "format": "gif",
    },
]


def read(tmp_path, generator) -> batch_file.Batch:
    return batch_file.read(str(tmp_path / "jobs.jsonl"), str(tmp_path / "out"), Request(), generator.resolved, tiny.RUN)


def test_a_file_of_jobs_is_resumed_and_a_bad_line_costs_itself_alone(still, tmp_path, generator, caplog, monkeypatch):
    (tmp_path / "jobs.jsonl").write_text("\n".join([*map(json.dumps, LINES), "{not json"]) + "\n")
    assert read(tmp_path, generator).run() == 4
    told = [json.loads(line) for line in (tmp_path / "jobs.results.jsonl").read_text().splitlines()]
    assert [found["state"] for found in told] == ["done", "failed", "failed", "failed", "done", "failed"]
    assert "did you mean prompt" in told[1]["error"] and "gone.png: no such file" in told[2]["error"]
    assert "give another one for each job" in told[3]["error"]
    assert told[4]["files"] == ["000.gif", "001.gif", record.NAME]
    assert (tmp_path / "out/from_a_picture/001.gif").is_file()
    alone = run(Request(prompt=["a door"], format=["gif"]), tmp_path / "alone", generator, HOT.replace(seed=5))
    assert (tmp_path / "out/door/000.gif").read_bytes() == alone[0].read_bytes(), "as if it were asked for alone"
    (tmp_path / "out/door" / manifest.NAME).rename(tmp_path / "kept")  # As a kill leaves it.
    assert read(tmp_path, generator).done() == {"from_a_picture"}
    (tmp_path / "kept").rename(tmp_path / "out/door" / manifest.NAME)
    # Again: what is done is not sampled anew, but a line that changed is another job.
    media.write_png_strip(tmp_path / "gone.png", np.zeros((1, 16, 16, 3), np.uint8))
    asked, generate = [], generator.generate
    monkeypatch.setattr(generator, "generate", lambda task, *a, **k: asked.append(task) or generate(task, *a, **k))
    with caplog.at_level(logging.INFO, logger="poet"):
        assert read(tmp_path, generator).run() == 3
    assert asked == ["image_to_video"] and caplog.text.count("done before, skipped") == 2
    LINES[0]["seed"] = 6
    (tmp_path / "jobs.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    assert "door" not in read(tmp_path, generator).done()


def test_a_job_of_which_a_part_could_be_written_is_done_anew(tmp_path, generator, monkeypatch):
    (tmp_path / "jobs.jsonl").write_text(json.dumps(LINES[0]))

    def full(job, load, checkpoint, folder, settings):
        (folder / "000.gif").write_bytes(b"a part")
        raise Unfinished("no space left", [folder / "000.gif"])

    with monkeypatch.context() as patch:
        patch.setattr(command, "produce", full)
        assert read(tmp_path, generator).run() == 1
    assert (tmp_path / "out/door/000.gif").read_bytes() == b"a part"
    assert read(tmp_path, generator).run() == 0
    assert (tmp_path / "out/door/000.gif").read_bytes().startswith(b"GIF89a")


def test_a_folder_with_something_else_in_it_is_refused(tmp_path, generator):
    (tmp_path / "jobs.jsonl").write_text(json.dumps(LINES[0]))
    (tmp_path / "out/.door.poet-partial").mkdir(parents=True)  # As a kill leaves it.
    read(tmp_path, generator)
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds 'thesis.txt', which is not a job"):
        read(tmp_path, generator)


def test_what_will_be_sampled_is_said_and_how_long_once_it_is_known(tmp_path, generator):
    job = jobs.admit(Request(prompt=["a door"], num=3, batch=2), generator.resolved)
    layout = generator.resolved.layout(job.task)
    assert job.work.prefilled + job.work.steps == layout.loss_spans[-1].stop and job.work.batches == 2
    assert "3 samples of 'a door', seed 3" in command.preview(job) and "time: unknown" in command.preview(job)
    estimate.measured(job, lambda: None)
    assert "time: about 0 s" in command.preview(job)
    assert estimate.seconds(jobs.admit(Request(task="unconditional"), generator.resolved)) is None


def test_a_format_that_a_task_is_not_written_in_is_refused(generator):
    with pytest.raises(UserError, match="--format=wav: task text_to_video is written as mp4, webm, gif, apng, png"):
        jobs.admit(Request(prompt=["a"], format=["wav"]), generator.resolved)
