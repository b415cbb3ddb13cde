"""A sound for a whole film: every frame is seen, a clip continues the sound before it, frames stay as they are."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from film_fakes import SAMPLE, generator
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import cli, media
from poet.sampling.films import dubbing
from poet.sampling.films.sampler import FilmSampler
from poet.sampling.films.windows import Windows
from poet.spec import UserError

MADE_BY = {"checkpoint": "tiny"}
FRAMES = 20  # At 25 Hz, which are two clips of 9 frames and a part of a third, with 5 in common.


@pytest.fixture(scope="module")
def sampler() -> FilmSampler:
    return FilmSampler(generator(), has_audio=True, context=3)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    video = np.random.default_rng(0).integers(0, 256, (FRAMES, 32, 16, 3), np.uint8)
    media.write_mp4(path, video, 25.0, np.ones(9000, np.int16), 8000)
    return path


@pytest.fixture(scope="module")
def frames(film: Path, sampler: FilmSampler) -> list[np.ndarray]:
    return [frame for frame, _ in media.read_frames(film, sampler.generator.resolved.spec.clip)]


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(file.streams.video[0]) if packet.size]


def pixels(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@given(count=st.integers(1, 60), latents=st.integers(2, 6), context=st.integers(1, 5), factor=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_clips_cover_a_film_and_overlap_by_their_conditioning_frames(count, latents, context, factor) -> None:
    windows = Windows(latents=latents, context=min(context, latents - 1), factor=factor, rate_hz=8.0)
    clips = [clip[:, 0, 0] for clip in dubbing.clips_of(np.arange(count).reshape(-1, 1, 1), windows)]
    assert all(len(clip) == windows.clip_frames for clip in clips)
    common = windows.frames_of(windows.context)
    seen = np.concatenate([clips[0], *(clip[common:] for clip in clips[1:])])
    np.testing.assert_array_equal(seen[:count], np.arange(count))
    assert np.all(seen[count:] == count - 1) and len(seen) - count < windows.clip_frames
    assert len(clips) == windows.clips_for(count)
    for before, after in zip(clips, clips[1:]):
        np.testing.assert_array_equal(after[:common], before[-common:])


def test_the_sound_is_one_stream_of_codes_that_clips_continue(sampler: FilmSampler, frames: list[np.ndarray]) -> None:
    codes: list[np.ndarray] = []

    def kept(number, sampled):
        codes.append(sampled())
        return codes[-1]

    sound = dubbing.sound_of(sampler, frames, seed=4, sample=SAMPLE, kept=kept)
    known = sampler.windows.known_audio[sampler.windows.context]
    assert len(codes) == 4 and known > 0 and sampler.sounds.carries
    for before, after in zip(codes, codes[1:]):
        np.testing.assert_array_equal(after[:, :known], before[:, -known:])
    assert np.any(codes[1][:, known:] != codes[2][:, known:])  # Each has noise and pictures of its own.
    stream = np.concatenate([codes[0], *(part[:, known:] for part in codes[1:])], axis=1)
    whole = sampler.sounds.tokenizer.decode(stream[None], len(sound))[0]
    assert np.abs(whole.astype(int) - sound).max() <= 1 and len(sound) >= sampler.windows.sample_of(FRAMES)
    again = dubbing.sound_of(sampler, frames, seed=4, sample=SAMPLE, kept=lambda number, _: codes[number])
    np.testing.assert_array_equal(again, sound)
    first = dubbing.sound_of(sampler, frames[:9], seed=4, sample=SAMPLE)
    np.testing.assert_array_equal(first[: -sampler.windows.hop], sound[: len(first) - sampler.windows.hop])
    assert np.any(dubbing.sound_of(sampler, frames[:9], seed=5, sample=SAMPLE) != first)


def test_a_film_keeps_its_frames_and_goes_on_where_it_was_killed(sampler: FilmSampler, film: Path, tmp_path: Path):
    wanted, asked = dubbing.Dub(clip=str(film), seed=4), {"made_by": MADE_BY, "sample": SAMPLE}
    made, wav = dubbing.make(sampler, wanted, tmp_path / "a", **asked)
    assert packets(made) == packets(film)
    clip = sampler.generator.resolved.spec.clip
    sound = media.read_sound(wav, clip.sample_rate_hz).samples
    assert len(sound) == round(FRAMES / 25 * clip.sample_rate_hz)
    whole = dubbing.sound_of(sampler, (f for f, _ in media.read_frames(film, clip)), seed=4, sample=SAMPLE)
    np.testing.assert_array_equal(sound, whole[: len(sound)])
    kept = tmp_path / "a" / "clips" / "00002.npy"
    kept.unlink()
    assert [path.read_bytes() for path in dubbing.make(sampler, wanted, tmp_path / "a", **asked)] == [
        made.read_bytes(),
        wav.read_bytes(),
    ]
    assert kept.exists()
    with pytest.raises(UserError, match="another film: its seed is 4, requested is 5"):
        dubbing.make(sampler, dubbing.Dub(clip=str(film), seed=5), tmp_path / "a", **asked)


def test_frames_that_no_container_takes_come_back_bit_by_bit(tmp_path: Path) -> None:
    video = np.random.default_rng(0).integers(0, 256, (5, 16, 18, 3), np.uint8)
    media.write_gif(tmp_path / "a.gif", video, 25)
    made = media.dub_whole(tmp_path / "a.gif", tmp_path / "out.mp4", np.zeros(3200, np.int16), 16000)
    with media.open_film(tmp_path / "a.gif") as gif:
        expected = np.stack([frame.pixels() for frame, _ in gif.timed()])
    assert made.name == "out.mkv"
    np.testing.assert_array_equal(pixels(made), expected)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["text_to_video", "--prompt=a", "--whole"], "--whole is for the task video_to_audio"),
        (["video_to_audio", "--clip=a.mp4", "--clip=b.mp4", "--whole"], "and one film"),
        (["video_to_audio", "--clip=a.mp4", "--whole", "--num=2"], "drop --num"),
        (["video_to_audio", "--clip=a.mp4", "--whole", "--format=webm"], "drop --format"),
        (["video_to_audio", "--clip=a.mp4", "--whole", "--dry_run"], "drop --dry_run"),
    ],
)
def test_what_a_whole_film_does_not_take_is_refused(flags, said, tmp_path: Path, capsys) -> None:
    command = ["generate", "--checkpoint=data/pretrained/lm_arenas", f"--out={tmp_path / 'out'}"]
    assert cli.main([*command, *flags]) == cli.EXIT_USER
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_picture_and_a_silent_sampler_are_refused(sampler: FilmSampler, film: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.png is a picture"):
        dubbing.make(sampler, dubbing.Dub(clip="a.png"), tmp_path / "a", made_by=MADE_BY, sample=SAMPLE)
    with pytest.raises(UserError, match="has_audio=True"):
        dubbing.make(
            FilmSampler(generator()), dubbing.Dub(clip=str(film)), tmp_path / "a", made_by=MADE_BY, sample=SAMPLE
        )
