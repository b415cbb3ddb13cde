"""A token store with sound: a second stream of codes, level by level, beside the same video."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import store_fakes as fakes

from poet import media
from poet.spec import StoreSpec, UserError
from poet.store import manifest as manifests
from poet.store import reader

CLIPS, SILENT = 9, (2, 5)
# 5 frames at 8 Hz and 16 kHz are 10,000 samples, which hold 31 whole frames of 320.
LEVELS, FRAMES = 2, 31


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Grey clips; clip k has noise of amplitude 40 k in it, two have no sound track."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    lines = []
    for k in range(CLIPS):
        noise = (40 * k * rng.uniform(-1, 1, fakes.CLIP.samples)).astype(np.int16)
        sound = () if k in SILENT else (noise, fakes.CLIP.sample_rate_hz)
        media.write_mp4(folder / f"{k}.mp4", fakes.flat_video(20 * k), fakes.CLIP.rate_hz, *sound)
        lines.append({"file": f"{k}.mp4", "caption": f"grey {k}", "split": "train"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def tokenize(source: pathlib.Path, path: pathlib.Path, killed_at: int = -1, **changes: Any) -> manifests.Manifest:
    spec = StoreSpec(source=str(source), path=str(path), splits=("train",), clips_per_shard=4, batch=2)
    tokenizer = fakes.MeanTokenizer(killed_at=killed_at)
    given = {"audio": fakes.LoudnessTokenizer(), "audio_levels": LEVELS} | changes
    return fakes.tokenize(spec, fakes.CLIP, tokenizer=tokenizer, text=fakes.LetterEncoder(), progress=False, **given)


@pytest.fixture(scope="module")
def store(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("store") / "s"
    tokenize(source, path)
    return path


def examples(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    found = reader.dataset(str(path), "train").as_numpy_iterator()
    return {example["key"].decode(): example for example in found}


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_every_clips_sound_comes_back_level_by_level(source, store) -> None:
    found = examples(store)
    assert len(found) == CLIPS
    for k in range(CLIPS):
        audio = media.read_clip(source / f"{k}.mp4", fakes.CLIP).audio
        audio = np.zeros(fakes.CLIP.samples, np.int16) if audio is None else audio
        assert (k in SILENT) == (not audio.any()) or k == 0
        assert found[f"{k}.mp4"]["sounding"] == (k not in SILENT)
        codes = found[f"{k}.mp4"]["audio"]
        assert codes.dtype == np.int32 and codes.shape == (LEVELS * FRAMES,)
        loudness = np.abs(audio[: FRAMES * 320].astype(float)).reshape(FRAMES, 320).mean(1)
        for level, row in enumerate(codes.reshape(LEVELS, FRAMES)):
            np.testing.assert_array_equal(row, (np.rint(loudness) + level) % 24)


def test_the_manifest_tells_the_stream_and_counts_clips_without_sound(store) -> None:
    manifest = reader.load_manifest(str(store))
    stream = manifest.audio
    assert (stream.grid, stream.bits, stream.fingerprint) == ((LEVELS, FRAMES, 1), 5, "loudness-1")
    assert manifest.splits["train"].silent == len(SILENT)
    assert not manifest.splits["train"].skipped


def test_unigram_entropy_tells_levels_apart(store) -> None:
    """Mean over levels of each level's entropy; codes of different levels are different symbols."""
    codes = np.stack([e["audio"].reshape(LEVELS, FRAMES) for e in examples(store).values()])
    entropies, used = [], 0
    for level in range(LEVELS):
        _, counts = np.unique(codes[:, level], return_counts=True)
        shares = counts / counts.sum()
        entropies.append(-(shares * np.log(shares)).sum())
        used += len(counts)
    found = reader.load_manifest(str(store)).splits["train"].statistics["audio"]
    assert found.entropy_nats == pytest.approx(np.mean(entropies), abs=1e-12)
    assert found.first_frame_entropy_nats == pytest.approx(entropies[0], abs=1e-12)
    assert (found.codes, found.used) == (codes.size, used)


def test_a_kill_in_any_batch_changes_nothing(source, store, tmp_path) -> None:
    for killed_at in range(5):
        path = tmp_path / str(killed_at)
        with pytest.raises(fakes.Killed):
            tokenize(source, path, killed_at=killed_at)
        tokenize(source, path)
        assert contents(path) == contents(store)


def test_video_and_text_are_those_of_a_store_without_sound(source, store, tmp_path) -> None:
    """Sound adds a feature and its entries in the manifest, and takes or changes none."""
    tokenize(source, tmp_path / "mute", audio=None)
    mute, sounding = examples(tmp_path / "mute"), examples(store)
    assert list(mute) == list(sounding), "the same clips in the same order"
    for key, example in mute.items():
        assert example.keys() == sounding[key].keys() - {"audio", "sounding"}
        for name, value in example.items():
            np.testing.assert_array_equal(value, sounding[key][name])
    text = (tmp_path / "mute" / manifests.MANIFEST_FILE).read_text()
    assert "silent" not in text and "audio" not in text
    assert reader.load_manifest(str(tmp_path / "mute")).audio is None


def test_another_tokenizer_or_none_does_not_continue_a_store(source, store) -> None:
    for changes, message in (
        ({"audio_levels": 3}, r"streams.audio.grid is \[2, 31, 1\], not \[3, 31, 1\]"),
        ({"audio": fakes.LoudnessTokenizer(fingerprint="other")}, "not 'other'"),
        ({"audio": None}, "streams.audio is"),
    ):
        with pytest.raises(UserError, match=message):
            tokenize(source, store, **changes)


def test_levels_and_rates_that_the_tokenizer_lacks_are_refused(source, tmp_path) -> None:
    with pytest.raises(UserError, match="has 1..3 levels at 16000 Hz"):
        tokenize(source, tmp_path / "s", audio_levels=4)
    spec = fakes.AUDIO_TOKENIZER.replace(sample_rate_hz=24_000)
    with pytest.raises(UserError, match="set VOCABULARY.audio_levels and CLIP.sample_rate_hz"):
        tokenize(source, tmp_path / "s", audio=fakes.LoudnessTokenizer(spec=spec))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "audio, message",
    [
        ({"fingerprint": "x"}, "audio.fingerprint is 'loudness-1', not 'x'"),
        ({"grid": [4, 31, 1]}, r"audio.grid is \[2, 31, 1\], not \[4, 31, 1\]"),
        ({"bits": 10}, "audio.bits is 5, not 10"),
    ],
)
def test_check_store_names_what_differs_in_the_sound(store, audio, message) -> None:
    manifest = reader.load_manifest(str(store))
    manifests.check_store(manifest, streams={"audio": {"fingerprint": None, "bits": 5}})
    with pytest.raises(UserError, match=message):
        manifests.check_store(manifest, streams={"audio": audio})
