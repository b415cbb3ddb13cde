"""A gallery shows what the model samples for each seed, finds its sections again, and says what the scores say."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sampling" / "films"))

import film_fakes  # noqa: E402

from poet import cli, media  # noqa: E402
from poet.evaluation.gallery import clips, obeyed, run  # noqa: E402
from poet.evaluation.gallery.studio import Studio  # noqa: E402
from poet.media import watermark  # noqa: E402
from poet.sampling import files  # noqa: E402
from poet.spec import UserError  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

LM = "--checkpoint=data/pretrained/lm_arenas"
NAMES = ("text_to_image", "inpainting", "video_to_audio", "storyboard", "captioning", "upscale")


def gain(per_token: tuple[float, ...], per_clip: tuple[float, ...]) -> dict:
    """What `scores.json` says of one condition: values with the ends of their intervals."""
    names = ("value", "low", "high")
    return {"nats_per_token": dict(zip(names, per_token)), "nats_per_clip": dict(zip(names, per_clip))}


GAINS = {
    "inpainting": {"clip with a hole": {"video": gain((2.0, 1.5, 2.5), (40.0, 30.0, 50.0))}},
    "text_to_image": {"text": {"image": gain((0.1, -0.1, 0.3), (2.0, -2.0, 6.0))}},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four films of noise with captions."""
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for number in range(4):
        film = rng.integers(0, 256, (9, 16, 16, 3), np.uint8)
        media.write_mp4(folder / f"{number}.mp4", film, 25.0, rng.integers(-9000, 9000, 2880).astype(np.int16), 8000)
    lines = [{"file": f"{number}.mp4", "caption": f"clip {number}", "split": "train"} for number in range(4)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def studio(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    resolved = film_fakes.generator().resolved
    given = clips.collect(str(source), resolved.spec.clip, 2, tmp_path_factory.mktemp("conditions"))
    return Studio(
        resolved=resolved,
        load=film_fakes.generator,
        checkpoint="tiny",
        made_by={},
        clips=given,
        prompts=[clip.caption for clip in given],
        seeds=2,
    )


@pytest.fixture(scope="module")
def made(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page."""
    return run.make(studio, GAINS, tmp_path_factory.mktemp("gallery"), NAMES)


def test_clips_are_evenly_spaced_with_their_sound_and_depth(studio: Studio) -> None:
    assert [clip.caption for clip in studio.clips] == ["clip 0", "clip 2"]
    clip = studio.resolved.spec.clip
    for given in studio.clips:
        found = media.read_clip(given.path, clip)
        assert found.video.shape == (clip.frames, clip.height, clip.width, 3) and np.abs(found.audio).max() > 99
        assert np.ptp(files._read_depth(str(given.depth_path), clip)) == 0


def test_depth_comes_back_from_its_file(studio: Studio, source: Path, tmp_path: Path) -> None:
    clip, far = studio.resolved.spec.clip, np.linspace(3, 900, 9 * 16 * 16).reshape(9, 16, 16)
    raw = clips.RawClip(key="a", caption="", video=np.zeros((9, 16, 16, 3), np.uint8), audio=None, depth=far)
    given = clips._written(raw, clip, tmp_path / "00")
    depth = files._read_depth(str(given.depth_path), clip)
    assert np.corrcoef(depth.ravel(), far.ravel())[0, 1] > 0.99
    assert np.ptp(media.read_clip(given.path, clip).audio) == 0, "a film without sound is given silence"


def test_the_page_holds_what_the_model_samples(made: Path, studio: Studio, tmp_path: Path) -> None:
    page = made.read_text()
    inside = {base64.b64decode(data) for data in re.findall(r'src="data:[\w/]+;base64,([^"]+)"', page)}
    files = [path for path in (made.parent / "sections").glob("*/*") if path.suffix != ".json"]
    assert len(files) >= 4 + 8 + 6 + 2 and {path.read_bytes() for path in files} == inside
    sample = studio.sample.replace(seed=1)
    picture = film_fakes.generator().generate("text_to_image", list(studio.prompts), sample=sample).video[1]
    media.write_png_strip(tmp_path / "expected.png", picture)
    shown = made.parent / "sections/text_to_image/01_seed1.png"
    assert shown.read_bytes() == (tmp_path / "expected.png").read_bytes()
    shown = media.read_clip(made.parent / "sections/video_to_audio/00_seed0.mp4", studio.resolved.spec.clip)
    given = media.read_clip(studio.clips[0].path, studio.resolved.spec.clip)
    assert np.abs(shown.video.astype(int) - given.video).mean() < 8  # The pictures that it was made for.


def test_what_cannot_be_made_and_what_is_not_obeyed_is_said(made: Path) -> None:
    page = made.read_text()
    assert "Missing: no super-resolution weights" in page and "Missing: task captioning writes text" in page
    assert "it obeys clip with a hole → video (40.0, 30.0 to 50.0)." in page
    assert "it does not obey text → image (2.0, -2.0 to 6.0)." in page
    assert "<b>1 of 2</b>" in page and "--mask=4,4,12,12" in page


def test_sections_are_found_again_unless_they_changed(made: Path, studio: Studio) -> None:
    before = made.read_text()
    again = dataclasses.replace(studio, load=lambda: pytest.fail("the model was loaded"))
    kept = [name for name in NAMES if name != "captioning"]
    without = run.make(again, GAINS, made.parent, kept).read_text()
    assert set(re.findall(r"base64,[^\"]+", without)) == set(re.findall(r"base64,[^\"]+", before))
    with pytest.raises(ZeroDivisionError):
        run.make(dataclasses.replace(again, seeds=1, load=lambda: 1 // 0), GAINS, made.parent, ("text_to_image",))


def test_what_is_made_is_marked_unless_that_is_off(studio: Studio, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watermark, "LEAST_SIDE", 16)
    off = Resolved(studio.resolved.spec.replace(sample=studio.sample.replace(watermark=False)))
    names = ("text_to_image", "inpainting")
    on = run.make(studio, {}, tmp_path / "on", names).read_text()
    off = run.make(dataclasses.replace(studio, resolved=off), {}, tmp_path / "off", names).read_text()
    for name, marked in (("on", True), ("off", False)):
        picture = tmp_path / name / "sections/text_to_image/00_seed0.png"
        assert watermark.check(picture).is_marked == marked
    assert "Watermark: 32 bits in the frames that were made" in on
    assert f"Watermark: none: {watermark.GIVEN}" in on  # Of inpainting, which keeps what is around the hole.
    assert "Nothing carries a watermark: SAMPLE.watermark is off." in off and "--no_watermark" in off
    clip = "sections/inpainting/00_clip.mp4"
    assert (tmp_path / "on" / clip).read_bytes() == (tmp_path / "off" / clip).read_bytes()


def test_verdicts() -> None:
    def said(value: float, low: float | None) -> str:
        nats = {"value": value, "low": low, "high": None}
        return next(obeyed.verdicts({"t": {"text": {"video": {"nats_per_token": nats}}}}, "t"))[0]

    assert [said(0.2, 0.1), said(0.004, 0.002), said(0.2, -0.1), said(0.2, None)] == [
        obeyed.OBEYED,
        obeyed.WEAK,
        obeyed.IGNORED,
        obeyed.OBEYED,
    ]
    assert "is unknown" in obeyed.sentence({}, "t") and "has no condition gains" in obeyed.sentence(GAINS, "t")


@pytest.mark.parametrize(
    "flags, said",
    [
        ([LM, "--out=full"], "not empty and poet has no record"),
        ([LM, "--out=g", "--section=inpaintin"], "did you mean inpainting"),
        ([LM, "--out=g", "--source=none"], "'none' is not a folder"),
        ([LM, "--out=g", "--source=SOURCE", "--prompt=a", "--prompt=b", "--prompt=c"], "3 prompts for 2 clips"),
        ([LM, "--out=g", "--source=SOURCE", "--clips=5"], "gives 4 clips in its split train, 5 are needed"),
        (["--checkpoint=none", "--out=g"], "none is not a checkpoint"),
    ],
)
def test_what_cannot_be_shown_is_refused(flags, said, source, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    films = tmp_path / "films"
    films.mkdir()
    for number in range(4):
        media.write_mp4(films / f"{number}.mp4", np.zeros((17, 64, 64, 3), np.uint8), 8.0)
    assert cli.main(["gallery", *(flag.replace("SOURCE", str(films)) for flag in flags)]) == cli.EXIT_USER
    assert said in capsys.readouterr().err and (tmp_path / "full/mine.txt").read_text() == "mine"


def test_a_gallery_goes_into_its_own_folder_again(tmp_path: Path) -> None:
    folder = run.check_place(tmp_path / "g", [])
    folder.mkdir()
    run.begin(folder)
    (folder / "x").touch()
    assert run.check_place(folder, []) == folder
    (folder / run.RECORD).write_text("{}")
    with pytest.raises(UserError, match="no record"):
        run.check_place(folder, [])
