"""What is cut out of files and what is dropped: single clips, duplicates, and whole stores."""

from __future__ import annotations

import json
import math
import pathlib
import random
import sys
import types
from typing import Any

import numpy as np
import pytest
import store_fakes as fakes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from poet import media
from poet.spec import Experiment, IngestSpec, StoreSpec, UserError, from_dict, to_dict
from poet.store import cutting, filters, manifest, merge, reader
from poet.store.sources import open_source

CLIP = fakes.CLIP


def texture(seed: int, side: int = 16, cells: int = 4) -> np.ndarray:
    """uint8 (side, side, 3): random colours in squares, which compression keeps."""
    small = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), np.uint8)
    return small.repeat(side // cells, 0).repeat(side // cells, 1)


# --------------------------------------------------------------------------------------- one clip


def test_measures_of_clips_with_known_values() -> None:
    steps = np.zeros((3, 4, 4, 3), np.uint8)
    steps[1] = 51  # 0.2 up, then 0.2 down
    assert filters.motion(steps) == pytest.approx(0.2)
    assert filters.motion(255 - steps) == pytest.approx(0.2)
    assert filters.motion(steps[:1]) == 0
    assert filters.brightness(steps) == pytest.approx(0.2 / 3)
    time_s = np.arange(16_000) / 16_000
    sine = np.round(16384 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16)
    assert filters.loudness_db(sine) == pytest.approx(-6.02 - 3.01, abs=0.01)
    assert filters.loudness_db(np.full(10, -32768, np.int16)) == 0
    assert filters.loudness_db(None) == filters.loudness_db(sine * 0) == -math.inf


def reason(sound: bool = False, audio: Any = None, **spec: Any) -> str:
    return filters.ClipFilter(IngestSpec(**spec), sound).reason(fakes.flat_video(25), audio)


def test_each_filter_drops_what_it_is_for_and_names_it() -> None:
    assert reason() == ""
    assert filters.kind(reason(min_motion=1e-6)) == "static"
    assert filters.kind(reason(min_brightness=0.1)) == "black"
    assert reason(min_brightness=0.098) == ""
    quiet = np.full(CLIP.samples, 100, np.int16)  # -50.3 dB
    assert reason(True, quiet, min_loudness_db=-51.0) == ""
    assert reason(True, quiet, min_loudness_db=-50.0).startswith("quiet: -50.3 dB")
    assert reason(True, None, min_loudness_db=-99.0).startswith("quiet: no sound track")
    assert reason(False, None, min_loudness_db=-1.0) == "", "no sound is asked for"
    image = filters.ClipFilter(IngestSpec(min_motion=1.0), False)
    assert image.reason(fakes.flat_video(9, frames=1), None) == "", "an image does not move"


def test_the_hook_is_called_with_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    module = types.ModuleType("own_hooks")
    module.bad = lambda video: seen.append((video.dtype, video.shape)) or video.mean() > 20
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_hooks", module)
    assert reason(nsfw="own_hooks:bad").startswith("nsfw")
    assert seen == [(np.uint8, (5, 16, 16, 3))]
    for name, message in (
        ("no_such_module:f", "No module named"),
        ("own_hooks:absent", "absent"),
        ("own_hooks:number", "is a int, not a function"),
    ):
        with pytest.raises(UserError, match=message):
            filters.load_hook(name)
    with pytest.raises(UserError, match="module:function"):
        IngestSpec(nsfw="only_a_module")


# ------------------------------------------------------------------------------------- duplicates


def test_the_hash_forgives_size_brightness_and_compression(tmp_path: pathlib.Path) -> None:
    frame = texture(3, side=72, cells=9)
    video = np.repeat(frame[None], CLIP.frames, 0)
    value = filters.perceptual_hash(video)
    darker = (video * 0.6 + 20).astype(np.uint8)
    smaller = media.resize_video(video, 36, 36)
    media.write_mp4(tmp_path / "a.mp4", video, CLIP.rate_hz)
    packed = media.read_clip(tmp_path / "a.mp4", CLIP.replace(height=72, width=72)).video
    other = np.repeat(texture(4, side=72, cells=9)[None], CLIP.frames, 0)
    for like in (darker, smaller, packed):
        assert filters.distance(value, filters.perceptual_hash(like)) <= 4
    assert filters.distance(value, filters.perceptual_hash(other)) > 16


def test_hash_bits_are_comparisons_of_neighbours() -> None:
    ramp = np.repeat(np.repeat(np.arange(9, dtype=np.uint8)[None, :, None] * 20, 8, 0), 3, 2)
    assert filters.difference_hash(ramp) == 2**64 - 1
    assert filters.difference_hash(ramp[:, ::-1]) == 0
    assert filters.difference_hash(np.full_like(ramp, 7)) == 0


def brute_force(hashes: dict[str, filters.Hash], bits: int) -> set[str]:
    """Keys that are dropped: by the definition, every pair compared."""
    kept: list[str] = []
    for key in sorted(hashes):
        near = any(all(bin(a ^ b).count("1") <= bits for a, b in zip(hashes[key], hashes[other])) for other in kept)
        if not near:
            kept.append(key)
    return set(hashes) - set(kept)


@st.composite
def crowded_hashes(draw: st.DrawFn) -> dict[str, filters.Hash]:
    """Hashes around a few centres, some of which are within reach of one another."""
    centre = st.integers(0, 2**64 - 1)
    centres = draw(st.lists(st.tuples(centre, centre, centre), min_size=1, max_size=3))
    flips = st.lists(st.integers(0, 63), max_size=4)
    count = draw(st.integers(1, 14))
    found = {}
    for index in range(count):
        values = draw(st.sampled_from(centres))
        noise = draw(st.tuples(flips, flips, flips))
        found[f"k{index:02d}"] = tuple(v ^ sum({1 << bit for bit in bits}) for v, bits in zip(values, noise))
    return found


@settings(max_examples=60, deadline=None)
@given(crowded_hashes(), st.integers(0, 6), st.randoms(use_true_random=False))
def test_duplicates_are_those_of_the_definition_in_any_order(
    hashes: dict[str, filters.Hash], bits: int, order: random.Random
) -> None:
    expected = brute_force(hashes, bits)
    shuffled = list(hashes)
    order.shuffle(shuffled)
    like = filters.Deduplicator(bits).drop({key: hashes[key] for key in shuffled})
    assert set(like) == expected
    for key, twin in like.items():
        assert twin not in expected and filters.distance(hashes[key], hashes[twin]) <= bits


# --------------------------------------------------------------------------------------- cutting

COLOURS = [(230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30)]


def moving(colour: int, frames: int, seed: int) -> np.ndarray:
    """A shot: a tinted texture that drifts, its light flickering a little."""
    wide = texture(seed, side=64, cells=16).astype(float) * 0.3 + np.array(COLOURS[colour]) * 0.7
    light = 1 + 0.04 * np.sin(np.arange(frames) * 2.0 + seed)
    shot = [np.roll(wide, k, 1)[:32, :32] * light[k] for k in range(frames)]
    return np.clip(np.rint(np.stack(shot)), 0, 255).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=5), st.integers(0, 99), st.integers(2, 6))
@example([1, 1, 1, 2, 1], 0, 2)
@example([1, 1, 1, 8, 1], 34, 3)
def test_no_clip_crosses_a_cut_and_none_that_fits_is_missed(lengths: list[int], seed: int, length: int) -> None:
    shots = [moving(i % len(COLOURS), n, seed + i) for i, n in enumerate(lengths)]
    frames = np.concatenate(shots)
    spec = IngestSpec(shots=True, clips_per_file=0)
    pieces = list(cutting.cut(iter(frames), length, spec))
    starts, wanted, short, begin = [], [], [], 0
    for n in lengths:
        wanted += [begin + k * length for k in range(n // length)]
        short += [begin] if n < length else []
        begin += n
    for piece in pieces:
        if piece.video is not None:
            starts.append(piece.start)
            assert np.array_equal(piece.video, frames[piece.start : piece.start + length])
    assert starts == wanted
    assert [p.start for p in pieces if p.video is None] == short


def test_clips_without_shots_follow_one_another() -> None:
    frames = np.arange(14)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    starts = lambda n: [p.start for p in cutting.cut(iter(frames), 4, IngestSpec(clips_per_file=n))]  # noqa: E731
    assert starts(0) == [0, 4, 8] and starts(2) == [0, 4] and starts(1) == [0]
    (only,) = cutting.cut(iter(frames[:3]), 4, IngestSpec(clips_per_file=0))
    assert only.video is None and only.length == 3


def test_random_crops_are_drawn_from_the_key_and_stay_inside(tmp_path: pathlib.Path) -> None:
    spec = IngestSpec(crop="random")
    places = {key: cutting.crop_place(key, spec) for key in map(str, range(200))}
    assert places == {key: cutting.crop_place(key, spec) for key in places}
    spread = np.array(list(places.values()))
    assert 0 <= spread.min() < 0.1 and 0.9 < spread.max() < 1
    for place in places.values():
        left, top, right, bottom = media.centre_box(48, 80, 16, 16, place=place)
        assert left >= 0 and right <= 80 + 1e-9 and (top, bottom) == (0, 48)
        assert right - left == pytest.approx(48)
    assert media.centre_box(48, 80, 16, 16) == media.centre_box(48, 80, 16, 16, place=(0.5, 0.5))
    # A file whose columns tell where they are: the crop shows the columns of its place.
    wide = np.repeat(np.arange(0, 240, 3, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    media.write_mp4(tmp_path / "a.mp4", np.repeat(wide[None], 5, 0), CLIP.rate_hz)
    (clip,) = open_source(str(tmp_path), "train", CLIP, spec).read(0, 1)
    left = 64 * cutting.crop_place("a.mp4", spec)[0]
    assert clip.video.mean() == pytest.approx(3 * (left + 7.5), abs=4)


def test_clips_of_a_file_have_its_frames_and_its_sound(tmp_path: pathlib.Path) -> None:
    levels = np.array([40, 40, 40, 40, 40, 160, 160, 160, 160, 160, 90, 90], np.uint8)
    video = np.repeat(levels, 16 * 16 * 3).reshape(12, 16, 16, 3)
    seconds = 12 / CLIP.rate_hz
    time_s = np.arange(round(seconds * CLIP.sample_rate_hz)) / CLIP.sample_rate_hz
    tone = np.where(time_s < 5 / 8, 300, 3000)
    sound = (0.5 * np.sin(2 * np.pi * tone * time_s)).astype(np.float32)
    media.write_mp4(tmp_path / "a.mp4", video, CLIP.rate_hz, sound, CLIP.sample_rate_hz)
    spec = IngestSpec(clips_per_file=0)
    first, second = open_source(str(tmp_path), "train", CLIP, spec).read(0, 1)
    assert (first.key, second.key) == ("a.mp4#0", "a.mp4#5")
    plain = open_source(str(tmp_path), "train", CLIP).read(0, 1)
    (plain,) = plain
    assert np.array_equal(first.video, plain.video) and np.array_equal(first.audio, plain.audio)
    assert abs(second.video.mean() - 160) < 3
    for clip, hz in ((first, 300), (second, 3000)):
        assert clip.audio.shape == (CLIP.samples,)
        spectrum = np.abs(np.fft.rfft(clip.audio[1000:-1000]))
        loudest = spectrum.argmax() * CLIP.sample_rate_hz / (CLIP.samples - 2000)
        assert loudest == pytest.approx(hz, rel=0.02)


def test_tfds_examples_are_cut_like_files(tmp_path: pathlib.Path) -> None:
    video = np.concatenate([fakes.flat_video(40), fakes.flat_video(160), fakes.flat_video(9)[:2]])
    fakes.write_tfds(tmp_path / "d", {"train": [video]}, samples=2 * CLIP.samples)
    spec = IngestSpec(clips_per_file=0)
    clips = list(open_source(str(tmp_path / "d"), "train", CLIP, spec).read(0, 1))
    assert [c.key for c in clips] == ["train/0#0", "train/0#5"]
    assert [int(c.video.mean()) for c in clips] == [40, 160]
    assert all(c.audio.shape == (CLIP.samples,) for c in clips)
    shots = IngestSpec(clips_per_file=0, shots=True)
    *clips, short = open_source(str(tmp_path / "d"), "train", CLIP, shots).read(0, 1)
    assert [c.key for c in clips] == ["train/0#0", "train/0#5"]
    assert short.reason == "short shot: 2 frames, 5 needed"


# ---------------------------------------------------------------------------------------- stores


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twelve textures that move, two copies of one, a still one, a black one; a copy elsewhere."""
    folder = tmp_path_factory.mktemp("clips")
    lines = []

    def add(name: str, video: np.ndarray, split: str = "train") -> None:
        media.write_mp4(folder / name, video, CLIP.rate_hz)
        lines.append(json.dumps({"file": name, "caption": name, "split": split}))

    def clip(seed: int) -> np.ndarray:
        return np.stack([np.roll(texture(seed), 3 * k, 1) for k in range(CLIP.frames)])

    for seed in range(12):
        add(f"m{seed:02d}.mp4", clip(seed))
        if seed == 4:
            add("copy_of_4.mp4", clip(4))
    add("z_copy_of_4.mp4", clip(4))
    add("still.mp4", np.repeat(texture(50)[None], CLIP.frames, 0))
    add("black.mp4", clip(60) // 60)
    add("v.mp4", clip(70), "validation")
    add("v_copy_of_7.mp4", clip(7), "validation")
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def tokenize(source: pathlib.Path, path: pathlib.Path, ingest: IngestSpec, **changes: Any) -> Any:
    spec = StoreSpec(source=str(source), path=str(path), batch=4, clips_per_shard=6, max_skipped=0)
    told: list[str] = []
    result = fakes.tokenize(
        spec.replace(**changes),
        CLIP,
        tokenizer=fakes.MeanTokenizer(),
        text=fakes.LetterEncoder(),
        ingest=ingest,
        progress=False,
        log=told.append,
    )
    return result, told


def keys(path: pathlib.Path, split: str = "train") -> list[str]:
    return [e["key"].decode() for e in reader.dataset(str(path), split).as_numpy_iterator()]


STRICT = IngestSpec(min_motion=0.002, min_brightness=0.05, deduplicate=2)


def test_every_dropped_clip_is_counted_and_no_damage(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result, told = tokenize(source, tmp_path / "s", STRICT)
    train, validation = result.splits["train"], result.splits["validation"]
    reasons = {s.key: filters.kind(s.reason) for s in train.skipped + validation.skipped}
    assert reasons == {
        "still.mp4": "static",
        "black.mp4": "black",
        "m04.mp4": "near duplicate",  # the copies have smaller and greater keys
        "z_copy_of_4.mp4": "near duplicate",
        "v_copy_of_7.mp4": "near duplicate",  # of a clip of another split
    }
    assert (train.clips, validation.clips) == (12, 1)
    assert sorted(keys(tmp_path / "s", "validation")) == ["v.mp4"]
    assert "near duplicate 2" in told[0] and "clips/s" in told[0] and "(read " in told[0]
    again, retold = tokenize(source, tmp_path / "s", STRICT)
    assert again == result and "clips/s" not in retold[0]


def test_duplicates_do_not_depend_on_the_units_of_work(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    orders, skipped = [], []
    for name, changes in (("a", {}), ("b", {"batch": 7, "clips_per_shard": 3})):
        result, _ = tokenize(source, tmp_path / name, STRICT, **changes)
        orders.append(keys(tmp_path / name))
        skipped.append(sorted((s.key, s.reason) for s in result.splits["train"].skipped))
    assert orders[0] == orders[1] and skipped[0] == skipped[1]


def test_another_ingest_is_another_store_and_the_default_says_nothing(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result, _ = tokenize(source, tmp_path / "s", IngestSpec(), splits=("validation",))
    text = (tmp_path / "s" / "manifest.json").read_text()
    assert '"ingest"' not in text and '"dropped"' not in text
    assert manifest.to_json(reader.load_manifest(str(tmp_path / "s"))) == text
    with pytest.raises(UserError, match="ingest.min_motion is 0.0, not 0.002"):
        tokenize(source, tmp_path / "s", STRICT, splits=("validation",))
    strict, _ = tokenize(source, tmp_path / "t", STRICT, splits=("validation",))
    assert reader.load_manifest(str(tmp_path / "t")).plan.ingest == STRICT
    # Of one split alone nothing is a copy.
    assert strict.splits["validation"].clips == result.splits["validation"].clips == 2


def test_several_clips_a_file_fill_a_store(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name, frames in (("a.mp4", 11), ("b.mp4", 4), ("c.mp4", 16)):
        media.write_mp4(folder / name, fakes.flat_video(80, frames), CLIP.rate_hz)
    spec = IngestSpec(clips_per_file=0)
    result, _ = tokenize(folder, tmp_path / "s", spec, splits=("train",), max_skipped=0.4, clips_per_shard=2, batch=2)
    assert sorted(keys(tmp_path / "s")) == ["a.mp4#0", "a.mp4#5", "c.mp4#0", "c.mp4#10", "c.mp4#5"]
    (short,) = result.splits["train"].skipped
    assert (short.key, short.reason) == ("b.mp4#0", "too short: 4 frames, 5 needed")
    assert len(result.splits["train"].shards) == 3


def test_an_empty_split_says_why(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no usable clip: 16 black"):
        tokenize(source, tmp_path / "s", IngestSpec(min_brightness=1.0), splits=("train",))


def test_a_spec_written_before_there_was_ingest_still_loads() -> None:
    values = to_dict(Experiment())
    del values["ingest"]
    assert from_dict(Experiment, values) == Experiment()


@given(st.integers(1, 10**6), st.integers(1, 500))
def test_shards_are_full_and_at_scale_a_multiple_of_256(clips: int, per_shard: int) -> None:
    count = merge.shard_count(clips, per_shard)
    assert count * per_shard >= clips and count <= clips
    assert count == -(-clips // per_shard) or count % 256 == 0 or count == clips
    assert count <= 256 or count % 256 == 0 or count == clips


def test_dropped_counts_kinds_frequent_ones_first() -> None:
    reasons = ["b: x", "static: 1", "a", "static: 2"]
    assert list(filters.dropped(reasons).items()) == [("static", 2), ("a", 1), ("b", 1)]
