"""Media files out: formats, sound in step with the picture, comments, frames that are copied as they are coded."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from poet import media
from poet.spec import ClipSpec

RATE_HZ, SAMPLE_RATE_HZ = 8.0, 16_000
CLIP = ClipSpec(frames=24, height=32, width=32, sample_rate_hz=SAMPLE_RATE_HZ)


def flash_and_beep(frame: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Three seconds in which frame 12 flashes while a tone sounds."""
    video = np.full((24, 32, 32, 3), 20, np.uint8)
    video[frame] = 235
    time = np.arange(3 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    beep = (time >= frame / RATE_HZ) & (time < (frame + 1) / RATE_HZ)
    return video, (np.sin(2 * np.pi * 1000 * time) * beep * 20_000).astype(np.int16)


def offset_s(path, clip: ClipSpec = CLIP) -> float:
    """How much later the beep begins than the flash."""
    found = media.read_clip(path, clip)
    flash = int(found.video.mean((1, 2, 3)).argmax()) / RATE_HZ
    loud = np.abs(found.audio.astype(int)) > 5_000
    return float(np.flatnonzero(loud)[0] / SAMPLE_RATE_HZ - flash)


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_beep_sounds_when_the_flash_is_seen(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    video, sound = flash_and_beep()
    getattr(media, f"write_{suffix}")(path, video, RATE_HZ, sound, SAMPLE_RATE_HZ, "made up")
    assert abs(offset_s(path)) < 0.01
    assert media.read_comment(path) == "made up"
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)


def test_an_apng_and_a_wav_are_exact_and_carry_a_comment(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (5, 15, 17, 3), np.uint8)
    media.write_apng(tmp_path / "a.apng", video, RATE_HZ, "made up")
    with Image.open(tmp_path / "a.apng") as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            assert image.info["duration"] == 125
    np.testing.assert_array_equal(np.stack(frames), video)
    sound = np.random.default_rng(1).integers(-9999, 9999, 1001).astype(np.int16)
    media.write_wav(tmp_path / "a.wav", sound, SAMPLE_RATE_HZ, "made up, too")
    np.testing.assert_array_equal(media.read_sound(tmp_path / "a.wav", SAMPLE_RATE_HZ).samples, sound)
    for name, comment in (("a.apng", "made up"), ("a.wav", "made up, too")):
        assert media.read_comment(tmp_path / name) == comment


def packets(path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


@pytest.mark.parametrize("source", ["a.mp4", "late.mkv", "a.webm"])
def test_another_sound_leaves_the_coded_frames_as_they_are(source, tmp_path):
    video, sound = flash_and_beep()
    if source == "late.mkv":  # Its first frame has not the time 0.
        media.write_mp4(tmp_path / "early.mp4", video, RATE_HZ)
        with av.open(str(tmp_path / "early.mp4")) as early, av.open(str(tmp_path / source), "w") as late:
            copy = late.add_stream_from_template(early.streams.video[0])
            for packet in early.demux(early.streams.video[0]):
                if packet.dts is not None:
                    packet.pts, packet.dts = (t + round(2 / packet.time_base) for t in (packet.pts, packet.dts))
                    packet.stream = copy
                    late.mux(packet)
    else:
        write = media.write_webm if source.endswith("webm") else media.write_mp4
        write(tmp_path / source, video, RATE_HZ, np.ones(9000, np.int16), SAMPLE_RATE_HZ)
    made = media.dub(tmp_path / source, tmp_path / "out.mp4", video, RATE_HZ, sound, SAMPLE_RATE_HZ)
    assert packets(made) == packets(tmp_path / source)
    assert abs(offset_s(made)) < 0.01


def test_what_cannot_be_copied_is_encoded_anew(tmp_path, caplog):
    video, sound = flash_and_beep()
    media.write_gif(tmp_path / "a.gif", video, RATE_HZ)
    made = media.dub(tmp_path / "a.gif", tmp_path / "out.mp4", video, RATE_HZ, sound, SAMPLE_RATE_HZ)
    assert abs(offset_s(made)) < 0.01


def test_clips_are_fitted_and_it_is_said(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", np.zeros((6, 48, 96, 3), np.uint8), RATE_HZ)
    found = media.read_clip(tmp_path / "a.mp4", ClipSpec(frames=9, height=32, width=32), hold=True)
    assert found.video.shape == (9, 32, 32, 3)
    assert found.fitted == (
        "cropped from 96x48 to 48x48 about its centre, scaled to 32x32, its last frame stands for the 3 that are "
        "missing of 9"
    )
    with pytest.raises(media.MediaError, match="too short"):
        media.read_clip(tmp_path / "a.mp4", ClipSpec(frames=9, height=32, width=32))


@pytest.mark.parametrize("still", ["all", "some", "none"])
def test_an_animated_png_keeps_repeated_frames(still: str, tmp_path):
    from poet.media.film import open_film

    video = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    video[{"all": slice(None), "some": slice(2, 5), "none": slice(0, 0)}[still]] = video[2]
    media.write_apng(tmp_path / "a.apng", video, 8.0)
    with open_film(tmp_path / "a.apng") as film:
        found = [(frame.pixels(), frame.duration_s) for frame, _ in film.timed()]
    np.testing.assert_array_equal(np.stack([pixels for pixels, _ in found]), video)
    assert all(duration == pytest.approx(0.125) for _, duration in found)
