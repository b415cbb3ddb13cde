"""The watermark of what `poet generate` writes: where it is, where it is not, and what the record says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from poet import media
from poet.media import watermark
from poet.sampling import command, record
from poet.sampling.generate import Generator
from poet.sampling.requests import Request
from poet.spec import SampleSpec
from poet.tasks.resolved import Resolved

HOT = SampleSpec(seed=3, temperature=1.5)
REQUEST = Request(task="unconditional", num=2, format=["apng", "mp4"])


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny.generator(HOT, sound=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, generator: Generator, tmp_path: Path) -> None:
    """Clips of 16 pixels are marked, in which the mark outlives no codec but those that lose nothing."""
    monkeypatch.setattr(Generator, "from_checkpoint", lambda *_: generator)
    monkeypatch.setattr(watermark, "LEAST_SIDE", 16)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))


def run(request: Request, out: Path, generator: Generator, sample: SampleSpec = HOT) -> str:
    """What the record says of the watermark."""
    command.run(request, Resolved(generator.resolved.spec.replace(sample=sample)), tiny.RUN, out)
    return json.loads((out / record.NAME).read_text())["watermark"]


def pixels(path: Path) -> np.ndarray:
    return media.read_clip(path, tiny.EXPERIMENT.clip, hold=True).video


def test_what_is_made_is_marked_and_replays_to_the_same_bytes(tmp_path: Path, generator: Generator) -> None:
    assert run(REQUEST, tmp_path / "a", generator) == "32 bits in the frames that were made, none in sound"
    assert all(watermark.check(tmp_path / "a" / f"00{row}.apng").is_marked for row in (0, 1))
    replay = record.read(str(tmp_path / "a"))
    again = command.as_recorded(generator.resolved, replay).spec.sample
    run(replay.request, tmp_path / "b", generator, again)
    assert record.differing(replay, (tmp_path / "b").iterdir(), tmp_path / "b") == []


def test_without_it_the_frames_are_those_that_were_sampled(tmp_path: Path, generator: Generator) -> None:
    assert run(REQUEST, tmp_path / "off", generator, HOT.replace(watermark=False)) == "none: SAMPLE.watermark is off"
    sampled = generator.generate("unconditional", count=2, sample=HOT).video
    for row in (0, 1):
        np.testing.assert_array_equal(pixels(tmp_path / f"off/00{row}.apng"), sampled[row])
        assert not watermark.check(tmp_path / f"off/00{row}.apng").is_marked


def test_small_frames_are_left_alone_and_it_is_said(
    tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "poet")
    off = HOT.replace(watermark=False)
    run(REQUEST, tmp_path / "off", generator, off)
    monkeypatch.setattr(watermark, "LEAST_SIDE", 128)
    said = run(REQUEST, tmp_path / "small", generator)
    assert said == "none: 16x16 pixels are too few, the shorter side needs 128" and said in caplog.text
    for name in ("000.apng", "000.mp4", "001.apng", "001.mp4"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "off" / name).read_bytes(), name


def test_a_record_from_before_it_is_replayed_without_it(tmp_path: Path, generator: Generator) -> None:
    run(REQUEST, tmp_path / "a", generator, HOT.replace(watermark=False))
    file = tmp_path / "a" / record.NAME
    told = json.loads(file.read_text())
    del told["sample"]["watermark"], told["watermark"]
    file.write_text(json.dumps(told))
    replay = record.read(str(file))
    run(replay.request, tmp_path / "b", generator, command.as_recorded(generator.resolved, replay).spec.sample)
    assert record.differing(replay, (tmp_path / "b").iterdir(), tmp_path / "b") == []


def test_given_pixels_come_before_the_mark(tmp_path: Path, generator: Generator) -> None:
    given = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    media.write_apng(tmp_path / "given.apng", given, 8.0)
    asked = Request(task="inpainting", clip=[str(tmp_path / "given.apng")], region="central", format=["apng"])
    assert run(asked, tmp_path / "kept", generator) == "none: given pixels come back bit by bit"
    kept = pixels(tmp_path / "kept/000.apng")
    np.testing.assert_array_equal(kept[:, :2], pixels(tmp_path / "given.apng")[:, :2])
    assert "32 bits" in run(asked.replace(keep_original=False), tmp_path / "whole", generator)
    assert watermark.check(tmp_path / "whole/000.apng").is_marked


def test_a_clip_that_gets_a_sound_stays_as_it_is(tmp_path: Path, generator: Generator) -> None:
    given = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    media.write_apng(tmp_path / "given.apng", given, 8.0)
    asked = Request(task="video_to_audio", clip=[str(tmp_path / "given.apng")], format=["apng", "wav"])
    assert run(asked, tmp_path / "out", generator) == "none: no picture was made"
    np.testing.assert_array_equal(pixels(tmp_path / "out/000.apng"), pixels(tmp_path / "given.apng"))
