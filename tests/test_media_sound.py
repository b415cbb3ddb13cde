"""Sound files: what is heard of every kind of them, what is said of it, and clear refusals."""

from __future__ import annotations

import fractions
import pathlib

import av
import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import media
from poet.media.sound import is_silent, read_sound, resample, to_sound
from poet.spec import ClipSpec, UserError

RATE_HZ = 16_000
LOSSLESS = ("pcm_s16le", "pcm_s16be", "flac")
FORMATS = [
    ("a.wav", "pcm_s16le"),
    ("a.flac", "flac"),
    ("a.aiff", "pcm_s16be"),
    ("a.mp3", "libmp3lame"),
    ("a.m4a", "aac"),
    ("a.ogg", "libopus"),
    ("b.ogg", "vorbis"),
]
RATES_HZ = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000)


def sine(frequency_hz: float, rate_hz: int, samples: int, amplitude: float = 0.5) -> np.ndarray:
    """float64 (samples,)"""
    return amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(samples) / rate_hz)


def int16(sound: np.ndarray) -> np.ndarray:
    return np.rint(sound * 32767).astype(np.int16)


def write(path: pathlib.Path, codec: str, audio: np.ndarray, rate_hz: int, **options: str) -> pathlib.Path:
    """Encodes int16 (S,) or (S, 2); `options` are the container's."""
    layout = "mono" if audio.ndim == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(audio.reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, fractions.Fraction(1, rate_hz)
    with av.open(str(path), "w", options=options) as container:
        # FFmpeg's encoder of Vorbis, for two channels alone, wants to be asked for.
        experimental = {"strict": "experimental"} if codec == "vorbis" else {}
        stream = container.add_stream(codec, rate=rate_hz, layout=layout, options=experimental)
        if codec not in LOSSLESS:
            stream.bit_rate = 128_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def loudest_hz(samples: np.ndarray, rate_hz: int = RATE_HZ) -> float:
    """Frequency of the greatest bin of a windowed DFT, padded to bins of about 0.1 Hz."""
    size = 10 * rate_hz
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), size))
    return float(np.argmax(spectrum)) * rate_hz / size


@pytest.mark.parametrize("name, codec", FORMATS, ids=[codec for _, codec in FORMATS])
def test_every_format_keeps_pitch_level_and_length(tmp_path: pathlib.Path, name: str, codec: str) -> None:
    """1.5 s of 440 Hz on the left and 1000 Hz on the right, each at half the level when mixed."""
    rate_hz = 48_000
    left, right = (sine(f, rate_hz, rate_hz * 3 // 2) for f in (440, 1000))
    path = write(tmp_path / name, codec, int16(np.stack([left, right], -1)), rate_hz)
    sound = read_sound(path, RATE_HZ)
    assert sound.notes == ("resampled from 48000 Hz", "mixed down from 2 channels")
    assert sound.samples.dtype == np.int16 and sound.samples.ndim == 1
    # AAC and MP3 fill up their last frame of 1024 and 1152 samples.
    assert 0 <= len(sound.samples) - 24_000 <= 1152 / 3
    inner = sound.samples[4000:20_000] / 32768
    low = scipy.signal.sosfiltfilt(scipy.signal.butter(8, 700, fs=RATE_HZ, output="sos"), inner)
    # LAME turns its input down by 5 %.
    for part, frequency_hz in ((low, 440), (inner - low, 1000)):
        assert abs(loudest_hz(part) - frequency_hz) < 0.5
        assert np.sqrt(2 * np.mean(part[2000:-2000] ** 2)) == pytest.approx(0.25, rel=0.06)


@given(samples=st.lists(st.integers(-32768, 32767), min_size=1, max_size=300), copies=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_a_wav_at_the_same_rate_is_taken_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, samples: list[int], copies: int
) -> None:
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    written = np.tile(np.array(samples, np.int16), copies)
    scipy.io.wavfile.write(path, RATE_HZ, written)
    np.testing.assert_array_equal(read_sound(path, RATE_HZ).samples, written)
    media.write_wav(path, written, RATE_HZ)
    np.testing.assert_array_equal(scipy.io.wavfile.read(path)[1], written)


@given(samples=st.integers(100, 9000), from_hz=st.sampled_from(RATES_HZ))
@settings(max_examples=25, deadline=None)
def test_lengths_follow_the_ratio_of_the_rates_exactly(
    tmp_path_factory: pytest.TempPathFactory, samples: int, from_hz: int
) -> None:
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    written = int16(sine(300, from_hz, samples))
    scipy.io.wavfile.write(path, from_hz, written)
    wanted = round(fractions.Fraction(samples * RATE_HZ, from_hz))
    assert len(read_sound(path, RATE_HZ).samples) == wanted
    assert len(resample(written, from_hz, RATE_HZ)) == wanted


@pytest.mark.parametrize("from_hz", RATES_HZ)
def test_resampling_keeps_a_sine_in_place(tmp_path: pathlib.Path, from_hz: int) -> None:
    """The same sine sampled at the other rate, away from the ends: no delay, no change of level."""
    scipy.io.wavfile.write(tmp_path / "a.wav", from_hz, int16(sine(523.25, from_hz, from_hz)))
    heard = read_sound(tmp_path / "a.wav", RATE_HZ).samples
    wanted = int16(sine(523.25, RATE_HZ, RATE_HZ))
    assert np.abs(heard.astype(int) - wanted)[300:-300].max() < 60


def test_what_lies_above_half_the_rate_is_gone(tmp_path: pathlib.Path) -> None:
    scipy.io.wavfile.write(tmp_path / "a.wav", 48_000, int16(sine(11_000, 48_000, 48_000)))
    heard = read_sound(tmp_path / "a.wav", RATE_HZ).samples[300:-300]
    assert np.abs(heard).max() < 0.5 * 32767 * 10 ** (-50 / 20)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_samples_of_other_widths(tmp_path: pathlib.Path, dtype: str) -> None:
    wave = sine(440, RATE_HZ, 4000)
    written = {"uint8": np.rint(wave * 127 + 128), "int32": np.rint(wave * (2**31 - 1))}.get(dtype, wave)
    scipy.io.wavfile.write(tmp_path / "a.wav", RATE_HZ, written.astype(dtype))
    sound = read_sound(tmp_path / "a.wav", RATE_HZ)
    tolerance = 300 if dtype == "uint8" else 2
    assert np.abs(sound.samples.astype(int) - int16(wave)).max() <= tolerance
    assert sound.notes == ()


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_equal_channels_are_mixed_into_one_like_them(tmp_path: pathlib.Path, channels: int) -> None:
    """FFmpeg leaves the bass channel of 5.1 out and weights the others; none may clip."""
    one = int16(sine(440, RATE_HZ, 2000, amplitude=0.9))
    scipy.io.wavfile.write(tmp_path / "a.wav", RATE_HZ, np.stack([one] * channels, -1))
    sound = read_sound(tmp_path / "a.wav", RATE_HZ)
    assert sound.notes == (f"mixed down from {channels} channels",)
    assert np.abs(sound.samples.astype(int) - one).max() <= 2


def test_the_first_seconds_alone(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.flac", "flac", int16(sine(440, 44_100, 44_100 * 3)), 44_100)
    whole, start = (read_sound(path, RATE_HZ, seconds).samples for seconds in (0.0, 1.25))
    assert len(whole) == 3 * RATE_HZ and len(start) == 20_000
    np.testing.assert_array_equal(start, whole[:20_000])
    assert len(read_sound(path, RATE_HZ, 99.0).samples) == 3 * RATE_HZ


def test_sound_of_a_film(tmp_path: pathlib.Path) -> None:
    tone = int16(sine(440, RATE_HZ, RATE_HZ))
    media.write_mp4(tmp_path / "a.mp4", np.zeros((8, 64, 64, 3), np.uint8), 8.0, tone, RATE_HZ)
    sound = read_sound(tmp_path / "a.mp4", RATE_HZ)
    assert sound.notes == () and abs(loudest_hz(sound.samples) - 440) < 0.5


def test_a_stream_may_change_its_format_on_the_way(tmp_path: pathlib.Path) -> None:
    """MP3 files end to end are an MP3 stream: 1 s mono at 44.1 kHz, then 1 s stereo at 48 kHz."""
    bare = {"write_xing": "0", "id3v2_version": "0"}
    mono, both = (int16(sine(440, rate_hz, rate_hz)) for rate_hz in (44_100, 48_000))
    first = write(tmp_path / "a.mp3", "libmp3lame", mono, 44_100, **bare)
    both = np.stack([both, both], -1)
    second = write(tmp_path / "b.mp3", "libmp3lame", both, 48_000, **bare)
    (tmp_path / "ab.mp3").write_bytes(first.read_bytes() + second.read_bytes())
    samples = read_sound(tmp_path / "ab.mp3", RATE_HZ).samples
    assert abs(len(samples) / RATE_HZ - 2) < 0.15
    for second_s in (0, 1):
        part = samples[int((second_s + 0.2) * RATE_HZ) :][:10_000]
        assert abs(loudest_hz(part) - 440) < 0.5


# ------------------------------------------------------------------------------------------ notes


def test_silence_is_no_error_but_said(tmp_path: pathlib.Path) -> None:
    hum = np.full(5000, 7, np.int16)
    scipy.io.wavfile.write(tmp_path / "a.wav", RATE_HZ, hum)
    assert read_sound(tmp_path / "a.wav", RATE_HZ).notes == ("silent",)
    hum[77] = -32768
    assert is_silent(hum[:77]) and not is_silent(hum)


@pytest.mark.parametrize("amplitude", [0.99, 1.05, 3.0])
def test_clipping_is_counted(tmp_path: pathlib.Path, amplitude: float) -> None:
    """Counted before resampling, which would round the flat tops."""
    wave = int16(np.clip(sine(440, 44_100, 44_100, amplitude), -1, 1))
    scipy.io.wavfile.write(tmp_path / "a.wav", 44_100, wave)
    share = np.mean(np.abs(wave) == 32767)
    notes = read_sound(tmp_path / "a.wav", RATE_HZ).notes
    wanted = [f"clipped {100 * share:.1f} % of samples"] if amplitude > 1 else []
    assert list(notes) == ["resampled from 44100 Hz", *wanted]


def test_floats_beyond_one_are_clipped_not_wrapped(tmp_path: pathlib.Path) -> None:
    wave = sine(440, RATE_HZ, 4000, amplitude=2.0).astype(np.float32)
    scipy.io.wavfile.write(tmp_path / "a.wav", RATE_HZ, wave)
    sound = read_sound(tmp_path / "a.wav", RATE_HZ)
    assert np.abs(sound.samples - np.clip(wave * 32768, -32768, 32767)).max() <= 1
    assert [note.split()[0] for note in sound.notes] == ["clipped"]


# -------------------------------------------------------------------------------------- refusals


def bad_file(folder: pathlib.Path, kind: str) -> pathlib.Path:
    path = folder / f"{kind.replace(' ', '_')}.wav"
    tone = sine(440, RATE_HZ, 4000).astype(np.float32)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a sound at all\n" * 50)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "header":
        scipy.io.wavfile.write(path, RATE_HZ, np.zeros(0, np.int16))
    elif kind == "short":
        scipy.io.wavfile.write(path, 44_100, np.ones(5, np.int16))
    elif kind == "slow":
        scipy.io.wavfile.write(path, 1, np.zeros(50, np.int16))
    elif kind in ("nan", "inf"):
        tone[1234] = float(kind)
        scipy.io.wavfile.write(path, RATE_HZ, tone)
    elif kind == "film":
        path = path.with_suffix(".mp4")
        media.write_mp4(path, np.zeros((3, 64, 64, 3), np.uint8), 8.0)
    elif kind == "picture":
        path = path.with_suffix(".png")
        media.write_png_strip(path, np.zeros((1, 8, 8, 3), np.uint8))
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("absent", "no such file"),
        ("empty", "empty: the file has no bytes"),
        ("text", "not audio"),
        ("noise", "not audio"),
        ("header", "empty: no sample"),
        ("short", "too short: 5 samples at 44100 Hz"),
        ("slow", "not audio: a sample rate of 1 Hz"),
        ("nan", "NaN or infinite samples"),
        ("inf", "NaN or infinite samples"),
        ("film", "no audio stream"),
        ("picture", "no audio stream"),
        ("folder", "unreadable: a folder, not a file"),
    ],
)
def test_bad_files_are_refused_by_name_and_reason(tmp_path: pathlib.Path, kind: str, reason: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(media.MediaError) as caught:
        read_sound(path, RATE_HZ)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith(f"{path}: ") and caught.value.reason.startswith(reason)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("whole")
    tone = int16(sine(440, RATE_HZ, 6000) + sine(3100, RATE_HZ, 6000, 0.2))
    mono = [(name, codec) for name, codec in FORMATS if codec != "vorbis"]
    return [write(folder / name, codec, tone, RATE_HZ) for name, codec in mono]


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_damaged_files_give_sound_or_a_media_error(whole_files: list[pathlib.Path], data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(whole_files))
    damaged = bytearray(whole.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    path = whole.with_name(f"damaged{whole.suffix}")
    path.write_bytes(damaged)
    try:
        sound = read_sound(path, RATE_HZ, max_seconds=2.0)
    except media.MediaError as error:
        assert error.reason
    else:
        assert sound.samples.dtype == np.int16 and 0 < len(sound.samples) <= 2 * RATE_HZ


def test_a_clip_with_impossible_samples_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.mkv"
    wave = np.full((1, 20_000), np.nan, np.float32)
    frame = av.AudioFrame.from_ndarray(wave, format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, 0, fractions.Fraction(1, RATE_HZ)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("pcm_f32le", rate=RATE_HZ, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*video.encode(picture), *video.encode(None)]:
            container.mux(packet)
        for packet in [*audio.encode(frame), *audio.encode(None)]:
            container.mux(packet)
    with pytest.raises(media.MediaError, match="a.mkv: NaN or infinite samples"):
        media.read_clip(path, ClipSpec(frames=1, height=64, width=64))


# ----------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("from_hz", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", ["int16", "int64", "float32"])
def test_an_array_sounds_like_the_file_of_it(tmp_path: pathlib.Path, from_hz: int, channels: int, dtype: str) -> None:
    waves = [sine(440 * (k + 1), from_hz, 9000) for k in range(channels)]
    audio = np.stack(waves, -1) if channels > 1 else waves[0]
    scipy.io.wavfile.write(tmp_path / "a.wav", from_hz, int16(audio))
    from_file = read_sound(tmp_path / "a.wav", RATE_HZ)
    array = audio.astype(dtype) if dtype == "float32" else int16(audio).astype(dtype)
    from_array = to_sound(array, from_hz, RATE_HZ)
    assert from_array.notes == from_file.notes
    assert from_array.samples.shape == from_file.samples.shape
    # The file is mixed and resampled in one step, the array in two, each of which rounds.
    assert np.abs(from_array.samples.astype(int) - from_file.samples).max() <= 2


@pytest.mark.parametrize(
    "audio, reason",
    [
        (np.zeros(0, np.int16), "empty"),
        (np.zeros((0, 2), np.int16), "empty"),
        (np.zeros((9, 0), np.int16), "not sound: an array of shape"),
        (np.zeros((2, 3, 4), np.int16), "not sound: an array of shape"),
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([0.1, np.inf], np.float32), "NaN or infinite"),
        (np.array([0, 40_000]), "integers beyond 16 bits"),
        (np.array([True, False]), "not sound: an array of bool"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(audio: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_sound(audio, RATE_HZ, RATE_HZ)


def test_an_array_shorter_than_the_filter_is_refused_where_it_would_be_resampled() -> None:
    short = np.ones(5, np.int16)
    with pytest.raises(ValueError, match="too short: 5 samples at 44100 Hz"):
        to_sound(short, 44_100, RATE_HZ)
    assert len(to_sound(short, RATE_HZ, RATE_HZ).samples) == 5


def test_a_sound_at_the_right_rate_stays_as_it_is() -> None:
    samples = int16(sine(440, RATE_HZ, 1000))
    sound = to_sound(samples, RATE_HZ, RATE_HZ)
    np.testing.assert_array_equal(sound.samples, samples)
    assert sound.notes == ()
