"""The invisible watermark: it is found where it was put, through what happens to clips, and nowhere else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from poet import cli, media
from poet.media import bitstreams, watermark
from poet.media.watermark import BITS, ENOUGH, Marker


def clip(height: int = 128, width: int = 128, frames: int = 9) -> np.ndarray:
    """A camera that moves over a photograph."""
    photo = data.astronaut()
    return np.stack([photo[20 + 3 * t : 20 + 3 * t + height, 120 + 2 * t : 120 + 2 * t + width] for t in range(frames)])


@pytest.fixture(scope="module")
def marked() -> np.ndarray:
    return watermark.embed(clip())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / ((one.astype(float) - other) ** 2).mean())


def resized(video: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in video])


@pytest.mark.parametrize("height, width", [(128, 128), (128, 224), (300, 200)])
def test_every_bit_comes_back_and_nothing_is_seen(height: int, width: int) -> None:
    video = clip(height, width, 3)
    found = watermark.embed(video)
    assert watermark.find(found) == (BITS, 3, min(height, width)) and found.dtype == np.uint8
    assert [watermark.find([frame]).bits for frame in found] == [BITS] * 3
    assert psnr(video, found) > 36
    np.testing.assert_array_equal(found, watermark.embed(video))


@pytest.mark.parametrize("crf", [23, 28])
def test_it_outlives_h264_and_doubling(crf: int, marked: np.ndarray) -> None:
    stream = bitstreams.encode_stream(marked, "x264", crf=crf, rate_hz=8)
    decoded = bitstreams.decode_stream(stream, "x264")
    assert watermark.find(decoded).bits >= ENOUGH
    assert watermark.find(resized(decoded, 256, 256)).bits >= ENOUGH


def test_it_outlives_other_sizes_colours_and_brightness(marked: np.ndarray) -> None:
    brighter = np.clip(marked * 1.15 + 8, 0, 255).astype(np.uint8)
    for name, video in {
        "half": resized(marked, 64, 64),
        "another shape": resized(marked, 100, 180),
        "brighter": brighter,
        "cropped": marked[:, 3:-3, 3:-3],
    }.items():
        assert watermark.find(video).bits >= ENOUGH, name


@pytest.mark.parametrize("name", ["film.mp4", "film.webm", "film.gif", "film.apng", "picture.png"])
def test_files_are_checked(name: str, marked: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".png"):
        media.write_png_strip(path, marked[:1])
    else:
        getattr(media, f"write_{path.suffix[1:]}")(path, marked, 8.0)
    found = watermark.check(path)
    assert found.is_marked and found.frames == (1 if name == "picture.png" else len(marked))


def test_what_carries_none_is_not_found() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), np.uint8)
    assert max(watermark.find([frame]).bits for frame in noise) < ENOUGH
    assert watermark.find(clip()).bits < ENOUGH
    for level in (0, 128, 255):
        assert not watermark.find(np.full((2, 128, 128, 3), level, np.uint8)).is_marked
    assert watermark.find([]) == (0, 0, 0)
    assert "marks frames from 128 pixels on, the shorter side of these has 96" in str(watermark.find(noise[:1]))
    assert "pixels" not in str(watermark.find(clip()))


def test_votes_of_clean_frames_are_fair_coins() -> None:
    """The bound on what is found by chance: turning a bit's signs turns its vote, whatever the frame shows."""
    frame = clip(frames=1)[0]
    whole = np.sin(2 * np.pi / watermark.STEP * watermark._sums(frame))
    assert np.abs(whole).min() > 0
    rng, counts = np.random.default_rng(0), []
    for _ in range(300):
        signs = np.sign(rng.normal(size=BITS))
        counts.append((whole * signs * watermark._WANTED > 0).sum())
    assert abs(np.mean(counts) - BITS / 2) < 1
    assert sum(watermark.chance(k) - watermark.chance(k + 1) for k in range(BITS + 1)) == pytest.approx(1)
    assert watermark.chance(ENOUGH) < 1e-3 < watermark.chance(ENOUGH - 1)


def test_a_marker_says_why_it_leaves_frames_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "poet")
    small, large = clip(64, 128, 2), clip(frames=3)
    too_small = Marker.of(small)
    assert too_small(small) is small and "128x64 pixels are too few" in str(too_small) and str(too_small) in caplog.text
    assert str(Marker.of(large, "why not")) == "none: why not" and Marker.of(large, "why not")(large) is large
    marker = Marker.of(large)
    assert not marker.lacking and watermark.find(marker(large)).is_marked
    np.testing.assert_array_equal(marker(large, given=2)[:2], large[:2])
    assert watermark.find(marker(large, given=2)[2:]).bits == BITS and marker(large, given=7) is large


def test_the_command_says_what_it_finds(marked: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ours, clean = str(tmp_path / "ours.mp4"), str(tmp_path / "clean.mp4")
    media.write_mp4(ours, marked, 8.0)
    media.write_mp4(clean, clip(), 8.0)
    assert cli.main(["watermark", "check", ours]) == 0
    assert f"{ours}: made by poet: 32 of 32 bits are right, 26 are enough; as many by chance: 2.3e-10" in (
        capsys.readouterr().out
    )
    assert cli.main(["watermark", "check", ours, clean, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [file["found"] for file in told["files"]] == [True, False] and told["enough"] == ENOUGH
    assert told["files"][0]["file"] == ours and told["files"][0]["bits"] == 32 and told["files"][0]["frames"] == 9
    assert cli.main(["watermark", "check", str(tmp_path / "gone.mp4")]) == cli.EXIT_USER
    assert "gone.mp4: no such file" in capsys.readouterr().err
