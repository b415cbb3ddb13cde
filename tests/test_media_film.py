"""What files really show and sound like: colours, turns, streams, gaps, and what they may not do."""

from __future__ import annotations

import fractions
import os
import pathlib
import struct
from collections.abc import Sequence

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from poet import media
from poet.media import colour, film
from poet.media.files import MOST_GAP_S
from poet.media.sound import read_sound
from poet.spec import ClipSpec

RATE_HZ = 16_000
SIDE = 32


def clip(frames: int = 1, height: int = SIDE, width: int = SIDE) -> ClipSpec:
    return ClipSpec(frames=frames, height=height, width=width)


def blocks(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A picture that no turn leaves as it is: large patches of its own colour in each corner."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = slice(height // 2), slice(width // 2)
    pixels[top, left], pixels[top, width // 2 :] = (200, 30, 30), (30, 180, 30)
    pixels[height // 2 :, left], pixels[height // 2 :, width // 2 :] = (30, 30, 200), (230, 230, 230)
    return pixels


def near(shown: np.ndarray, wanted: np.ndarray) -> bool:
    return float(np.abs(shown.astype(int) - wanted).mean()) < 6


# ----------------------------------------------------------------------------------------- colour

# Weights of red and blue in luma: BT.709, BT.601, BT.2020.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}


def ycbcr(rgb: np.ndarray, matrix: int, full: bool, bits: int = 8) -> np.ndarray:
    """H.273 in float64: RGB in 0..1 (..., 3) -> samples, not rounded."""
    red, blue = WEIGHTS[matrix]
    y = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
    cb, cr = (rgb[..., 2] - y) / (2 - 2 * blue), (rgb[..., 0] - y) / (2 - 2 * red)
    if full:
        return np.stack([255 * y, 128 + 255 * cb, 128 + 255 * cr], -1)
    return 2 ** (bits - 8) * np.stack([16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr], -1)


def coded(samples_HxWx3: np.ndarray, format: str = "yuv444p") -> av.VideoFrame:
    height, width = samples_HxWx3.shape[:2]
    frame = av.VideoFrame(width, height, format)
    kind = np.uint16 if "10" in format else np.uint8
    for plane, values in zip(frame.planes, np.moveaxis(samples_HxWx3, -1, 0), strict=True):
        values = values[:: height // plane.height, :: width // plane.width]
        lines = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
        lines[:, : plane.width] = np.rint(values)
        plane.update(lines.tobytes())
    return frame


@pytest.mark.parametrize(
    "told, meant, full, height",
    [(1, 1, False, 48), (5, 5, False, 48), (6, 5, True, 48), (9, 9, False, 48), (1, 1, True, 48)]
    + [(2, 5, False, 576), (2, 1, False, 720)],
)
def test_every_matrix_and_range_is_inverted_without_a_bias(told: int, meant: int, full: bool, height: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (height, 40, 3))
    frame = coded(ycbcr(rgb / 255, meant, full))
    frame.colorspace, frame.color_range = told, 2 if full else 1
    error = colour.ToRGB()(frame).astype(int) - rgb
    assert np.abs(error).max() <= 3 and np.abs(error.mean(axis=(0, 1))).max() < 0.1


def test_unknown_matrices_are_named() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace = 8
    with pytest.raises(colour.UnknownColour, match="matrix coefficients 8"):
        colour.ToRGB()(frame)


def smooth(frames: int, height: int, width: int) -> np.ndarray:
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 19 + t / 4), np.cos(y / 21 - t / 5), np.sin((x + y) / 23)]
    return np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def test_rewriting_costs_little_and_shifts_nothing(tmp_path: pathlib.Path) -> None:
    first = video = smooth(5, 64, 64)
    quality = []
    for index in range(5):
        media.write_mp4(tmp_path / f"{index}.mp4", video, 8.0)
        video = media.read_clip(tmp_path / f"{index}.mp4", clip(5, 64, 64)).video
        error = video.astype(float) - first
        quality.append(-10 * np.log10(np.square(error / 255).mean()))
        assert abs(error.mean()) < 0.75
    assert quality[0] > 44 and quality[0] - quality[4] < 4.5, "four rewritings more"


def test_a_film_is_written_in_the_same_bytes_every_time(tmp_path: pathlib.Path) -> None:
    files = set()
    for _ in range(40):
        media.write_mp4(tmp_path / "a.mp4", smooth(17, 64, 64), 8.0)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


def test_what_is_written_is_tagged(tmp_path: pathlib.Path) -> None:
    media.write_mp4(tmp_path / "a.mp4", smooth(2, 32, 32), 8.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    tags = frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc
    assert tags == (1, 1, 1, 1)


def pq(nits: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: luminance -> signal in 0..1."""
    power = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


# BT.2087: linear BT.709 -> linear BT.2020.
TO_BT2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]


def test_hdr_shows_the_colours_that_were_meant() -> None:
    """Patches of BT.709 colours, coded at 203 nits for white (BT.2408), look as they do in SDR."""
    patches = np.array([[230, 230, 230], [120, 120, 120], [40, 40, 40], [200, 30, 30], [30, 180, 30]])
    light = (patches / 255.0) ** 2.4 @ np.array(TO_BT2020).T
    samples = ycbcr(pq(203 * light)[None], 9, False, 10).repeat(64, 0).repeat(16, 1)
    frame = coded(samples, "yuv420p10le")
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 9, 1, 9, 16
    shown = colour.ToRGB()(frame)[16, 8::16].astype(int)
    assert np.ptp(shown[:3], axis=1).max() <= 4, "grey stays grey"
    assert np.abs(shown - patches).max() <= 45
    frame.color_trc = frame.color_primaries = 2
    assert np.abs(colour.ToRGB()(frame)[16, 8::16].astype(int) - patches).max() > 80, "as without mapping"


def test_what_is_transparent_lies_on_white(tmp_path: pathlib.Path) -> None:
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[:, :, :3] = (90, 0, 0)  # hidden where alpha is 0
    pixels[:, 8:24, 3], pixels[:, 24:, 3] = 255, 128
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.webp", lossless=True, exact=True)
    image.save(tmp_path / "a.tiff")
    for suffix in ("gif", "apng"):
        options = {"format": "PNG" if suffix == "apng" else "GIF", "save_all": True}
        image.save(tmp_path / f"a.{suffix}", append_images=[image], duration=100, **options)
    for suffix in ("png", "webp", "tiff", "gif", "apng"):
        shown = media.read_clip(tmp_path / f"a.{suffix}", clip()).video[0].astype(int)
        assert shown[:, :6].min() == 255, suffix
        assert np.abs(shown[:, 10:22] - [90, 0, 0]).max() <= 1, suffix
        if suffix != "gif":  # which has no half transparency
            assert np.abs(shown[:, 27:] - [172, 127, 127]).max() <= 1, suffix


def test_a_webp_that_moves_keeps_its_pace(tmp_path: pathlib.Path) -> None:
    frames = [Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)) for level in (0, 80, 160)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=250, lossless=True)
    video = media.read_clip(tmp_path / "a.webp", clip(5)).video
    assert video[:, 0, 0, 0].tolist() == [0, 0, 80, 80, 160]
    assert media.probe(tmp_path / "a.webp").seconds == pytest.approx(0.75)


# ------------------------------------------------------------------------------------------ turns

# EXIF 2.32, orientation: what brings the stored picture upright.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_photographs_stand_as_exif_says(tmp_path: pathlib.Path, suffix: str) -> None:
    stored = blocks(32, 48)
    for value, upright in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = value
        Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
        wanted = upright(stored)
        shown = media.read_clip(tmp_path / f"a.{suffix}", clip(1, *wanted.shape[:2])).video[0]
        assert near(shown, wanted), (suffix, value)


@pytest.mark.parametrize("a, b, c, d", [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)]
                         + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)])  # fmt: skip
def test_display_matrices_are_applied(tmp_path: pathlib.Path, a: int, b: int, c: int, d: int) -> None:
    """Brute force: every pixel goes where the matrix sends it.  The matrix is written into the header of
    the track, in which the identity stands."""
    stored = blocks(32, 48)
    media.write_mp4(tmp_path / "a.mp4", stored[None].repeat(3, 0), 8.0)
    whole, one = (tmp_path / "a.mp4").read_bytes(), 1 << 16
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    place = whole.index(identity, whole.index(b"tkhd"))
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(whole[:place] + matrix + whole[place + 36 :])
    y, x = np.mgrid[:32, :48]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    wanted = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    wanted[to_y, to_x] = stored
    shown = media.read_clip(tmp_path / "a.mp4", clip(1, *wanted.shape[:2])).video[0]
    assert near(shown, wanted)
    measured = media.probe(tmp_path / "a.mp4")
    assert (measured.height, measured.width) == wanted.shape[:2]
    assert np.array_equal(film.Turn.by((a, b, c, d)).apply(stored), wanted)


# ---------------------------------------------------------------------------------------- streams


def write_mkv(
    path: pathlib.Path,
    films: Sequence[tuple[int, int, Disposition]] = (),
    sounds: Sequence[tuple[float, Disposition]] = (),
) -> None:
    """Silent streams of one level and side, and streams of one tone in Hz."""
    with av.open(str(path), "w", format="matroska") as container:
        streams = []
        for level, side, disposition in films:
            stream = container.add_stream("ffv1", rate=8)
            stream.width = stream.height = side
            stream.pix_fmt, stream.disposition = "yuv420p", disposition
            pixels = np.full((side, side, 3), level, np.uint8)
            streams.append((stream, [colour.to_yuv420p(pixels) for _ in range(5)]))
        for hertz, disposition in sounds:
            stream = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
            stream.disposition = disposition
            streams.append((stream, [sound_frame(tone(hertz), 0)]))
        for stream, frames in streams:
            for frame in (*frames, None):
                container.mux(stream.encode(frame))


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return np.rint(12_000 * np.sin(2 * np.pi * hertz * time_s)).astype(np.int16)


def sound_frame(samples: np.ndarray, pts: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = RATE_HZ, pts
    frame.time_base = fractions.Fraction(1, RATE_HZ)
    return frame


NONE, DEFAULT = Disposition(0), Disposition.default


@pytest.mark.parametrize(
    "films, level",
    [
        ([(50, 64, NONE), (150, 32, DEFAULT)], 150),
        ([(50, 32, NONE), (150, 64, NONE)], 150),
        ([(50, 32, NONE), (150, 32, NONE)], 50),
    ],
)
def test_the_film_is_the_default_or_the_best(
    tmp_path: pathlib.Path, films: list[tuple[int, int, Disposition]], level: int
) -> None:
    write_mkv(tmp_path / "a.mkv", films)
    assert abs(media.read_clip(tmp_path / "a.mkv", clip(3)).video.mean() - level) < 3


def test_a_cover_is_no_film(tmp_path: pathlib.Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "rgb24", Disposition.attached_pic
        sound = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        picture = av.VideoFrame.from_ndarray(blocks(64, 64), format="rgb24")
        for stream, frame in ((cover, picture), (sound, sound_frame(tone(440), 0))):
            for each in (frame, None):
                container.mux(stream.encode(each))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    for read in (lambda: media.read_clip(tmp_path / "a.mp4", clip()), lambda: media.probe(tmp_path / "a.mp4")):
        with pytest.raises(media.MediaError, match="no video stream"):
            read()


def test_the_sound_is_the_default_one(tmp_path: pathlib.Path) -> None:
    write_mkv(tmp_path / "a.mka", sounds=[(400, Disposition.comment), (800, DEFAULT), (1600, NONE)])
    spectrum = np.abs(np.fft.rfft(read_sound(tmp_path / "a.mka", RATE_HZ).samples.astype(float)))
    assert abs(np.argmax(spectrum) * RATE_HZ / (2 * len(spectrum) - 2) - 800) < 5


# -------------------------------------------------------------------------------------- timestamps


def write_timed(path: pathlib.Path, times_s: Sequence[float], empty: Sequence[float] = ()) -> None:
    """Frames of level 10, 30, 50 ... shown from the given times; packets without data at others."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        packets = []
        for index, time_s in enumerate(times_s):
            frame = colour.to_yuv420p(np.full((SIDE, SIDE, 3), 20 * index + 10, np.uint8))
            frame.pts, frame.time_base = round(1000 * time_s), fractions.Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for time_s in empty:
            packet = av.Packet(b"")
            packet.stream, packet.time_base = stream, fractions.Fraction(1, 1000)
            packet.pts = packet.dts = round(1000 * time_s)
            packets.append(packet)
        container.mux(sorted(packets, key=lambda packet: packet.pts))


@pytest.mark.parametrize("last_s", [MOST_GAP_S + 1.5, 1e6, 2e6])
def test_a_jump_of_the_clock_ends_a_film(tmp_path: pathlib.Path, last_s: float) -> None:
    write_timed(tmp_path / "a.mkv", [0, 0.25, 0.5, 0.75, last_s])
    taken = []
    with pytest.raises(media.MediaError, match="jumping timestamps: from 0.75 s to") as caught:
        for frame, _ in media.read_frames(tmp_path / "a.mkv", clip()):
            taken.append(frame)
    assert len(taken) <= 8 and caught.value.reason.startswith("jumping timestamps: ")
    with pytest.raises(media.MediaError, match="jumping timestamps"):
        media.probe(tmp_path / "a.mkv")
    assert media.read_clip(tmp_path / "a.mkv", clip(4)).video.shape[0] == 4, "before the jump"


def test_pauses_up_to_the_bound_are_shown(tmp_path: pathlib.Path) -> None:
    write_timed(tmp_path / "a.mkv", [0, 0.25, MOST_GAP_S + 0.25])
    assert sum(1 for _ in media.read_frames(tmp_path / "a.mkv", clip())) > 8 * MOST_GAP_S


def test_packets_without_data_repeat_the_frame_before(tmp_path: pathlib.Path) -> None:
    """As Ogg Theora has them; before, the first of them ended the decoding."""
    write_timed(tmp_path / "a.nut", [0, 0.125, 0.625, 0.75], empty=[0.25, 0.375, 0.5])
    levels = media.read_clip(tmp_path / "a.nut", clip(7)).video.mean(axis=(1, 2, 3))
    assert np.abs(levels - [10, 30, 30, 30, 30, 50, 70]).max() < 3


def write_gap(path: pathlib.Path, begins_s: Sequence[float]) -> None:
    """Half seconds of 1 kHz that begin at the given times."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for begin_s in begins_s:
            container.mux(stream.encode(sound_frame(tone(1000), round(begin_s * RATE_HZ))))
        container.mux(stream.encode(None))


def heard(samples: np.ndarray) -> list[tuple[float, float]]:
    """(from, to) in seconds of what is not silent."""
    loud = np.abs(samples.astype(int)).reshape(-1, 16).max(axis=1) > 1000
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]]).astype(int)))
    return [(a / 1000, b / 1000) for a, b in edges.reshape(-1, 2)]


def test_sound_after_a_gap_keeps_its_time(tmp_path: pathlib.Path) -> None:
    write_gap(tmp_path / "a.mka", [0, 0.5, 2.0])
    runs = [(0, 1.0), (2.0, 2.5)]
    whole = read_sound(tmp_path / "a.mka", RATE_HZ).samples
    track = media.read_runs(tmp_path / "a.mka", RATE_HZ, 0.0)
    assert len(whole) == track.end == 2.5 * RATE_HZ
    for samples in (whole, track.window(0, 3 * RATE_HZ)):
        assert np.allclose(heard(samples), runs, atol=0.002)
    assert np.allclose(heard(track.window(RATE_HZ, 2 * RATE_HZ)), [(1.0, 1.5)], atol=0.002)


def test_sound_far_away_fills_no_memory(tmp_path: pathlib.Path) -> None:
    write_gap(tmp_path / "a.mka", [0, 0.5, 2e6])
    with pytest.raises(media.MediaError, match="jumping timestamps: from 1 s to 2e.06 s"):
        read_sound(tmp_path / "a.mka", RATE_HZ)
    track = media.read_runs(tmp_path / "a.mka", RATE_HZ, 0.0)
    assert [len(samples) for _, samples in track.runs] == [RATE_HZ, RATE_HZ // 2]
    near_by = media.read_runs(tmp_path / "a.mka", RATE_HZ, 0.0, 2 * RATE_HZ)
    assert len(near_by.runs) == 1


# -------------------------------------------------------------------------------------- other files

LISTS = {
    "a.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
    "b.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "c.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_other_files_opens_none(tmp_path: pathlib.Path, name: str) -> None:
    media.write_mp4(tmp_path / "secret.mp4", smooth(3, 32, 32), 8.0)
    (tmp_path / name).write_text(LISTS[name])
    for read in (lambda: media.read_clip(tmp_path / name, clip()), lambda: read_sound(tmp_path / name, 8000)):
        with pytest.raises(media.MediaError, match="a list of other files|no known format"):
            read()


@pytest.mark.parametrize("name", ["concat:x.mp4", "http:x.mp4", "a%03d.png", "50%.png", "-i.mp4"])
def test_any_name_is_that_of_a_file(tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name.endswith("png"):
        Image.fromarray(blocks()).save(tmp_path / name)
    else:
        media.write_mp4(name, blocks()[None], 8.0)
    assert near(media.read_clip(name, clip()).video[0], blocks())


def test_pipes_and_folders_are_refused_at_once(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").mkdir()
    for name, what in (("a.mp4", "a pipe or device"), ("b.mp4", "a folder")):
        with pytest.raises(media.MediaError, match=f"unreadable: {what}, not a file"):
            media.read_clip(tmp_path / name, clip())


def test_a_huge_picture_is_not_decoded(tmp_path: pathlib.Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(media.MediaError, match="too large|undecodable"):
        media.read_clip(tmp_path / "a.png", clip())
