"""Sources of sound: what is read, at which rate, and how bad items are counted."""

from __future__ import annotations

import json
import logging
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import store_fakes as fakes

from poet import media
from poet.spec import UserError
from poet.store import sounds
from poet.store.raw import Skipped
from poet.store.sounds import RawSound, open_sounds, summary, usable

RATE_HZ = 16_000


def tone(samples: int, rate_hz: int = RATE_HZ, level: float = 0.5) -> np.ndarray:
    wave = level * np.sin(2 * np.pi * 440 * np.arange(samples) / rate_hz)
    return np.rint(wave * 32767).astype(np.int16)


def write_wav(path: pathlib.Path, audio: np.ndarray, rate_hz: int = RATE_HZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.wavfile.write(path, rate_hz, audio)


def write_tfds(
    folder: pathlib.Path,
    examples: Sequence[Mapping[str, Any]],
    features: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    split: str = "train",
) -> str:
    """A TFDS folder of one file."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder.mkdir(parents=True)
    declared = tfds.features.FeaturesDict(dict(features))
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="fake", split=split, filetype_suffix="tfrecord"
    )
    file = template.sharded_filepath(shard_index=0, num_shards=1)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for example in examples:
            writer.write(declared.serialize_example(dict(example)))
    info = tfds.core.SplitInfo(name=split, shard_lengths=[len(examples)], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=folder, features=declared, split_infos=[info], check_data=False)
    if metadata is not None:
        (folder / "metadata.json").write_text(json.dumps(metadata))
    return str(folder)


def sound_tensor(*shape: int | None, dtype: Any = np.int16) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.Tensor(shape=shape, dtype=dtype)


# ------------------------------------------------------------------------------------ media folder


def test_a_folder_gives_its_sounds_in_order(tmp_path: pathlib.Path) -> None:
    write_wav(tmp_path / "b.wav", tone(900))
    write_wav(tmp_path / "a/deep.WAV", tone(44_100, 44_100), 44_100)
    media.write_mp4(tmp_path / "c.mp4", fakes.flat_video(9), 8.0, tone(10_000), RATE_HZ)
    write_wav(tmp_path / ".hidden.wav", tone(9))
    (tmp_path / "notes.txt").write_text("no sound")
    source = pickle.loads(pickle.dumps(open_sounds(str(tmp_path), "train", RATE_HZ)))
    items = list(source.read(0, len(source)))
    assert [item.key for item in items] == ["a/deep.WAV", "b.wav", "c.mp4"]
    assert [(item.text, item.kind) for item in items] == [("", "")] * 3
    assert [item.notes for item in items] == [("resampled from 44100 Hz",), (), ()]
    assert len(items[0].samples) == RATE_HZ
    np.testing.assert_array_equal(items[1].samples, tone(900))
    (only,) = source.read(1, 2)
    np.testing.assert_array_equal(only.samples, items[1].samples)


def test_captions_name_files_texts_kinds_and_splits(tmp_path: pathlib.Path) -> None:
    lines = [
        {"file": "b.wav", "caption": "hello", "kind": "speech"},
        {"file": "a.wav", "split": "test"},
        {"file": "c.wav", "caption": "a dog"},
    ]
    for number, line in enumerate(lines):
        write_wav(tmp_path / line["file"], tone(100 + number))
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train = list(open_sounds(str(tmp_path), "train", RATE_HZ).read(0, 2))
    assert [(s.key, s.text, s.kind, len(s.samples)) for s in train] == [
        ("b.wav", "hello", "speech", 100),
        ("c.wav", "a dog", "", 102),
    ]
    assert len(open_sounds(str(tmp_path), "test", RATE_HZ)) == 1
    with open(tmp_path / "captions.jsonl", "a") as file:
        file.write('\n{"file": "absent.wav"}')
    *_, absent = open_sounds(str(tmp_path), "train", RATE_HZ).read(0, 3)
    assert isinstance(absent, Skipped) and "line 4: there is no file" in absent.reason


def test_bad_files_are_skipped_in_their_places_and_counted(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "e", "f"):
        write_wav(tmp_path / f"{name}.wav", tone(44_100, 44_100), 44_100)
    write_wav(tmp_path / "b.wav", np.full(400, np.nan, np.float32))
    (tmp_path / "c.wav").write_text("not a sound")
    (tmp_path / "d.wav").write_text("not a sound either")
    clipped = np.clip(4 * tone(5000).astype(int), -32767, 32767)
    write_wav(tmp_path / "g.wav", clipped.astype(np.int16))
    (tmp_path / "h.wav").write_bytes(b"")
    media.write_mp4(tmp_path / "i.mp4", fakes.flat_video(9), 8.0)
    source = open_sounds(str(tmp_path), "train", RATE_HZ)
    items = list(source.read(0, len(source)))
    kept = [item.key for item in items if isinstance(item, RawSound)]
    assert kept == ["a.wav", "e.wav", "f.wav", "g.wav"]
    assert items[1] == Skipped(key="b.wav", reason="NaN or infinite samples")
    with caplog.at_level(logging.INFO, logger="poet"):
        assert [sound.key for sound in usable(items, "FOLDER")] == kept
    assert caplog.messages == [
        "FOLDER: 5 of 9 skipped: not audio 2, NaN or infinite samples 1, empty 1, "
        "no audio stream 1; resampled from 44100 Hz 3, clipped 1"
    ]


def test_nothing_is_said_of_sounds_that_are_as_they_should_be(caplog: pytest.LogCaptureFixture) -> None:
    good = [RawSound(key="a", text="", kind="", samples=tone(100))] * 3
    with caplog.at_level(logging.INFO, logger="poet"):
        assert usable(good, "FOLDER") == good
    assert summary(good) == "" and not caplog.messages


def test_a_source_without_any_sound_is_refused(tmp_path: pathlib.Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.wav").write_text("not a sound")
    source = open_sounds(str(tmp_path), "train", RATE_HZ)
    with pytest.raises(UserError, match="can be used: 2 of 2 skipped: not audio 2.*a.wav"):
        usable(source.read(0, 2), source.path)
    with pytest.raises(UserError, match="it is empty"):
        usable([], source.path)


def test_unknown_places_and_splits_name_the_field(tmp_path: pathlib.Path) -> None:
    write_wav(tmp_path / "sounds/a.wav", tone(100))
    (tmp_path / "void").mkdir()
    for path, split, message in (
        ("", "train", "TOKENIZER_TRAIN.sources = '' is not a folder"),
        (tmp_path / "sound", "train", "is not a folder.*did you mean sounds"),
        (tmp_path / "sounds", "test", "no split 'test'; it has train: set TOKENIZER_TRAIN.split"),
        (tmp_path / "void", "train", r"neither a TFDS folder .* file ending in .*\.wav.*\.mp4"),
    ):
        with pytest.raises(UserError, match=message):
            open_sounds(str(path), split, RATE_HZ)
    with pytest.raises(UserError, match="EVAL.sounds = 'x' is not"):
        open_sounds("x", "train", RATE_HZ, field="EVAL.sounds")


def test_the_fingerprint_follows_the_files(tmp_path: pathlib.Path) -> None:
    write_wav(tmp_path / "a.wav", tone(100))
    before = open_sounds(str(tmp_path), "train", RATE_HZ).fingerprint
    assert open_sounds(str(tmp_path), "train", RATE_HZ).fingerprint == before
    write_wav(tmp_path / "a.wav", tone(101))
    assert open_sounds(str(tmp_path), "train", RATE_HZ).fingerprint != before


# ------------------------------------------------------------------------------------- TFDS folder


def test_tfds_sounds_of_any_length_with_text_and_kind(tmp_path: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    features = {"key": text, "text": text, "kind": text, "audio": sound_tensor(None)}
    examples = [{"key": f"k{i}", "text": f"word {i}", "kind": "speech", "audio": tone(100 + i)} for i in range(5)]
    folder = write_tfds(tmp_path / "1.0.0", examples, features, {"sample_rate_hz": RATE_HZ})
    source = pickle.loads(pickle.dumps(open_sounds(folder, "train", RATE_HZ)))
    assert len(source) == 5
    for example, sound in zip(examples[1:4], source.read(1, 4), strict=True):
        assert [sound.key, sound.text, sound.kind] == [example[n] for n in ("key", "text", "kind")]
        np.testing.assert_array_equal(sound.samples, example["audio"])
        assert sound.notes == ()


def test_tfds_rates_and_channels_are_converted_and_bad_items_skipped(tmp_path: pathlib.Path) -> None:
    """Stereo floats at 32 kHz: halved in length, mixed down, as a wave of half the amplitude."""
    wave = np.sin(2 * np.pi * 440 * np.arange(8000) / 32_000).astype(np.float32)
    good = np.stack([wave, np.zeros_like(wave)], -1)
    bad = np.full((10, 2), np.inf, np.float32)
    features = {"audio": sound_tensor(None, 2, dtype=np.float32)}
    examples = [{"audio": audio} for audio in (good, bad, np.zeros((0, 2), np.float32))]
    folder = write_tfds(tmp_path / "1.0.0", examples, features, {"sample_rate_hz": 32_000})
    sound, *skipped = open_sounds(folder, "train", RATE_HZ).read(0, 3)
    assert [s.reason for s in skipped] == ["NaN or infinite samples", "empty: 0 samples"]
    assert [s.key for s in (sound, *skipped)] == [f"train-{i:08d}" for i in range(3)]
    wanted = 16_383 * np.sin(2 * np.pi * 440 * np.arange(4000) / RATE_HZ)
    assert len(sound.samples) == 4000
    assert np.abs(sound.samples - wanted)[200:-200].max() < 60
    assert sound.notes[:2] == ("resampled from 32000 Hz", "mixed down from 2 channels")


def test_tfds_the_audio_feature_tells_its_rate(tmp_path: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    features = {"audio": tfds.features.Audio(shape=(None,), sample_rate=8000)}
    examples = [{"audio": tone(800, 8000).astype(np.int64)}]
    folder = write_tfds(tmp_path / "1.0.0", examples, features)
    (sound,) = open_sounds(folder, "train", RATE_HZ).read(0, 1)
    assert sound.notes == ("resampled from 8000 Hz",) and len(sound.samples) == 1600


def test_tfds_without_a_rate_is_assumed_for_clips_and_refused_for_sounds(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.write_tfds(tmp_path / "clips", {"train": [fakes.flat_video(k) for k in range(3)]})
    with caplog.at_level(logging.INFO, logger="poet"):
        for _ in range(2):
            clips = list(open_sounds(str(tmp_path / "clips"), "train", RATE_HZ).read(0, 3))
    assert [clip.text for clip in clips] == ["text 0", "text 1", "text 2"]
    said = [record.message for record in caplog.records if record.name.startswith("poet")]
    assert len(said) == 1 and "16000 Hz is assumed" in said[0]
    examples, features = [{"audio": tone(100)}], {"audio": sound_tensor(None)}
    folder = write_tfds(tmp_path / "none", examples, features)
    with pytest.raises(UserError, match='"sample_rate_hz": 16000.* to metadata.json'):
        open_sounds(folder, "train", RATE_HZ)
    folder = write_tfds(tmp_path / "odd", examples, features, {"sample_rate_hz": "16k"})
    with pytest.raises(UserError, match="states a sample rate of '16k'"):
        open_sounds(folder, "train", RATE_HZ)


def test_tfds_without_audio_or_without_items_is_refused(tmp_path: pathlib.Path) -> None:
    folder = write_tfds(tmp_path / "mute", [{"x": tone(3)}], {"x": sound_tensor(None)})
    with pytest.raises(UserError, match="no feature 'audio'; it has x"):
        open_sounds(folder, "train", RATE_HZ)
    empty = write_tfds(tmp_path / "empty", [], {"audio": sound_tensor(None)}, {"sample_rate_hz": RATE_HZ})
    with pytest.raises(UserError, match="split 'train' of .* is empty"):
        open_sounds(empty, "train", RATE_HZ)


def test_every_suffix_is_of_a_file_that_may_have_sound() -> None:
    assert ".gif" not in sounds.SUFFIXES and {".wav", ".flac", ".ogg", ".mp3", ".mp4"} <= set(sounds.SUFFIXES)
    assert all(s == s.lower() and s.startswith(".") for s in sounds.SUFFIXES)
