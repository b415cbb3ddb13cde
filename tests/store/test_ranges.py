"""Units of work: long files are cut, nothing is lost or doubled, and nobody's bytes depend on it."""

from __future__ import annotations

import pathlib
import shutil
import tarfile
from typing import Any

import numpy as np
import pytest
import store_fakes as fakes
from hypothesis import given
from hypothesis import strategies as st

from poet import media
from poet.spec import IngestSpec, StoreSpec, UserError
from poet.store import ranges, reader, remote, runners, stages, tfds_source, writer
from poet.store.manifest import Plan
from poet.store.raw import Part, RawClip, Skipped
from poet.store.sources import open_source

CLIP = fakes.CLIP
ALL = IngestSpec(clips_per_file=0)
CLIPS, FILMS = 20, 3


def plan(batch: int = 4, per_shard: int = 256, ingest: IngestSpec = ALL) -> Plan:
    text = writer.manifests.text_info(fakes.LetterEncoder())
    return Plan(
        items={},
        sources={},
        clip=CLIP,
        streams={},
        text=text,
        clips_per_shard=per_shard,
        batch=batch,
        seed=0,
        ingest=ingest,
    )


@given(
    st.lists(st.integers(1, 400), max_size=40), st.integers(1, 40), st.integers(1, 300), st.sampled_from([0, 7, 500])
)
def test_ranges_tile_the_items_and_their_clips(clips: list[int], batch: int, per_shard: int, limit: int) -> None:
    made = plan(batch, per_shard, IngestSpec(clips_per_file=limit))
    found = list(ranges.plan_ranges("train", clips, made, pathlib.Path("x")))
    most = ranges.size(made)
    assert most % batch == 0 and most < min(per_shard, ranges.CLIPS) + batch
    assert all(r.clips <= most for r in found) and sum(r.clips for r in found) == sum(clips)
    assert len({r.file for r in found}) == len(found)
    at = 0
    for item in found:
        if item.part is None or item.part.first == 0:
            assert item.start == at, "in order, without a gap"
            at = item.stop
        if item.part:
            assert item.stop == item.start + 1 and item.part.first % most == 0
            last = item.part.first + most >= clips[item.start]
            assert item.part.stop == ((limit or None) if last else item.part.first + most)
    assert at == len(clips)


def test_three_films_of_eighty_clips_are_six_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, they were one."""
    monkeypatch.undo()
    made = list(ranges.plan_ranges("train", [80] * 3, plan(batch=32), pathlib.Path("x")))
    assert [(r.start, r.clips) for r in made] == [(0, 64), (0, 16), (1, 64), (1, 16), (2, 64), (2, 16)]


def test_where_shots_are_counted_no_file_is_cut() -> None:
    made = plan(ingest=IngestSpec(shots=True, clips_per_file=100))
    (item,) = ranges.plan_ranges("train", [100], made, pathlib.Path("x"))
    assert item.part is None


# ------------------------------------------------------------------------------------------ films


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films of a fifth of the usual length want ranges that are short too."""
    monkeypatch.setattr(ranges, "CLIPS", 16)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three films of twenty clips; every frame tells its number, and so does the sound."""
    folder = tmp_path_factory.mktemp("films")
    frames = CLIPS * CLIP.frames + 2
    number = np.arange(frames)
    video = np.zeros((frames, 16, 16, 3), np.uint8)
    video[:, :, :8] = (40 + number % 20 * 8)[:, None, None, None]
    video[:, :, 8:] = (40 + number // 20 * 8)[:, None, None, None]
    samples = round(frames / CLIP.rate_hz * CLIP.sample_rate_hz)
    sound = (8000 * np.sin(np.cumsum(np.linspace(0.05, 0.6, samples)))).astype(np.int16)
    media.write_mp4(folder / "a.mp4", video, CLIP.rate_hz, sound, CLIP.sample_rate_hz)
    for name in ("b.mp4", "c.mp4"):
        shutil.copy(folder / "a.mp4", folder / name)
    return folder


def spec(source: pathlib.Path, path: pathlib.Path, **changes: Any) -> StoreSpec:
    made = StoreSpec(source=str(source), path=str(path), splits=("train",), batch=4, max_skipped=0.0)
    return made.replace(**changes)


def tokenize(store: StoreSpec, killed_at: int = -1, **given: Any) -> Any:
    tokenizer = fakes.MeanTokenizer(killed_at=killed_at)
    given = {"ingest": ALL, "progress": False, **given}
    done = fakes.tokenize(
        store,
        CLIP,
        tokenizer=tokenizer,
        text=fakes.LetterEncoder(),
        audio=fakes.LoudnessTokenizer(),
        audio_levels=2,
        **given,
    )
    return done, tokenizer.batches


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_parts_of_a_film_are_its_clips(films: pathlib.Path) -> None:
    source = open_source(str(films), "train", CLIP, ALL)
    assert source.clips() == [CLIPS] * FILMS
    whole = list(source.read(1, 2))
    parts = [Part(first=0, stop=8), Part(first=8, stop=16), Part(first=16, stop=None)]
    found = [clip for part in parts for clip in source.read(1, 2, part)]
    assert [c.key for c in found] == [f"b.mp4#{5 * k}" for k in range(CLIPS)]
    for clip, same in zip(found, whole, strict=True):
        assert clip.key == same.key and np.array_equal(clip.video, same.video)
        assert np.array_equal(clip.audio, same.audio)
    for number in (3, 52, 99):
        frame = found[number // CLIP.frames].video[number % CLIP.frames].astype(int)
        assert abs(frame[:, :7].mean() - (40 + number % 20 * 8)) < 5, "a frame tells its number"
        assert abs(frame[:, 9:].mean() - (40 + number // 20 * 8)) < 5


def test_a_kill_keeps_the_parts_that_were_done_and_changes_no_byte(films: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Before, the three films were one range: a kill in its last batch lost all 15 batches."""
    done, batches = tokenize(spec(films, tmp_path / "whole"))
    assert done.splits["train"].clips == FILMS * CLIPS and batches == 15
    assert not done.splits["train"].skipped
    for killed_at in (3, 6, 14):
        store = spec(films, tmp_path / str(killed_at))
        with pytest.raises(fakes.Killed):
            tokenize(store, killed_at=killed_at)
        _, rest = tokenize(store)
        # Ranges of 4 batches and of 1, film by film.
        lost = killed_at - max(n for n in (0, 4, 5, 9, 10, 14) if n <= killed_at)
        assert rest == 15 - killed_at + lost
        assert contents(tmp_path / str(killed_at)) == contents(tmp_path / "whole")


def test_parts_of_a_tfds_example_are_its_clips(tmp_path: pathlib.Path) -> None:
    video = np.repeat(np.arange(38, dtype=np.uint8), 16 * 16 * 3).reshape(38, 16, 16, 3)
    fakes.write_tfds(tmp_path / "d", {"train": [video, video[:9]]}, samples=5 * CLIP.samples)
    source = open_source(str(tmp_path / "d"), "train", CLIP, ALL)
    whole = list(source.read(0, 1))
    parts = [Part(first=0, stop=4), Part(first=4, stop=6), Part(first=6, stop=None), Part(first=8, stop=None)]
    found = [clip for part in parts for clip in source.read(0, 1, part)]
    assert [c.key for c in found] == [c.key for c in whole] == [f"train/0#{5 * k}" for k in range(7)]
    for clip, same in zip(found, whole, strict=True):
        assert np.array_equal(clip.video, same.video) and np.array_equal(clip.audio, same.audio)


def test_examples_of_tfds_are_as_long_as_their_bytes(tmp_path: pathlib.Path) -> None:
    fakes.write_tfds(tmp_path / "d", {"train": [fakes.flat_video(9, 50)] * 2})
    source = open_source(str(tmp_path / "d"), "train", CLIP, ALL)
    assert source.clips() == [1, 1], "a data set that does not tell its bytes"
    info = tmp_path / "d" / "dataset_info.json"
    info.write_text(info.read_text().replace('"numBytes": "1"', f'"numBytes": "{2 * 50 * 16 * 16 * 3}"'))
    tfds_source._tfds_builder.cache_clear()
    assert open_source(str(tmp_path / "d"), "train", CLIP, ALL).clips() == [10, 10]
    assert open_source(str(tmp_path / "d"), "train", CLIP).clips() == [1, 1]


class FakeBar:
    def __init__(self, total: int) -> None:
        self.total, self.n, self.told = total, 0, ""

    def update(self, count: int) -> None:
        self.n += count

    def set_description(self, text: str) -> None:
        self.told = text


def test_the_bar_counts_clips_and_ends_full(films: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "d"
    shutil.copytree(films, folder)
    (folder / "b.mp4").write_bytes(b"no video")  # promises a clip, gives none
    source = open_source(str(folder), "train", CLIP, ALL)
    made = plan().replace(items={"train": 3}, streams={})
    job = writer.make_job(tmp_path / "s", made, {"train": source}, max_skipped=0.03)
    bar = FakeBar(sum(item.clips for item in job.ranges))
    assert bar.total == 2 * CLIPS + 1
    shown = []
    encoders = fakes.encoders(video=fakes.MeanTokenizer(), text=fakes.LetterEncoder())
    told = runners.Bar(job, bar)
    told_clips = told.clips
    told.clips = lambda count: (told_clips(count), shown.append(bar.n))
    runners.Serial(encoders)(job, job.ranges, told)
    assert bar.n == bar.total == 2 * CLIPS + 1 and bar.told == "train, 1 skipped"
    assert len(shown) == 11, "it moves within a film"
    # One of 41 clips is less than three in a hundred, one of three files would be a third.
    job = writer.make_job(tmp_path / "t", made, {"train": source}, max_skipped=0.02)
    with pytest.raises(UserError, match="1 of the 41 clips"):
        runners.Serial(encoders)(job, job.ranges, runners.Bar(job, FakeBar(41)))


def test_a_header_is_believed_no_further_than_the_bytes(films: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(films), "train", CLIP, ALL)
    size = (films / "a.mp4").stat().st_size
    monkeypatch.setattr(media, "stated_seconds", lambda file: 1e9)
    assert max(source.clips()) <= size
    assert max(open_source(str(films), "train", CLIP, IngestSpec(clips_per_file=7)).clips()) == 7
    monkeypatch.setattr(media, "stated_seconds", lambda file: 0.0)
    assert source.clips() == [1] * FILMS
    beyond = list(source.read(0, 1, Part(first=4000, stop=4064)))
    assert not beyond, "what a header promises and the file does not hold is no damage"


def test_damage_in_a_film_is_told_by_every_part_that_it_costs(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (CLIPS * CLIP.frames, 16, 16, 3), np.uint8)
    media.write_mp4(folder / "a.mp4", noise, CLIP.rate_hz)
    whole = (folder / "a.mp4").read_bytes()
    half = len(whole) // 2
    (folder / "a.mp4").write_bytes(whole[:half] + bytes(4000) + whole[half + 4000 :])
    items = list(open_source(str(folder), "train", CLIP, ALL).read(0, 1))
    assert [isinstance(item, Skipped) for item in items] == [False] * (len(items) - 1) + [True]
    done, _ = tokenize(spec(folder, tmp_path / "s", max_skipped=0.5))
    first, *behind = done.splits["train"].skipped
    assert (first.key, first.reason) == (items[-1].key, items[-1].reason)
    assert len(behind) <= 1, "there is one part behind it"
    assert done.splits["train"].clips == len(items) - 1 > 5


def test_a_film_in_a_tar_is_copied_once_for_its_parts(
    films: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(films / "a.mp4", "a.mp4")
    copies = []
    copy = remote._copy
    monkeypatch.setattr(
        remote, "_kept_copy", remote.functools.lru_cache(maxsize=1)(lambda *a: copies.append(a) or copy(*a))
    )
    done, _ = tokenize(spec(tmp_path / "t.tar", tmp_path / "s"))
    assert done.splits["train"].clips == CLIPS and len(copies) == 1
    stored = reader.dataset(str(tmp_path / "s"), "train").as_numpy_iterator()
    assert {e["key"].decode() for e in stored} == {f"t/a#{5 * k}" for k in range(CLIPS)}


def test_shots_of_a_film_in_parts_are_whole_shots(tmp_path: pathlib.Path) -> None:
    """No clip crosses a cut; a part may lose the clip that its edge would cut, and no other."""
    colours = np.array([(230, 30, 30), (30, 230, 30), (30, 30, 230)], np.uint8)
    lengths = [7, 12, 5, 9, 17, 6] * 4
    shot_of = np.repeat(np.arange(len(lengths)), lengths)
    video = np.broadcast_to(colours[shot_of % 3][:, None, None], (len(shot_of), 16, 16, 3))
    media.write_mp4(tmp_path / "d" / "a.mp4", video, CLIP.rate_hz)
    source = open_source(str(tmp_path / "d"), "train", CLIP, IngestSpec(shots=True, clips_per_file=0))
    made = ranges.plan_ranges("train", source.clips(), plan(), tmp_path)
    parts = [item.part for item in made]
    assert len(parts) == 3
    whole = {c.key for c in source.read(0, 1) if isinstance(c, RawClip)}
    found = [c for part in parts for c in source.read(0, 1, part) if isinstance(c, RawClip)]
    for clip in found:
        first = int(clip.key.partition("#")[2])
        assert len(set(shot_of[first : first + CLIP.frames])) == 1
        assert abs(clip.video.astype(int) - colours[shot_of[first] % 3]).max() < 60
    starts = sorted(int(c.key.partition("#")[2]) for c in found)
    assert min(np.diff(starts)) >= CLIP.frames, "and none is taken twice"
    assert len(whole) - len(parts) < len(found) <= len(whole) + len(parts)


# ----------------------------------------------------------------------------------------- stages


def test_compiling_is_no_part_of_a_stage() -> None:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def program(x: Any) -> Any:
        for _ in range(30):
            x = jnp.tanh(x @ x)
        return x

    spent = stages.Stages()
    for _ in range(2):
        with spent.timed("encode video"):
            np.asarray(program(np.eye(7, dtype=np.float32)))
    assert spent.seconds[stages.START] > 3 * spent.seconds["encode video"] > 0


def test_the_report_splits_the_time_and_leaves_compiling_out(films: pathlib.Path, tmp_path: pathlib.Path) -> None:
    told: list[str] = []
    tokenize(spec(films, tmp_path / "s"), log=told.append)
    for stage in stages.STAGES:
        assert f"{stage} " in told[-1]
    assert "clips/s and process" in told[-1]
