"""A part of a file is what reading it from the start gives there, whatever the container's index is like."""

from __future__ import annotations

import fractions
import itertools
import pathlib

import av
import numpy as np
import pytest

from poet import media
from poet.media import film, seeking, sound
from poet.spec import ClipSpec

CLIP = ClipSpec(frames=5, height=16, width=16)
FRAMES, RATE_HZ = 240, 12


def write(path: pathlib.Path, codec: str, options: dict[str, str], variable: bool, start: int) -> None:
    """A film of noise that moves, 20 s; with variable rate every third frame lacks."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (32, 32 + FRAMES, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE_HZ, options=options)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, RATE_HZ)
        for index in range(FRAMES):
            if variable and index % 3 == 1:
                continue
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, index : index + 32]), format="rgb24")
            frame.pts, frame.time_base = index + start, fractions.Fraction(1, RATE_HZ)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


X264 = {"g": "30", "bf": "3"}
FILES = {
    "long.mp4": ("libx264", {"g": "250", "bf": "3"}, False, 0),
    "b.mp4": ("libx264", X264, False, 0),
    "open.mp4": ("libx264", X264 | {"x264-params": "open-gop=1"}, False, 0),
    "late.mkv": ("libx264", X264, False, 50),
    "variable.mkv": ("libx264", X264, True, 0),
    "c.ts": ("libx264", X264, False, 0),
    "d.flv": ("libx264", {"g": "30", "bf": "0"}, False, 0),
    "e.avi": ("mpeg4", {"g": "30"}, False, 0),
    "f.mpg": ("mpeg2video", {"g": "15", "bf": "2", "strict": "-1", "threads": "1"}, False, 0),
    "g.h264": ("libx264", X264, False, 0),  # without times
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("films")


@pytest.mark.parametrize("name", FILES)
def test_a_part_is_what_the_whole_gives_there(name: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    write(path, *FILES[name])
    whole = [frame for frame, _ in media.read_frames(path, CLIP)]
    start_s = next(media.read_frames(path, CLIP))[1]
    assert len(whole) >= 70
    monkeypatch.setattr(film, "SEEK_FROM_S", 1.0)
    for first in (8, 40, 60, 120, len(whole) - 1, len(whole) + 40):
        part = list(media.read_frames(path, CLIP, first=first))
        assert len(part) == len(whole[first:])
        for (frame, at_s), same in zip(part, whole[first:], strict=True):
            assert at_s == start_s and np.array_equal(frame, same)


def test_what_lies_before_a_part_is_not_decoded(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "x.mp4", *FILES["b.mp4"])
    decoded = []
    seek = seeking.seek

    def counted(*given):
        frames, start_s = seek(*given)
        return (decoded.append(1) or frame for frame in frames), start_s

    monkeypatch.setattr(film, "seek", counted)
    first = 15 * 8  # seconds at the clip's rate
    shown = media.read_frames(folder / "x.mp4", CLIP, first=first)
    assert len(list(itertools.islice(shown, 8))) == 8
    # From the key frame at most 30 frames before the lead of a second, not from the start.
    assert len(decoded) <= 30 + 12 + 12 + 2 < 15 * RATE_HZ


SOUNDS = {"a.mp4": "aac", "b.wav": "pcm_s16le", "c.mka": "libopus", "d.mp3": "libmp3lame", "e.flac": "flac"}


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_from_a_later_time_on_is_that_of_the_whole(
    name: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the sample where the container counts samples, to a millisecond where it counts those."""
    rate_hz = 48_000
    time_s = np.arange(20 * rate_hz) / rate_hz
    wave = 8000 * np.sin(2 * np.pi * (200 * time_s + 20 * time_s**2))
    with av.open(str(folder / name), "w") as container:
        stream = container.add_stream(SOUNDS[name], rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, fractions.Fraction(1, rate_hz)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    at_s, seconds = 13.25, 3
    for to_hz in (rate_hz, 16_000):
        whole = media.read_track(folder / name, to_hz, 20 * to_hz, 0.0).astype(float)
        with monkeypatch.context() as patch:
            patch.setattr(sound, "SEEK_FROM_S", 1.0)
            part = media.read_track(folder / name, to_hz, seconds * to_hz, at_s)
        shifts = to_hz // 1000 if name.endswith(".mka") else 0
        begin = round(at_s * to_hz)
        difference = min(np.abs(part - whole[begin + k :][: len(part)]).max() for k in range(-shifts, shifts + 1))
        if to_hz == rate_hz and not shifts:
            assert difference <= (0 if name in ("b.wav", "e.flac") else 1)
        # The resampler begins elsewhere: half a sample of a sweep that ends at 1 kHz.
        assert difference <= 8000 * 2 * np.pi * 1000 / 16_000 / 2
