"""Media files: round trips, choice of frames, alignment of sound, and clear refusals."""

from __future__ import annotations

import fractions
import io
import os
import pathlib
import subprocess
import sys
import wave

import av
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from poet import media
from poet.media import bitstreams
from poet.spec import ClipSpec, UserError

SAMPLE_RATE_HZ = 16_000


def numbered_video(frames: int, side: int = 64) -> np.ndarray:
    """Frame k is grey of level 4 * k + 10, so a decoded frame tells its index."""
    levels = np.arange(frames, dtype=np.uint8) * 4 + 10
    return np.broadcast_to(levels[:, None, None, None], (frames, side, side, 3)).copy()


def indices(video: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 10) / 4) for frame in video]


def smooth_video(frames: int, height: int, width: int) -> np.ndarray:
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 9 + t / 4), np.cos(y / 11 - t / 5), np.sin((x + y) / 13)]
    return np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def tone_burst(samples: int) -> np.ndarray:
    """Silence but for 440 Hz from 0.5 s to 0.75 s."""
    sound = np.zeros(samples, np.int16)
    time_s = np.arange(SAMPLE_RATE_HZ // 4) / SAMPLE_RATE_HZ
    start = SAMPLE_RATE_HZ // 2
    sound[start : start + len(time_s)] = np.rint(20_000 * np.sin(2 * np.pi * 440 * time_s))
    return sound


def lag(heard: np.ndarray, true: np.ndarray, reach: int = 2000) -> int:
    """Samples by which `heard` comes after `true`."""
    padded = np.pad(heard.astype(np.float64), reach)
    return int(np.argmax(np.correlate(padded, true.astype(np.float64), "valid"))) - reach


def test_mp4_round_trip_keeps_pixels_frames_and_sound(tmp_path: pathlib.Path) -> None:
    video = smooth_video(17, 64, 96)
    clip = ClipSpec(height=64, width=96)
    sound = tone_burst(clip.samples)
    media.write_mp4(tmp_path / "a.mp4", video, 8.0, sound, SAMPLE_RATE_HZ)
    back = media.read_clip(tmp_path / "a.mp4", clip)
    assert back.video.shape == video.shape and back.video.dtype == np.uint8
    assert psnr(back.video, video) > 33
    assert back.audio.shape == (34_000,) and back.audio.dtype == np.int16
    assert abs(lag(back.audio, sound)) <= 2
    assert np.corrcoef(back.audio, sound)[0, 1] > 0.97


def test_clip_without_sound_has_none(tmp_path: pathlib.Path) -> None:
    media.write_mp4(tmp_path / "a.mp4", numbered_video(3), 8.0)
    clip = ClipSpec(frames=3, height=64, width=64)
    assert media.read_clip(tmp_path / "a.mp4", clip).audio is None


@pytest.mark.parametrize("source_hz", [6.0, 8.0, 12.5, 24.0, 29.97])
def test_frames_are_those_nearest_in_time(tmp_path: pathlib.Path, source_hz: float) -> None:
    media.write_mp4(tmp_path / "a.mp4", numbered_video(60), source_hz)
    clip = ClipSpec(frames=9, height=64, width=64)
    chosen = indices(media.read_clip(tmp_path / "a.mp4", clip).video)
    times_s = np.arange(60) / source_hz
    for k, index in enumerate(chosen):
        distance_s = np.abs(times_s - k / clip.rate_hz)
        # At a tie either neighbour is nearest; the container's clock rounds to 0.1 ms.
        assert distance_s[index] <= distance_s.min() + 2e-4


def test_frames_follow_timestamps_not_the_nominal_rate(tmp_path: pathlib.Path) -> None:
    """Frame k stands at k*k/100 s: a reader that counts frames picks others."""
    video, path = numbered_video(20), tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "crf": "10"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for k, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = k * k * 10, fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = ClipSpec(frames=9, height=64, width=64, rate_hz=4.0)
    chosen = indices(media.read_clip(path, clip).video)
    squares = np.arange(20) ** 2 / 100
    assert chosen == [int(np.argmin(np.abs(squares - k / 4))) for k in range(9)]


@pytest.mark.parametrize("frames, whole", [(16, False), (17, True)])
def test_the_last_frame_must_be_there(tmp_path: pathlib.Path, frames: int, whole: bool) -> None:
    media.write_mp4(tmp_path / "a.mp4", numbered_video(frames), 8.0)
    clip = ClipSpec(height=64, width=64)
    if whole:
        assert indices(media.read_clip(tmp_path / "a.mp4", clip).video) == list(range(17))
    else:
        with pytest.raises(media.MediaError, match="too short: it gives 16 frames at 8 Hz"):
            media.read_clip(tmp_path / "a.mp4", clip)


def test_sound_is_resampled_mixed_and_filled_with_silence(tmp_path: pathlib.Path) -> None:
    """Stereo at 44.1 kHz, only 1 s of it, beside 17 frames (2.125 s) of video."""
    path, rate_hz = tmp_path / "a.mkv", 44_100
    time_s = np.arange(rate_hz) / rate_hz
    left = np.rint(16_000 * np.sin(2 * np.pi * 500 * time_s)).astype(np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=rate_hz, layout="stereo")
        for pixels in numbered_video(17):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        stereo = np.stack([left, left], -1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(stereo, format="s16", layout="stereo")
        frame.sample_rate, frame.pts = rate_hz, 0
        frame.time_base = fractions.Fraction(1, rate_hz)
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    heard = media.read_clip(path, ClipSpec(height=64, width=64)).audio
    assert heard.shape == (34_000,) and not heard[16_200:].any()
    wanted = 16_000 * np.sin(2 * np.pi * 500 * np.arange(16_000) / SAMPLE_RATE_HZ)
    inner = slice(200, 15_800)
    assert np.abs(heard[:16_000] - wanted)[inner].max() < 200


def make_rotated(path: pathlib.Path, degrees: int, pixels: np.ndarray) -> None:
    """An H.264 stream that asks the player to turn its pixels, as a phone writes it."""
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        name = f"h264_metadata=display_orientation=insert:rotate={degrees}"
        turn = av.bitstream.BitStreamFilterContext(name, stream)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            for turned in turn.filter(packet):
                container.mux(turned)


def test_rotation_is_applied(tmp_path: pathlib.Path) -> None:
    """`rotate` of the bitstream filter turns the picture anticlockwise by that angle."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 48:] = 255  # a bright right edge
    clip = ClipSpec(frames=1, height=64, width=32)
    make_rotated(tmp_path / "a.h264", 90, pixels)
    upright = media.read_clip(tmp_path / "a.h264", clip).video[0]
    assert upright[:14].mean() > 240 and upright[18:].mean() < 15


def test_truncated_files_are_refused_at_every_length(tmp_path: pathlib.Path) -> None:
    media.write_mp4(tmp_path / "a.mp4", smooth_video(17, 64, 64), 8.0)
    whole = (tmp_path / "a.mp4").read_bytes()
    clip = ClipSpec(height=64, width=64)
    assert media.read_clip(tmp_path / "a.mp4", clip).video.shape[0] == 17
    reasons = set()
    for size in np.linspace(0, len(whole) * 0.97, 12).astype(int):
        (tmp_path / "cut.mp4").write_bytes(whole[:size])
        with pytest.raises(media.MediaError) as caught:
            media.read_clip(tmp_path / "cut.mp4", clip)
        assert "cut.mp4" in str(caught.value)
        reasons.add(caught.value.reason.split(":")[0])
    # Decoders of several threads leave a cut frame out, those of one fail at it.
    assert {"empty", "undecodable"} <= reasons <= {"empty", "undecodable", "truncated"}


def test_unusable_files_say_why(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    media.write_wav(tmp_path / "sound.wav", np.zeros(100, np.int16), SAMPLE_RATE_HZ)
    for name, reason in (("absent.mp4", "no such file"), ("text.mp4", "undecodable"), ("sound.wav", "no video stream")):
        with pytest.raises(UserError, match=f"{name}: {reason}"):
            media.read_clip(tmp_path / name, ClipSpec())


@pytest.mark.parametrize("source_hz", [6.0, 12.5, 24.0, 29.97])
def test_probe_knows_sides_and_the_most_frames_of_any_rate(tmp_path: pathlib.Path, source_hz: float) -> None:
    path = tmp_path / "clip.mp4"
    media.write_mp4(path, numbered_video(23, side=32)[:, :, :24], source_hz)
    picture = media.probe(path)
    assert (picture.height, picture.width) == (32, 24)
    assert picture.seconds == pytest.approx(23 / source_hz, abs=1e-3)
    for rate_hz in (8.0, source_hz):
        most = picture.frames(rate_hz)
        clip = ClipSpec(frames=most, height=32, width=24, rate_hz=rate_hz)
        assert len(media.read_clip(path, clip).video) == most
        with pytest.raises(media.MediaError, match="too short"):
            media.read_clip(path, clip.replace(frames=most + 1))


def test_probe_turns_sides_and_names_bad_files(tmp_path: pathlib.Path) -> None:
    make_rotated(tmp_path / "turned.h264", 90, numbered_video(1, side=32)[0, :, :16].copy())
    turned = media.probe(tmp_path / "turned.h264")
    assert (turned.height, turned.width) == (16, 32)
    with pytest.raises(media.MediaError, match="nowhere.mp4: no such file"):
        media.probe(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(media.MediaError, match="text.mp4: undecodable"):
        media.probe(tmp_path / "text.mp4")


def test_still_image_is_a_clip_of_one_frame(tmp_path: pathlib.Path) -> None:
    pixels = smooth_video(1, 40, 60)
    media.write_png_strip(tmp_path / "a.png", pixels)
    back = media.read_clip(tmp_path / "a.png", ClipSpec(frames=1, height=40, width=60))
    assert np.array_equal(back.video, pixels) and back.audio is None


@hypothesis.given(
    height=st.integers(8, 90), width=st.integers(8, 90), to_height=st.integers(8, 40), to_width=st.integers(8, 40)
)
def test_crop_is_the_largest_centred_box_of_the_aspect(height: int, width: int, to_height: int, to_width: int) -> None:
    left, top, right, bottom = media.centre_box(height, width, to_height, to_width)
    assert left == pytest.approx(width - right) and top == pytest.approx(height - bottom)
    assert min(left, top) >= 0 and min(left, top) == pytest.approx(0, abs=1e-9)
    assert (right - left) * to_height == pytest.approx((bottom - top) * to_width)


def test_resize_crops_the_sides_and_keeps_the_centre() -> None:
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 36:84] = (50, 100, 200)  # 4 pixels beyond the crop, the reach of the filter
    resized = media.resize_image(image, 20, 20)
    assert np.array_equal(resized, np.broadcast_to(np.uint8([50, 100, 200]), (20, 20, 3)))


def test_wide_pixels_widen_the_picture() -> None:
    """A square of 20x40 pixels, each twice as wide as high, is square on the screen."""
    image = np.zeros((40, 20, 3), np.uint8)
    image[:, :10] = 200
    resized = media.resize_image(image, 32, 32, pixel_aspect=2.0)
    assert resized[:, :14].mean() > 195 and resized[:, 18:].mean() < 5


def test_gif_keeps_frames_and_pace(tmp_path: pathlib.Path) -> None:
    video = numbered_video(5)
    media.write_gif(tmp_path / "a.gif", video, 8.0)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5 and image.info["loop"] == 0
        assert image.info["duration"] == 120
        frames = []
        for k in range(5):
            image.seek(k)
            frames.append(np.asarray(image.convert("RGB")))
    assert np.array_equal(np.stack(frames), video)


def test_strip_is_every_nth_frame_side_by_side() -> None:
    video = numbered_video(7, side=4)
    wanted = np.hstack([video[0], video[3], video[6]])
    assert np.array_equal(media.frame_strip(video, every=3), wanted)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_wav_round_trip(tmp_path: pathlib.Path, dtype: type) -> None:
    sound = tone_burst(16_000)
    given = sound if dtype is np.int16 else (sound / 32767).astype(np.float32)
    media.write_wav(tmp_path / "a.wav", given, SAMPLE_RATE_HZ)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (SAMPLE_RATE_HZ, 1)
        assert np.array_equal(np.frombuffer(file.readframes(16_000), np.int16), sound)


def test_float_sound_is_clipped_not_wrapped() -> None:
    assert media.to_int16(np.array([-3.0, 0.0, 3.0])).tolist() == [-32767, 0, 32767]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.txt"
    media.write_text(path, "old")
    with pytest.raises(RuntimeError), media.replacing(path) as file:
        file.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_odd_sides_are_refused_before_a_file_appears(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="even sides, got 15x16"):
        media.write_mp4(tmp_path / "a.mp4", np.zeros((2, 15, 16, 3), np.uint8), 8.0)
    assert not list(tmp_path.iterdir())


def test_wrong_arrays_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        media.write_gif(tmp_path / "a.gif", np.zeros((2, 16, 16, 3), np.float32), 8.0)
    with pytest.raises(ValueError, match="mono"):
        media.write_wav(tmp_path / "a.wav", np.zeros((10, 2), np.int16), 16_000)


# ------------------------------------------------------------------------------ streams in memory


def noisy_video(frames: int, side: int) -> np.ndarray:
    grain = np.random.default_rng(0).integers(-20, 21, (frames, side, side, 3))
    return np.clip(smooth_video(frames, side, side) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("pixel_format", bitstreams.PIXEL_FORMATS)
@pytest.mark.parametrize("codec", bitstreams.STREAM_CODECS)
def test_streams_give_every_frame_back_in_order(codec: str, pixel_format: str) -> None:
    video = numbered_video(17)
    packets = bitstreams.encode_stream(video, codec, 10, rate_hz=8.0, pixel_format=pixel_format)
    assert indices(bitstreams.decode_stream(packets, codec)) == list(range(17))


@pytest.mark.parametrize("codec", bitstreams.STREAM_CODECS)
def test_rate_factor_trades_bytes_for_quality(codec: str) -> None:
    video = noisy_video(9, 64)
    streams = [bitstreams.encode_stream(video, codec, crf, rate_hz=8.0) for crf in (15, 25, 35, 45)]
    sizes = [bitstreams.slice_bytes(packets, codec) for packets in streams]
    quality = [psnr(bitstreams.decode_stream(packets, codec), video) for packets in streams]
    assert sizes == sorted(sizes, reverse=True) and quality == sorted(quality, reverse=True)


ENCODE_A_FILE = """
import sys, numpy, poet.media.bitstreams as bitstreams
packets = bitstreams.encode_stream(numpy.load(sys.argv[1]), "x264", 30, rate_hz=8.0)
sys.stdout.buffer.write(b"".join(packets))
"""


def test_x264_repeats_byte_for_byte_whatever_memory_held(tmp_path: pathlib.Path) -> None:
    """glibc fills the memory that it hands out with the byte of MALLOC_PERTURB_."""
    np.save(tmp_path / "clip.npy", noisy_video(9, 64))
    command = [sys.executable, "-c", ENCODE_A_FILE, str(tmp_path / "clip.npy")]
    first, second = (
        subprocess.run(command, env={**os.environ, "MALLOC_PERTURB_": fill}, capture_output=True, check=True).stdout
        for fill in ("90", "165")
    )
    assert first == second and len(first) > 500


def test_full_chroma_keeps_colours_that_half_chroma_mixes() -> None:
    video = np.zeros((3, 64, 64, 3), np.uint8)
    video[:, :, ::2, 0] = video[:, :, 1::2, 2] = 200  # columns red, blue, red, blue
    quality = {}
    for pixel_format in bitstreams.PIXEL_FORMATS:
        packets = bitstreams.encode_stream(video, "x264", 5, rate_hz=8.0, pixel_format=pixel_format)
        quality[pixel_format] = psnr(bitstreams.decode_stream(packets, "x264"), video)
    assert quality["yuv444p"] > quality["yuv420p"] + 10


@pytest.mark.parametrize("codec, kinds", [("x264", "1-5"), ("x265", "0-31")])
def test_slice_bytes_are_those_that_ffmpeg_keeps(codec: str, kinds: str) -> None:
    """FFmpeg's own filter drops all units but pictures; what it adds is a start code to each."""
    frames = 13
    packets = bitstreams.encode_stream(noisy_video(frames, 64), codec, 30, rate_hz=8.0)
    counted = bitstreams.slice_bytes(packets, codec)
    decoder = bitstreams.STREAM_CODECS[codec].decoder
    with av.open(io.BytesIO(b"".join(packets)), format=decoder) as container:
        keep = av.bitstream.BitStreamFilterContext(f"filter_units=pass_types={kinds}", container.streams.video[0])
        kept = sum(len(bytes(p)) for packet in container.demux() for p in keep.filter(packet))
    assert 3 * frames <= kept - counted <= 4 * frames
    assert counted < kept < sum(map(len, packets))


def test_unfit_streams_are_refused() -> None:
    with pytest.raises(UserError, match="even sides, got 15x16"):
        bitstreams.encode_stream(np.zeros((2, 15, 16, 3), np.uint8), "x264", 20, rate_hz=8.0)
    with pytest.raises(UserError, match="preset 'hasty'"):
        bitstreams.encode_stream(numbered_video(2), "x264", 20, rate_hz=8.0, preset="hasty")
    with pytest.raises(ValueError, match="uint8"):
        bitstreams.encode_stream(np.zeros((2, 16, 16, 3)), "x264", 20, rate_hz=8.0)
