"""Raw clips come in a drawn order that is resumed exactly, whatever part fits memory."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.data import pixels
from poet.data.pixels import pixel_batches
from poet.distributed.processes import Share
from poet.spec import ClipSpec, ConditioningSpec, TokenizerTrainSpec, UserError
from poet.store.raw import RawClip, Skipped

CLIP = ClipSpec(frames=5, height=2, width=3)


class Numbered:
    """Clip i holds i in every pixel of frame 0, i and the frame's number after it."""

    fingerprint = "numbered"
    notes = ()

    def __init__(self, size: int, broken: frozenset[int] = frozenset()):
        self.size, self.broken, self.reads = size, broken, []

    def __len__(self) -> int:
        return self.size

    def read(self, start, stop):
        self.reads.append((start, stop))
        for i in range(start, stop):
            if i in self.broken:
                yield Skipped(key=str(i), reason="broken")
            else:
                video = np.full((CLIP.frames, CLIP.height, CLIP.width, 3), i, np.uint8)
                video[..., 0] = np.arange(CLIP.frames)[:, None, None]
                yield RawClip(key=str(i), caption="", video=video, audio=None)


def window_bytes(blocks: int) -> int:
    return blocks * pixels.BLOCK_CLIPS * CLIP.frames * CLIP.height * CLIP.width * 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pixels, "BLOCK_CLIPS", 4)


def open_numbered(monkeypatch, source, **arguments):
    monkeypatch.setattr(pixels, "open_source", lambda path, split, clip: source)
    return pixel_batches({"path": 1}, "train", CLIP, **({"batch": 5, "seed": 3} | arguments))


def ids(batches):
    return [int(v[0, 0, 0, 1]) for b in batches for v in b["video"]]


@pytest.mark.parametrize("blocks", [1, 2, 100])
def test_every_epoch_holds_every_clip_once_in_a_new_order(monkeypatch, blocks):
    source = Numbered(25)
    iterator = open_numbered(monkeypatch, source, window_bytes=window_bytes(blocks))
    epochs = [ids(itertools.islice(iterator, 5)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_a_source_that_fits_memory_is_read_once_for_all_groups(monkeypatch):
    source = Numbered(20)
    for frames in (0, 1):
        iterator = open_numbered(monkeypatch, source, frames=frames)
        list(itertools.islice(iterator, 30))
    assert sum(stop - start for start, stop in source.reads) == 20


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_resuming_at_any_point_continues_bit_for_bit(data):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pixels, "BLOCK_CLIPS", 4)
        size = data.draw(st.integers(5, 30))
        breakable = st.integers(0, 29).filter(lambda i: i % 4)  # no block is broken as a whole
        broken = frozenset(data.draw(st.sets(breakable, max_size=3)))
        blocks = data.draw(st.integers(1, 9))
        source = Numbered(size, broken)

        def open_():
            return open_numbered(monkeypatch, source, frames=2, window_bytes=window_bytes(blocks))

        original = open_()
        list(itertools.islice(original, data.draw(st.integers(0, 20))))
        resumed = open_()
        resumed.set_state(original.get_state())
        for _ in range(4):
            np.testing.assert_array_equal(next(original)["video"], next(resumed)["video"])


def test_the_seed_decides_the_order(monkeypatch):
    source = Numbered(25)
    first, same, other = (ids(itertools.islice(open_numbered(monkeypatch, source, seed=seed), 5)) for seed in (0, 0, 1))
    assert first == same != other


def test_broken_items_are_replaced_by_clips_that_can_be_read(monkeypatch):
    broken = frozenset({1, 2, 9})
    iterator = open_numbered(monkeypatch, Numbered(25, broken), window_bytes=window_bytes(2))
    assert set(ids(itertools.islice(iterator, 10))) == set(range(25)) - broken


def test_excerpts_are_consecutive_frames_from_every_start(monkeypatch):
    iterator = open_numbered(monkeypatch, Numbered(10), frames=3)
    starts = set()
    for batch in itertools.islice(iterator, 20):
        assert batch["video"].shape == (5, 3, CLIP.height, CLIP.width, 3)
        assert batch["video"].dtype == np.uint8
        for video in batch["video"]:
            frames = video[:, 0, 0, 0].tolist()
            assert frames == list(range(frames[0], frames[0] + 3))
            starts.add(frames[0])
    assert starts == {0, 1, 2}


def test_processes_take_their_parts_of_the_same_batches(monkeypatch):
    source = Numbered(24)
    whole = open_numbered(monkeypatch, source, batch=6)
    parts = [open_numbered(monkeypatch, source, batch=6, share=Share((i,), 3)) for i in range(3)]
    for _ in range(9):
        joined = np.concatenate([next(part)["video"] for part in parts])
        np.testing.assert_array_equal(next(whole)["video"], joined)


def test_crops_are_windows_of_the_clip_from_every_place(monkeypatch):
    """Pixel values are their places, so a crop tells where it was cut."""
    places = np.arange(6 * 7).reshape(6, 7)
    clip = CLIP.replace(height=6, width=7)

    class Placed(Numbered):
        def read(self, start, stop):
            for item in super().read(start, stop):
                video = np.broadcast_to(places[None, ..., None], (5, 6, 7, 3)).astype(np.uint8)
                yield dataclasses.replace(item, video=video)

    monkeypatch.setattr(pixels, "open_source", lambda *_: Placed(50))
    batch = next(pixel_batches({"path": 1}, "train", clip, 50, 2, 4, 3, seed=1))["video"]
    assert batch.shape == (50, 2, 4, 3, 3)
    corners = {divmod(int(video[0, 0, 0, 0]), 7) for video in batch}
    for video, (row, column) in ((v, divmod(int(v[0, 0, 0, 0]), 7)) for v in batch):
        want = places[row : row + 4, column : column + 3]
        np.testing.assert_array_equal(video[1, ..., 2], want)
    assert {r for r, _ in corners} == set(range(3)) and {c for _, c in corners} == set(range(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"frames": 6}, r"excerpts of \(6, 2, 3\)"), ({"share": Share((0,), 2)}, "2 equal parts")],
)
def test_impossible_requests_are_refused(monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        open_numbered(monkeypatch, Numbered(25), **arguments)


class Several:
    """Sources of the given sizes and weights; channel 2 of a clip holds its source."""

    def __init__(self, sizes: list[int], weights: list[int]):
        self.sizes, self.weights = sizes, weights

    def open(self, path, split, clip):
        number = int(path)

        class OfSource(Numbered):
            def read(self, start, stop):
                for item in super().read(start, stop):
                    item.video[..., 2] = number
                    yield item

        return OfSource(self.sizes[number])

    def batches(self, monkeypatch, batch: int, **arguments):
        monkeypatch.setattr(pixels, "open_source", self.open)
        sources = {str(number): weight for number, weight in enumerate(self.weights)}
        return pixel_batches(sources, "train", CLIP, batch, seed=3, **arguments)

    def examples(self, iterator, count: int) -> list[tuple[int, int]]:
        """(source, number) of the next examples."""
        clips = (v for batch in iterator for v in batch["video"])
        return [(int(v[0, 0, 0, 2]), int(v[0, 0, 0, 1])) for v in itertools.islice(clips, count)]


@st.composite
def several(draw):
    sizes = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    weights = draw(st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)))
    return Several(sizes, weights)


@given(mixture=several(), batch=st.integers(1, 7), blocks=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_shares_are_exact_and_every_source_gives_each_clip_once_an_epoch(mixture, batch, blocks):
    """An oracle in counts alone: of each repetition, and of each source's own sequence."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pixels, "BLOCK_CLIPS", 4)
        iterator = mixture.batches(monkeypatch, batch, window_bytes=window_bytes(blocks))
        repetition = sum(mixture.weights)
        examples = mixture.examples(iterator, repetition * 12)
    for start in range(0, len(examples), repetition):
        drawn = [source for source, _ in examples[start : start + repetition]]
        assert [drawn.count(source) for source in range(len(mixture.sizes))] == mixture.weights
    for source, size in enumerate(mixture.sizes):
        numbers = [number for of, number in examples if of == source]
        for start in range(0, len(numbers) - size + 1, size):
            assert sorted(numbers[start : start + size]) == list(range(size))


@given(mixture=several(), batch=st.integers(1, 7), taken=st.integers(0, 15))
@settings(max_examples=20, deadline=None)
def test_a_mixture_resumes_bit_for_bit_from_its_position(mixture, batch, taken):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pixels, "BLOCK_CLIPS", 4)
        original, resumed = (
            mixture.batches(monkeypatch, batch, frames=2, window_bytes=window_bytes(2)) for _ in range(2)
        )
        list(itertools.islice(original, taken))
        resumed.set_state(original.get_state())
        for _ in range(4):
            np.testing.assert_array_equal(next(original)["video"], next(resumed)["video"])


def test_the_pattern_of_a_mixture_is_drawn_anew_at_every_repetition(monkeypatch):
    mixture = Several([30, 30], [4, 4])
    sources = [s for s, _ in mixture.examples(mixture.batches(monkeypatch, 8), 80)]
    assert len({tuple(sources[start : start + 8]) for start in range(0, 80, 8)}) > 5


def test_processes_share_a_mixture(monkeypatch):
    mixture = Several([9, 5], [2, 1])
    whole = mixture.batches(monkeypatch, 4)
    parts = [mixture.batches(monkeypatch, 4, share=Share((i,), 2)) for i in range(2)]
    for _ in range(8):
        joined = np.concatenate([next(part)["video"] for part in parts])
        np.testing.assert_array_equal(next(whole)["video"], joined)


@pytest.mark.parametrize("sources", [{}, {"a": 0}, {"a": 2, "b": -1}], ids=str)
def test_a_mixture_of_nothing_is_refused(sources):
    with pytest.raises(UserError, match="at least one folder"):
        pixel_batches(sources, "train", CLIP, batch=2)


def test_a_run_names_its_clips_in_one_way():
    assert TokenizerTrainSpec(source="a").folders == {"a": 1}
    assert TokenizerTrainSpec(sources={"a": 3, "b": 1}).folders == {"a": 3, "b": 1}
    with pytest.raises(UserError, match="TOKENIZER_TRAIN.sources = .*not both"):
        TokenizerTrainSpec(source="a", sources={"b": 1})
    with pytest.raises(UserError, match="TOKENIZER_TRAIN.sources = .*must lie in 1"):
        TokenizerTrainSpec(sources={"b": 0})


def test_a_batch_may_span_epochs(monkeypatch):
    iterator = open_numbered(monkeypatch, Numbered(3), batch=9, seed=-1)
    assert sorted(ids([next(iterator)])) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_an_empty_split_is_refused(monkeypatch):
    with pytest.raises(UserError, match="empty"):
        open_numbered(monkeypatch, Numbered(0))


def test_a_source_without_any_clip_is_refused(monkeypatch):
    iterator = open_numbered(monkeypatch, Numbered(8, frozenset(range(8))))
    with pytest.raises(UserError, match="can be read as a clip"):
        next(iterator)


def test_clips_of_a_tfds_folder_are_read(tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (6, CLIP.frames, CLIP.height, CLIP.width, 3), np.uint8)
    features = tfds.features.FeaturesDict({"video": tfds.features.Tensor(shape=videos.shape[1:], dtype=np.uint8)})
    template = tfds.core.ShardedFileTemplate(
        data_dir=tmp_path, dataset_name="clips", split="train", filetype_suffix="tfrecord"
    )
    file = template.sharded_filepath(shard_index=0, num_shards=1)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for video in videos:
            writer.write(features.serialize_example({"video": video}))
    split = tfds.core.SplitInfo(name="train", shard_lengths=[6], num_bytes=0, filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=tmp_path, features=features, split_infos=[split], check_data=False)
    batch = next(pixel_batches({str(tmp_path): 1}, "train", CLIP, batch=6))["video"]
    assert sorted(v.tobytes() for v in batch) == sorted(v.tobytes() for v in videos)


# ------------------------------------------------------------------------------- derived pictures

DERIVED_CLIP = ClipSpec(frames=5, height=16, width=16)


class WithDepth:
    """Clips of noise; the odd ones come with distances of half their size."""

    fingerprint = "depth"
    notes = ()

    def __len__(self) -> int:
        return 12

    def read(self, start, stop):
        for i in range(start, stop):
            rng = np.random.default_rng(i)
            video = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
            depth = rng.random((5, 8, 8)) if i % 2 else None
            yield RawClip(key=str(i), caption="", video=video, audio=None, depth=depth)


def derived_batches(monkeypatch, share: float, frames: int = 0):
    source = WithDepth()
    monkeypatch.setattr(pixels, "open_source", lambda path, split, clip: source)
    made = pixels.Derived(fraction=share, spec=ConditioningSpec(), factor=(4, 4, 4))
    return pixel_batches({"path": 1}, "train", DERIVED_CLIP, 24, frames, seed=1, derived=made)


def test_a_share_of_the_examples_is_derived_pictures(monkeypatch):
    plain = next(derived_batches(monkeypatch, 0.0))["video"]
    clips = {clip.video.tobytes() for clip in WithDepth().read(0, 12)}
    assert {clip.tobytes() for clip in plain} == clips
    half = next(derived_batches(monkeypatch, 0.5))["video"]
    changed = (half != plain).any((1, 2, 3, 4))
    assert 6 <= changed.sum() <= 18, "of 24, by half a chance"
    every = next(derived_batches(monkeypatch, 1.0))["video"]
    assert (every != plain).any((1, 2, 3, 4)).all() and every.dtype == np.uint8


def test_a_clip_without_depth_never_becomes_a_structure(monkeypatch):
    names = []
    real = pixels.conditioning.make
    monkeypatch.setattr(
        pixels.conditioning,
        "make",
        lambda name, video, spec, **options: (
            names.append((name, options["depth"] is None)) or real(name, video, spec, **options)
        ),
    )
    batches = derived_batches(monkeypatch, 1.0)
    for _ in range(3):
        next(batches)
    assert ("structure", False) in names and ("structure", True) not in names
    assert len({name for name, _ in names}) == 5


def test_derived_examples_are_told_by_their_place(monkeypatch):
    first = derived_batches(monkeypatch, 0.7)
    batches = [next(first)["video"] for _ in range(3)]
    again = derived_batches(monkeypatch, 0.7)
    next(again)
    np.testing.assert_array_equal(next(again)["video"], batches[1])


def test_derived_images_have_holes_alone(monkeypatch):
    """Of one frame there is no motion to show and none to continue."""
    assert next(derived_batches(monkeypatch, 1.0, frames=1))["video"].shape == (24, 1, 16, 16, 3)
