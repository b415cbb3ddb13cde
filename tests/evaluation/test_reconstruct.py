"""`poet reconstruct` from outside: files in, files and figures out, refusals that name the clip."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

from poet import cli, media
from poet.evaluation import reconstruct
from poet.evaluation.metrics.pixels import clip_psnr
from poet.spec import ClipSpec, UserError


def write(path: pathlib.Path, frames: int, height: int, width: int, rate_hz: float = 8.0) -> None:
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 9 + t / 4), np.cos(y / 11 - t / 5), np.sin((x + y) / 13)]
    video = np.rint(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)
    media.write_mp4(path, video, rate_hz)


def test_a_long_large_clip_is_rebuilt_and_measured(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "clip.mp4", 40, 34, 50, rate_hz=24.0)
    out = tmp_path / "new" / "out" / "clip.mp4"
    command = ["reconstruct", "--tokenizer=magvit_v2_64x8", f"--out={out.parent}"]
    sizes = ["--chunk_frames=4", "--tile=4", "--overlap=2"]
    write(tmp_path / "sixteen.mp4", 16, 32, 48)
    assert cli.main([*command, *sizes, str(tmp_path / "clip.mp4"), str(tmp_path / "sixteen.mp4")]) == 0
    # 40 frames at 24 Hz are 1.67 s: 14 instants at 8 Hz, coded as 17 = 1 + 4 * 4 frames.
    printed, said = capsys.readouterr()
    printed, second = printed.splitlines()
    assert "14 frames of 32x48 (coded as 17: the last one repeated 3 more), 120 codes, 0.1004 bits" in printed
    assert "16 frames of 32x48 (coded as 17: the last one repeated 1 more), 120 codes" in second
    for name, frames in (("clip.mp4", 14), ("sixteen.mp4", 16)):
        for path in (out.with_name(name), reconstruct.beside(out.with_name(name))):
            assert media.probe(path).frames(8.0) == frames
    assert "34x50 pixels are cropped to 32x48" in said
    speeds = re.findall(r"([\d.]+) frames/s, (\d+) codes/s", printed)
    assert len(speeds) == 2 and all(float(f) > 0 and int(c) > 0 for f, c in speeds)
    original = media.read_clip(tmp_path / "clip.mp4", ClipSpec(frames=14, height=32, width=48))
    pair = media.read_clip(reconstruct.beside(out), ClipSpec(frames=14, height=32, width=96)).video
    rebuilt = media.read_clip(out, ClipSpec(frames=14, height=32, width=48)).video
    np.testing.assert_allclose(pair[:, :, :48].mean(), original.video.mean(), atol=2)
    np.testing.assert_allclose(pair[:, :, 48:].mean(), rebuilt.mean(), atol=2)
    stated_db = float(re.search(r"PSNR ([\d.]+) dB", printed).group(1))
    # What is stated is of the pixels before the lossy file.
    assert clip_psnr(original.video, rebuilt) == pytest.approx(stated_db, abs=0.5)


def test_every_clip_gets_a_file_of_its_own() -> None:
    clips = [pathlib.Path("x/one.mov"), pathlib.Path("two.webm")]
    assert reconstruct.names(clips) == ["one.mp4", "two.mp4"]
    with pytest.raises(UserError, match="one.mp4"):
        reconstruct.names([clips[0], pathlib.Path("y/one.mp4")])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["small.mp4"], ["small.mp4", "8x8 pixels"]),
        (["clip.mp4", "--height=30"], ["clip.mp4", "height 30", "24 and 32"]),
        (["clip.mp4", "--frames=41"], ["clip.mp4", "too short"]),
        (["clip.mp4", "--chunk_frames=6"], ["6 frames", "multiple of 4"]),
        (["clip.mp4", "--tile=4"], ["overlap", "0..3"]),
        (["clip.mp4", "--tokenizer=nowhere"], ["nowhere"]),
        (["nowhere.mp4"], ["nowhere.mp4", "no such file"]),
        (["clip.mp4", "--out=clip.mp4"], ["clip.mp4", "is a file"]),
    ],
)
def test_mistakes_name_the_clip_and_write_nothing(
    arguments: list[str],
    words: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "clip.mp4", 9, 32, 32)
    write(tmp_path / "small.mp4", 9, 8, 8)
    defaults = ["--tokenizer=magvit_v2_64x8", "--out=out"]
    assert cli.main(["reconstruct", *defaults, *arguments]) == cli.EXIT_USER
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "small.mp4"]
